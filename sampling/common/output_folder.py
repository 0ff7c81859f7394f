"""Output folders of the programs, and the check for matplotlib."""

import os
from pathlib import Path

from ddpm_sa.errors import UserError


def make_output_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and check that it can be written to.

    Raises:
        ValueError: If it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be created: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir={folder} is not writable")
    return folder


def require_matplotlib() -> None:
    """Check early that figures can be drawn.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"the figures need {error.name}: pip install {error.name}") from error
