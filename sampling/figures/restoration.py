"""Figure of restored images: measurement, samples, their mean and deviation, and the truth."""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from sampling.figures.panels import make_panels, show_map, show_picture

MOST_IMAGES, MOST_SAMPLES = 8, 4


def draw_restoration(
    measured: Tensor,
    samples: Tensor,
    truth: Tensor | None,
    value_range: tuple[float, float],
    title: str,
) -> Figure:
    """Draw a row for each of the first images.

    Args:
        measured: The measurements as pictures, (N, C', H', W').
        samples: (N, S, C, H, W), in [-1, 1].
        truth: (N, C, H, W), or None.
        value_range: Of the stored values, in which the deviation is drawn.
        title: Above all.
    """
    half = np.float32((value_range[1] - value_range[0]) / 2)
    several = samples.shape[1] > 1
    shown = samples[:MOST_IMAGES, :MOST_SAMPLES]
    columns = 1 + shown.shape[1] + 2 * several + (truth is not None)
    figure, axes, bars = make_panels(len(shown), columns, title)
    for row, bar, y, of_image, some in zip(axes, bars, measured, samples, shown, strict=False):
        panels = iter(row)
        show_picture(next(panels), y.numpy())
        for sample in some:
            show_picture(next(panels), sample.numpy())
        bar.set_axis_off()
        if several:
            show_picture(next(panels), of_image.mean(0).numpy())
            axis, deviation = next(panels), of_image.std(0).mean(0).numpy() * half
            scale = Normalize(0, max(deviation.max(), np.finfo(np.float32).tiny))
            show_map(axis, deviation, deviation.shape, scale)
            bar.set_axis_on()
            figure.colorbar(axis.images[0], cax=bar).set_label("standard deviation", fontsize=6)
            bar.tick_params(labelsize=6)
    if truth is not None:
        for axis, image in zip(axes[:, -1], truth, strict=False):
            show_picture(axis, image.numpy())
    names = ["measurement", *(f"sample {j}" for j in range(shown.shape[1]))]
    names += ["mean", "standard\ndeviation"] if several else []
    for axis, name in zip(axes[0], [*names, "truth"], strict=False):
        axis.set_title(name, fontsize=8)
    for row, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"image {row}\ny (pixels)")
    return figure
