"""Draw the attention maps of one image while it is sampled.

    python sampling/attention.py --model runs/mnist/model --query 12,16 --query 20,8 \
        --output_dir out

Writes attention.png (the denoising trajectory with the maps of one layer), attention.gif (the same,
animated), layers-Y-X.png for each query (all layers), measures.png (entropy, distance and locality
of attention) and attention.npz (the numbers of every layer and head at every step).
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError
from ddpm_sa.models.attention_slots import attention_layers
from sampling.common.device import resolve_device
from sampling.common.model_loading import ModelSettings
from sampling.common.output_folder import hold_output_folder, require_matplotlib
from sampling.common.trajectory import (
    AttentionTrajectory,
    SampleSpec,
    Trajectory,
    brightest_and_darkest,
    record_trajectory,
)

MAX_QUERIES = 12  # a figure with more is unreadable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Command-line settings of sampling/attention.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub.
        output_dir: Folder for the figures and attention.npz; created if it does not exist.
        query: A query pixel Y,X (row, column, from 0); repeat the flag for several, as in
            `--query 12,16 --query 20,8`. By default the brightest and the darkest place.
        layer: The layer of attention.png, such as mid_block.attentions.0; by default the last of
            the up blocks' layers with the highest resolution.
        index: Index of the image for this seed, as in sampling/sample.py.
        steps: Number of steps, at most the number of training timesteps.
        scheduler: ddpm, ddim, dpmsolver++, dpmsolver++sde, unipc, euler, euler_ancestral, heun or
            pndm.
        class_label: For a class-conditional network; by default index modulo the number of classes.
    """

    model: str
    output_dir: str
    query: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    layer: str | None = None
    index: int = 0
    steps: int = 50
    scheduler: str = "ddim"
    class_label: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(0, "index")
        if len(self.query) > MAX_QUERIES:
            raise UserError(f"{len(self.query)} queries are too many; give {MAX_QUERIES} at most")

    def spec(self) -> SampleSpec:
        return SampleSpec(
            seed=self.seed,
            index=self.index,
            steps=self.steps,
            scheduler=self.scheduler,
            class_label=self.class_label,
        )


def main() -> None:
    settings = parse(Settings, gather_queries(sys.argv[1:]))
    require_matplotlib()
    with hold_output_folder(settings.output_dir):
        draw(settings)


def draw(settings: Settings) -> None:
    """Sample the image, and draw what its attention looks at."""
    pipeline = settings.open(settings.model)
    layer = _choose_layer(pipeline, settings.layer)
    _check_queries(settings.query, pipeline.image_format.size)
    spec = settings.spec()
    spec.count_evaluations(pipeline)  # raises for settings that cannot be used
    pipeline.to(resolve_device(settings.device))
    folder = Path(settings.output_dir)

    pipeline.set_progress_bar_config(desc="denoising", unit="evaluation")
    trajectory = _record(pipeline, spec, settings.query)
    names = draw_figures(trajectory, layer, spec.describe(pipeline), folder)
    print(
        f"queries {', '.join(f'{y},{x}' for y, x in trajectory.queries)} in {layer}: "
        f"{folder / names[0]}, {', '.join(names[1:])}"
    )


def draw_figures(
    trajectory: AttentionTrajectory, layer: str, which: str, folder: Path
) -> list[str]:
    """Write all figures and attention.npz; return the file names."""
    from sampling.figures.attention import draw_layers, draw_trajectory, save_attention_animation
    from sampling.figures.attention_measures import draw_measures
    from sampling.figures.panels import save_figure

    figures = {
        "attention.png": draw_trajectory(
            trajectory, layer, f"Attention maps of {layer}, mean of heads\n{which}"
        )
    }
    for number, (y, x) in enumerate(trajectory.queries):
        title = f"Attention map of one query in each layer, mean of heads\n{which}"
        figures[f"layers-{y}-{x}.png"] = draw_layers(trajectory, number, title)
    title = f"Attention of each head, mean over the pixels of an image\n{which}"
    figures["measures.png"] = draw_measures(trajectory, title)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    save_attention_animation(
        trajectory, layer, f"{layer}, mean of heads\n{which}", folder / "attention.gif"
    )
    trajectory.save(folder / "attention.npz")
    return [*figures, "attention.gif", "attention.npz"]


def _record(
    pipeline: Pipeline, spec: SampleSpec, queries: Sequence[tuple[int, int]]
) -> AttentionTrajectory:
    # The brightest place is known only after sampling, so the image is then sampled twice.
    runs = 1 if queries else 2
    with pipeline.progress_bar(total=runs * spec.count_evaluations(pipeline)) as bar:  # type: ignore[call-arg]
        if not queries:
            steps = []
            for step in spec.denoise(pipeline):
                steps.append(step)
                bar.update()
            # Padding beyond the image is not a query.
            height, width = pipeline.image_format.size
            queries = brightest_and_darkest(
                Trajectory.from_steps(steps).image[..., :height, :width]
            )
        return record_trajectory(pipeline, spec, queries, bar.update)


def gather_queries(words: Sequence[str]) -> list[str]:
    """Merge every `--query Y,X` of a command line into the one list that the parser takes.

    Raises:
        ValueError: If a query is not a pair of whole numbers.
    """
    rest, queries = [], []
    words = [part for word in words for part in _split(word)]
    following = iter(words)
    for word in following:
        if word != "--query":
            rest.append(word)
            continue
        value = next(following, "")
        if not re.fullmatch(r"\d+,\d+", value):
            raise UserError(f"query={value!r} must be a pixel Y,X of the image, as in 12,16")
        queries.append(f"[{value}]")
    return rest + (["--query", f"[{','.join(queries)}]"] if queries else [])


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--query=") else [word]


def _choose_layer(pipeline: Pipeline, name: str | None) -> str:
    layers = attention_layers(pipeline.unet)
    if name is None:
        upwards = [known for known in layers if known.startswith("up_blocks")] or list(layers)
        return min(reversed(upwards), key=lambda known: layers[known].reduction)
    if name not in layers:
        raise UserError(f"layer={name!r} is unknown; known are {', '.join(layers)}")
    return name


def _check_queries(queries: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
    for y, x in queries:
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise UserError(
                f"query={y},{x} lies outside the image of {size[0]} x {size[1]} pixels; y comes "
                "first, both count from 0"
            )


if __name__ == "__main__":
    run_program(main)
