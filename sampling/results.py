"""What an evaluation leaves behind: a table, a JSON, a figure."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_sa.metrics.features import Extractor
from sampling.folder import written_aside
from sampling.measuring import KEPT, Measured, Real
from sampling.panels import save


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


def write(
    folder: Path,
    settings: Mapping[str, Any],
    extractor: Extractor,
    real: Real,
    results: Sequence[Measured],
    warnings: Sequence[str],
    environment: Mapping[str, Any],
) -> None:
    """evaluation.json and evaluation.png, each whole or not at all."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
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
        "warnings": list(warnings),
        "environment": environment,
    }
    with written_aside(folder / "evaluation.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    # Here, since who has no matplotlib is told so before.
    from sampling.evaluation_figure import draw_evaluation

    save(draw_evaluation(results, rows_of(extractor)), folder / "evaluation.png")
    print(f"{folder / 'evaluation.json'}, {folder / 'evaluation.png'}")
