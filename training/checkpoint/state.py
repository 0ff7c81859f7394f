"""Checkpoints: written aside, flushed, renamed; verified before they are trusted.

A checkpoint is a folder: weights, averages and optimiser by parameter name (safetensors),
state.json, and manifest.json with the size and SHA-256 of each of these.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_sa.atomic_files import flush
from training.distributed.fsdp import gathered, laid_out_as
from training.ema import Averages

MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED = (
    "checkpoints/step-*.partial",
    ".model[.-]*",
    "config.yaml.partial",
    "metrics.jsonl.partial",
    ".launches.partial",
    "samples/step-*.png.partial",
    "losses.png.partial",
)


@dataclass(frozen=True)
class Trainee:
    """What a checkpoint holds of a run, besides plain numbers."""

    network: nn.Module
    averages: Averages
    optimizer: torch.optim.Optimizer

    def tensors(self, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """File stem -> tensors by name; the optimiser's are `parameter:quantity`.

        Every process of a run whose network is spread must ask, and those that `keep` get them.
        """
        optimizer = {
            f"{name}:{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        weights = dict(self.network.state_dict())
        averages = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        every = {"weights": weights, "optimizer": optimizer, **averages}
        return {stem: gathered(tensors, keep) for stem, tensors in every.items()}

    def further_weights(self, raw: bool, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """Besides the main average: the other averages, and the weights themselves if `raw`."""
        weights = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        del weights["ema"]
        weights |= {"raw": dict(self.network.state_dict())} if raw else {}
        return {name: gathered(tensors, keep) for name, tensors in weights.items()}

    def load(self, folder: Path) -> None:
        """Take a checkpoint's tensors.

        Raises:
            ValueError: If they are not this network's.
        """
        here = self.network.state_dict()
        weights = {
            name: laid_out_as(here[name], value) if name in here else value
            for name, value in load_file(folder / "weights.safetensors").items()
        }
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder} does not fit the network: {error}") from error
        for name, ema in self.averages.by_name.items():
            ema.load_state_dict(load_file(folder / f"{name}.safetensors"))
        parameters = dict(self.network.named_parameters())
        for name, value in load_file(folder / "optimizer.safetensors").items():
            owner, _, key = name.rpartition(":")
            parameter = parameters[owner]
            if value.shape == parameter.shape:
                # In the order of the parameter's memory, as the optimiser itself makes it.
                value = laid_out_as(parameter, value)
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            # Adam's step count is a scalar that stays where the optimiser made it: the CPU,
            # unless fused.
            elif self.optimizer.param_groups[0].get("fused"):
                value = value.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def checkpoint_path(run: Path, step: int) -> Path:
    """Where a run keeps its checkpoint after `step` updates."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
) -> None:
    """Write a checkpoint so that it is either whole or not there, then remove the oldest.

    Args:
        folder: Its final name, from `checkpoint_path`.
        tensors: `Trainee.tensors()`.
        state: Plain values for state.json.
        keep: Whole checkpoints left in the run, this one included.
        keep_every: Those of steps that this divides stay as well.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        _write_checkpoint(aside, tensors, state)
        if folder.exists():  # an earlier one that was found damaged and passed over
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(folder.parent)
    _remove_oldest(folder, keep, keep_every)


def remove_unfinished(run: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a run."""
    for pattern in UNFINISHED:
        for path in run.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def load_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's plain values."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def checkpoints(run: Path) -> list[Path]:
    """The newest first; unfinished ones end in .partial and are not among them."""
    names = (run / "checkpoints").glob("step-*")
    return sorted((path for path in names if path.name[5:].isdigit()), key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The updates behind a checkpoint, by its name."""
    return int(folder.name.removeprefix("step-"))


def newest_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those passed over."""
    passed_over = []
    for folder in checkpoints(run):
        if damage := damage_of(folder):
            passed_over.append(damage)
        else:
            return folder, passed_over
    return None, passed_over


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                return f"{folder / name} has {size} bytes instead of {expected['size']}"
            if _fingerprint(folder / name) != expected:
                return f"{folder / name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder} is incomplete ({error})"
    return None


def _write_checkpoint(
    aside: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
) -> None:
    for stem, named in tensors.items():
        here = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(here, aside / f"{stem}.safetensors")
    _write_json(aside / STATE, state)
    files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
    _write_json(aside / MANIFEST, files)
    for path in (*aside.iterdir(), aside):
        flush(path)


def _remove_oldest(newest: Path, keep: int, keep_every: int | None) -> None:
    """Leave `newest`, which was just written, and the newest `keep` - 1 others that are whole."""
    whole = 1
    for folder in checkpoints(newest.parent.parent):
        if folder == newest:
            continue
        if whole < keep:
            whole += damage_of(folder) is None
        elif not keep_every or step_of(folder) % keep_every:
            shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
