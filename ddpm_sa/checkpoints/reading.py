"""Files of weights, read without running anything that they hold."""

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

# What the readers below raise for a file that is damaged, or another.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, SafetensorError, zipfile.BadZipFile)


def read_weights(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The weights of a file by name, on the CPU.

    Args:
        path: A .pt, .pth, .ckpt or .bin of torch.save, a .safetensors, or an .npz.
        entry: Of a file that holds several things by name, the one that is the weights.

    Raises:
        ValueError: If it is no such file, cannot be read, or holds what is no weights by name.
    """
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is of no known kind; known are {', '.join(_READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        found = _READERS[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no file of weights alone, or is damaged, and other pickles are not opened "
            "here; where it was made, torch.save the network's state_dict()"
        ) from error
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read: {reason}") from error
    return _weights_of(found, path, entry)


def _weights_of(found: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if entry is not None:
        if not isinstance(found, Mapping) or entry not in found:
            raise ValueError(f"{path} has no entry {entry!r}{_entries(found)}")
        found = found[entry]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path} holds {type(found).__name__}, not weights by name")
    weights = {}
    for name, value in found.items():
        is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if not isinstance(name, str) or not (is_number or isinstance(value, Tensor)):
            raise ValueError(
                f"{path} holds {type(value).__name__} under {name!r}, not weights alone"
                f"{_entries(found)}"
            )
        weights[name] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return weights


def _entries(found: Any) -> str:
    """Which entries may be meant."""
    inner = found.items() if isinstance(found, Mapping) else ()
    names = [str(name) for name, value in inner if isinstance(value, Mapping) and value]
    return f"; its entries are {', '.join(names)}: give one as entry" if names else ""


def _unpickled(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a newer protocol, which then is an error or is none
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError):
            raise
        # To the unpickler other files are programs of nonsense, which fail in every way.
        except Exception as error:
            raise pickle.UnpicklingError(str(error)) from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}


_READERS = {
    ".pt": _unpickled,
    ".pth": _unpickled,
    ".ckpt": _unpickled,
    ".bin": _unpickled,
    ".safetensors": load_file,
    ".npz": _arrays,
}
