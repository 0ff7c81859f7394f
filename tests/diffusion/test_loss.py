import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa.condition import Condition
from ddpm_sa.diffusion.loss import denoising_loss, timestep_weights
from ddpm_sa.diffusion.prediction import PREDICTIONS, prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from tests.support.reference import Fixture

SCHEDULE = NoiseSchedule.linear(1000, 1e-4, 0.02)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_loss_is_that_of_the_papers_code() -> None:
    original = Fixture("ddpm_tf_diffusion")
    x_0, eps, t = original.image("in/x_start"), original.image("in/noise"), original["in/t"].long()

    def network(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=0.3 * x_t + 0.1 * torch.sin(t.float()).reshape(-1, 1, 1, 1))

    loss = denoising_loss(network, SCHEDULE, prediction("epsilon"), x_0, eps, t)
    assert_close(loss, original["out/training_losses/mse_eps"], rtol=5e-5, atol=0)
    assert_close(loss, original["out/v1_p_losses"], rtol=5e-5, atol=0)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_best_network_on_gaussian_data_has_the_loss_that_theory_gives(name: str) -> None:
    """x_0 ~ N(0, v): given x_t, F has variance v (det)² / (a² v + s²), det = a q - s p."""
    v, row = 0.25, prediction(name)
    t = torch.tensor([0, 100, 300, 600, 999])
    x_0, eps = v**0.5 * normal(5, 1, 256, 256), normal(5, 1, 256, 256, seed=1)
    a, s = (SCHEDULE.at(table, t, x_0) for table in (SCHEDULE.a, SCHEDULE.s))
    p, q = row.row(a, s)
    variance = a**2 * v + s**2

    def best(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=(p * a * v + q * s) / variance * x_t)

    loss = denoising_loss(best, SCHEDULE, row, x_0, eps, t)
    expected = (v * (a * q - s * p) ** 2 / variance).flatten()
    # A variance estimated from n pixels errs by sqrt(2 / n) of itself; five times that.
    assert_close(loss, expected, rtol=5 * math.sqrt(2 / 256**2), atol=0)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_half_precision_is_left_before_noise_and_error_are_computed(name: str) -> None:
    """The network sees float32 x_t, and a network that knows the target loses only its rounding."""
    x_0, eps, t = normal(3, 1, 8, 8), normal(3, 1, 8, 8, seed=1), torch.tensor([0, 5, 900])
    x_0, eps = x_0.bfloat16(), eps.bfloat16()
    row = prediction(name)

    def knows(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        assert x_t.dtype == torch.float32
        assert (x_t != x_0.float()).any(dim=(1, 2, 3)).all()
        a, s = (SCHEDULE.at(table, t, x_t) for table in (SCHEDULE.a, SCHEDULE.s))
        return SimpleNamespace(sample=row.target(x_0.float(), eps.float(), a, s).bfloat16())

    loss = denoising_loss(knows, SCHEDULE, row, x_0, eps, t)
    assert loss.dtype == torch.float32
    # bfloat16 rounds to 2^-9 of the value.
    assert (loss < (2**-9 * 5) ** 2).all()


def test_each_image_has_its_own_loss_and_weight() -> None:
    x_0, eps, t = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor([1, 20, 300])
    weights = torch.arange(1000, dtype=torch.float64)

    def silent(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.zeros_like(x_t))

    loss = denoising_loss(silent, SCHEDULE, prediction("epsilon"), x_0, eps, t)
    assert_close(loss, eps.square().mean(dim=(1, 2, 3)))
    weighted = denoising_loss(silent, SCHEDULE, prediction("epsilon"), x_0, eps, t, weights=weights)
    assert_close(weighted, loss * t)


def test_labels_reach_the_network() -> None:
    labels, seen = torch.tensor([3, 1]), []

    def network(x_t: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
        seen.append(class_labels)
        return SimpleNamespace(sample=x_t)

    x_0 = normal(2, 1, 4, 4)
    t = torch.tensor([4, 5])
    denoising_loss(
        network,
        SCHEDULE,
        prediction("epsilon"),
        x_0,
        x_0,
        t,
        condition=Condition(class_labels=labels),
    )
    assert seen == [labels]


@pytest.mark.parametrize("gamma", [5.0, 1.0])
def test_min_snr_weights_are_the_closed_forms(gamma: float) -> None:
    """Hang et al. 2023, section 3.4: one for each prediction type."""
    snr = SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)
    clipped = snr.clamp(max=gamma)
    forms = {"sample": clipped, "epsilon": clipped / snr, "v_prediction": clipped / (snr + 1)}
    for name, form in forms.items():
        weights = timestep_weights(SCHEDULE, prediction(name), "min_snr", gamma)
        assert weights.dtype == torch.float64
        assert_close(weights, form, rtol=1e-10, atol=0)


def test_p2_weights_are_the_closed_forms() -> None:
    """Choi et al. 2022, eq. 8 (k = 1, gamma = 1): 1 / (1 + snr) of the error of epsilon.

    On a variance-preserving schedule that is 1 - alphas_cumprod.
    """
    noise, signal = 1 - SCHEDULE.alphas_cumprod, SCHEDULE.alphas_cumprod
    # The error of x_0 is noise / signal of that of epsilon, and 1 / noise of that of v.
    forms = {"epsilon": noise, "sample": signal, "v_prediction": signal * noise}
    for name, form in forms.items():
        weights = timestep_weights(SCHEDULE, prediction(name), "p2")
        assert_close(weights, form, rtol=1e-9, atol=0)
    steeper = timestep_weights(SCHEDULE, prediction("epsilon"), "p2", gamma=0.5)
    assert_close(steeper, noise**0.5, rtol=1e-9, atol=0)


def test_uniform_weights_are_ones() -> None:
    weights = timestep_weights(SCHEDULE, prediction("v_prediction"), "uniform")
    assert torch.equal(weights, torch.ones(1000, dtype=torch.float64))


def test_wrong_weightings_are_refused_with_their_value() -> None:
    with pytest.raises(ValueError, match=r"'p3'.*uniform, min_snr, p2"):
        timestep_weights(SCHEDULE, prediction("epsilon"), "p3")  # pyright: ignore
    with pytest.raises(ValueError, match=r"gamma=0.*greater than 0"):
        timestep_weights(SCHEDULE, prediction("epsilon"), "min_snr", 0)
