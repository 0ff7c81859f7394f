"""Files of denoising-diffusion-pytorch: of a GaussianDiffusion, and of its Trainer."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_sa import NoiseSchedule, Pipeline
from sampling.convert import main
from tests.support.reference import Fixture, error_of_each_image

# Their default schedule has betas that none of diffusers' schedules gives.
BETAS = NoiseSchedule.quadratic(200, 1e-3, 0.3).betas.float()


@pytest.fixture
def convert(run_main, tmp_path):
    """Convert what torch.save writes of a content: (code, stdout, stderr)."""

    def run(content: Any, *words: Any):
        torch.save(content, tmp_path / "model.pt")
        size = [] if "--image_size" in words else ["--image_size", 16]
        return partial(run_main, main)(
            tmp_path / "model.pt", *size, *words, "--output_dir", tmp_path / "out"
        )

    return run


def network() -> dict[str, Tensor]:
    weights = Fixture("lucidrains_unet").weights()
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def diffusion(shift: float = 0.0) -> dict[str, Tensor]:
    """The state dict of a GaussianDiffusion: its network, and its buffers."""
    named = {f"model.{name}": weight + shift for name, weight in network().items()}
    return named | {"betas": BETAS, "alphas_cumprod": (1 - BETAS).cumprod(0)}


def trainer() -> dict[str, Any]:
    """What the Trainer saves: raw weights, and the state of ema_pytorch's EMA."""
    ema = {f"ema_model.{name}": tensor for name, tensor in diffusion().items()}
    ema |= {f"online_model.{name}": tensor for name, tensor in diffusion(shift=1.0).items()}
    ema |= {"initted": torch.tensor([True]), "step": torch.tensor([700])}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 8e-5}]}
    raw = diffusion(shift=1.0)
    return {"step": 7000, "model": raw, "opt": optimizer, "ema": ema, "scaler": None}


def opened(tmp_path) -> Pipeline:
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_state_dict_of_gaussian_diffusion_brings_its_betas(convert, tmp_path):
    code, said, error = convert(diffusion(), "--objective", "pred_v")
    assert code == 0, error
    assert "out: lucidrains, " in said
    assert "only ddpm_sa can open it: diffusers has no LucidrainsUNet" in said
    assert "taken from the file: model.*, without this prefix" in said
    assert "taken from beside it: betas" in said
    assert "left out of the file: 1 other tensors, alphas_cumprod first" in said
    pipeline, original = opened(tmp_path), Fixture("lucidrains_unet")
    config = pipeline.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert torch.equal(NoiseSchedule.from_scheduler(pipeline.scheduler).betas, BETAS.double())
    with torch.no_grad():
        out = pipeline.unet(original["in/x"], original["in/t"]).sample
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()
    images = pipeline(num_images=2, steps=4, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The U-Net of lucidrains/denoising-diffusion-pytorch" in card
    assert "diffusers alone cannot open it: diffusers has no LucidrainsUNet." in card
    assert "200 timesteps with the betas listed in `scheduler_config.json`" in card


def test_of_a_trainers_file_the_average_is_chosen_by_its_entry(convert, tmp_path):
    code, _, error = convert(trainer(), "--objective", "pred_noise")
    assert code == 2
    assert "3 networks: ema.ema_model.model, ema.online_model.model, model.model; choose" in error
    assert error.count("\n") == 1
    words = ["--objective", "pred_noise", "--entry", "ema.ema_model"]
    code, said, error = convert(trainer(), *words)
    assert code == 0, error
    assert "taken from the file: ema.ema_model.model.*" in said
    pipeline = opened(tmp_path)
    assert torch.equal(pipeline.unet.conv_in.weight, network()["init_conv.weight"])
    assert pipeline.scheduler.config.num_train_timesteps == 200


def test_a_bare_network_needs_its_schedule(convert, tmp_path):
    code, _, error = convert(network(), "--objective", "pred_x0")
    assert code == 2
    assert "has no betas beside the network's weights" in error
    words = ["--objective", "pred_x0", "--noise_schedule", "cosine", "--diffusion_steps", 250]
    code, _, error = convert(network(), *words)
    assert code == 0, error
    config = opened(tmp_path).scheduler.config
    assert config.prediction_type == "sample"
    torch.testing.assert_close(
        torch.tensor(config.trained_betas), NoiseSchedule.cosine(250).betas.float()
    )


def test_ddpm_steps_are_those_of_their_p_sample(convert, tmp_path):
    """x_0 clipped to [-1, 1], the posterior's mean and variance (p_mean_variance, p_sample)."""
    code, _, error = convert(diffusion(), "--objective", "pred_v")
    assert code == 0, error
    pipeline = opened(tmp_path)
    schedule = NoiseSchedule(BETAS.double())
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(200)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 2, 3, 16, 16, generator=generator)
    for t in (150, 1, 0):
        a, s = float(schedule.a[t]), float(schedule.s[t])
        mean = schedule.posterior_mean((a * x - s * v).clamp(-1, 1), x, torch.tensor([t, t]))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        expected = mean + float(schedule.posterior_variance[t]) ** 0.5 * noise
        found = scheduler.step(v, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        # diffusers' tables are float32: 1 - alphas_cumprod has an error of 2^-24 / 0.001.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def changed(**more: Tensor) -> dict[str, Tensor]:
    return diffusion() | {name.replace("__", "."): tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (diffusion(), [], "objective must be given: the weights do not say what they predict"),
        (diffusion(), ["--objective", "pred_flow"], "objective"),
        (
            diffusion(),
            ["--objective", "pred_v", "--noise_schedule", "linear"],
            "noise_schedule does not apply: ",
        ),
        (diffusion(), ["--objective", "pred_v", "--num_heads", 4], "num_heads does not apply"),
        (diffusion(), ["--objective", "pred_v", "--image_size", 15], "image_size=15 cannot be"),
        (changed(betas=torch.zeros(3)), ["--objective", "pred_v"], "betas must be a vector of"),
        (
            changed(model__init_conv__weight=torch.zeros(16, 6, 7, 7)),
            ["--objective", "pred_v"],
            "takes 6 channels and gives 3: self_condition=True",
        ),
        (
            changed(model__init_conv__weight=torch.zeros(16, 4, 7, 7)),
            ["--objective", "pred_v"],
            "takes 4 channels and gives 3; no diffusers scheduler can interpret",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(content, words, message, convert, tmp_path):
    code, said, error = convert(content, *words)
    assert (code, said) == (2, "")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
