"""Figure of the attention measures over a denoising trajectory."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpm_sa.interpret.measures import Measures
from sampling.common.trajectory import Array, AttentionTrajectory
from sampling.figures.panels import short_name

# Okabe and Ito's palette, distinguishable by the colour-blind; the dashes help in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
LABELS = {
    "entropy": "entropy\n(nats)",
    "distance": "mean distance\n(pixels of the image)",
    "local_share": "share on the\n3 × 3 neighbours",
    "overlap": "overlap with\nthe other heads",
}


def draw_measures(trajectory: AttentionTrajectory, title: str) -> Figure:
    """Draw a row for each measure, a column for each layer, and a line for each head."""
    several = any(maps.shape[1] > 1 for maps in trajectory.maps.values())
    names = [name for name in LABELS if several or name != "overlap"]
    layers = list(trajectory.measures)
    figure = Figure(figsize=(1.7 * len(layers) + 1.2, 1.5 * len(names) + 1), layout="constrained")
    axes = figure.subplots(len(names), len(layers), sharex=True, squeeze=False)
    for column, layer in enumerate(layers):
        for axis, name in zip(axes[:, column], names, strict=True):
            _draw_measure(axis, trajectory, layer, name)
        grid = " × ".join(map(str, trajectory.maps[layer].shape[-2:]))
        axes[0, column].set_title(f"{short_name(layer)}\n{grid}", fontsize=7)
        axes[-1, column].set_xlabel("evaluation", fontsize=7)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(LABELS[name], fontsize=7)
    if several:
        widest = max(range(len(layers)), key=lambda i: trajectory.maps[layers[i]].shape[1])
        axes[-1, widest].legend(fontsize=5)
    first, last = trajectory.timesteps[0], trajectory.timesteps[-1]
    span = f"from t = {first:.4g} (noise) on the left to t = {last:.4g} on the right"
    uniform = "grey: uniform attention over all pixels"
    figure.suptitle(f"{title}\n{span}; {uniform}", fontsize=8)
    return figure


def _draw_measure(axis: Axes, trajectory: AttentionTrajectory, layer: str, name: str) -> None:
    curves = _of_heads(name, trajectory.measures[layer][name])
    evaluations = np.arange(1, len(trajectory.timesteps) + 1)
    for head, values in enumerate(curves):
        axis.plot(evaluations, values, label=f"head {head}", **_line(head))
    top = 1.0
    if name != "overlap":
        even = Measures.of_even(trajectory.maps[layer].shape[-2:], trajectory.reductions[layer])
        level = float(getattr(even, name))
        axis.axhline(level, color="0.6", linewidth=1, zorder=0)
        top = max(level, *(values.max() for values in curves))
    axis.set_ylim(0, 1.05 * top)
    axis.tick_params(labelsize=6)


def _of_heads(name: str, values: Array) -> Array:
    """(heads, steps); for the overlap, the mean of each head with all others."""
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
