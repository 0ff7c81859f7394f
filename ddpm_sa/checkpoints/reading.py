"""Read files of weights without executing any code in them."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm_sa.errors import UserError

# What the readers below raise for a damaged file, or one of another format.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, SafetensorError, zipfile.BadZipFile)


def read_weights(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a file by name, on the CPU.

    Args:
        path: A .pt, .pth, .ckpt or .bin of torch.save, a .safetensors, or an .npz.
        entry: Name of the entry that is the weights, for a file with several entries.

    Raises:
        ValueError: If it is not such a file, cannot be read, or its content is not weights by name.
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
    return _check_weights(content, path, entry)


def _check_weights(content: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if entry is not None:
        if not isinstance(content, Mapping) or entry not in content:
            raise UserError(f"{path} has no entry {entry!r}{_describe_entries(content)}")
        content = content[entry]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds {type(content).__name__}, not weights by name")
    weights = {}
    for name, value in content.items():
        is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if not isinstance(name, str) or not (is_number or isinstance(value, Tensor)):
            raise UserError(
                f"{path} holds {type(value).__name__} under {name!r}, not weights alone"
                f"{_describe_entries(content)}"
            )
        weights[name] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return weights


def _describe_entries(content: Any) -> str:
    """Name the entries that may be the weights, for an error message."""
    inner = content.items() if isinstance(content, Mapping) else ()
    names = [str(name) for name, value in inner if isinstance(value, Mapping) and value]
    return f"; its entries are {', '.join(names)}: give one as entry" if names else ""


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about a newer protocol, which either fails below or is harmless
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
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
