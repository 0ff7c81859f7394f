"""The model of a program of sampling/: which weights, computed where, and what images depend on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_sa import Pipeline

Weights = Literal["ema", "raw"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Whose images, and how they are computed.

    Attributes:
        seed: Of all noise; 0 or greater.
        weights: ema, the averaged weights; or raw, from model-raw/ beside them.
        device: cpu, cuda, cuda:1, mps, ...; the accelerator if there is one, if not given.
        dtype: In which the network computes. bfloat16 is faster where the processor has it, and
            makes images that differ in small details.
    """

    seed: int = 0
    weights: Weights = "ema"
    device: str | None = None
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        self.require_at_least(0, "seed")

    def require_at_least(self, least: int, *names: str) -> None:
        """Refuse a setting that is less."""
        for name in names:
            value = getattr(self, name)
            if value < least:
                rule = f"at least {least}" if least else "0 or greater"
                raise ValueError(f"{name}={value} must be {rule}")

    def open(self, model: str, compile: bool = False) -> Pipeline:
        """`open_model`, with these weights in this precision."""
        return open_model(model, self.weights, self.dtype, compile)


def open_model(
    model: str, weights: Weights = "ema", dtype: Precision = "float32", compile: bool = False
) -> Pipeline:
    """The pipeline of a model folder, of a run or one of its checkpoints, or of a hub's repository.

    Args:
        model: Which.
        weights: "ema", the averaged ones in model/; or "raw", those in model-raw/ beside it. A
            checkpoint has both.
        dtype: In which the network computes.
        compile: Whether torch.compile makes it faster, a size of batch at a time.

    Raises:
        ValueError: If there is no such model.
    """
    pipeline = _opened(model, weights)
    if dtype == "bfloat16":
        pipeline.unet.bfloat16()  # diffusers' .to(dtype) prints a warning about no modules
    if compile:
        pipeline.unet.compile(dynamic=False)
    return pipeline


def _opened(model: str, weights: Weights) -> Pipeline:
    folder = Path(model)
    if folder.parent.name == "checkpoints" and folder.is_dir():
        return _of_checkpoint(folder, weights)
    if (folder / "model").is_dir() and (folder / "config.yaml").is_file():
        folder = folder / "model"
    if weights == "raw":
        raw = folder.with_name(f"{folder.name}-raw")
        if not raw.is_dir():
            raise ValueError(
                f"{raw} is not there; training keeps raw weights if it is told --ema.keep_raw true"
            )
        folder = raw
    return Pipeline.from_pretrained(folder if folder.exists() else model)


def _of_checkpoint(folder: Path, weights: Weights) -> Pipeline:
    """The network of a run, with weights that it had on the way."""
    finished = folder.parents[1] / "model"
    if not finished.is_dir():
        raise ValueError(
            f"{folder} holds weights alone; {finished}, which says of what network, is written "
            "when the run ends or is stopped"
        )
    pipeline = Pipeline.from_pretrained(finished)
    path = folder / ("ema.safetensors" if weights == "ema" else "weights.safetensors")
    try:
        pipeline.unet.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of {finished}: {error}") from error
    return pipeline


def weights_hash(pipeline: Pipeline) -> str:
    """Of the names and values of all weights, as they are computed with."""
    found = hashlib.sha256()
    for name, tensor in pipeline.unet.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def identity_of(pipeline: Pipeline) -> dict[str, Any]:
    """What images depend on in a model."""
    config = pipeline.scheduler.config
    return {
        "weights_sha256": weights_hash(pipeline),
        "trained_with": {name: config[name] for name in config if not name.startswith("_")},
    }


def environment_of(model: str, device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Where images are made."""
    return {
        "model": model,
        "device": str(device),
        "processes": processes,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
