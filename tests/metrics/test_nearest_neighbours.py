"""Copies of training images, and what a Gaussian would leave to learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.load import open_images
from ddpm_sa.diffusion.prediction import PREDICTIONS, prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.metrics.gaussian_baseline import least_loss
from ddpm_sa.metrics.moments import Moments
from ddpm_sa.metrics.nearest_neighbours import NEIGHBOURS, Nearest, nearest, threshold


def batches(images: Tensor, size: int = 7):
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield range(start, start + len(part)), part


def test_nearest_images_are_scikit_learns() -> None:
    random = torch.Generator().manual_seed(0)
    training = torch.randn(120, 2, 3, 3, generator=random)
    images = torch.randn(9, 2, 3, 3, generator=random)
    found = nearest(images, batches(training))
    rows = training.flatten(1).numpy(), images.flatten(1).numpy()
    distances, indices = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(rows[0]).kneighbors(rows[1])
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances / (2 * 18**0.5), rtol=1e-5)
    np.testing.assert_allclose(found.ratio, distances[:, 0] / distances.mean(1), rtol=1e-5)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Real digits: 1,500 to train on, and 200 held out of them."""
    images = open_images(DataConfig(source="mnist5k", size=32, flip=False))
    chosen = np.random.default_rng(0).permutation(images.length)[:1700]
    x = images.tensors(chosen, np.zeros(len(chosen), dtype=bool))
    return x[:1500], x[1500:]


def test_a_planted_copy_is_flagged_and_held_out_images_are_not(digits) -> None:
    training, held_out = digits
    limit = threshold(nearest(held_out[:100], batches(training, 500)))
    others = nearest(held_out[100:], batches(training, 500))
    # Held out too, and not used for the threshold: one in a hundred may be below by chance.
    assert (others.ratio < limit).sum() <= 2
    noise = torch.randn(training[:20].shape, generator=torch.Generator().manual_seed(0))
    for planted in (training[:20], (training[:20] + 0.1 * noise).clamp(-1, 1)):
        found = nearest(planted, batches(training, 500))
        assert (found.ratio < limit).all()
        assert found.indices[:, 0].tolist() == list(range(20))
    assert nearest(training[:20], batches(training, 500)).ratio.max() == 0


def test_what_cannot_be_looked_up_is_refused() -> None:
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="no training images"):
        nearest(images, [])
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and training images of \(1, 5, 4\)"):
        nearest(images, [(range(1), torch.zeros(1, 1, 5, 4))])
    assert Nearest(torch.zeros(1, 3), torch.zeros(1, 3).long()).ratio.tolist() == [0]


@pytest.mark.parametrize("name", PREDICTIONS)
def test_least_loss_is_that_of_the_best_linear_map(name: str) -> None:
    """Of F from x_t for normal images: by least squares on many draws of both."""
    schedule, predicts = NoiseSchedule.cosine(50), prediction(name)
    random = torch.Generator().manual_seed(0)
    D, count = 6, 200_000
    root = torch.randn(D, D, generator=random, dtype=torch.float64) / 2
    x_0 = torch.randn(count, D, generator=random, dtype=torch.float64) @ root.T + 0.5
    least = least_loss(schedule, predicts, Moments.of(x_0))
    assert least.shape == (50,)
    assert least.isfinite().all()
    for t in (0, 10, 35, 48):
        eps = torch.randn(count, D, generator=random, dtype=torch.float64)
        a, s = schedule.a[t], schedule.s[t]
        F = predicts.target(x_0, eps, a, s)
        inputs = torch.cat([a * x_0 + s * eps, torch.ones(count, 1, dtype=torch.float64)], 1)
        solved = torch.linalg.lstsq(inputs, F).solution
        error = float((inputs @ solved - F).square().mean())
        # 1.2 million squares of normals: a standard error of 0.13 %.
        assert float(least[t]) == pytest.approx(error, rel=6e-3)


def test_least_loss_is_finite_where_no_signal_is_left() -> None:
    schedule = NoiseSchedule.cosine(20).with_zero_terminal_snr()
    pixels = Moments.of(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    variance = float(pixels.covariance.diagonal().mean())
    v = least_loss(schedule, prediction("v_prediction"), pixels)
    assert float(v[-1]) == pytest.approx(variance)  # v is -x_0 there, and nothing is known of it
    assert float(least_loss(schedule, prediction("epsilon"), pixels)[-1]) == 0
