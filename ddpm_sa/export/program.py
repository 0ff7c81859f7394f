"""The graph of a network with a free batch size, as torch.export captures it."""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddpm_sa.errors import require
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.randomness import standard_normal

Precision = Literal["float32", "float16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
Inputs = dict[str, Tensor]
"""sample, timestep and, for a class-conditional network, class_labels."""


class Network(nn.Module):
    """A network that returns a tensor, so that its graph needs no class of any package."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """The arguments are those of `UNet.forward`; t is (B,)."""
        return self.unet(sample, timestep, class_labels, return_dict=False)[0]


def capture(pipeline: Pipeline, dtype: torch.dtype, dynamic_size: bool) -> ExportedProgram:
    """Trace a pipeline's network, which stays as it is.

    Args:
        pipeline: The model.
        dtype: Of the weights, the sample and the output.
        dynamic_size: Whether height and width are free too, in multiples of what the levels need,
            and at least two of them.

    Raises:
        ValueError: If the network takes another conditioning than class labels, or its images are
            too small for a dynamic size.
    """
    config: Any = pipeline.unet.config
    require(
        config.get("class_embed_type") is None,
        f"class_embed_type={config.get('class_embed_type')!r} is not exported: the classes must "
        "be numbers (num_class_embeds)",
    )
    batch = Dim("batch", min=1)
    axes: dict[int, Any] = {0: batch}
    if dynamic_size:
        multiple = pipeline.size_multiple
        require(
            min(pipeline.padded_size) >= 2 * multiple,
            f"dynamic_size needs images of {2 * multiple} x {2 * multiple} or more, twice what the "
            f"levels of the network need; those of this model are {pipeline.padded_size}",
        )
        axes |= {2: multiple * Dim("rows", min=2), 3: multiple * Dim("columns", min=2)}
    # Of 2 images, since torch.export takes a 1 for the only possible size.
    inputs = make_inputs(pipeline, 2, pipeline.padded_size, dtype)
    shapes = {name: axes if name == "sample" else {0: batch} for name in inputs}
    with torch.no_grad():
        return torch.export.export(
            network_copy(pipeline, dtype),
            tuple(inputs.values()),
            dynamic_shapes=shapes,
            strict=False,
        )


def network_copy(pipeline: Pipeline, dtype: torch.dtype) -> Network:
    """A copy of the network on the CPU, in eval mode, its weights rounded to dtype."""
    return Network(copy.deepcopy(pipeline.unet)).to("cpu", dtype).eval()


def make_inputs(
    pipeline: Pipeline, batch: int, size: tuple[int, int], dtype: torch.dtype
) -> Inputs:
    """Noise, timesteps from the noisiest one down, and the first classes, in turn.

    Timesteps are float32, as samplers that step between two of them need; int64 for a network with
    one learned embedding for each.
    """
    config: Any = pipeline.unet.config
    shape = (pipeline.image_format.in_channels, *size)
    last = pipeline.scheduler.config.num_train_timesteps - 1
    # Without 0, whose logarithm is what a Fourier embedding takes.
    timesteps = torch.linspace(last, 0, batch + 1)[:batch]
    learned = config.get("time_embedding_type") == "learned"
    inputs = {
        "sample": standard_normal(shape, 0, "export", range(batch)).to(dtype),
        "timestep": timesteps.long() if learned else timesteps,
    }
    if config.num_class_embeds is not None:
        inputs["class_labels"] = torch.arange(batch) % config.num_class_embeds
    return inputs


def trials(pipeline: Pipeline, dtype: torch.dtype, dynamic_size: bool) -> Iterator[Inputs]:
    """Inputs of other sizes than the graph was captured with."""
    height, width = pipeline.padded_size
    yield make_inputs(pipeline, 1, (height, width), dtype)
    larger = pipeline.size_multiple if dynamic_size else 0
    yield make_inputs(pipeline, 3, (height + larger, width + 2 * larger), dtype)
