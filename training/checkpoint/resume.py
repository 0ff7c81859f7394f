"""Whether a run may begin or go on, and from which checkpoint: process 0 decides for all."""

import os
import socket
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.data.dataset import Images
from training.checkpoint.state import (
    MANIFEST,
    checkpoints,
    damage_of,
    load_state,
    newest_checkpoint,
    step_of,
)
from training.config import TrainConfig
from training.distributed.accelerator import by_process_0
from training.distributed.interrupt import LAUNCHER
from training.saved_config import check_same_run, to_plain

LAUNCHES = ".launches"


def find_checkpoint(config: TrainConfig, images: Images) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, or None, and what is to be said about it and others.

    Raises:
        ValueError: If a run is there and `resume` is `never`, if the checkpoint named by `resume`
            is not sound, if it belongs to a run with other settings or images, or if a process
            does not see it.
    """
    folder, notes = by_process_0(
        lambda: _decide(config, images), f"output_dir={config.output_dir} cannot be read"
    )
    if folder is not None:
        _seen_everywhere(folder)
    return folder, notes


def what_counts(config: TrainConfig, images: Images) -> dict[str, Any]:
    """What makes a run this run and no other: its settings, and what its images turned out to be.

    The folder that the settings name may hold other images by now.
    """
    found = {
        "number": images.length,
        "channels": images.format.channels,
        "bit_depth": images.format.bit_depth,
        "value_range": list(images.format.value_range),
        "classes": images.classes,
    }
    return to_plain(config) | {"images": found}


def set_aside_later(run: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`, from which a run that goes back to it departs.

    Left there, they would be taken for its own when it goes on again.

    Returns:
        What is to be said of each.
    """
    notes = []
    for folder in checkpoints(run):
        if step_of(folder) > step:
            aside = folder.with_name(folder.name + ".set-aside")
            folder.replace(aside)
            notes.append(f"set aside   {aside}, which the run has gone back behind")
    return notes


def record_launch(run: Path) -> None:
    """Note which launchers this run belongs to, so that their restarts may go on with it."""
    launches = gather_object([_launch()])

    def write() -> None:
        with write_atomically(run / LAUNCHES) as partial:
            partial.write_text("\n".join(sorted({*launches} - {""})), encoding="utf-8")

    by_process_0(write, f"{run} cannot be written")


def _decide(config: TrainConfig, images: Images) -> tuple[Path | None, list[str]]:
    run = Path(config.output_dir)
    if run.exists() and not run.is_dir():
        raise ValueError(f"output_dir={run} is a file")
    folder, notes = _chosen(config.resume, run)
    if folder is not None:
        state = load_state(folder)
        notes += check_same_run(state["counts"], what_counts(config, images), config.override)
        if state["step"] > config.steps:
            raise ValueError(f"steps={config.steps}, but {folder} has {state['step']} behind it")
    return folder, notes


def _chosen(resume: str, run: Path) -> tuple[Path | None, list[str]]:
    holds_run = (run / "config.yaml").exists() or (run / "checkpoints").exists()
    if _restarted(run):
        folder, notes = _newest(run)
        notes.insert(0, "restarted by torchrun: the run goes on from its newest checkpoint")
        if folder is not None or resume in ("auto", "never"):
            return folder, notes
        return Path(resume), notes  # which has passed the checks below before
    if resume == "auto":
        return _newest(run)
    if resume == "never":
        if holds_run:
            raise ValueError(
                f"output_dir={run} already holds a run; add --resume auto to go on with it, or "
                "choose another output_dir"
            )
        return None, []
    folder = Path(resume)
    if damage := damage_of(folder):
        raise ValueError(f"resume={resume} is no whole checkpoint: {damage}")
    if holds_run and folder.resolve().parent.parent != run.resolve():
        raise ValueError(
            f"output_dir={run} holds another run than resume={folder}; choose a new output_dir"
        )
    return folder, []


def _newest(run: Path) -> tuple[Path | None, list[str]]:
    folder, damaged = newest_checkpoint(run)
    notes = [f"passed over: {damage}" for damage in damaged]
    if folder is None and (run / "config.yaml").exists():
        notes.append(f"{run} holds no whole checkpoint: the run starts from step 0")
    return folder, notes


def _seen_everywhere(folder: Path) -> None:
    """Let no process start from other weights than the first."""
    try:
        manifest = (folder / MANIFEST).read_text(encoding="utf-8")
    except OSError:
        manifest = None
    (_, expected), *others = gather_object([(socket.gethostname(), manifest)])
    for host, found in others:
        if found != expected:
            raise ValueError(
                f"{folder} is {'another one' if found else 'not there'} on {host}: every machine "
                "must see the same output_dir; share it, or copy the checkpoint there"
            )


def _launch() -> str:
    """What the restarts of one torchrun have in common, or "" without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{name} {socket.gethostname()} {LAUNCHER}" if name else ""


def _restarted(run: Path) -> bool:
    """Whether torchrun has started this process anew, after an end of what made this very run.

    A first attempt that was refused has left no record; its restarts are refused as it was.
    """
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    record = run / LAUNCHES
    return again and record.exists() and _launch() in record.read_text("utf-8").splitlines()
