"""What an evaluation leaves behind: a table, a JSON, a figure."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.cli import command_line
from ddpm_sa.data.dataset import Images
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.metrics.nearest_neighbours import NEIGHBOURS
from sampling.evaluation.held_out_loss import Looks
from sampling.evaluation.memorization import copies
from sampling.evaluation.real_data import read_run_data_config
from sampling.evaluation.scores import KEPT, Measured, Real
from sampling.figures.panels import save


def rows_of(extractor: Extractor) -> dict[str, Callable[[Measured], float | None]]:
    """The measures, by what they are called."""
    return {
        extractor.frechet: lambda found: found.frechet,
        extractor.kernel: lambda found: found.kernel,
        extractor.score: lambda found: found.score,
        "precision": lambda found: found.shares.precision,
        "recall": lambda found: found.shares.recall,
        "density": lambda found: found.shares.density,
        "coverage": lambda found: found.shares.coverage,
    }


def table(results: Sequence[Measured], extractor: Extractor) -> str:
    """A row for each measure, a column for each set."""
    lines = [["", *(found.name for found in results)]]
    lines += [["images", *(str(found.count) for found in results)]]
    for name, value_of in rows_of(extractor).items():
        values = [value_of(found) for found in results]
        if any(value is not None for value in values):
            lines.append([name, *("-" if v is None else f"{v:.4g}" for v in values)])
    for channel in range(len(results[0].tint)):
        tints = [found.tint[channel] for found in results]
        lines.append(
            [
                f"channel {channel}: shift of the mean, in spreads",
                *(f"{tint['shift']:+.4f} ± {tint['error']:.4f}" for tint in tints),
            ]
        )
        lines.append(
            [f"channel {channel}: ratio of spreads", *(f"{t['spread_ratio']:.4f}" for t in tints)]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            word.rjust(width) if i else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def warnings_of(real: Real, results: Sequence[Measured]) -> list[str]:
    """What makes a number mean less than it seems to."""
    features = len(real.summary.features.mean)
    counts = {"the real images": real.summary.count} | {r.name: r.count for r in results}
    return [
        f"{name}: {count} images are fewer than the {features} features, so the covariance is "
        "singular and the Fréchet distance too large; compare only sets of the same count"
        for name, count in counts.items()
        if count <= features
    ]


def not_held_out(models: Sequence[str], validation: float | str | None) -> list[str]:
    """Which models' runs held out other images than these, or none."""
    runs = {name: read_run_data_config(name) for name in models}
    return [
        f"{name} was trained with data.validation={run.validation}: what is held out here, it has "
        "seen"
        for name, run in runs.items()
        if run is not None and validation not in (None, run.validation)
    ]


def record_of(
    settings: Mapping[str, Any], extractor: Extractor, real: Real, results: Sequence[Measured]
) -> dict[str, Any]:
    """What evaluation.json keeps, so that every number can be made again."""
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
            "compared_in_pairs": KEPT,
        },
        "data": {
            "images": real.summary.count,
            "fingerprint": real.fingerprint,
            "known": real.cached,
            "channels": real.summary.channels(),
            "score": real.summary.score,
        },
        "results": [dataclasses.asdict(found) for found in results],
    }


def lines_of(closer: Looks) -> list[str]:
    """What the closer looks found, in words and the paper's tables 1 and 4."""
    lines = []
    if closer.nearest:
        told = copies(closer.nearest)
        lines.append(
            f"nearer to a training image than any of {told['held_out']} held-out images (ratio "
            f"{told['threshold']:.3f} to the nearest {NEIGHBOURS}):"
        )
        lines += [
            f"  {name}: {len(found['below'])} of {found['images']} ({found['share_below']:.2%})"
            for name, found in told["sets"].items()
        ]
        if not told["threshold"]:
            lines.append("  a held-out image is itself a training image: nothing can be nearer")
    for name, row in closer.likelihood.items():
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
        lines.append(
            f"{name}: at most {row['bits_per_dimension']:.4f}{error} bits a dimension of "
            f"{row['images']} held-out images: rate {row['rate']:.4f} (prior {row['prior']:.2g}), "
            f"decoder {row['decoder']:.4f}"
        )
        lines.append("  reverse steps   rate (bits/dim)   distortion (RMSE of 0 ... 255)")
        lines += [
            f"  {line['reverse_steps']:13}   {line['rate']:15.5f}   {line['distortion']:10.5f}"
            for line in row["table"]
        ]
    return lines


def write(
    folder: Path,
    record: Mapping[str, Any],
    results: Sequence[Measured],
    extractor: Extractor,
    closer: Looks,
    images: Images,
) -> None:
    """evaluation.json and the figures, each whole or not at all."""
    # Here, since who has no matplotlib is told so before.
    from sampling.evaluation import figure as draw

    figures = {"evaluation": draw.measures(results, rows_of(extractor))}
    record = {**record, "losses": closer.losses, "likelihood": closer.likelihood}
    if closer.nearest:
        record["nearest"] = copies(closer.nearest)
        figures["nearest"] = draw.copies(closer.nearest, record["nearest"]["threshold"], images)
    if closer.losses:
        figures["losses"] = draw.losses(closer.losses)
    if closer.likelihood:
        figures["likelihood"] = draw.likelihood(closer.likelihood)
    with write_atomically(folder / "evaluation.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    print(
        ", ".join(
            str(folder / name) for name in ("evaluation.json", *(f"{name}.png" for name in figures))
        )
    )
