"""The folder of a run: what it keeps, and the model that it ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from ddpm_sa.data.dataset import Images
from ddpm_sa.models.unet import UNet
from ddpm_sa.pipeline import Pipeline
from training.checkpoint.resume import record_launch, set_aside_later, what_counts
from training.checkpoint.state import (
    Trainee,
    checkpoint_path,
    load_state,
    remove_unfinished,
    save_checkpoint,
)
from training.config import TrainConfig
from training.distributed.accelerator import by_process_0, environment
from training.distributed.fsdp import whole
from training.ema import EMA
from training.reporting.loss_figure import read_records
from training.reporting.model_card import about_training, weights_of
from training.saved_config import save_config


def averaged_pipeline(
    network: UNet, ema: EMA, scheduler: DDPMScheduler, images: Images
) -> Pipeline:
    """What samples from the averaged weights.

    The network in training may be compiled and run in half precision; this one never is.
    """
    weights = {name: whole(weight) for name, weight in ema.state_dict().items()}
    return Pipeline(network_with(network, weights), scheduler, images.format)


def network_with(network: UNet, weights: Mapping[str, Tensor]) -> UNet:
    """Another network of that shape, which shares the memory of these weights."""
    other = UNet(**network.config)
    other.load_state_dict(weights, assign=True)
    return other


class RunFolder:
    """Where a run writes; process 0 alone does, the others wait.

    Args:
        accelerator, config, images: Of the run.
        trainee: What is trained.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, images: Images, trainee: Trainee
    ):
        self.accelerator, self.config = accelerator, config
        self.counts, self.trainee = what_counts(config, images), trainee
        self.path, self.skipped = Path(config.output_dir), images.all_skipped
        by_process_0(self._begin, f"output_dir={self.path} cannot be written")
        record_launch(self.path)

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.path)
        save_config(self.config, self.path / "config.yaml")
        if self.skipped:
            text = "\n".join(self.skipped) + "\n"
            (self.path / "skipped.txt").write_text(text, encoding="utf-8")

    def restore(self, checkpoint: Path | None) -> tuple[int, dict[str, Any]]:
        """Take a checkpoint's values, and say what has changed around the run.

        Returns:
            The updates already done, and the `log_state` saved with them.
        """
        if checkpoint is None:
            return 0, {}
        state = load_state(checkpoint)
        self.step = state["step"]
        self.trainee.load(checkpoint)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        before = state["environment"]
        for name, now in environment(self.accelerator, self.config).items():
            if before.get(name) != now:
                self.accelerator.print(
                    f"{name}: {before.get(name)} before, {now} now; the last bits may differ from "
                    "a run that was not stopped"
                )
        if self.config.resume not in ("auto", "never"):
            notes = by_process_0(
                lambda: set_aside_later(self.path, state["step"]), f"{self.path} cannot be written"
            )
            for note in notes:
                self.accelerator.print(note)
        return state["step"], state["log"]

    def save(self, step: int, log_state: dict[str, Any]) -> None:
        """Keep a checkpoint.

        Raises:
            ValueError: If it cannot be written; the one before it is then untouched.
        """
        folder, self.step = checkpoint_path(self.path, step), step
        scaler, config = self.accelerator.scaler, self.config
        state = {
            "step": step,
            "log": log_state,
            "scaler": None if scaler is None else scaler.state_dict(),
            "environment": environment(self.accelerator, config),
            "counts": self.counts,
        }
        keep = (config.keep_checkpoints, config.keep_every)
        tensors = self.trainee.tensors(self.accelerator.is_main_process)
        by_process_0(
            lambda: save_checkpoint(folder, tensors, state, *keep),
            f"{folder} could not be written, what was kept before it is untouched",
        )

    def finish(self, pipeline: Pipeline, grid: Image.Image | None) -> None:
        """Write the model folder, and those of further averages and of the raw weights.

        Raises:
            ValueError: If one cannot be written; the one before it, if any, is then untouched.
        """
        raw, here = self.config.ema.keep_raw, self.accelerator.is_main_process
        further = self.trainee.further_weights(raw, here)

        def write() -> None:
            self._write_model(pipeline, "model", grid)
            for name, weights in further.items():
                network = network_with(pipeline.unet, weights)
                other = Pipeline(network, pipeline.scheduler, pipeline.image_format)
                self._write_model(other, f"model-{name}")

        by_process_0(
            write, f"{self.path}/model could not be written, but the last checkpoint is whole"
        )

    def _write_model(self, pipeline: Pipeline, name: str, grid: Image.Image | None = None) -> None:
        weights, rows = weights_of(name, self.config), read_records(self.path / "metrics.jsonl")
        about = about_training(self.config, self.step, weights, self.counts["images"], rows)
        pipeline.save_pretrained(self.path / name, grid, about)
