"""Report an evaluation: the printed table, evaluation.json and the figures."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_sa.cli import command_line
from ddpm_sa.data.dataset import Images
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.metrics.nearest_neighbours import NEIGHBOURS
from sampling.evaluation.held_out_loss import Diagnostics
from sampling.evaluation.memorization import summarise_copies
from sampling.evaluation.real_data import read_run_data_config
from sampling.evaluation.scores import MAX_COMPARED, Reference, Scores
from sampling.figures.panels import save_figure


def scores_by_name(extractor: Extractor) -> dict[str, Callable[[Scores], float | None]]:
    """Functions that read each score, by the score's name in the table."""
    return {
        extractor.frechet: lambda scores: scores.frechet,
        extractor.kernel: lambda scores: scores.kernel,
        extractor.score: lambda scores: scores.score,
        "precision": lambda scores: scores.shares.precision,
        "recall": lambda scores: scores.shares.recall,
        "density": lambda scores: scores.shares.density,
        "coverage": lambda scores: scores.shares.coverage,
    }


def format_table(results: Sequence[Scores], extractor: Extractor) -> str:
    """Format a table with a row for each score and a column for each image set."""
    lines = [["", *(scores.name for scores in results)]]
    lines += [["images", *(str(scores.count) for scores in results)]]
    for name, value_of in scores_by_name(extractor).items():
        values = [value_of(scores) for scores in results]
        if any(value is not None for value in values):
            lines.append([name, *("-" if v is None else f"{v:.4g}" for v in values)])
    for channel in range(len(results[0].tint)):
        tints = [scores.tint[channel] for scores in results]
        lines.append(
            [
                f"channel {channel}: shift of the mean, in standard deviations",
                *(f"{tint['shift']:+.4f} ± {tint['error']:.4f}" for tint in tints),
            ]
        )
        lines.append(
            [
                f"channel {channel}: ratio of standard deviations",
                *(f"{t['spread_ratio']:.4f}" for t in tints),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            word.rjust(width) if i else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def find_warnings(real: Reference, results: Sequence[Scores]) -> list[str]:
    """Warn about sets with too few images for the Fréchet distance."""
    features = len(real.summary.features.mean)
    counts = {"the real images": real.summary.count} | {r.name: r.count for r in results}
    return [
        f"{name}: {count} images are fewer than the {features} features, so the covariance is "
        "singular and the Fréchet distance is too large; compare only sets of the same size"
        for name, count in counts.items()
        if count <= features
    ]


def warn_if_not_held_out(
    models: Sequence[str], validation: float | str | None, held_out: Images
) -> list[str]:
    """Warn about models that were trained on what this evaluation holds out."""
    runs = {name: read_run_data_config(name) for name in models}
    split = held_out.splits.taken if held_out.splits else None
    return [
        f"{name} was trained with data.validation={run.validation}: it may have seen the images "
        "that are held out here"
        for name, run in runs.items()
        if run is not None and validation not in (None, run.validation)
        # A split other than the one that was trained on was not seen.
        if validation != split or validation == run.split
    ]


def make_record(
    settings: Mapping[str, Any], extractor: Extractor, real: Reference, results: Sequence[Scores]
) -> dict[str, Any]:
    """The contents of evaluation.json, which suffice to reproduce every number."""
    return {
        "command": command_line(),
        "settings": settings,
        "seed": settings["seed"],
        "features": {
            "name": extractor.name,
            "space": extractor.space,
            "count": len(real.summary.features.mean),
            "frechet": extractor.frechet,
            "kernel": extractor.kernel,
            "score": extractor.score,
            "compared_in_pairs": MAX_COMPARED,
        },
        "data": {
            "images": real.summary.count,
            "fingerprint": real.fingerprint,
            "known": real.cached,
            "channels": real.summary.channels(),
            "score": real.summary.score,
        },
        "results": [dataclasses.asdict(scores) for scores in results],
    }


def describe_diagnostics(diagnostics: Diagnostics) -> list[str]:
    """Describe the diagnostics in lines of text, with table 4 of Ho et al. 2020."""
    lines = []
    if diagnostics.nearest:
        copies = summarise_copies(diagnostics.nearest)
        lines.append(
            f"nearer to a training image than any of {copies['held_out']} held-out images (ratio "
            f"{copies['threshold']:.3f} to the nearest {NEIGHBOURS}):"
        )
        lines += [
            f"  {name}: {len(copy['below'])} of {copy['images']} ({copy['share_below']:.2%})"
            for name, copy in copies["sets"].items()
        ]
        if not copies["threshold"]:
            lines.append("  a held-out image is also a training image, so no image can be nearer")
    for name, row in diagnostics.likelihood.items():
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
        lines.append(
            f"{name}: at most {row['bits_per_dimension']:.4f}{error} bits per dimension for "
            f"{row['images']} held-out images: rate {row['rate']:.4f} (prior {row['prior']:.2g}), "
            f"decoder {row['decoder']:.4f}"
        )
        lines.append("  reverse steps   rate (bits/dim)   distortion (RMSE of 0 ... 255)")
        lines += [
            f"  {line['reverse_steps']:13}   {line['rate']:15.5f}   {line['distortion']:10.5f}"
            for line in row["table"]
        ]
    return lines


def write_evaluation(
    folder: Path,
    record: Mapping[str, Any],
    results: Sequence[Scores],
    extractor: Extractor,
    diagnostics: Diagnostics,
    images: Images,
) -> None:
    """Write evaluation.json and the figures, each atomically."""
    # Imported late: main() has already reported a missing matplotlib.
    from sampling.evaluation import figure

    figures = {"evaluation": figure.draw_scores(results, scores_by_name(extractor))}
    record = {**record, "losses": diagnostics.losses, "likelihood": diagnostics.likelihood}
    if diagnostics.nearest:
        record["nearest"] = summarise_copies(diagnostics.nearest)
        figures["nearest"] = figure.draw_nearest(
            diagnostics.nearest, record["nearest"]["threshold"], images
        )
    if diagnostics.losses:
        figures["losses"] = figure.draw_losses(diagnostics.losses)
    if diagnostics.likelihood:
        figures["likelihood"] = figure.draw_likelihood(diagnostics.likelihood)
    with write_atomically(folder / "evaluation.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    for name, drawn in figures.items():
        save_figure(drawn, folder / f"{name}.png")
    print(
        ", ".join(
            str(folder / name) for name in ("evaluation.json", *(f"{name}.png" for name in figures))
        )
    )
