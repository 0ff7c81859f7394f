"""Figures of attention maps over a denoising trajectory."""

from pathlib import Path

from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from ddpm_sa.files.atomic_files import write_atomically
from sampling.common.trajectory import AttentionTrajectory, Trajectory
from sampling.figures.panels import (
    DOTS,
    add_colour_bar,
    draw_outline,
    make_panels,
    mark_query,
    render,
    short_name,
    show_map,
    show_picture,
)

FRAMES = 30
FRAME_TIME, LAST_TIME = 120, 2000  # milliseconds
LINE = "line: predicted $x_0$, halfway from its darkest to its brightest"


def draw_trajectory(trajectory: AttentionTrajectory, layer: str, title: str) -> Figure:
    """Draw the noisy and the predicted image, and below them a row of maps for each query."""
    evaluations = trajectory.spread_evaluations(6)
    maps = trajectory.maps[layer].mean(1)
    caption = f"{title}\nring: the query; {LINE}"
    figure, axes, bars = make_panels(2 + len(trajectory.queries), len(evaluations), caption)
    for column, evaluation in enumerate(evaluations):
        axes[0, column].set_title(_evaluation_title(trajectory, evaluation), fontsize=8)
        show_picture(axes[0, column], trajectory.x_t[evaluation])
        show_picture(axes[1, column], trajectory.x_0[evaluation])
    for (row, bar), name in zip(enumerate(bars), ("noisy $x_t$", "predicted $x_0$"), strict=False):
        axes[row, 0].set_ylabel(f"{name}\ny (pixels)")
        bar.set_axis_off()
    for number, (y, x) in enumerate(trajectory.queries):
        row = axes[2 + number]
        scale = Normalize(0, maps[evaluations, number].max())
        for axis, evaluation in zip(row, evaluations, strict=True):
            show_map(axis, maps[evaluation, number], trajectory.image.shape[-2:], scale)
            draw_outline(axis, trajectory.x_0[evaluation])
            mark_query(axis, y, x)
        row[0].set_ylabel(f"query ({y}, {x})\ny (pixels)")
        add_colour_bar(figure, bars[2 + number], row[0], maps.shape[-2:])
    return figure


def draw_layers(trajectory: AttentionTrajectory, number: int, title: str) -> Figure:
    """Draw the maps of one query over the trajectory, a row with its own scale for each layer."""
    evaluations = trajectory.spread_evaluations(6)
    y, x = trajectory.queries[number]
    caption = f"{title}\nring: the query ({y}, {x}); {LINE}"
    figure, axes, bars = make_panels(len(trajectory.maps), len(evaluations), caption)
    for row, bar, (layer, every_head) in zip(axes, bars, trajectory.maps.items(), strict=True):
        maps = every_head[:, :, number].mean(1)
        scale = Normalize(0, maps[evaluations].max())
        for axis, evaluation in zip(row, evaluations, strict=True):
            show_map(axis, maps[evaluation], trajectory.image.shape[-2:], scale)
            draw_outline(axis, trajectory.x_0[evaluation])
            mark_query(axis, y, x)
        row[0].set_ylabel(f"{short_name(layer)}\ny (pixels)")
        add_colour_bar(figure, bar, row[0], maps.shape[-2:])
    for axis, evaluation in zip(axes[0], evaluations, strict=True):
        axis.set_title(_evaluation_title(trajectory, evaluation), fontsize=8)
    return figure


def save_attention_animation(
    trajectory: AttentionTrajectory, layer: str, title: str, path: Path
) -> None:
    """Write a GIF of the trajectory: the predicted image, and the map of each query.

    It shows the last frame for two seconds, then starts again.
    """
    maps = trajectory.maps[layer].mean(1)
    caption = f"{title}\nring: the query; {LINE}"
    figure, axes, bars = make_panels(1, 1 + len(trajectory.queries), caption)
    figure.set_dpi(DOTS)
    bars[0].set_axis_off()
    axes[0, 0].set_ylabel("y (pixels)")
    scales = [Normalize(0, maps[:, number].max()) for number in range(len(trajectory.queries))]
    frames = []
    for evaluation in trajectory.spread_evaluations(FRAMES):
        for axis in axes[0]:
            for artist in [*axis.images, *axis.lines, *axis.collections]:
                artist.remove()
        show_picture(axes[0, 0], trajectory.x_0[evaluation])
        axes[0, 0].set_title(
            f"predicted $x_0$\n{_evaluation_title(trajectory, evaluation)}", fontsize=8
        )
        for axis, (number, (y, x)) in zip(axes[0, 1:], enumerate(trajectory.queries), strict=True):
            show_map(axis, maps[evaluation, number], trajectory.image.shape[-2:], scales[number])
            draw_outline(axis, trajectory.x_0[evaluation])
            mark_query(axis, y, x)
            axis.set_title(f"query ({y}, {x})\nyellow: {scales[number].vmax:.1%}", fontsize=8)
        frames.append(Image.fromarray(render(figure)).quantize())
        figure.set_layout_engine("none")  # keep the layout of the first frame
    times = [FRAME_TIME] * (len(frames) - 1) + [LAST_TIME]
    with write_atomically(path) as partial:
        frames[0].save(
            partial, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0
        )


def _evaluation_title(trajectory: Trajectory, evaluation: int) -> str:
    timesteps = trajectory.timesteps
    return f"evaluation {evaluation + 1}/{len(timesteps)}\nt = {timesteps[evaluation]:.4g}"
