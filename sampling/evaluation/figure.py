"""Figures of an evaluation: scores side by side, nearest training images, losses, likelihood."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddpm_sa.data.dataset import Images
from sampling.evaluation.memorization import HELD_OUT, SHOWN, NearestImages
from sampling.evaluation.scores import Scores
from sampling.figures.attention_measures import COLOURS, DASHES
from sampling.figures.panels import show_picture

ScoreOf = Callable[[Scores], float | None]


def draw_scores(results: Sequence[Scores], named: Mapping[str, ScoreOf]) -> Figure:
    """Draw a panel for each score that all sets have, with a bar for each set."""
    known = {
        name: values
        for name, value_of in named.items()
        if None not in (values := [value_of(scores) for scores in results])
    }
    size = (2.1 * len(known) + 1.6, 0.42 * len(results) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(results))]
    names = [f"{scores.name}\n{scores.count} images" for scores in results]
    axes = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for number, (axis, (name, values)) in enumerate(zip(axes, known.items(), strict=True)):
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=7, padding=2)
        better = "lower" if number < 2 else "higher"  # the two distances come first
        axis.set_title(f"{name.replace(' in ', chr(10))}\n{better} is better", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return figure


def draw_nearest(
    nearest_images: Mapping[str, NearestImages], threshold: float, training: Images
) -> Figure:
    """Draw each set's distances to the training images, and its nearest pairs."""
    sets = {name: matches for name, matches in nearest_images.items() if name != HELD_OUT}
    figure = Figure(figsize=(8, 2 + 1.9 * len(sets)), layout="constrained")
    parts = figure.subfigures(
        1 + len(sets), 1, squeeze=False, height_ratios=[2, *[1.7] * len(sets)]
    )
    top, *rows = np.asarray(parts)[:, 0].tolist()
    axis = top.subplots()
    bins = np.linspace(0, 1, 41).tolist()
    for (name, matches), colour, dash in zip(nearest_images.items(), COLOURS, DASHES, strict=False):
        ratios = matches.neighbours.ratio.numpy()
        weights = np.full(len(ratios), 1 / len(ratios))
        axis.hist(ratios, bins, weights=weights, histtype="step", label=name, color=colour, ls=dash)
    axis.axvline(threshold, color="gray", lw=1)
    axis.set_xlabel("distance to the nearest training image / mean distance to the nearest 50")
    axis.set_ylabel("share of the images")
    axis.set_title("left of the grey line: nearer than every held-out image", fontsize=8)
    axis.legend(frameon=False, fontsize=7)
    for row, (name, matches) in zip(rows, sets.items(), strict=True):
        _nearest_pairs(row, name, matches, threshold, training)
    return figure


def _nearest_pairs(
    row: Any, name: str, matches: NearestImages, threshold: float, training: Images
) -> None:
    chosen = matches.closest()
    originals = np.array([int(matches.neighbours.indices[i, 0]) for i in chosen])
    pictures = training.tensors(originals, np.zeros(len(originals), dtype=bool)).numpy()
    axes = row.subplots(2, SHOWN, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (i, original) in enumerate(zip(chosen, pictures, strict=True)):
        show_picture(axes[0, column], matches.images[i].numpy())
        show_picture(axes[1, column], original)
        ratio = float(matches.neighbours.ratio[i])
        title = f"{ratio:.2f}{' copy?' if ratio < threshold else ''}"
        axes[0, column].set_title(title, fontsize=7)
    row.suptitle(
        f"{name}: the nearest of {len(matches.images)}, above the training images",
        fontsize=8,
    )


def draw_losses(by_model: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw each model's training and held-out loss, with the optimum for Gaussian data."""
    figure = Figure(figsize=(4.2 * len(by_model) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(by_model), sharey=True, squeeze=False)[0]
    for axis, (name, lines) in zip(axes, by_model.items(), strict=True):
        curves = {key: values for key, values in lines.items() if key != "timesteps" and values}
        for (key, values), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
            label = "optimum for Gaussian data" if key == "gaussian" else key
            known = [np.nan if value is None else value for value in values]
            axis.plot(lines["timesteps"], known, color=colour, ls=dash, label=label, marker=".")
        axis.set(yscale="log", xlabel="timestep, from least to most noise")
        axis.set_title(name, fontsize=8)
        axis.tick_params("x", rotation=45, labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean squared error of the output")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_likelihood(by_model: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the bound's terms by timestep, and rate and distortion as in figure 5 of the paper."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    by_t, distortion, rate, both = figure.subplots(1, 4)
    for (name, row), colour, dash in zip(by_model.items(), COLOURS, DASHES, strict=False):
        T = len(row["terms"])
        done = np.arange(T, 0, -1)  # reverse steps, at t = 0, 1, ...
        by_t.plot(row["terms"], color=colour, ls=dash, label=name)
        distortion.plot(done, row["distortion_at"], color=colour, ls=dash)
        rate.plot(done, row["rate_at"], color=colour, ls=dash)
        both.plot(row["rate_at"], row["distortion_at"], color=colour, ls=dash)
    by_t.set(yscale="log", xlabel="timestep", ylabel="term of the bound (bits/dim)")
    by_t.legend(frameon=False, fontsize=7)
    distortion.set(xlabel="reverse steps", ylabel="distortion (RMSE of 0 ... 255)")
    rate.set(xlabel="reverse steps", ylabel="rate (bits/dim)")
    both.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE of 0 ... 255)")
    for axis in (by_t, distortion, rate, both):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
