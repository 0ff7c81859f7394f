"""Figure of an ablation: the same images with attention replaced in each layer."""

from matplotlib.figure import Figure
from torch import Tensor

from sampling.figures.panels import to_picture

COLUMNS = 8


def draw_ablation(names: list[str], pictures: list[Tensor], title: str) -> Figure:
    """Draw the first images of each row, (N, C, H, W) in [-1, 1]."""
    columns = min(COLUMNS, len(pictures[0]))
    height, width = pictures[0].shape[-2:]
    size = (columns * 0.8 + 2, len(names) * 0.8 * height / width + 0.8)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(names), columns, squeeze=False)
    for row, name, images in zip(axes, names, pictures, strict=True):
        for axis, image in zip(row, images.numpy()[:columns], strict=True):
            axis.imshow(to_picture(image), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=6, rotation=0, ha="right", va="center")
    figure.supxlabel(f"each image: {height} × {width} pixels", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure
