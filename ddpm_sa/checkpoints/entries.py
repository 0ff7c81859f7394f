"""Find a network's weights among what a training program saved.

A file may nest them (`{"ema": {...}, "optimizer": ...}`), prefix their names (`model.`, `net.`), or
hold several networks. Nested names are joined with dots, so that an entry is a prefix wherever it
comes from: the prefix of names that mark the beginning of a network.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.errors import UserError

# A name that occurs in the weights of one kind of network only.
NAME_PATTERNS = {
    "ddpm_tf": r"model/down_0/block_0/",
    "pesser": r"down\.0\.block\.0\.",
    "openai": r"input_blocks\.0\.0\.",
    "diffusers": r"down_blocks\.0\.resnets\.0\.",
    "lucidrains": r"downs\.0\.0\.block1\.",
    "edm": r"enc\.\d+x\d+_conv\.",
}
# What torch.compile, DataParallel, DDP, FSDP and checkpointing put into the names of parameters.
WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


@dataclass(frozen=True)
class Entry:
    """Weights of one network in a file.

    Attributes:
        kind: A key of NAME_PATTERNS.
        prefix: What was removed from the beginning of their names: "", or a name with a final dot.
        weights: Name -> tensor, on the CPU.
        left_out: Names of the file's other tensors.
        beside: Those of them that lie beside the network, in what holds it: last part of the name
            -> tensor.
    """

    kind: str
    prefix: str
    weights: dict[str, Tensor]
    left_out: list[str]
    beside: dict[str, Tensor]

    @property
    def home(self) -> str:
        """The prefix of what holds the network: "ema." if its own is "ema.model."."""
        return _home(self.prefix)


def _home(prefix: str) -> str:
    return "".join(prefix.rpartition(".")[0].rpartition(".")[:2])


def find_entry(content: Any, source: str, entry: str | None = None, kind: str = "auto") -> Entry:
    """Find the weights of a network in the content of a file.

    Args:
        content: What the file holds: names -> arrays, or names -> further such mappings.
        source: Name of the file, for messages.
        entry: Where to look, such as "ema" or "state_dict.model"; None searches all.
        kind: A key of NAME_PATTERNS, or "auto" for any.

    Raises:
        UserError: If there are none, or those of several networks, which the message names.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{source} holds {type(content).__name__}, not weights by name")
    leaves: dict[str, Any] = {}
    for path, value in _leaves(content):
        name = WRAPPERS.sub("", path)
        if _is_array(value) and _is_array(leaves.get(name)):
            raise UserError(f"{source} holds {name} twice, as {path} too")
        if not _is_array(leaves.get(name)):
            leaves[name] = value
    networks = _network_prefixes(leaves, kind)
    chosen = dict(networks)
    if entry is not None:
        # As the file has it, with or without the wrappers.
        inside = WRAPPERS.sub("", f"{entry}.") if entry else ""
        if not any(name.startswith(inside) for name in leaves):
            raise UserError(f"{source} has no entry {entry!r}{_choices(networks, content)}")
        within = {p: found for p, found in networks.items() if p.startswith(inside)}
        chosen = {inside: networks.get(inside, kind)} if inside in networks else within
        chosen = chosen or {inside: kind}
    if len(chosen) > 1:
        raise UserError(
            f"{source} holds the weights of {len(chosen)} networks: {_names(chosen)}; choose one "
            "by --entry"
        )
    [(prefix, found)] = chosen.items() or [("", kind)]
    # Of a network within another's prefix, nothing.
    inner = [other for other in networks if other != prefix and other.startswith(prefix)]
    taken = [n for n in leaves if n.startswith(prefix) and not n.startswith(tuple(inner))]
    weights = {}
    for name in taken:
        if not _is_array(leaves[name]):
            raise UserError(
                f"{source} holds {type(leaves[name]).__name__} under {name!r}, not weights alone"
                f"{_choices(networks, content)}"
            )
        weights[name.removeprefix(prefix)] = torch.as_tensor(leaves[name])
    if found == "auto":
        raise UserError(
            f"{source}: {taken[0]!r} and the other names match no known kind; known are "
            f"{', '.join(NAME_PATTERNS)}{_choices(networks, content)}"
        )
    others = leaves.keys() - {*taken}
    left_out = [name for name in leaves if name in others and _is_array(leaves[name])]
    home = _home(prefix)
    beside = {
        name.removeprefix(home): torch.as_tensor(leaves[name])
        for name in left_out
        if name.startswith(home) and "." not in name.removeprefix(home)
    }
    return Entry(found, prefix, weights, left_out, beside)


def _leaves(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that is not a mapping, with the names on the way to it joined by dots."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _network_prefixes(leaves: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The prefix of each network among the names, and its kind."""
    kinds = NAME_PATTERNS if kind == "auto" else {kind: NAME_PATTERNS[kind]}
    found = {}
    for known, pattern in kinds.items():
        mark = re.compile(rf"(?:^|(?<=\.)){pattern}")
        for name, value in leaves.items():
            place = mark.search(name)
            if place and _is_array(value):
                found[name[: place.start()]] = known
    return found


def _is_array(value: Any) -> bool:
    is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return is_number or isinstance(value, Tensor)


def _names(prefixes: Mapping[str, str]) -> str:
    return ", ".join(prefix.removesuffix(".") or "''" for prefix in sorted(prefixes))


def _choices(prefixes: Mapping[str, str], content: Mapping[Any, Any]) -> str:
    """Name the entries that may be given, for an error message."""
    nested = [str(name) for name, value in content.items() if isinstance(value, Mapping) and value]
    if prefixes and any(prefixes):
        return f"; --entry may be {_names(prefixes)}"
    return f"; its entries are {', '.join(nested)}: give one by --entry" if nested else ""
