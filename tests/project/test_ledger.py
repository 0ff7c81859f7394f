"""The ledger counts what it says, and ours does less than diffusers' network on a GPU."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting.cuda import IN_FLOAT32, IN_HALF, fused_attention
from benchmarks.counting.operations import Counter, Work
from benchmarks.ledger import DTYPES, NETWORKS, Settings, count, table
from ddpm_sa import preset

ROOT = Path(__file__).parents[2]
MODES = [(training, dtype) for training in (False, True) for dtype in DTYPES]


def total(network, training, dtype, settings):
    return sum(count(network, training, dtype, settings).values(), Work())


@pytest.mark.parametrize(("training", "dtype"), MODES)
def test_ours_has_at_most_as_many_kernels_and_in_bfloat16_a_quarter_fewer_bytes(training, dtype):
    theirs, ours = (total(name, training, dtype, Settings()) for name in NETWORKS)
    assert ours.kernels <= theirs.kernels
    assert ours.bytes <= theirs.bytes * (0.75 if dtype == "bfloat16" else 1)
    assert ours.seconds <= theirs.seconds


def test_bytes_are_those_counted_by_hand():
    counter = Counter(1e12, {})
    with torch.device("meta"):
        x, image = torch.empty(4, 8), torch.empty(2, 4, 8, 8)
    with counter:
        y = x + x.t().reshape(8, 4).t()  # views are free
        y.bfloat16()
        y.t().contiguous()
        torch.nn.functional.group_norm(image, 2)
    work = counter.work
    assert work["elementwise"] == Work(1, bytes=3 * 128, seconds=3 * 128 / 1e12)
    assert work["cast"] == Work(1, casts=1, bytes=128 + 64, seconds=192 / 1e12)
    assert work["layout change"] == Work(1, 0, 1, bytes=256, seconds=256 / 1e12)
    # Read for the statistics, read again, written; a mean and a deviation of 2 groups of 2 images.
    assert work["normalisation"].bytes == 3 * image.nbytes + 2 * 2 * 2 * 4


def test_convolution_of_two_layouts_reorders_one():
    counter = Counter(1e12, {torch.float32: 1e12})
    with torch.device("meta"):
        x, weight = torch.empty(2, 4, 8, 8), torch.empty(6, 4, 3, 3)
    with counter:
        torch.nn.functional.conv2d(x, weight)
        torch.nn.functional.conv2d(x, weight.contiguous(memory_format=torch.channels_last))
    assert counter.work["convolution"].kernels == 2
    assert counter.work["layout change"].kernels == 2  # the weight by us, the images by the kernel


@pytest.mark.parametrize("training", [False, True])
def test_products_are_those_of_torchs_counter_on_real_tensors(training):
    config = preset("tiny").unet | {"dropout": 0.0}
    network, size = NETWORKS["diffusers"](**config), config["sample_size"]
    x, t = torch.zeros(2, config["in_channels"], size, size), torch.tensor([3, 741])
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = network(x, t).sample
        if training:
            output.square().mean().backward()
    work = count("diffusers", training, "float32", Settings(preset="tiny", batch_size=2))
    # torch's counter has no number for the attention of CPUs.
    counted = sum(part.flops for kind, part in work.items() if kind != "attention")
    assert counted == counter.get_total_flops()


def test_products_of_attention_are_two_for_each_pair_of_pixels():
    counter = Counter(1e12, {torch.float32: 1e12})
    q = torch.empty(2, 4, 64, 8, device="meta")
    with counter, fused_attention(), torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    (attention,) = counter.work.values()
    assert (attention.kernels, attention.flops) == (1, 2 * 2 * (2 * 4) * 64 * 64 * 8)


def operations_of_autocast(macro):
    """Names in a list of ATen/autocast_mode.h."""
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text()
    body = re.search(rf"#define {macro}\(_\)(.*?[^\\])\n\n", text, re.DOTALL)
    return set(re.findall(r"_\((\w+)", body[1]))


def test_casts_are_those_of_cudas_autocast():
    half = operations_of_autocast("AT_FORALL_LOWER_PRECISION_FP")
    full = operations_of_autocast("AT_FORALL_FP32")
    full |= operations_of_autocast("AT_FORALL_FP32_SET_OPT_DTYPE")
    assert half >= IN_HALF
    assert full >= IN_FLOAT32

    called = set()

    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if not func.__name__.startswith("_scaled"):  # ours, in the place of a public name
                called.add(func.__name__)
            return func(*args, **(kwargs or {}))

    with Names():
        for name in NETWORKS:
            count(name, True, "bfloat16", Settings(preset="tiny", batch_size=2))
    assert {"conv2d", "group_norm", "linear"} <= called
    assert called & half <= IN_HALF
    assert called & full <= IN_FLOAT32


@pytest.mark.parametrize("channels_last", [False, True])
def test_tables_in_the_documentation_are_the_programs(channels_last):
    page = (ROOT / "docs" / "gpu.md").read_text()
    versions = f"torch {torch.__version__.split('+')[0]}, diffusers {diffusers.__version__}"
    if versions not in page:
        pytest.skip(f"the tables were not made with {versions}")
    assert "\n".join(table(Settings(channels_last=channels_last))) in page
