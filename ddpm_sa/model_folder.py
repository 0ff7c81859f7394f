"""A model folder: found, read, and written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import create_repo, snapshot_download, upload_folder
from PIL import Image

from ddpm_sa.image_format import FILE_NAME, ImageFormat
from ddpm_sa.model_card import model_card

GRID_NAME = "samples.png"
OUR_FILES = {
    "model_index.json",
    "unet",
    "scheduler",
    FILE_NAME,
    "README.md",
    GRID_NAME,
}
# In the folder of each, or at the root, as in old repositories.
NETWORK_CONFIGS = ("unet/config.json", "config.json")
SCHEDULER_CONFIGS = ("scheduler/scheduler_config.json", "scheduler_config.json")


# What is fetched of a hub repository, which may hold much else: other networks, other formats, and
# variants such as fp16.
CONFIGS = (*NETWORK_CONFIGS, *SCHEDULER_CONFIGS, "model_index.json", FILE_NAME)


def _weights(suffix: str) -> list[str]:
    """Patterns of the network's weights in one format, in one file or in shards."""
    name = "diffusion_pytorch_model"
    endings = (f".{suffix}", f"-?????-of-?????.{suffix}", f".{suffix}.index.json")
    return [f"{place}{name}{ending}" for place in ("unet/", "") for ending in endings]


def local_folder(folder_or_repo: str | os.PathLike) -> Path:
    """The folder itself, without a look at the network; or a hub repository's, in the cache.

    Raises:
        ValueError: If there is neither.
    """
    folder = Path(folder_or_repo)
    if folder.exists():
        return folder
    repo = str(folder_or_repo)
    try:
        path = Path(snapshot_download(repo, allow_patterns=[*CONFIGS, *_weights("safetensors")]))
        if not any(path.glob("unet/*.safetensors")) and not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(repo, allow_patterns=[*CONFIGS, *_weights("bin")]))
        return path
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder_or_repo} is not a local folder, and was not found on the Hugging Face Hub: "
            f"{error}"
        ) from error


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of the named files that the folder has.

    Raises:
        ValueError: If it has none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} is no model folder: it has neither {' nor '.join(names)}")


def load_scheduler(folder: Path) -> Any:
    """The diffusers scheduler of a model folder.

    The folder may come from anybody, so the name in it chooses among schedulers and nothing else:
    DiffusionPipeline.from_pretrained, for one, would run Python files of the folder.

    Raises:
        ValueError: If there is none, or diffusers has none of that name, or cannot use it here.
    """
    path = first_file(folder, SCHEDULER_CONFIGS)
    try:
        name = json.loads(path.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no scheduler's configuration: {error}") from error
    kind: Any = getattr(diffusers, str(name), None)
    # Where a package is missing, diffusers has a stand-in of the same name.
    missing = getattr(kind, "_backends", None)
    if str(name).endswith("Scheduler") and missing:
        raise ValueError(f"{path} is of {name}, which needs {' and '.join(missing)}")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{path} is of {name!r}, which is no scheduler of diffusers")
    return kind.from_pretrained(path.parent)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well.

    Raises:
        ValueError: If `folder` holds anything that is no part of a model.
    """
    folder = folder.absolute()
    strange = (
        sorted({entry.name for entry in folder.iterdir()} - OUR_FILES) if folder.exists() else []
    )
    if strange:
        raise ValueError(f"{folder} holds {strange[0]}, which is no part of a model; not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def write_card(
    folder: Path,
    image_format: ImageFormat,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    num_parameters: int,
    grid: Image.Image | None = None,
    about: str = "",
) -> None:
    """Write README.md, and the picture of samples that it shows.

    Args:
        folder: The model folder.
        grid: The picture, if there is one.
        about: Further text in Markdown.
        image_format, unet, scheduler, num_parameters: As of `model_card`.
    """
    if grid is not None:
        grid.save(folder / GRID_NAME)
    text = model_card(image_format, unet, scheduler, num_parameters, grid and GRID_NAME)
    whole = f"{text}\n{about}" if about else text
    (folder / "README.md").write_text(whole, encoding="utf-8")


def upload(folder: Path, repo_id: str, private: bool | None, token: str | None) -> str:
    """Put a model folder into a repository of the hub, made if there is none; returns its URL.

    Raises:
        ValueError: If the hub cannot be reached or refuses.
    """
    try:
        url = create_repo(repo_id, private=private, token=token, exist_ok=True)
        upload_folder(repo_id=url.repo_id, folder_path=folder, token=token)
    # Its HTTP library has errors of its own, others from version to version.
    except Exception as error:
        raise ValueError(f"{repo_id} could not be pushed to the hub: {error}") from error
    return str(url)
