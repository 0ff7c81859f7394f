"""The folder of a run: settings, checkpoints, and the final models."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from ddpm_sa.data.dataset import Images
from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.files.folder_lock import hold_folder
from ddpm_sa.model_folder import restore_all
from ddpm_sa.models.unet import UNet
from ddpm_sa.pipeline import Pipeline
from training.checkpoint.resume import record_launch, run_identity, set_aside_later_checkpoints
from training.checkpoint.state import (
    checkpoint_path,
    load_state,
    remove_unfinished,
    save_checkpoint,
)
from training.checkpoint.training_state import TrainingState
from training.config import TrainConfig
from training.distributed.accelerator import by_process_0, describe_environment
from training.distributed.fsdp import full_tensor
from training.ema import EMA
from training.reporting.loss_figure import read_records
from training.reporting.model_card import describe_training, describe_weights
from training.saved_config import save_config


def make_ema_pipeline(
    network: UNet, ema: EMA, scheduler: DDPMScheduler, images: Images
) -> Pipeline:
    """Make a pipeline with the averaged weights.

    Unlike the network in training it is never compiled or run in half precision.
    """
    weights = {name: full_tensor(weight) for name, weight in ema.state_dict().items()}
    return Pipeline(copy_with_weights(network, weights), scheduler, images.format)


def copy_with_weights(network: UNet, weights: Mapping[str, Tensor]) -> UNet:
    """Copy a network, with these weights, whose memory it shares."""
    other = UNet(**network.config)
    other.load_state_dict(weights, assign=True)
    return other


def hold_run_folder(output_dir: str) -> AbstractContextManager[None]:
    """Hold the folder of a run, in process 0 for all of them, while the block writes it.

    Raises:
        ValueError: If another run holds it, or it cannot be written.
    """
    take = partial(by_process_0, problem=f"output_dir={output_dir} cannot be written")
    return hold_folder(Path(output_dir), take=take)


class RunFolder:
    """Writes the folder of a run; only process 0 writes, the others wait.

    Args:
        accelerator, config, images: The accelerator, settings and dataset of the run.
        training_state: The network, averages and optimiser.
        pipeline: The pipeline that is saved, with the main average.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        images: Images,
        training_state: TrainingState,
        pipeline: Pipeline,
    ):
        self.accelerator, self.config = accelerator, config
        self.counts, self.training_state = run_identity(config, images), training_state
        self.path, self.skipped = Path(config.output_dir), images.all_skipped
        self.pipeline = pipeline

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        restore_all(self.path, "model*")
        remove_unfinished(self.path)
        save_config(self.config, self.path / "config.yaml")
        if self.skipped:
            text = "\n".join(self.skipped) + "\n"
            with write_atomically(self.path / "skipped.txt") as file:
                file.write_text(text, encoding="utf-8")

    def restore(self, checkpoint: Path | None) -> tuple[int, dict[str, Any]]:
        """Load a checkpoint, if any, then begin to write the folder.

        Reports changes of the environment, and what starts anew.

        Returns:
            The number of updates done, and the `log_state` saved with them.

        Raises:
            UserError: If the checkpoint does not fit the network or is gone, or if the folder
                cannot be written.
        """
        try:
            done = (0, {}) if checkpoint is None else self._load(checkpoint)
        except FileNotFoundError as error:  # the run that it belongs to goes on, and removes it
            raise UserError(
                f"{checkpoint} was removed while it was read; copy it, or name a newer one"
            ) from error
        by_process_0(self._begin, f"output_dir={self.path} cannot be written")
        record_launch(self.path)
        return done

    def _load(self, checkpoint: Path) -> tuple[int, dict[str, Any]]:
        state = load_state(checkpoint)
        self.step = state["step"]
        for note in self.training_state.load(checkpoint):
            self.accelerator.print(note)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        before = state["environment"]
        for name, now in describe_environment(self.accelerator, self.config).items():
            if before.get(name) != now:
                self.accelerator.print(
                    f"{name}: {before.get(name)} before, {now} now; the last bits may differ from "
                    "those of an uninterrupted run"
                )
        if self.config.resume not in ("auto", "never"):
            notes = by_process_0(
                lambda: set_aside_later_checkpoints(self.path, state["step"]),
                f"{self.path} cannot be written",
            )
            for note in notes:
                self.accelerator.print(note)
        return state["step"], state["log"]

    def save(self, step: int, log_state: dict[str, Any]) -> None:
        """Save a checkpoint.

        Raises:
            ValueError: If it cannot be written; earlier checkpoints are then unchanged.
        """
        folder, self.step = checkpoint_path(self.path, step), step
        scaler, config = self.accelerator.scaler, self.config
        state = {
            "step": step,
            "log": log_state,
            "scaler": None if scaler is None else scaler.state_dict(),
            "environment": describe_environment(self.accelerator, config),
            "counts": self.counts,
        }
        keep = (config.keep_checkpoints, config.keep_every)
        tensors = self.training_state.tensors(self.accelerator.is_main_process)
        by_process_0(
            lambda: save_checkpoint(folder, tensors, state, *keep, self.pipeline.save_configs),
            f"{folder} could not be written, earlier checkpoints are unchanged",
        )

    def finish(self, grid: Image.Image | None) -> None:
        """Write the model folders: the main average, further averages, and raw weights.

        Raises:
            ValueError: If one cannot be written; an earlier one is then unchanged.
        """
        raw, main = self.config.ema.keep_raw, self.accelerator.is_main_process
        extra = self.training_state.extra_weights(raw, keep=main)
        pipeline = self.pipeline

        def write() -> None:
            self._write_model(pipeline, "model", grid)
            for name, weights in extra.items():
                network = copy_with_weights(pipeline.unet, weights)
                other = Pipeline(network, pipeline.scheduler, pipeline.image_format)
                self._write_model(other, f"model-{name}")

        by_process_0(
            write, f"{self.path}/model could not be written, but the last checkpoint is valid"
        )

    def _write_model(self, pipeline: Pipeline, name: str, grid: Image.Image | None = None) -> None:
        weights = describe_weights(name, self.config)
        rows = read_records(self.path / "metrics.jsonl")
        about = describe_training(self.config, self.step, weights, self.counts["images"], rows)
        pipeline.save_pretrained(self.path / name, grid, about)
