"""The grid of samples that a run draws; with a condition, beside the images that it is made of."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_sa.condition import Condition
from ddpm_sa.data.conditioning import ConditionDraw
from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import image_grid, visible

# Condition, sample and truth of an image lie side by side, so many images in a row.
TRIPLES = 2


class SampleGrid:
    """What the samples of a grid are conditioned on: always the same images, held out if any are.

    Args:
        images: The dataset.
        seed: Of what is random in the conditions.
    """

    def __init__(self, images: Images, seed: int):
        self.images, self.seed = images.validation or images, seed

    def condition(self, numbers: Sequence[int]) -> Condition | None:
        """The conditioning of these samples of the grid; None if it follows from their numbers."""
        if self.images.conditioner is None:
            return None
        _, channels = self._truth(numbers)
        condition = self.images.condition(self._indices(numbers))
        return condition.replace(image=channels)

    def draw(self, samples: Tensor) -> Image.Image:
        """Arrange samples 0, 1, ..., (N, C, H, W), in a grid."""
        condition = self.images.format.condition
        if condition is None:
            return image_grid(visible(samples))
        truth, channels = self._truth(range(len(samples)))
        shown = condition.preview(channels, samples.shape[1])
        height, width = self.images.format.size
        images = [each[..., :height, :width] for each in (shown, samples.cpu(), truth)]
        triples = torch.stack(images, dim=1)
        return image_grid(visible(triples.flatten(0, 1)), columns=3 * TRIPLES)

    def _indices(self, numbers: Sequence[int]) -> np.ndarray:
        return np.array(numbers, dtype=np.int64) % self.images.length

    def _truth(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images, (N, C, *grid), and the channels of their conditions, (N, K, *grid)."""
        indices, no = self._indices(numbers), np.zeros(len(numbers), dtype=bool)
        draw = ConditionDraw(
            seed=self.seed,
            purpose="sample grid",
            positions=indices,
            withheld=no,
            shares=np.zeros(len(numbers)),
        )
        x_0 = self.images.tensors(indices, no)
        channels = self.images.condition_image(x_0, indices, no, draw)
        assert channels is not None
        return x_0, channels
