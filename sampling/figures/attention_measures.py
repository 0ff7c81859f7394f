"""The measures of attention over a denoising."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpm_sa.interpret.measures import Measures
from sampling.common.trajectory import Array, Course
from sampling.figures.panels import short_name

# Okabe and Ito's, which the colour-blind can tell apart; with other dashes they part in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
LABELS = {
    "entropy": "entropy\n(nats)",
    "distance": "mean distance\n(pixels of the image)",
    "local_share": "share on the\n3 × 3 around",
    "overlap": "overlap with\nthe other heads",
}


def draw_measures(course: Course, title: str) -> Figure:
    """A row for each measure, a column for each layer, a line for each head; grey is even."""
    several = any(maps.shape[1] > 1 for maps in course.maps.values())
    names = [name for name in LABELS if several or name != "overlap"]
    layers = list(course.measures)
    figure = Figure(figsize=(1.7 * len(layers) + 1.2, 1.5 * len(names) + 1), layout="constrained")
    axes = figure.subplots(len(names), len(layers), sharex=True, squeeze=False)
    for column, layer in enumerate(layers):
        for axis, name in zip(axes[:, column], names, strict=True):
            _draw_measure(axis, course, layer, name)
        grid = " × ".join(map(str, course.maps[layer].shape[-2:]))
        axes[0, column].set_title(f"{short_name(layer)}\n{grid}", fontsize=7)
        axes[-1, column].set_xlabel("evaluation", fontsize=7)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(LABELS[name], fontsize=7)
    if several:
        widest = max(range(len(layers)), key=lambda i: course.maps[layers[i]].shape[1])
        axes[-1, widest].legend(fontsize=5)
    first, last = course.timesteps[0], course.timesteps[-1]
    span = f"from t = {first:.4g}, noise, at the left to t = {last:.4g} at the right"
    even = "grey: of attention that is even over all pixels"
    figure.suptitle(f"{title}\n{span}; {even}", fontsize=8)
    return figure


def _draw_measure(axis: Axes, course: Course, layer: str, name: str) -> None:
    curves = _of_heads(name, course.measures[layer][name])
    evaluations = np.arange(1, len(course.timesteps) + 1)
    for head, values in enumerate(curves):
        axis.plot(evaluations, values, label=f"head {head}", **_line(head))
    top = 1.0
    if name != "overlap":
        even = Measures.of_even(course.maps[layer].shape[-2:], course.reductions[layer])
        level = float(getattr(even, name))
        axis.axhline(level, color="0.6", linewidth=1, zorder=0)
        top = max(level, *(values.max() for values in curves))
    axis.set_ylim(0, 1.05 * top)
    axis.tick_params(labelsize=6)


def _of_heads(name: str, values: Array) -> Array:
    """(heads, steps); of the overlap, each head's mean with all others."""
    if name != "overlap":
        return values.T
    heads = values.shape[-1]
    if heads == 1:
        return np.empty((0, len(values)), np.float32)
    return ((values.sum(-1) - 1) / (heads - 1)).T


def _line(head: int) -> dict:
    styles = list(itertools.product(DASHES, COLOURS))
    dashes, colour = styles[head % len(styles)]
    return {"color": colour, "linestyle": dashes, "linewidth": 1}
