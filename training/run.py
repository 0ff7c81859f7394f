"""The folder of a run: whether it may begin or go on, what it keeps, the model it ends with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ddpm_sa.images import ImageFormat
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.unet import UNet
from training.config import TrainConfig
from training.data import Images
from training.ema import EMA
from training.launch import environment
from training.settings import check_same_run, save_config, to_plain
from training.state import (
    Trainee,
    checkpoint_path,
    damage_of,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)


def averaged_pipeline(
    network: UNet, ema: EMA, scheduler: DDPMScheduler, images: Images
) -> Pipeline:
    """What samples from the averaged weights.

    The network in training may be compiled and run in half precision; this one never is.
    """
    size = (images.size, images.size)
    labels = tuple(images.classes) if images.classes else None
    image_format = ImageFormat(channels=images.channels, size=size, labels=labels)
    return Pipeline(network_with(network, ema.state_dict()), scheduler, image_format)


def network_with(network: UNet, weights: Mapping[str, Tensor]) -> UNet:
    """Another network of that shape, which shares the memory of these weights."""
    other = UNet(**network.config)
    other.load_state_dict(weights, assign=True)
    return other


def find_checkpoint(config: TrainConfig) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, or None, and what is to be said about others.

    Raises:
        ValueError: If a run is there and `resume` is `never`, if the checkpoint named by `resume`
            is not sound, or if it belongs to a run with other settings.
    """
    run = Path(config.output_dir)
    if run.exists() and not run.is_dir():
        raise ValueError(f"output_dir={run} is a file")
    holds_run = (run / "config.yaml").exists() or (run / "checkpoints").exists()
    notes: list[str] = []
    if config.resume == "never":
        if holds_run:
            raise ValueError(
                f"output_dir={run} already holds a run; add --resume auto to go on with it, or "
                "choose another output_dir"
            )
        return None, notes
    if config.resume == "auto":
        folder, damaged = newest_checkpoint(run)
        notes = [f"passed over: {damage}" for damage in damaged]
        if holds_run and folder is None:
            notes.append(f"{run} holds no whole checkpoint: the run starts from step 0")
    else:
        folder = Path(config.resume)
        if damage := damage_of(folder):
            raise ValueError(f"resume={config.resume} is no whole checkpoint: {damage}")
        if holds_run and folder.resolve().parent.parent != run.resolve():
            raise ValueError(
                f"output_dir={run} holds another run than resume={folder}; choose a new output_dir"
            )
    if folder is not None:
        state = load_state(folder)
        check_same_run(state["config"], config)
        if state["step"] > config.steps:
            raise ValueError(f"steps={config.steps}, but {folder} has {state['step']} behind it")
    return folder, notes


class RunFolder:
    """Where a run writes; process 0 alone does, the others wait.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, trainee: Trainee):
        self.accelerator, self.config, self.trainee = accelerator, config, trainee
        self.path = Path(config.output_dir)
        # Every process has looked at the folder before one of them changes it.
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                save_config(replace(config, resume="never"), self.path / "config.yaml")
            except OSError as error:
                raise ValueError(f"output_dir={self.path} cannot be written: {error}") from error
        accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path | None) -> tuple[int, dict[str, Any]]:
        """Take a checkpoint's values, and say what has changed around the run.

        Returns:
            The updates already done, and the `log_state` saved with them.
        """
        if checkpoint is None:
            return 0, {}
        state = load_state(checkpoint)
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
        return state["step"], state["log"]

    def save(self, step: int, log_state: dict[str, Any]) -> None:
        """Keep a checkpoint.

        Raises:
            ValueError: If it cannot be written; the one before it is then untouched.
        """
        folder = checkpoint_path(self.path, step)
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "log": log_state,
            "scaler": None if scaler is None else scaler.state_dict(),
            "environment": environment(self.accelerator, self.config),
            "config": to_plain(self.config),
        }
        if self.accelerator.is_main_process:
            try:
                save_checkpoint(folder, self.trainee, state, self.config.keep_checkpoints)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{folder} could not be written: {error}; the checkpoint before it is whole"
                ) from error
        self.accelerator.wait_for_everyone()

    def finish(self, pipeline: Pipeline, grid: Image.Image | None) -> None:
        """Write the model folder, and those of further averages and of the raw weights."""
        if self.accelerator.is_main_process:
            pipeline.save_pretrained(self.path / "model", grid)
            for name, weights in self.trainee.further_weights(self.config.ema.keep_raw).items():
                network = network_with(pipeline.unet, weights)
                other = Pipeline(network, pipeline.scheduler, pipeline.image_format)
                other.save_pretrained(self.path / f"model-{name}")
        self.accelerator.wait_for_everyone()
