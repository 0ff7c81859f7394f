"""Checkpoints: written under a temporary name, flushed and renamed; verified before use.

A checkpoint is a folder with weights, averages and optimiser state by parameter name (safetensors),
state.json, the configurations of the network, the scheduler and the images, and manifest.json with
the size and SHA-256 of each file.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_sa.atomic_files import flush
from ddpm_sa.errors import UserError
from training.distributed.fsdp import distribute_like, gather_full
from training.ema import Averages

MANIFEST = "manifest.json"
STATE = "state.json"
# The optimisers' state of one parameter.
ADAM_STATE, MUON_STATE = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}
UNFINISHED = (
    "checkpoints/step-*.partial",
    ".model.*.partial",
    ".model-*.*.partial",
    "config.yaml.partial",
    "skipped.txt.partial",
    "metrics.jsonl.partial",
    ".launches.partial",
    "samples/step-*.png.partial",
    "losses.png.partial",
)


@dataclass(frozen=True)
class TrainingState:
    """The tensors of a run that a checkpoint holds: network, averages and optimiser state."""

    network: nn.Module
    averages: Averages
    optimizer: torch.optim.Optimizer

    def tensors(self, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """All tensors: file stem -> name -> tensor; the optimiser's names are `parameter:quantity`.

        If the network is sharded, every process must call this; those with `keep` get the tensors.
        """
        optimizer = {
            f"{name}:{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        weights = dict(self.network.state_dict())
        averages = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        files = {"weights": weights, "optimizer": optimizer, **averages}
        return {stem: gather_full(tensors, keep) for stem, tensors in files.items()}

    def extra_weights(self, raw: bool, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """The further averages, and the raw weights if `raw`, by name."""
        weights = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        del weights["ema"]
        weights |= {"raw": dict(self.network.state_dict())} if raw else {}
        return {name: gather_full(tensors, keep) for name, tensors in weights.items()}

    def load(self, folder: Path) -> list[str]:
        """Load the tensors of a checkpoint.

        A further average that it lacks starts as a copy of its weights; where the optimiser is
        another one, the state of a parameter starts anew.

        Returns:
            A note to print for each of these.

        Raises:
            ValueError: If the weights do not fit this network.
        """
        self._load_weights(load_file(folder / "weights.safetensors"), folder)
        notes = []
        for name, ema in self.averages.by_name.items():
            path = folder / f"{name}.safetensors"
            if name != "ema" and not path.exists():
                ema.restart()
                notes.append(f"new         {name}: {folder} lacks it; it starts from the weights")
            else:
                ema.load_state_dict(load_file(path))
        return notes + self._load_optimizer(load_file(folder / "optimizer.safetensors"))

    def _load_weights(self, weights: dict[str, Tensor], folder: Path) -> None:
        current = self.network.state_dict()
        wrong = [
            name
            for name in sorted(current.keys() | weights.keys())
            if name not in weights
            or name not in current
            or weights[name].shape != current[name].shape
        ]
        if wrong:
            raise UserError(
                f"{folder} does not fit the network: {len(wrong)} weights are missing, not "
                f"expected or of another shape, {wrong[0]} first. Use the run's settings of the "
                "network, its channels and its classes; --override cannot change these"
            )
        self.network.load_state_dict(
            {name: distribute_like(current[name], value) for name, value in weights.items()}
        )

    def _load_optimizer(self, saved: dict[str, Tensor]) -> list[str]:
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in saved.items():
            owner, _, quantity = name.rpartition(":")
            states[owner][quantity] = value
        groups = self.optimizer.param_groups
        by_muon = {id(one) for group in groups if group.get("muon") for one in group["params"]}
        parameters = dict(self.network.named_parameters())
        other = []
        for owner, state in states.items():
            parameter = parameters[owner]
            if state.keys() != (MUON_STATE if id(parameter) in by_muon else ADAM_STATE):
                other.append(owner)
                continue
            for quantity, value in state.items():
                self.optimizer.state[parameter][quantity] = self._to_state(parameter, value)
        if not other:
            return []
        return [
            f"new         the optimiser's state of {len(other)} of {len(states)} parameters, which "
            "another optimiser saved"
        ]

    def _to_state(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """A tensor of the optimiser's state as the optimiser creates it."""
        if value.shape == parameter.shape:
            value = distribute_like(parameter, value)
            # In the memory format of the parameter.
            return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        # Adam's step count is a scalar, which the optimiser keeps on the CPU unless fused.
        fused = self.optimizer.param_groups[0].get("fused")
        return value.to(parameter.device) if fused else value


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
    describe: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write a checkpoint atomically, then remove the oldest.

    Args:
        folder: Its final name, from `checkpoint_path`.
        tensors: `TrainingState.tensors()`.
        state: Plain values for state.json.
        keep: Number of valid checkpoints to keep, this one included.
        keep_every: Also keep those whose step is a multiple of this.
        describe: Writes further files into a folder: what the weights are of.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        describe(aside)
        _write_checkpoint(aside, tensors, state)
        if folder.exists():  # a damaged one, which was skipped on resume
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(folder.parent)
    _remove_oldest(folder, keep, keep_every)


def remove_unfinished(run: Path) -> None:
    """Remove partial files that a killed process left in a run, which nobody may be writing."""
    for pattern in UNFINISHED:
        for path in run.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def load_state(folder: Path) -> dict[str, Any]:
    """Read state.json of a checkpoint."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, newest first, without unfinished ones (.partial)."""
    names = (run / "checkpoints").glob("step-*")
    return sorted(
        (path for path in names if path.name[5:].isdigit()), key=checkpoint_step, reverse=True
    )


def checkpoint_step(folder: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(folder.name.removeprefix("step-"))


def newest_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """Find the newest valid checkpoint, and describe the damage of newer ones."""
    damaged = []
    for folder in list_checkpoints(run):
        if damage := find_damage(folder):
            damaged.append(damage)
        else:
            return folder, damaged
    return None, damaged


def find_damage(folder: Path) -> str | None:
    """Describe the damage of a checkpoint, or return None if it is valid."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                return f"{folder / name} has {size} bytes instead of {expected['size']}"
            if _fingerprint(folder / name) != expected:
                return f"{folder / name} was changed after it was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder} is incomplete ({error})"
    return None


def _write_checkpoint(
    aside: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
) -> None:
    for stem, named in tensors.items():
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(on_cpu, aside / f"{stem}.safetensors")
    _write_json(aside / STATE, state)
    files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
    _write_json(aside / MANIFEST, files)
    for path in (*aside.iterdir(), aside):
        flush(path)


def _remove_oldest(newest: Path, keep: int, keep_every: int | None) -> None:
    """Keep `newest`, which was just written, and the newest `keep` - 1 other valid ones."""
    kept = 1
    for folder in list_checkpoints(newest.parent.parent):
        if folder == newest:
            continue
        if kept < keep:
            kept += find_damage(folder) is None
        elif not keep_every or checkpoint_step(folder) % keep_every:
            shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
