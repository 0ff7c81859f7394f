"""Features of images that no trained network knows."""

import einops
import torch

from ddpm_sa.metrics.features import GRID, open_features, pixel_features


def test_pixel_features_are_means_and_deviations_of_cells() -> None:
    images = torch.rand(3, 5, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cells = einops.rearrange(images.double(), "b c (y h) (x w) -> b c (y x) (h w)", y=GRID, x=GRID)
    wanted = torch.cat([cells.mean(-1), cells.std(-1, correction=0)], 1).flatten(1)
    torch.testing.assert_close(pixel_features(images), wanted, rtol=1e-9, atol=1e-9)


def test_pixel_features_know_flat_and_odd_images() -> None:
    extractor = open_features("pixels", torch.device("cpu"))
    features, probabilities = extractor(torch.full((2, 1, 3, 5), 0.3))
    assert probabilities is None
    assert features.shape == (2, 2 * GRID**2)
    torch.testing.assert_close(features[:, : GRID**2], torch.full((2, GRID**2), 0.3))
    assert features[:, GRID**2 :].max() < 1e-6
