"""Time and memory of self-attention over pixels by resolution, with and without recording.

    python benchmarks/attention_cost.py

Prints a table of the time and peak memory of one attention layer of the paper's width on one image,
compared with a residual block of the same width, which every level has.
"""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ddpm_sa import UNet, record_attention
from ddpm_sa.cli import parse, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        channels: Channels of the layer.
        sizes: Heights of the square grids.
        repeats: Timed calls; the median is reported.
        queries: Number of recorded queries.
    """

    channels: int = 256
    sizes: list[int] = dataclasses.field(default_factory=lambda: [8, 16, 32, 64])
    repeats: int = 10
    queries: int = 5


@torch.no_grad()
def main() -> None:
    settings = parse(Settings)
    unet = UNet(
        block_out_channels=(settings.channels,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        attention_head_dim=None,
    ).eval()
    assert unet.mid_block is not None
    attention, block = unet.mid_block.attentions[0], unet.mid_block.resnets[0]
    embedding = torch.randn(1, 4 * settings.channels)
    print(f"{settings.channels} features, one image, {torch.get_num_threads()} threads, CPU")
    few = f"{settings.queries} rows recorded"
    print(f"| grid | attention | its memory | {few} | all recorded | residual block |")
    print("|---|---|---|---|---|---|")
    for size in settings.sizes:
        x = torch.randn(1, settings.channels, size, size)
        places = [(i * size // settings.queries, size // 2) for i in range(settings.queries)]
        cells = [f"{size} × {size}", _time(lambda x=x: attention(x), settings.repeats)]
        cells.append(_memory(lambda x=x: attention(x), contextlib.nullcontext()))
        for queries in (places, "all"):
            recording = record_attention(unet, queries=queries)
            cells.append(_memory(lambda x=x: attention(x), recording))
        cells.append(_time(lambda x=x: block(x, embedding), settings.repeats))
        print(f"| {' | '.join(cells)} |")


def _time(call: Callable[[], Tensor], repeats: int) -> str:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return f"{1000 * sorted(times)[repeats // 2]:.2f} ms"


def _memory(call: Callable[[], Tensor], recording: contextlib.AbstractContextManager) -> str:
    """Measure the peak memory of torch's tensors, above that at the start."""
    with recording, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    profiler: Any = record.profiler
    events = profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return f"{max(itertools.accumulate(n for _, n in sorted(changes))) / 2**20:.1f} MiB"


if __name__ == "__main__":
    run_program(main)
