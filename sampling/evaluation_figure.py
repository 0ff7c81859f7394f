"""The measures of an evaluation, side by side."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from sampling.measures_figure import COLOURS
from sampling.measuring import Measured

Measure = Callable[[Measured], float | None]


def draw_evaluation(results: Sequence[Measured], measures: Mapping[str, Measure]) -> Figure:
    """A panel for each measure that all have, a bar for each set."""
    known = {
        name: values
        for name, value_of in measures.items()
        if None not in (values := [value_of(found) for found in results])
    }
    size = (2.1 * len(known) + 1.6, 0.42 * len(results) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(results))]
    names = [f"{found.name}\n{found.count} images" for found in results]
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
