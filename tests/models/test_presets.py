from collections import Counter

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_sa.cli import parse
from ddpm_sa.models.presets import PRESETS, block_types, preset
from ddpm_sa.models.unet import UNet
from training.config import TrainConfig
from training.scheduler import make_scheduler

# The paper's numbers: section 4 and appendix B, and run_cifar.py, run_lsun.py, run_celebahq.py.
PARAMETERS = {
    "cifar10": 35_746_307,
    "lsun256": 113_673_219,
    "celebahq256": 113_673_219,
    "lsun256_large": 255_677_955,
}


def empty(unet: dict) -> UNet:
    """The network without memory."""
    with torch.device("meta"):
        return UNet(**unet)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_paper_networks_have_the_papers_parameter_counts(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in empty(preset(name).unet).parameters()) == parameters


def test_learned_variance_adds_the_papers_outputs() -> None:
    unet = empty({**preset("cifar10").unet, "out_channels": 6})
    assert sum(p.numel() for p in unet.parameters()) == 35_749_766


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        # Two on the way down and three on the way up at 16, one in the middle.
        ("cifar10", {(16, 16): 5, (4, 4): 1}),
        ("lsun256", {(16, 16): 5, (8, 8): 1}),
        ("celebahq256", {(16, 16): 5, (8, 8): 1}),
    ],
)
def test_attention_is_at_16_and_in_the_middle_alone(name: str, grids: dict) -> None:
    unet = empty(preset(name).unet)
    seen = Counter()

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]) -> Tensor:
        assert q.shape[1] == 1  # one head
        assert scale == q.shape[-1] ** -0.5
        seen[grid] += 1
        return v

    for module in unet.modules():
        if hasattr(module, "attend"):
            module.attend = attend
    size = preset(name).unet["sample_size"]
    unet(torch.empty(1, 3, size, size, device="meta"), 0)
    assert seen == grids


def test_paper_presets_are_trained_with_the_papers_numbers() -> None:
    rows = {
        name: tuple(preset(name).training[key] for key in ("batch_size", "lr", "flip"))
        for name in ("cifar10", "lsun256", "celebahq256")
    }
    assert rows == {
        "cifar10": (128, 2e-4, True),
        "lsun256": (64, 2e-5, True),
        "celebahq256": (64, 2e-5, True),
    }
    steps = {name: preset(name).training["steps"] for name in rows}
    assert steps == {"cifar10": 800_000, "lsun256": 1_200_000, "celebahq256": 500_000}
    for name in rows:
        training = preset(name).training
        assert (training["warmup_steps"], training["ema_decay"]) == (5000, 0.9999)
        assert training["grad_clip"] == 1.0
    assert preset("cifar10").unet["dropout"] == 0.1
    assert "dropout" not in preset("lsun256").unet


def test_paper_schedulers_are_the_papers() -> None:
    variance = {name: DDPMScheduler(**preset(name).scheduler).config for name in PARAMETERS}
    for name, config in variance.items():
        # fixedlarge for CIFAR-10, fixedsmall for 256²
        assert config["variance_type"] == ("fixed_large" if name == "cifar10" else "fixed_small")
        assert (config["beta_start"], config["beta_end"]) == (1e-4, 0.02)
        assert (config["num_train_timesteps"], config["prediction_type"]) == (1000, "epsilon")
        assert config["clip_sample"]
        assert config["timestep_spacing"] == "leading"


@pytest.mark.parametrize("config", ["cifar10", "lsun256", "mnist", "folder"])
def test_saved_scheduler_samples_eps_as_the_paper_does_and_v_to_its_solution(config):
    words = ["--config", f"training/configs/{config}.yaml", "--data.source", "images"]
    saved = make_scheduler(parse(TrainConfig, words)).config
    of_eps = config in ("cifar10", "lsun256")
    assert saved["prediction_type"] == ("epsilon" if of_eps else "v_prediction")
    assert saved["clip_sample"] == of_eps
    assert saved["timestep_spacing"] == ("leading" if of_eps else "trailing")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_network_that_sees_the_timestep(name: str) -> None:
    """A group of one channel would take the shift by the timestep out again."""
    arguments = preset(name).unet
    groups = arguments.get("norm_num_groups", 32)
    assert min(arguments["block_out_channels"]) // groups >= 4
    unet = empty(arguments)
    size, channels = arguments["sample_size"], arguments["in_channels"]
    out = unet(torch.empty(2, channels, size, size, device="meta"), 0).sample
    assert out.shape == (2, channels, size, size)
    DDPMScheduler(**preset(name).scheduler)


def test_block_types_follow_the_resolution() -> None:
    down, up = block_types((16, 8), 32, 4)
    assert down == ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert up == ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert block_types((), 32, 2) == (("DownBlock2D",) * 2, ("UpBlock2D",) * 2)


def test_a_resolution_that_no_level_has_is_refused_with_those_there_are() -> None:
    message = r"\(16,\).* 16 pixels high; .* 28 .* 28, 14, 7, of which 14 is the nearest"
    with pytest.raises(ValueError, match=message):
        block_types((16,), 28, 3)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cifar'.*cifar10, lsun256"):
        preset("cifar")
