"""Checkpoints: written under a temporary name, flushed and renamed; verified before use.

A checkpoint is a folder with weights, averages and optimiser state by parameter name (safetensors),
state.json, the configurations of the network, the scheduler and the images, and manifest.json with
the size and SHA-256 of each file.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ddpm_sa.files.atomic_files import flush

MANIFEST = "manifest.json"
STATE = "state.json"
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
        keep_every: Also keep the first checkpoint at or after each multiple of this.
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
    kept, folders = 1, list_checkpoints(newest.parent.parent)
    # By interval; the newest come first, so the oldest of an interval replaces the others.
    first = {checkpoint_step(folder) // keep_every: folder for folder in folders if keep_every}
    first.pop(0, None)
    for folder in folders:
        if folder == newest:
            continue
        if kept < keep:
            kept += find_damage(folder) is None
        elif folder not in first.values():
            shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
