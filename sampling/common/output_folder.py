"""Output folders of the programs, held by one at a time, and the check for matplotlib."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ddpm_sa.distributed import by_process_0
from ddpm_sa.errors import UserError
from ddpm_sa.files.folder_lock import hold_folder, lock_in


def hold_output_folder(
    output_dir: str, shared: bool = False, lock_of: Callable[[Path], Path] = lock_in
) -> AbstractContextManager[None]:
    """Hold the folder that a program writes, while the block writes it; it is created.

    Args:
        output_dir: The folder.
        shared: Whether processes have joined to share the work: process 0 then holds it for all.
        lock_of: `lock_in`, or `lock_beside` for a folder that the program itself creates.

    Raises:
        ValueError: If another process holds it, or it cannot be written.
    """
    take = by_process_0 if shared else _take_alone
    problem = f"output_dir={output_dir} cannot be written"
    return hold_folder(Path(output_dir), lock_of, partial(take, problem=problem))


def _take_alone(action: Callable[[], None], problem: str) -> None:
    try:
        action()
    except OSError as error:
        raise UserError(f"{problem}: {error.strerror}") from error


def require_matplotlib() -> None:
    """Check early that figures can be drawn.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"the figures need {error.name}: pip install {error.name}") from error
