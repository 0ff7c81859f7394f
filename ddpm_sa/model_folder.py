"""Find, read, replace and upload model folders."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, upload_folder
from PIL import Image

from ddpm_sa.errors import UserError
from ddpm_sa.files import hub
from ddpm_sa.files.atomic_files import flush
from ddpm_sa.files.hub import HubOptions
from ddpm_sa.image_format import FILE_NAME, ImageFormat
from ddpm_sa.model_card import model_card
from ddpm_sa.models.network import Network
from ddpm_sa.models.unet import UNet
from ddpm_sa.samplers.loading import read_scheduler

GRID_NAME = "samples.png"
OUR_FILES = {
    "model_index.json",
    "unet",
    "scheduler",
    FILE_NAME,
    "README.md",
    GRID_NAME,
}
# Suffixes of hidden folders beside a model that is being replaced.
PARTIAL, EARLIER = ".partial", ".earlier"
# In its own folder, or at the root as in old repositories.
NETWORK_CONFIGS = ("unet/config.json", "config.json")
SCHEDULER_CONFIGS = ("scheduler/scheduler_config.json", "scheduler_config.json")


def local_folder(
    folder_or_repo: str | os.PathLike,
    options: HubOptions | None = None,
    *,
    weights: bool = True,
) -> Path:
    """Return a local folder as it is, or download a Hub repository's model into the cache.

    Args:
        folder_or_repo: A folder, or the name of a repository.
        options: See `hub.local_folder`.
        weights: Whether to download the weights too; False for the configurations alone.

    Raises:
        UserError: If it is neither a local folder nor a repository.
    """
    folder = Path(folder_or_repo)
    if not folder.exists() and set_aside(folder).is_dir():
        return set_aside(folder)  # a process was killed while it replaced the folder
    configs = (*SCHEDULER_CONFIGS, "model_index.json", FILE_NAME)
    return hub.local_folder(folder_or_repo, ("unet", ""), configs, options, weights=weights)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: a network makes it a model, whatever else it holds."""
    return (folder / "config.yaml").is_file() and not any(
        (folder / name).exists() for name in NETWORK_CONFIGS
    )


def model_of_run(run: Path) -> Path | None:
    """The model that a run has written, or None."""
    model = run / "model"
    return model if model.is_dir() or set_aside(model).is_dir() else None


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the named files that exists in the folder.

    Raises:
        ValueError: If none of them exists.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} is not a model folder: it has neither {' nor '.join(names)}")


def load_scheduler(folder: Path) -> Any:
    """Load the diffusers scheduler of a model folder; see `ddpm_sa.samplers.loading`.

    Raises:
        ValueError: If there is none, or its configuration cannot be used.
    """
    return read_scheduler(first_file(folder, SCHEDULER_CONFIGS))


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` if the block raises no error.

    Folders cannot be exchanged in one step everywhere: for a moment the earlier model has another
    name, `set_aside`, where `local_folder` finds it if the process is killed then.

    Raises:
        ValueError: If `folder` holds a file that is not part of a model.
    """
    folder = folder.absolute()
    restore(folder)
    if folder.exists() and (foreign := _foreign_files(folder)):
        raise UserError(
            f"{folder} holds {foreign[0]}, which is not part of a model, so it is not replaced; "
            "choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    earlier = set_aside(folder)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=PARTIAL
    ) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            flush(path)
        if folder.exists():
            folder.rename(earlier)
        try:
            new.rename(folder)
        except BaseException:
            if not folder.exists() and earlier.exists():
                earlier.rename(folder)
            raise
        flush(folder.parent)
    _remove_earlier(folder)


def set_aside(folder: Path) -> Path:
    """The name of a model folder while another takes its place."""
    return folder.with_name(f".{folder.name}{EARLIER}")


def restore(folder: Path) -> None:
    """Finish what a killed process began: put an earlier model back, or remove it if replaced."""
    if not folder.exists() and set_aside(folder).is_dir():
        set_aside(folder).rename(folder)
    _remove_earlier(folder)


def restore_all(parent: Path, names: str) -> None:
    """`restore` every model of a folder whose name matches the pattern."""
    for path in parent.glob(f".{names}{EARLIER}"):
        restore(path.with_name(path.name[1:].removesuffix(EARLIER)))


def _remove_earlier(folder: Path) -> None:
    """Remove a model that was replaced, unless it has become something else."""
    earlier = set_aside(folder)
    if folder.exists() and earlier.is_dir() and not _foreign_files(earlier):
        shutil.rmtree(earlier)


def _foreign_files(folder: Path) -> list[str]:
    return sorted({entry.name for entry in folder.iterdir()} - OUR_FILES)


def write_card(
    folder: Path,
    image_format: ImageFormat,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    num_parameters: int,
    grid: Image.Image | None = None,
    about: str = "",
    architecture: type[Network] = UNet,
) -> None:
    """Write README.md, and the image grid of samples that it shows.

    Args:
        folder: The model folder.
        grid: Image grid of samples, or None.
        about: Text in Markdown to append.
        image_format, unet, scheduler, num_parameters, architecture: As in `model_card`.
    """
    if grid is not None:
        grid.save(folder / GRID_NAME)
    name = grid and GRID_NAME
    text = model_card(image_format, unet, scheduler, num_parameters, name, architecture)
    if about:
        text += f"\n{about}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def upload(folder: Path, repo_id: str, private: bool | None, token: str | None) -> str:
    """Upload a model folder to a Hub repository, which is created if needed; return its URL.

    Raises:
        ValueError: If the Hub cannot be reached or refuses the upload.
    """
    try:
        url = create_repo(repo_id, private=private, token=token, exist_ok=True)
        upload_folder(repo_id=url.repo_id, folder_path=folder, token=token)
    # The client's HTTP library, and so the class of its errors, changes between versions.
    except Exception as error:
        raise UserError(f"{repo_id} could not be pushed to the Hub: {error}") from error
    return str(url)
