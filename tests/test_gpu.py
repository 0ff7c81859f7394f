"""On a GPU: the numbers of the CPU, the randomness of the CPU, and runs that go on."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from ddpm_sa import Pipeline, UNet
from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from tests.support.runs import NETWORK, arguments, checkpoint, metrics, run_here, same_bits
from training.config import DataConfig, ModelConfig, TrainConfig
from training.draws import Layout
from training.memory.forecast import forecast
from training.network import build_network
from training.objective import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(autouse=True)
def in_full_float32(monkeypatch):
    """Convolutions as they are on the CPU, not in TensorFloat-32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(seed=0):
    torch.manual_seed(seed)
    return UNet(**NETWORK).eval()


def test_network_and_its_gradients_are_the_cpus():
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999])
    gradients = []
    for device in ("cpu", "cuda"):
        unet = network().to(device)
        out = unet(x.to(device), t.to(device)).sample
        (out.square().mean() * 100).backward()
        gradients.append([out.detach().cpu(), *(p.grad.cpu() for p in unet.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * one.abs().max().item() + 1e-7)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpmsolver++", "euler_ancestral", "heun"])
def test_images_of_a_seed_are_the_cpus(straight, scheduler):
    made = []
    for device in ("cpu", "cuda"):
        pipeline = Pipeline.from_pretrained(straight / "model").to(device)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline(4, steps=10, scheduler=scheduler, output_type="pt").images)
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-4)


def test_run_is_on_the_gpu_in_bf16_by_default_and_learns(pictures, tmp_path):
    run_here(arguments(pictures, tmp_path / "run", steps=40, mixed_precision="auto", log_every=10))
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    found = json.loads(state.read_text())["environment"]
    assert found["device"] == torch.cuda.get_device_name()
    assert "mixed_precision: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]


def resumed(pictures, tmp_path, changes):
    """A run, and the same one that was stopped in the middle and went on."""
    one, other = tmp_path / "one", tmp_path / "other"
    run_here(arguments(pictures, one, **changes))
    run_here(arguments(pictures, other, **changes, steps=3))
    run_here(arguments(pictures, other, **changes, resume="auto"))
    return one, other


@pytest.mark.parametrize("changes", [{}, {"mixed_precision": "bf16"}])
def test_run_stopped_and_resumed_has_the_bits_of_one_that_was_not(pictures, tmp_path, changes):
    one, other = resumed(pictures, tmp_path, changes)
    for stem in ("weights", "ema", "optimizer"):
        assert same_bits(checkpoint(one, 6, stem), checkpoint(other, 6, stem)), stem


def test_compiled_run_stopped_and_resumed_is_to_rounding_one_that_was_not(pictures, tmp_path):
    """torch.compile chooses its kernels by their time, and so may sum in another order."""
    one, other = resumed(pictures, tmp_path, {"compile": "true"})
    first, second = (checkpoint(run, 6, "weights") for run in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


def test_losses_are_those_of_a_run_on_the_cpu(pictures, tmp_path, monkeypatch):
    run_here(arguments(pictures, tmp_path / "gpu", log_every=1))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_here(arguments(pictures, tmp_path / "cpu", log_every=1))
    gpu, cpu = ([row["loss"] for row in metrics(tmp_path / name)] for name in ("gpu", "cpu"))
    assert gpu == pytest.approx(cpu, rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_training_steps_is_about_the_forecast(checkpointing):
    images = Images(length=64, format=ImageFormat(channels=3, size=(32, 32)), read=np.asarray)
    model = ModelConfig(preset="cifar10", gradient_checkpointing=checkpointing)
    config = TrainConfig(
        output_dir="unused", data=DataConfig(source="x"), model=model, mixed_precision="bf16"
    )
    build, device = partial(build_network, model, images, 0), torch.device("cuda")
    told = forecast(config, Layout(64), build, 0, device, 64)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trained = build().cuda().to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = make_optimizer(trained, config.optim)
    x = torch.zeros(64, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.zeros(64, dtype=torch.long, device=device)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            output = trained(x, t).sample
        output.float().square().mean().backward()
        optimizer.step()
    real = torch.cuda.max_memory_allocated() - before
    assert 0.8 < (told.total - told.averages) / real < 1.25


def test_maps_of_attention_are_the_cpus(straight):
    from ddpm_sa import record_attention

    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 700])
    rows = []
    for device in ("cpu", "cuda"):
        unet = network().to(device)
        with record_attention(unet) as maps, torch.no_grad():
            unet(x.to(device), t.to(device))
        rows.append({name: kept[0].cpu() for name, kept in maps.items()})
    assert rows[0].keys() == rows[1].keys()
    for name in rows[0]:
        torch.testing.assert_close(rows[1][name], rows[0][name], rtol=0, atol=1e-5)
