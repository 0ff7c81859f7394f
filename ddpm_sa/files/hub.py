"""Models on the Hugging Face Hub: the files that are loaded are downloaded, and no others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ddpm_sa.errors import UserError

WEIGHTS_NAME = "diffusion_pytorch_model"


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Options of a download from the Hub.

    Attributes:
        revision: A branch, a tag or a commit; None for the main branch.
        token: An access token, for private and gated repositories; None for the one that
            `hf auth login` stored, False for none.
        local_files_only: Whether to open what was downloaded before and not ask the Hub.
        cache_dir: Where downloads are kept; None for the Hub client's folder.
    """

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False
    cache_dir: str | Path | None = None


def local_folder(
    folder_or_repo: str | os.PathLike,
    places: Sequence[str],
    configs: Sequence[str] = (),
    variant: str | None = None,
    options: HubOptions | None = None,
    *,
    weights: bool = True,
) -> Path:
    """Return a local folder as it is, or download a repository into the cache.

    Args:
        folder_or_repo: A folder, or the name of a repository.
        places: Subfolders that may hold the network; "" is the repository's root.
        configs: Further JSON files to download if they exist.
        variant: Of the weights, such as "fp16"; others are not downloaded.
        options: How to download.
        weights: Whether to download the weights too; False for the JSON files alone.

    Raises:
        UserError: If it is neither a local folder nor a repository, or has no such revision.
    """
    folder = Path(folder_or_repo)
    if folder.exists():
        return folder
    options = options or HubOptions()
    networks = [f"{place}/config.json".lstrip("/") for place in places]

    def download(suffix: str | None) -> Path:
        files = _weights(places, suffix, variant) if suffix else []
        patterns = [*networks, *configs, *files]
        path = snapshot_download(
            str(folder_or_repo),
            allow_patterns=patterns,
            revision=options.revision,
            token=options.token,
            local_files_only=options.local_files_only,
            cache_dir=options.cache_dir,
        )
        return Path(path)

    try:
        path = download("safetensors" if weights else None)
        if not weights:
            return path
        if any(any(path.glob(name)) for name in _weights(places, "safetensors", variant)):
            return path
        # Old repositories have no other weights than pickles; they are read as tensors alone.
        return download("bin")
    except RevisionNotFoundError as error:
        raise UserError(f"{folder_or_repo} has no revision {options.revision!r}") from error
    except (OSError, ValueError) as error:
        raise UserError(
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
        asked = (
            "was not asked (local_files_only)" if options.local_files_only else "cannot be reached"
        )
        return f"it was not downloaded before, and the Hugging Face Hub {asked}"
    return f"was not found on the Hugging Face Hub: {' '.join(str(error).split())}"


def _weights(places: Sequence[str], suffix: str, variant: str | None) -> list[str]:
    """Patterns of the network's weights in one format, in one file or in shards."""
    infix = f".{variant}" if variant else ""
    names = [
        f"{WEIGHTS_NAME}{infix}.{suffix}",
        f"{WEIGHTS_NAME}{infix}-?????-of-?????.{suffix}",
        f"{WEIGHTS_NAME}.{suffix}.index{infix}.json",
    ]
    return [f"{place}/{name}".lstrip("/") for place in places for name in names]
