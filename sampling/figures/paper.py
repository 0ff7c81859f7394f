"""Figures of image rows, as figures 6 to 8 of Ho et al. 2020."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from sampling.figures.panels import to_picture


def draw_rows(
    rows: Sequence[Tensor], row_names: Sequence[str], column_names: Sequence[str], title: str
) -> Figure:
    """Draw rows of images, each (N, C, H, W) in [-1, 1] with the same N."""
    count = len(rows[0])
    height, width = rows[0].shape[-2:]
    size = (count * 0.7 + 1.2, len(rows) * 0.7 * height / width + 1.0)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, name, images in zip(axes, row_names, rows, strict=True):
        for axis, image in zip(line, images.numpy(), strict=True):
            axis.imshow(to_picture(image), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    for axis, name in zip(axes[0], column_names, strict=True):
        axis.set_title(name, fontsize=7)
    figure.supxlabel(f"each image: {height} × {width} pixels", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure
