"""Load a model: its weights, precision and device, and a record of what its images depend on."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_sa import Pipeline
from ddpm_sa.distributed import by_process_0
from ddpm_sa.errors import UserError
from ddpm_sa.model_folder import is_run, model_of_run, set_aside
from ddpm_sa.settings.ranges import Seed, check_ranges

Weights = Literal["ema", "raw"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Command-line settings of the model.

    Attributes:
        seed: Seed of all noise.
        weights: ema, the averaged weights; or raw, the weights in model-raw/ next to them. It and
            dtype apply to the weaker model of guidance too.
        device: cpu, cuda, cuda:1, mps, ...; by default the accelerator if there is one.
        dtype: Precision of the network. bfloat16 is faster on hardware that supports it; the images
            differ in small details.
    """

    seed: Seed = 0
    weights: Weights = "ema"
    device: str | None = None
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)

    def open(self, model: str, compile: bool = False) -> Pipeline:
        """Call `open_model` with these weights and this precision."""
        return open_model(model, self.weights, self.dtype, compile)


def open_model(
    model: str, weights: Weights = "ema", dtype: Precision = "float32", compile: bool = False
) -> Pipeline:
    """Open a model folder, a run, one of its checkpoints, or a repository on the Hugging Face Hub.

    Args:
        model: The folder or repository; "owner/name@revision" is another revision than main. A run
            that has written no model yet stands for its newest checkpoint.
        weights: "ema", the averaged weights in model/; or "raw", those in model-raw/ next to it. A
            checkpoint has both.
        dtype: Precision of the network.
        compile: Whether to torch.compile the network, once for each batch size.

    Raises:
        ValueError: If there is no such model.
    """
    pipeline = _load(model, weights)
    if dtype == "bfloat16":
        pipeline.unet.bfloat16()  # diffusers' .to(dtype) prints a warning about no modules
    if compile:
        pipeline.unet.compile(dynamic=False)
    return pipeline


def _load(model: str, weights: Weights) -> Pipeline:
    folder = Path(model)
    if folder.parent.name == "checkpoints" and folder.parent.is_dir():
        return _load_checkpoint(folder, weights)
    if is_run(folder):
        finished = model_of_run(folder)
        if finished is None:
            return _load_newest_checkpoint(folder, weights)
        folder = finished
    if weights == "raw":
        raw = folder.with_name(f"{folder.name}-raw")
        if not raw.is_dir():
            raise UserError(
                f"{raw} does not exist; training keeps raw weights if --ema.keep_raw is true"
            )
        folder = raw
    if folder != Path(model) or folder.exists() or set_aside(folder).is_dir():
        return Pipeline.from_pretrained(folder)
    repo, _, revision = model.partition("@")
    return Pipeline.from_pretrained(repo, revision=revision or None)


def _load_newest_checkpoint(run: Path, weights: Weights) -> Pipeline:
    """Load the newest checkpoint of a run that has not written its model yet."""
    # Process 0 chooses: the run may save another while the processes look.
    together = torch.distributed.is_initialized()
    problem = f"{run} cannot be read"
    newest = by_process_0(lambda: _newest(run), problem) if together else _newest(run)
    if os.environ.get("RANK", "0") == "0":
        print(f"{run} has no model/ before the run ends or is stopped: using {newest}")
    return _load_checkpoint(newest, weights)


def _newest(run: Path) -> Path:
    names = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    if not names:
        raise UserError(
            f"{run} holds no model and no checkpoint yet; training saves one every "
            "--save_every updates"
        )
    return max(names, key=lambda path: int(path.name[5:]))


def _load_checkpoint(folder: Path, weights: Weights) -> Pipeline:
    """Load a checkpoint; one of an early version needs the model of its run beside it."""
    path = folder / ("ema.safetensors" if weights == "ema" else "weights.safetensors")
    finished = folder.parents[1] / "model"
    try:
        if (folder / "config.json").is_file():
            return Pipeline.from_weights(folder, load_file(path))
        if not folder.is_dir():
            raise FileNotFoundError
        if not finished.is_dir():
            raise UserError(
                f"{folder} holds only weights; {finished}, which describes the network, is written "
                "when the run ends or is stopped"
            )
        pipeline = Pipeline.from_pretrained(finished)
        pipeline.unet.load_state_dict(load_file(path))
        return pipeline
    except (OSError, SafetensorError, RuntimeError, UserError) as error:
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist, or was removed: a run keeps the newest "
                f"--keep_checkpoints; the newest now is {_newest(folder.parents[1])}"
            ) from error
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not hold the weights of its network: {error}") from error


def weights_hash(pipeline: Pipeline) -> str:
    """SHA-256 of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in pipeline.unet.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(pipeline: Pipeline) -> dict[str, Any]:
    """Everything in a model that its images depend on, for a JSON record."""
    config = pipeline.scheduler.config
    return {
        "weights_sha256": weights_hash(pipeline),
        "trained_with": {name: config[name] for name in config if not name.startswith("_")},
    }


def describe_environment(model: str, device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The hardware and software that images are made with, for a JSON record."""
    return {
        "model": model,
        "device": str(device),
        "processes": processes,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
