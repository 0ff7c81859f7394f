"""Count the GPU work of one network: kernels, bytes and products, without a GPU.

    python benchmarks/ledger.py
    python benchmarks/ledger.py --batch_size 256 --channels_last true

Ours and diffusers' UNet2DModel run on tensors that have shapes but no data. Every operation of
PyTorch counts as one kernel that reads its inputs and writes its outputs once (GroupNorm reads
twice); views are free. In bfloat16 the casts are those of CUDA's autocast. The last column is the
least time that this work takes on a GPU of the given bandwidth and rates: each kernel needs at
least its bytes or its products. Launching kernels, and what cuDNN does inside a convolution, are
not counted.
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import UNet2DModel
from torch import nn

from benchmarks.counting.cuda import autocast_as_on_cuda, fused_attention
from benchmarks.counting.operations import KINDS_IN_ORDER, Counter, Work
from ddpm_sa import UNet, preset
from ddpm_sa.cli import parse, run_program
from ddpm_sa.settings.ranges import Count, Positive

NETWORKS: dict[str, type[nn.Module]] = {"diffusers": UNet2DModel, "ddpm_sa": UNet}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to count, and the GPU that the floor is for.

    Attributes:
        preset: Which network.
        batch_size: Images at once.
        channels_last: Whether images and weights are in the channels_last memory format.
        bandwidth: Of the memory, in TB/s.
        float32_rate: Products in float32, in TFLOP/s.
        bfloat16_rate: Products in bfloat16, in TFLOP/s.
        kinds: Whether to list the kinds of operation too.
    """

    preset: str = "cifar10"
    batch_size: Count = 128
    channels_last: bool = False
    bandwidth: Positive = 3.0
    float32_rate: Positive = 67.0
    bfloat16_rate: Positive = 798.0
    kinds: bool = False


def main() -> None:
    settings = parse(Settings)
    layout = "channels_last" if settings.channels_last else "contiguous"
    print(f"{settings.preset}, batch {settings.batch_size}, {layout}\n")
    print("\n".join(table(settings)))


def table(settings: Settings) -> list[str]:
    """The ledger as the lines of a Markdown table."""
    lines = [
        "| | kernels | casts | layout changes | GB | TFLOP | floor, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for training in (False, True):
        for dtype in DTYPES:
            for network in NETWORKS:
                work = count(network, training, dtype, settings)
                mode = "training step" if training else "evaluation"
                lines.append(_row(f"{mode}, {dtype}, {network}", work.values()))
                if settings.kinds:
                    rows = sorted(work.items(), key=lambda item: -item[1].bytes)
                    lines += [_row(f"... {kind}", [one]) for kind, one in rows]
    return lines


def count(network: str, training: bool, dtype: str, settings: Settings) -> dict[str, Work]:
    """The work of one evaluation or training step, by kind of operation.

    Args:
        network: A name of `NETWORKS`.
        training: Whether to count forward pass, loss and backward pass, rather than an evaluation.
        dtype: A name of `DTYPES`: bfloat16 is by autocast, with the parameters in float32.
        settings: The preset, the batch and the layout; the rates are those of the floor.

    Returns:
        A part of `counting.operations.KINDS_IN_ORDER`, with the work of each.
    """
    config: dict[str, Any] = preset(settings.preset).unet | {"dropout": 0.0}
    order = torch.channels_last if settings.channels_last else torch.contiguous_format
    with torch.device("meta"):
        unet = NETWORKS[network](**config).to(memory_format=order)  # pyright: ignore
        size = (config["sample_size"], config["sample_size"])
        x = torch.empty(settings.batch_size, config["in_channels"], *size)
        t = torch.empty(settings.batch_size, dtype=torch.long)
    x = x.contiguous(memory_format=order)
    rates = {
        torch.float32: settings.float32_rate * 1e12,
        torch.bfloat16: settings.bfloat16_rate * 1e12,
    }
    counter = Counter(settings.bandwidth * 1e12, rates)
    with counter, torch.set_grad_enabled(training), fused_attention():
        with autocast_as_on_cuda(enabled=dtype == "bfloat16"):
            output = unet(x, t).sample
        if training:
            (output.float() - x).square().mean().backward()
    assert counter.work.keys() <= set(KINDS_IN_ORDER)
    return counter.work


def _row(name: str, parts: Iterable[Work]) -> str:
    total = sum(parts, Work())
    return (
        f"| {name} | {total.kernels} | {total.casts} | {total.layout_changes} "
        f"| {total.bytes / 1e9:.2f} | {total.flops / 1e12:.2f} | {total.seconds * 1e3:.2f} |"
    )


if __name__ == "__main__":
    run_program(main)
