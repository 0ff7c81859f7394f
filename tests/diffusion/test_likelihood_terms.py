import math

import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ddpm_sa.diffusion.likelihood import discretized_log_likelihood, normal_kl
from tests.support.reference import Fixture


def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The 256 values of a pixel, means and log deviations, as the fixture's axes have them."""
    original = Fixture("ddpm_tf_diffusion")
    pixels = torch.arange(256) / 127.5 - 1
    means, log_scales = original["in/grid_means"], original["in/grid_log_scales"]
    return pixels[:, None, None], means[None, :, None], log_scales[None, None, :]


def test_likelihood_of_a_pixel_is_that_of_the_papers_code() -> None:
    original = Fixture("ddpm_tf_diffusion")
    ours = discretized_log_likelihood(*grid())
    reliable = original["aux/grid_reliable"]
    theirs = original["out/discretized_gaussian_log_likelihood"]
    # In float32 the original's differences of cumulative values lose this much.
    assert (ours - theirs).abs()[reliable].max() <= 5e-4
    exact = original["aux/discretized_gaussian_log_likelihood_float64"]
    assert_close(ours, exact, rtol=0, atol=2e-4)


def test_bins_of_any_number_of_levels_share_the_whole_mass() -> None:
    for levels in (2, 256, 65536):
        pixels = torch.linspace(-1, 1, levels)
        mean, log_std = torch.tensor(0.3), torch.tensor(math.log(0.4))
        mass = discretized_log_likelihood(pixels, mean, log_std, levels).exp().sum()
        assert_close(mass, torch.ones((), dtype=torch.float64), rtol=0, atol=1e-6)


def test_narrow_normal_in_a_bin_is_certain_of_its_pixel() -> None:
    pixels = torch.arange(256) / 127.5 - 1
    certain = discretized_log_likelihood(pixels, pixels, torch.tensor(-12.0))
    assert_close(certain, torch.zeros(256, dtype=torch.float64), rtol=0, atol=1e-6)


def test_distance_is_that_of_torchs_distributions() -> None:
    values = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = Normal(values[0], (values[1] / 2).exp()), Normal(values[2], (values[3] / 2).exp())
    distance = normal_kl(values[0] - values[2], values[1], values[3])
    assert_close(distance, kl_divergence(one, other), rtol=1e-12, atol=1e-12)
