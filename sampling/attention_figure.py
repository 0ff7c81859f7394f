"""Two figures of where the pixels of an image look while it is made."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from sampling.course import Course

# Its lightness rises evenly, so it reads in grey print, and its hues part for the colour-blind.
COLOURS = "viridis"
PANEL = 1.35  # inches
DOTS = 150  # an inch


def draw_course(course: Course, layer: str, title: str) -> Figure:
    """The image as it forms; below, a row for each query with its maps, and the image outlined."""
    moments = course.moments(6)
    maps = course.maps[layer]
    line = "predicted $x_0$, halfway from its darkest to its brightest"
    caption = f"{title}\nring: the query; line: {line}"
    figure, axes, bars = _panels(2 + len(course.queries), len(moments), caption)
    for column, moment in enumerate(moments):
        axes[0, column].set_title(_moment(course, moment), fontsize=8)
        axes[0, column].imshow(_picture(course.x_t[moment]), cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(_picture(course.x_0[moment]), cmap="gray", vmin=0, vmax=1)
    for (row, bar), name in zip(enumerate(bars), ("noisy $x_t$", "predicted $x_0$"), strict=False):
        axes[row, 0].set_ylabel(f"{name}\ny (pixels)")
        bar.set_axis_off()
    for number, (y, x) in enumerate(course.queries):
        row = axes[2 + number]
        scale = Normalize(0, maps[moments, number].max())
        for axis, moment in zip(row, moments, strict=True):
            _show(axis, maps[moment, number], course.image.shape[-2:], scale)
            _outline(axis, course.x_0[moment])
            _mark(axis, y, x)
        row[0].set_ylabel(f"query ({y}, {x})\ny (pixels)")
        _colour_bar(figure, bars[2 + number], row[0], maps.shape[-2:])
    return figure


def draw_layers(course: Course, title: str) -> Figure:
    """Every layer, a row each, at the last moments, by query; each row has its own scale."""
    moments = course.moments(6)[-3:]
    columns = [(number, moment) for number in range(len(course.queries)) for moment in moments]
    figure, axes, bars = _panels(len(course.maps), len(columns), f"{title}\nring: the query")
    for row, bar, (layer, maps) in zip(axes, bars, course.maps.items(), strict=True):
        scale = Normalize(0, maps[moments].max())
        for axis, (number, moment) in zip(row, columns, strict=True):
            _show(axis, maps[moment, number], course.image.shape[-2:], scale)
            _mark(axis, *course.queries[number])
        block, _, rest = layer.partition(".attentions")
        row[0].set_ylabel(f"{block}\nattentions{rest}\ny (pixels)")
        _colour_bar(figure, bar, row[0], maps.shape[-2:])
    for axis, (number, moment) in zip(axes[0], columns, strict=True):
        y, x = course.queries[number]
        axis.set_title(f"query ({y}, {x})\n{_moment(course, moment)}", fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png", dpi=DOTS)
    partial.rename(path)


def _panels(rows: int, columns: int, title: str) -> tuple[Figure, Any, list[Axes]]:
    """A figure, its panels by row and column, and at the right a place for each row's scale."""
    size = (max(PANEL * columns, 4) + 1.8, PANEL * rows + 1)
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1] * columns + [0.07])
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        axis = axes[row, column] = figure.add_subplot(grid[row, column])
        axis.tick_params(labelsize=6, labelleft=column == 0, labelbottom=row == rows - 1)
        axis.xaxis.label.set_fontsize(7)
        axis.yaxis.label.set_fontsize(7)
        if row == rows - 1:
            axis.set_xlabel("x (pixels)")
    figure.suptitle(title, fontsize=9)
    return figure, axes, [figure.add_subplot(grid[row, columns]) for row in range(rows)]


def _moment(course: Course, moment: int) -> str:
    return f"evaluation {moment + 1}/{len(course.timesteps)}\nt = {course.timesteps[moment]:.4g}"


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) in [-1, 1] -> (H, W, 3), or (H, W) where C isn't 3, in [0, 1]."""
    values = (image / 2 + np.float32(0.5)).clip(0, 1)
    return values.transpose(1, 2, 0) if len(values) == 3 else values.mean(0)


def _show(
    axis: Axes, values: NDArray[np.float32], size: tuple[int, int], scale: Normalize, **more: Any
) -> None:
    """A map in the coordinates of the image, whose pixels' centres are whole numbers."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axis.imshow(values, cmap=COLOURS, norm=scale, extent=extent, interpolation="nearest", **more)


def _outline(axis: Axes, image: NDArray[np.float32]) -> None:
    """A line round what is bright, drawn on a map: both can be read, in print too."""
    grey = np.pad(image.mean(0), 1, mode="edge")
    # Blurred by 3 x 3: a line round every noisy pixel would hide the map.
    grey = np.lib.stride_tricks.sliding_window_view(grey, (3, 3)).mean((2, 3))
    if grey.min() < grey.max():
        level = (grey.min() + grey.max()) / 2
        line = axis.contour(grey, levels=[level], colors="white", linestyles="solid")
        line.set(linewidth=0.8, path_effects=[withStroke(linewidth=1.6, foreground="black")])


def _mark(axis: Axes, y: int, x: int) -> None:
    for colour, width in (("black", 2.4), ("white", 1.0)):
        axis.plot(
            x,
            y,
            marker="o",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=width,
            clip_on=False,  # whole at the border, too
        )


def _colour_bar(figure: Figure, place: Axes, axis: Axes, grid: tuple[int, int]) -> None:
    bar = figure.colorbar(axis.images[0], cax=place, format=PercentFormatter(1))
    bar.ax.axhline(1 / (grid[0] * grid[1]), color="white", linewidth=1.5)
    bar.set_label(f"share of attention\n(line: even over {grid[0]} × {grid[1]})", fontsize=6)
    bar.ax.tick_params(labelsize=6)
