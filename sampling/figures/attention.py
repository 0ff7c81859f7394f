"""Figures of where the pixels of an image look while it is made."""

from pathlib import Path

from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from ddpm_sa.atomic_files import write_atomically
from sampling.common.trajectory import Course, Denoising
from sampling.figures.panels import (
    DOTS,
    colour_bar,
    drawn,
    mark,
    outline,
    panels,
    short_name,
    show_map,
    show_picture,
)

FRAMES = 30
FRAME_TIME, LAST_TIME = 120, 2000  # milliseconds
LINE = "line: predicted $x_0$, halfway from its darkest to its brightest"


def draw_course(course: Course, layer: str, title: str) -> Figure:
    """The image as it forms; below, a row for each query with its maps, and the image outlined."""
    moments = course.moments(6)
    maps = course.maps[layer].mean(1)
    caption = f"{title}\nring: the query; {LINE}"
    figure, axes, bars = panels(2 + len(course.queries), len(moments), caption)
    for column, moment in enumerate(moments):
        axes[0, column].set_title(_moment(course, moment), fontsize=8)
        show_picture(axes[0, column], course.x_t[moment])
        show_picture(axes[1, column], course.x_0[moment])
    for (row, bar), name in zip(enumerate(bars), ("noisy $x_t$", "predicted $x_0$"), strict=False):
        axes[row, 0].set_ylabel(f"{name}\ny (pixels)")
        bar.set_axis_off()
    for number, (y, x) in enumerate(course.queries):
        row = axes[2 + number]
        scale = Normalize(0, maps[moments, number].max())
        for axis, moment in zip(row, moments, strict=True):
            show_map(axis, maps[moment, number], course.image.shape[-2:], scale)
            outline(axis, course.x_0[moment])
            mark(axis, y, x)
        row[0].set_ylabel(f"query ({y}, {x})\ny (pixels)")
        colour_bar(figure, bars[2 + number], row[0], maps.shape[-2:])
    return figure


def draw_layers(course: Course, number: int, title: str) -> Figure:
    """One query in every layer, a row each with its own scale, over the denoising."""
    moments = course.moments(6)
    y, x = course.queries[number]
    caption = f"{title}\nring: the query ({y}, {x}); {LINE}"
    figure, axes, bars = panels(len(course.maps), len(moments), caption)
    for row, bar, (layer, every_head) in zip(axes, bars, course.maps.items(), strict=True):
        maps = every_head[:, :, number].mean(1)
        scale = Normalize(0, maps[moments].max())
        for axis, moment in zip(row, moments, strict=True):
            show_map(axis, maps[moment], course.image.shape[-2:], scale)
            outline(axis, course.x_0[moment])
            mark(axis, y, x)
        row[0].set_ylabel(f"{short_name(layer)}\ny (pixels)")
        colour_bar(figure, bar, row[0], maps.shape[-2:])
    for axis, moment in zip(axes[0], moments, strict=True):
        axis.set_title(_moment(course, moment), fontsize=8)
    return figure


def save_animation(course: Course, layer: str, title: str, path: Path) -> None:
    """Write a GIF of the whole denoising: the image as it forms, and the map of each query.

    It stands still for two seconds at its end, and then begins again.
    """
    maps = course.maps[layer].mean(1)
    caption = f"{title}\nring: the query; {LINE}"
    figure, axes, bars = panels(1, 1 + len(course.queries), caption)
    figure.set_dpi(DOTS)
    bars[0].set_axis_off()
    axes[0, 0].set_ylabel("y (pixels)")
    scales = [Normalize(0, maps[:, number].max()) for number in range(len(course.queries))]
    frames = []
    for moment in course.moments(FRAMES):
        for axis in axes[0]:
            for artist in [*axis.images, *axis.lines, *axis.collections]:
                artist.remove()
        show_picture(axes[0, 0], course.x_0[moment])
        axes[0, 0].set_title(f"predicted $x_0$\n{_moment(course, moment)}", fontsize=8)
        for axis, (number, (y, x)) in zip(axes[0, 1:], enumerate(course.queries), strict=True):
            show_map(axis, maps[moment, number], course.image.shape[-2:], scales[number])
            outline(axis, course.x_0[moment])
            mark(axis, y, x)
            axis.set_title(f"query ({y}, {x})\nyellow: {scales[number].vmax:.1%}", fontsize=8)
        frames.append(Image.fromarray(drawn(figure)).quantize())
        figure.set_layout_engine("none")  # nothing moves after the first
    times = [FRAME_TIME] * (len(frames) - 1) + [LAST_TIME]
    with write_atomically(path) as partial:
        frames[0].save(
            partial, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0
        )


def _moment(course: Denoising, moment: int) -> str:
    return f"evaluation {moment + 1}/{len(course.timesteps)}\nt = {course.timesteps[moment]:.4g}"
