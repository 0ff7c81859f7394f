"""Models on the Hugging Face Hub: the files that are loaded are downloaded, and no others."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ddpm_sa.errors import NotFoundError

WEIGHTS_NAME = "diffusion_pytorch_model"


class HubOptions(TypedDict, total=False):
    """Which files of a repository are opened, and how they are downloaded.

    Attributes:
        variant: Of the weights, such as "fp16": diffusion_pytorch_model.fp16.safetensors.
        use_safetensors: True reads safetensors alone, False pickled weights alone, and None the
            pickled ones where there are no others. Pickles are read as tensors: no code is run.
        revision: A branch, a tag or a commit of the repository; None for its main branch.
        token: An access token, for private and gated repositories; None for the one that
            `hf auth login` stored, False for none.
        local_files_only: Whether to open what was downloaded before and not ask the Hub.
        cache_dir: Where downloads are kept; None for the Hub client's folder.
        force_download: Whether to download again what was downloaded before.
    """

    variant: str | None
    use_safetensors: bool | None
    revision: str | None
    token: str | bool | None
    local_files_only: bool
    cache_dir: str | Path | None
    force_download: bool


def local_folder(
    folder_or_repo: str | os.PathLike,
    places: Sequence[str],
    configs: Sequence[str] = (),
    options: HubOptions | None = None,
    *,
    weights: bool = True,
) -> Path:
    """Return a local folder as it is, or download a repository into the cache.

    Args:
        folder_or_repo: A folder, or the name of a repository.
        places: Subfolders that may hold the network; "" is the repository's root.
        configs: Further JSON files to download if they exist.
        options: Which weights to download, and how; other keys are left alone.
        weights: Whether to download the weights too; False for the JSON files alone.

    Raises:
        NotFoundError: If it is neither a local folder nor a repository, or has no such revision.
    """
    folder = Path(folder_or_repo)
    if folder.exists():
        return folder
    options = options or {}
    networks = [f"{place}/config.json".lstrip("/") for place in places]

    def download(files: Sequence[str]) -> Path:
        path = snapshot_download(
            str(folder_or_repo),
            allow_patterns=[*networks, *configs, *files],
            revision=options.get("revision"),
            token=options.get("token"),
            local_files_only=options.get("local_files_only", False),
            cache_dir=options.get("cache_dir"),
            force_download=options.get("force_download", False),
        )
        return Path(path)

    try:
        if not weights:
            return download([])
        # Old repositories have no other weights than pickles.
        formats = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}
        *others, last = formats[options.get("use_safetensors")]
        for suffix in others:
            files = _weights(places, suffix, options.get("variant"))
            path = download(files)
            if any(any(path.glob(name)) for name in files):
                return path
        return download(_weights(places, last, options.get("variant")))
    except RevisionNotFoundError as error:
        raise NotFoundError(
            f"{folder_or_repo} has no revision {options.get('revision')!r}"
        ) from error
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"{folder_or_repo} is not a local folder, and {_why_not(error, options)}"
        ) from error


def _why_not(error: Exception, options: HubOptions) -> str:
    """Why a repository could not be downloaded, in a user's words."""
    if isinstance(error, HFValidationError):
        return "no repository of the Hugging Face Hub can have that name (owner/name)"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hugging Face Hub has no such repository, or it is private and you are not logged "
            "in (`hf auth login`)"
        )
    if isinstance(error, LocalEntryNotFoundError):
        local = options.get("local_files_only")
        asked = "was not asked (local_files_only)" if local else "cannot be reached"
        return f"it was not downloaded before, and the Hugging Face Hub {asked}"
    return f"was not found on the Hugging Face Hub: {' '.join(str(error).split())}"


def _weights(places: Sequence[str], suffix: str, variant: str | None) -> list[str]:
    """Patterns of the network's weights in one format, in one file or in shards."""
    infix = f".{variant}" if variant else ""
    names = [
        f"{WEIGHTS_NAME}{infix}.{suffix}",
        f"{WEIGHTS_NAME}{infix}-?????-of-?????.{suffix}",
        f"{WEIGHTS_NAME}.{suffix}.index{infix}.json",
        # As diffusers named the shards of a variant until 2024.
        f"{WEIGHTS_NAME}-?????-of-?????{infix}.{suffix}",
        f"{WEIGHTS_NAME}.{suffix}{infix}.index.json",
    ]
    return [f"{place}/{name}".lstrip("/") for place in places for name in dict.fromkeys(names)]
