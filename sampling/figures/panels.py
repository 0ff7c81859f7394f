"""Building blocks of the attention figures."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ddpm_sa.files.atomic_files import write_atomically
from sampling.common.trajectory import Array

# Perceptually uniform: it reads in grey print, and the colour-blind can tell its hues apart.
COLOURS = "viridis"
PANEL = 1.35  # inches
DOTS = 150  # per inch


def make_panels(rows: int, columns: int, title: str) -> tuple[Figure, Any, list[Axes]]:
    """Create a figure: it, its panels by row and column, and an axis for each row's scale."""
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


def to_picture(image: Array) -> Array:
    """Convert (C, H, W) in [-1, 1] to (H, W, 3), or (H, W) unless C is 3, in [0, 1]."""
    values = (image / 2 + np.float32(0.5)).clip(0, 1)
    return values.transpose(1, 2, 0) if len(values) == 3 else values.mean(0)


def show_picture(axis: Axes, image: Array) -> None:
    axis.imshow(to_picture(image), cmap="gray", vmin=0, vmax=1)


def show_map(axis: Axes, values: Array, size: tuple[int, int], scale: Normalize) -> None:
    """Show a map in the coordinates of the image, whose pixel centres are whole numbers."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axis.imshow(values, cmap=COLOURS, norm=scale, extent=extent, interpolation="nearest")


def draw_outline(axis: Axes, image: Array) -> Any:
    """Draw a line around the bright part of the image, which keeps the map readable."""
    grey = np.pad(image.mean(0), 1, mode="edge")
    # Blurred by 3 x 3: lines around noisy pixels would hide the map.
    grey = np.lib.stride_tricks.sliding_window_view(grey, (3, 3)).mean((2, 3))
    if grey.min() == grey.max():
        return None
    level = (grey.min() + grey.max()) / 2
    line = axis.contour(grey, levels=[level], colors="white", linestyles="solid")
    line.set(linewidth=0.8, path_effects=[withStroke(linewidth=1.6, foreground="black")])
    return line


def mark_query(axis: Axes, y: int, x: int, marker: str = "o") -> None:
    for colour, width in (("black", 2.4), ("white", 1.0)):
        axis.plot(
            x,
            y,
            marker=marker,
            markersize=7,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=width,
            clip_on=False,  # complete at the border
        )


def add_colour_bar(figure: Figure, place: Axes, axis: Axes, grid: tuple[int, int]) -> None:
    bar = figure.colorbar(axis.images[0], cax=place, format=PercentFormatter(1))
    bar.ax.axhline(1 / (grid[0] * grid[1]), color="white", linewidth=1.5)
    bar.set_label(f"share of attention\n(line: uniform over {grid[0]} × {grid[1]})", fontsize=6)
    bar.ax.tick_params(labelsize=6)


def short_name(layer: str) -> str:
    """Break the name of a layer into two lines."""
    block, _, rest = layer.partition(".attentions")
    return f"{block}\nattentions{rest}"


def render(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure as an image, (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    with write_atomically(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS)
