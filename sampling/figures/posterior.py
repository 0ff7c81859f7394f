"""The picture of samples that share a condition: where they agree, and where they differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ddpm_sa.image_format import ImageFormat, image_grid, to_tensor, visible
from sampling.common.conditions import SAMPLES, ReadConditions
from sampling.common.sample_folder import load_image, save_picture

POSTERIOR = "posterior.png"
ROWS, COLUMNS = 8, 6  # conditions, and samples of each, that are shown
GAP = 2  # pixels between images


def draw_posterior(
    path: Path,
    folder: Path,
    indices: Sequence[int],
    image_format: ImageFormat,
    conditions: ReadConditions,
    given_format: ImageFormat,
) -> None:
    """Draw a row for each of the first conditions: it, samples, their mean and spread, the truth.

    The standard deviation is drawn from black (0) to white (the largest of the picture).

    Args:
        path: Of the picture.
        folder, indices: Of the samples.
        image_format: Of the samples.
        conditions: What they are conditioned on.
        given_format: Of the network that was given the conditions, the first of a cascade.
    """

    def fitted(image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(image, image_format.size, mode="nearest")

    rows, spreads = [], []
    places = sorted({index % SAMPLES for index in indices})[:ROWS]
    for place in places:
        ours = [index for index in indices if index % SAMPLES == place]
        values = np.stack([load_image(folder, index, image_format) for index in ours])
        samples = to_tensor(values, image_format.value_range)
        shown = fitted(conditions.shown(place, given_format))
        rows.append([shown, samples[:COLUMNS], samples.mean(0, keepdim=True)])
        spreads.append(samples.std(0, keepdim=True, correction=0))
    most = max(spread.max().item() for spread in spreads) or 1.0
    cells = []
    for place, row, spread in zip(places, rows, spreads, strict=True):
        truth = [] if conditions.truth is None else [fitted(conditions.truth[place : place + 1])]
        cells.append(torch.cat([*row, 2 * spread / most - 1, *truth]))
    columns = len(cells[0])
    framed = F.pad(torch.cat(cells), [GAP, 0, GAP, 0], value=1.0)
    save_picture(image_grid(visible(framed), columns), path)
