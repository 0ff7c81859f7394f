"""Read files of weights without executing any code in them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_sa.checkpoints.entries import Entry, find_entry
from ddpm_sa.errors import UserError

# What the readers below raise for a damaged file, or one of another format.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, SafetensorError, zipfile.BadZipFile)


def read_weights(path: Path, entry: str | None = None, kind: str = "auto") -> Entry:
    """Read the weights of a network from a file; see `ddpm_sa.checkpoints.entries.find_entry`.

    Args:
        path: A .pt, .pth, .ckpt or .bin of torch.save, a .safetensors, or an .npz.
        entry: Where in the file they are, for a file with several networks.
        kind: Of which program they are; "auto" detects it from the names.

    Raises:
        ValueError: If it is not such a file, cannot be read, or has the weights of no network or
            of several.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path} has an unknown suffix; known are {', '.join(_READERS)}")
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        content = _READERS[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or contains other objects than weights, and such pickles are not "
            "opened; torch.save the network's state_dict() where the file was made"
        ) from error
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read: {reason}") from error
    return find_entry(content, str(path), entry, kind)


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about a newer protocol, which either fails below or is harmless
        try:
            # Mapped, so that of a large checkpoint only the chosen weights are read; files in the
            # format before torch 1.6 cannot be.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError):
            raise
        # On a file that is not a pickle, the unpickler may raise anything.
        except Exception as error:
            raise pickle.UnpicklingError(str(error)) from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"": content}


_READERS = {
    ".pt": _unpickle,
    ".pth": _unpickle,
    ".ckpt": _unpickle,
    ".bin": _unpickle,
    ".safetensors": load_file,
    ".npz": _read_npz,
}
