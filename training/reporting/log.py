"""Logging of a run: progress bar, metrics.jsonl, trackers, sample grids."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ddpm_sa.diffusion.loss_by_timestep import Buckets
from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.image_format import from_pil
from ddpm_sa.progress import ProgressBar, write_line
from training.config import TrainConfig
from training.distributed.accelerator import by_process_0
from training.loop import Progress
from training.reporting.loss_figure import draw_losses
from training.saved_config import to_plain

# Lines for 100,000 updates, in a log that is no terminal: about 150 kB.
MOST_LINES = 2500
SKIPS_SHOWN = 20  # skipped updates that are described


class RunLog:
    """Logs a run; only process 0 writes.

    Args:
        accelerator: Provides the trackers.
        config: Settings of the run.
        state: `state()` from the checkpoint that the run resumes from, or {}.
        start: Updates already done; later records are removed.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, state: dict[str, Any], start: int
    ):
        self.accelerator, self.config = accelerator, config
        self.path = Path(config.output_dir) / "metrics.jsonl"
        self.losses: list[float] = list(state.get("losses", []))
        self.grad_norms: list[float] = list(state.get("grad_norms", []))
        self.buckets = Buckets(config.schedule.num_timesteps, state.get("buckets"))
        self.unrecorded = int(state.get("unrecorded", 0))
        self.skipped = int(state.get("skipped", 0))
        self.seconds = float(state.get("seconds", 0.0))
        self.durations: list[float] = []
        self.step = start

    def __enter__(self) -> "RunLog":
        self._thread_hook, threading.excepthook = threading.excepthook, _defer_disk_errors
        by_process_0(self._open, f"the records of {self.config.output_dir} cannot be written")
        limit = self.config.time_limit
        self.progress = ProgressBar(
            "",
            "step",
            total=self.config.steps,
            done=self.step,
            shown=self.accelerator.is_main_process,
            every=line_interval(self.config.log_every, self.config.steps),
            time_limit=None if limit is None else 60 * limit,
        )
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.progress.close()
        threading.excepthook = self._thread_hook
        try:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        except OSError as failure:
            if error is None:
                raise UserError(
                    f"the {self.config.tracker} log is incomplete: {failure}"
                ) from failure

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, so that the next record is that of an uninterrupted run."""
        return {
            "losses": self.losses,
            "grad_norms": self.grad_norms,
            "buckets": self.buckets.state(),
            "unrecorded": self.unrecorded,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def update(self, progress: Progress) -> None:
        """Add an update; write a record every `log_every` updates and after the last."""
        self.step = progress.step
        self.unrecorded += 1
        if progress.skipped is None:
            self.losses.append(progress.loss)
            self.grad_norms.append(progress.grad_norm)
            self.buckets.add(progress.t, progress.losses)
        else:
            self._report_skipped(progress.skipped)
        self.durations.append(progress.seconds)
        self.seconds += progress.seconds
        rate = self.config.batch_size / float(np.mean(self.durations))
        loss = finite_mean(self.losses)
        self.progress.update(
            note=f"loss {'-' if loss is None else f'{loss:.4f}'}, {rate:.0f} images/s"
        )
        complete = progress.step % self.config.log_every == 0
        if not complete and progress.step != self.config.steps:
            return
        self._record(
            {
                "step": progress.step,
                "loss": loss,
                "lr": progress.lr,
                "grad_norm": finite_mean(self.grad_norms),
                "loss_by_timestep": self.buckets.means(),
                "skipped": self.skipped,
                "images_per_second": round(rate, 2),
                "seconds": round(self.seconds, 3),
            }
        )
        self.durations = []
        if complete:  # otherwise a resumed run may complete the interval
            self.losses, self.grad_norms, self.unrecorded = [], [], 0
            self.buckets = Buckets(self.config.schedule.num_timesteps)

    def record_validation(self, t: np.ndarray, losses: np.ndarray) -> None:
        """Write a record of validation losses and their timesteps."""
        buckets = Buckets(self.config.schedule.num_timesteps)
        buckets.add(t, losses)
        self._record(
            {
                "step": self.step,
                "validation_loss": finite_mean(losses.tolist()),
                "validation_loss_by_timestep": buckets.means(),
            }
        )

    def save_samples(self, grid: Image.Image) -> None:
        """Save a grid of samples as samples/step-00001000.png, and log it to the trackers."""
        path = self.path.parent / "samples" / f"step-{self.step:08d}.png"

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            with write_atomically(path) as partial:
                grid.save(partial, format="png")
            for tracker in self.accelerator.trackers:
                # accelerate's trackers differ in how they take images; trackio's takes none.
                order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                if tracker.name != "trackio":
                    tracker.log_images({"samples": from_pil([grid])}, step=self.step, **order)

        by_process_0(write, f"{path} could not be written")

    def save_figure(self) -> None:
        """Draw the losses to losses.png."""
        picture = self.path.with_name("losses.png")

        def write() -> None:
            figure = draw_losses(self.path, self.buckets.names)
            if isinstance(figure, str):
                write_line(f"no {picture.name}: {figure}")
                return
            with write_atomically(picture) as partial:
                figure.savefig(partial, format="png", dpi=100)

        by_process_0(write, f"{picture} could not be written")

    def summary(self, reason: str | None) -> str:
        """Summarise the run, with how to continue it if it was stopped."""
        config = self.config
        skipped = f" ({self.skipped} updates skipped: not finite)" if self.skipped else ""
        if self.step == config.steps:
            return f"{self.step} steps done{skipped}: {config.output_dir}/model"
        return (
            f"stopped at step {self.step} of {config.steps}{skipped} by "
            f"{reason or 'another process'}: {config.output_dir}/model; continue with --resume auto"
        )

    def _report_skipped(self, reason: str) -> None:
        self.skipped += 1
        if self.accelerator.is_main_process and self.skipped <= SKIPS_SHOWN:
            more = "; further ones are only counted" if self.skipped == SKIPS_SHOWN else ""
            write_line(f"{reason}; this update is skipped{more}")

    def _record(self, row: dict[str, Any]) -> None:
        curves: dict[str, float] = {}
        for name, value in row.items():
            parts = {name: value}
            if name.endswith("_by_timestep"):
                names = [f"{name}/{bucket}" for bucket in self.buckets.names]
                parts = dict(zip(names, value, strict=True))
            curves |= {part: one for part, one in parts.items() if one is not None}
        del curves["step"]
        curves.pop("seconds", None)

        def write() -> None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            self.accelerator.log(curves, step=self.step)

        by_process_0(write, f"{self.path} or the {self.config.tracker} log could not be written")

    def _open(self) -> None:
        # If this was the last step of an earlier run, it logged a partial interval and an extra
        # validation. An uninterrupted run would not have: drop both.
        extra: set[str] = set()
        if self.step < self.config.steps:
            if self.unrecorded:
                extra.add("loss")
            if self.step % (self.config.validate_every or self.step + 1):
                extra.add("validation_loss")
        truncate_records(self.path, self.step, extra)
        tracker, run = self.config.tracker, self.path.parent
        if tracker != "none":
            about: dict[str, Any] = {"name": run.name, "config": to_plain(self.config)}
            options = {"wandb": about | {"dir": str(run)}, "trackio": about}
            # TensorBoard uses the name as its folder.
            name = "logs" if tracker == "tensorboard" else "ddpm_sa"
            self.accelerator.init_trackers(name, init_kwargs=options)


def line_interval(log_every: int, steps: int) -> int:
    """Updates between two lines of the log, for a standard error that is no terminal.

    It is `log_every`, or the smallest multiple with at most `MOST_LINES` lines, if there are up to
    100,000 steps; a longer run may have as many lines for each 100,000.
    """
    most = MOST_LINES * max(1.0, steps / 100_000)
    return log_every * math.ceil(steps / log_every / most)


def finite_mean(values: list[float]) -> float | None:
    """The mean of the finite values, or None if there are none.

    While the fp16 loss scale settles, the norm of a gradient may be infinite.
    """
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def _defer_disk_errors(failure: threading.ExceptHookArgs) -> None:
    """Ignore disk errors in TensorBoard's thread, which raises them again at the next record."""
    stored = getattr(failure.thread, "exception", None)
    if not isinstance(stored, OSError):
        threading.__excepthook__(failure)


def truncate_records(path: Path, step: int, extra: set[str]) -> None:
    """Remove the records after `step`, which a resumed run will write again.

    Records of `step` itself are removed too if they contain one of the `extra` keys.
    """

    def stays(line: str) -> bool:
        # An incomplete line of a killed process is later than any checkpoint.
        if not line.endswith("\n"):
            return False
        row = json.loads(line)
        return row["step"] < step or (row["step"] == step and not extra & row.keys())

    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with write_atomically(path) as partial:
            partial.write_text("".join(filter(stays, lines)), encoding="utf-8")
