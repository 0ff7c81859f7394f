"""Decide, on process 0, whether a run may start or resume, and from which checkpoint."""

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ddpm_sa.data.dataset import Images
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from training.checkpoint.state import (
    MANIFEST,
    checkpoint_step,
    find_damage,
    list_checkpoints,
    load_state,
    newest_checkpoint,
)
from training.config import TrainConfig
from training.distributed.accelerator import by_process_0
from training.distributed.interrupt import LAUNCHER
from training.saved_config import check_ours, check_same_run, to_plain
from training.scheduler import make_scheduler

LAUNCHES = ".launches"


def find_checkpoint(config: TrainConfig, images: Images) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to resume from, or None, with notes to print.

    Raises:
        ValueError: If output_dir holds a run and `resume` is `never`, or if the checkpoint is
            damaged, belongs to a run with other settings or images, or is not visible to some
            process.
    """
    folder, notes = by_process_0(
        lambda: _find_and_check(config, images), f"output_dir={config.output_dir} cannot be read"
    )
    if folder is not None:
        _check_visible_everywhere(folder)
    return folder, notes


def previous_micro_batch(checkpoint: Path | None) -> int | None:
    """Images of a micro-batch when a checkpoint was written; None if that was a whole share."""
    return None if checkpoint is None else load_state(checkpoint)["counts"]["micro_batch_size"]


def run_identity(config: TrainConfig, images: Images) -> dict[str, Any]:
    """Everything that identifies a run: its settings, and properties of its images.

    The latter, since the folder in the settings may hold other images than before.
    """
    properties = {
        "number": images.length,
        "channels": images.format.channels,
        "bit_depth": images.format.bit_depth,
        "value_range": list(images.format.value_range),
        "classes": images.classes,
    }
    settings = to_plain(config) | {"images": properties}
    settings["optim"]["decay_steps"] = config.optim.for_steps(config.steps).decay_steps
    if config.model.init_from is not None:
        settings["scheduler"] = _plain_scheduler(config)
    return settings


def _plain_scheduler(config: TrainConfig) -> dict[str, Any]:
    """What is trained for in fine-tuning, since init_from may be another model than before."""
    scheduler = make_scheduler(config)
    plain = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    # A hash, for there may be a thousand of them.
    betas = NoiseSchedule.from_scheduler(scheduler).betas.numpy().tobytes()
    return plain | {"trained_betas": hashlib.sha256(betas).hexdigest()[:16]}


def set_aside_later_checkpoints(run: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step` when a run goes back to it.

    Otherwise the next resume would take them for checkpoints of the new course of the run.

    Returns:
        A note to print for each.
    """
    notes = []
    for folder in list_checkpoints(run):
        if checkpoint_step(folder) > step:
            aside, number = folder.with_name(folder.name + ".set-aside"), 1
            while aside.exists():  # the run has gone back before
                number += 1
                aside = folder.with_name(f"{folder.name}.set-aside-{number}")
            folder.rename(aside)
            notes.append(f"set aside   {aside}, which is later than the step resumed from")
    return notes


def record_launch(run: Path) -> None:
    """Record the launchers of this run, so that their restarts may resume it."""
    launches = gather_object([_launch_id()])

    def write() -> None:
        with write_atomically(run / LAUNCHES) as partial:
            partial.write_text("\n".join(sorted({*launches} - {""})), encoding="utf-8")

    by_process_0(write, f"{run} cannot be written")


def _find_and_check(config: TrainConfig, images: Images) -> tuple[Path | None, list[str]]:
    run = Path(config.output_dir)
    folder, notes = _choose_checkpoint(config.resume, run)
    if folder is not None:
        state = load_state(folder)
        notes += check_same_run(state["counts"], run_identity(config, images), config.override)
        if state["step"] > config.steps:
            raise UserError(
                f"steps={config.steps}, but {folder} is already at step {state['step']}"
            )
    return folder, notes


def _choose_checkpoint(resume: str, run: Path) -> tuple[Path | None, list[str]]:
    holds_run = (run / "config.yaml").exists() or (run / "checkpoints").exists()
    if _is_restart(run):
        folder, notes = _newest_with_notes(run)
        notes.insert(0, "restarted by torchrun: continuing from the newest checkpoint")
        if folder is not None or resume in ("auto", "never"):
            return folder, notes
        return Path(resume), notes  # it passed the checks below on the first start
    if resume == "auto":
        return _newest_with_notes(run)
    if resume == "never":
        if holds_run:
            raise UserError(
                f"output_dir={run} already holds a run; add --resume auto to continue it, or "
                "choose another output_dir"
            )
        return None, []
    folder = Path(resume)
    if damage := find_damage(folder):
        raise UserError(f"resume={resume} is not a valid checkpoint: {damage}")
    if holds_run and folder.resolve().parent.parent != run.resolve():
        raise UserError(
            f"output_dir={run} holds another run than that of resume={folder}; choose a new "
            "output_dir"
        )
    return folder, []


def _newest_with_notes(run: Path) -> tuple[Path | None, list[str]]:
    folder, damaged = newest_checkpoint(run)
    notes = [f"skipped     {damage}" for damage in damaged]
    if folder is None and (run / "config.yaml").exists():
        check_ours(run / "config.yaml")
        notes.append(f"{run} holds no valid checkpoint: starting from step 0")
    return folder, notes


def _check_visible_everywhere(folder: Path) -> None:
    """Check that every process sees the same checkpoint as process 0."""
    try:
        manifest = (folder / MANIFEST).read_text(encoding="utf-8")
    except OSError:
        manifest = None
    (_, expected), *others = gather_object([(socket.gethostname(), manifest)])
    for host, other in others:
        if other != expected:
            raise UserError(
                f"{folder} is {'different' if other else 'missing'} on {host}: every machine must "
                "see the same output_dir; share it, or copy the checkpoint there"
            )


def _launch_id() -> str:
    """An identifier shared by all restarts of one torchrun, or "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{name} {socket.gethostname()} {LAUNCHER}" if name else ""


def _is_restart(run: Path) -> bool:
    """Whether this is a restart by the torchrun that started this run.

    A first start that was refused leaves no record, so its restarts are refused too.
    """
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    record = run / LAUNCHES
    return again and record.exists() and _launch_id() in record.read_text("utf-8").splitlines()
