"""Ablate the attention layers of a model: sample with each replaced, and compare the images.

    python sampling/ablation.py --model runs/mnist/model --num_images 64 --output_dir out

Writes ablation.md (a table), ablation.json (the same, for programs) and ablation.png (the first
images of each row). Layers are replaced one by one and all together, so that each pixel attends
only to itself ("identity"), to all pixels equally ("uniform"), or to the 3 x 3 pixels around it
("local").
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from ddpm_sa import Pipeline, ablate_attention
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import advise_out_of_memory
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.interpret.ablation import Replacement
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.progress import ProgressBar
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.settings.ranges import Count, Several
from sampling.common.device import resolve_device
from sampling.common.memory import SMALLER_BATCH, check_batch_fits
from sampling.common.model_loading import ModelSettings
from sampling.common.output_folder import (
    hold_output_folder,
    require_matplotlib,
)

REPLACEMENTS: tuple[Replacement, ...] = ("identity", "uniform", "local")
SPLITS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Command-line settings of sampling/ablation.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub.
        output_dir: Folder for ablation.md, ablation.json and ablation.png.
        num_images: Images in each row; they are compared with as many images of other noise.
        steps: Number of steps, at most the number of training timesteps.
        scheduler: A short name, as in sampling/sample.py.
        batch_size: Images in a batch.
    """

    model: str
    output_dir: str
    num_images: Several = 64
    steps: Count = 50
    scheduler: str = "ddim"
    batch_size: Count = 32


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one replacement.

    Attributes:
        difference: Root mean square difference from the images of the same noise with unchanged
            attention, averaged over the images, as a share of the range from black to white.
        distance: `energy_distance` to images of other noise with unchanged attention.
    """

    layers: list[str]
    replacement: str
    difference: float
    distance: float


@advise_out_of_memory(SMALLER_BATCH)
def main() -> None:
    settings = parse(Settings)
    require_matplotlib()
    with hold_output_folder(settings.output_dir):
        ablate(settings)


def ablate(settings: Settings) -> None:
    """Sample with each replacement of attention, and compare."""
    pipeline = settings.open(settings.model)
    layers = list(attention_layers(pipeline.unet))
    device = resolve_device(settings.device)
    check_batch_fits(pipeline, settings.batch_size, settings.num_images, device)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)  # one bar for all rows
    groups = [[layer] for layer in layers] + ([layers] if len(layers) > 1 else [])
    count, num_sets = settings.num_images, 2 + len(groups) * len(REPLACEMENTS)
    method = Method(steps=settings.steps, scheduler=settings.scheduler)
    num_steps = dry_run(method, pipeline.scheduler).steps
    total = num_sets * math.ceil(count / settings.batch_size) * num_steps
    with ProgressBar("sampling", "step", total=total) as progress:
        sample = partial(_sample, pipeline, settings, progress)
        # Same batches as the other rows, so that their sums are rounded alike.
        images, others = (sample(range(i, i + count)) for i in (0, count))
        folder = Path(settings.output_dir)
        rows = [Row([], "none", 0.0, energy_distance(images, others))]
        pictures = [images]
        for group in groups:
            for replacement in REPLACEMENTS:
                radius = 1 if replacement == "local" else None
                with ablate_attention(pipeline.unet, replacement, group, radius):
                    replaced = sample(range(count))
                pictures.append(replaced)
                change = ((replaced - images) ** 2).mean((1, 2, 3)).sqrt().mean().item() / 2
                rows.append(Row(group, replacement, change, energy_distance(replaced, others)))
    _write_results(folder, settings, rows, chance_distance(torch.cat([images, others])), pictures)
    print(f"{len(rows) - 1} replacements: {folder / 'ablation.md'}, ablation.json, ablation.png")


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Energy distance: 2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖ (Székely & Rizzo 2013, eq. 1).

    Norms are root mean squares over the pixels, as a share of the range from black to white. The
    estimate is unbiased: for two sets of one distribution it is 0 on average, and may be negative.

    Args:
        one, other: (N, C, H, W) and (M, C, H, W), in [-1, 1], with at least 2 images each.
    """
    x, y = (images.flatten(1).double() for images in (one, other))

    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b) / (2 * a.shape[1] ** 0.5)

    within = [between(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(2 * between(x, y).mean() - sum(within))


def chance_distance(images: Tensor) -> float:
    """The 95th percentile of `energy_distance` between random halves of these images."""
    random = torch.Generator().manual_seed(0)
    distances = []
    for _ in range(SPLITS):
        order = torch.randperm(len(images), generator=random)
        half = len(images) // 2
        distances.append(energy_distance(images[order[:half]], images[order[half:]]))
    return float(torch.tensor(distances).quantile(0.95))


def _sample(
    pipeline: Pipeline, settings: Settings, progress: ProgressBar, indices: Sequence[int]
) -> Tensor:
    images = pipeline(
        indices=indices,
        steps=settings.steps,
        seed=settings.seed,
        batch_size=settings.batch_size,
        scheduler=settings.scheduler,
        output_type="pt",
        callback_on_step_end=lambda *_: progress.update(),
    ).images
    return torch.as_tensor(images) * 2 - 1


def _write_results(
    folder: Path, settings: Settings, rows: list[Row], by_chance: float, pictures: list[Tensor]
) -> None:
    from sampling.figures.ablation import draw_ablation
    from sampling.figures.panels import save_figure

    caption = f"{settings.num_images} images, {settings.scheduler}, seed {settings.seed}"
    lines = [
        "| replaced | by | difference | distance |",
        "|---|---|---|---|",
        *(
            f"| {_row_name(row)} | {row.replacement} | {row.difference:.1%} | {row.distance:.2%} |"
            for row in rows
        ),
        "",
        f"{caption}, {settings.steps} steps. Difference: root mean square difference from the "
        "image of the same noise, as a share of the range from black to white. Distance: energy "
        "distance on pixels, in the same unit, to as many images of other noise with unchanged "
        f"attention; between two such sets it exceeds {by_chance:.2%} once in 20 times.",
    ]
    record = {
        "settings": dataclasses.asdict(settings),
        "exceeded_once_in_20": by_chance,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    for name, text in (
        ("ablation.md", "\n".join(lines)),
        ("ablation.json", json.dumps(record, indent=1)),
    ):
        with write_atomically(folder / name) as partial:
            partial.write_text(text + "\n")
    names = [f"{_row_name(row)}\n{row.replacement}" for row in rows]
    title = f"Attention replaced while sampling, the same noise in each column\n{caption}"
    save_figure(draw_ablation(names, pictures, title), folder / "ablation.png")


def _row_name(row: Row) -> str:
    if not row.layers:
        return "nothing"
    return row.layers[0] if len(row.layers) == 1 else "all layers"


if __name__ == "__main__":
    run_program(main)
