"""Draw the attention maps of one image while it is sampled.

    python sampling/attention.py --model runs/mnist/model --query 12,16 20,8 --output_dir out

Writes attention.png (the denoising trajectory with the maps of one layer), attention.gif (the same,
animated), layers-Y-X.png for each query (all layers), measures.png (entropy, distance and locality
of attention) and attention.npz (the numbers of every layer and head at every step).
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.progress import ProgressBar
from ddpm_sa.settings.ranges import Index
from sampling.common.device import resolve_device
from sampling.common.output_folder import hold_output_folder, require_matplotlib
from sampling.common.sampler_settings import SamplerSettings
from sampling.common.trajectory import (
    AttentionTrajectory,
    SampleSpec,
    Trajectory,
    brightest_and_darkest,
    record_trajectory,
)

MAX_QUERIES = 12  # a figure with more is unreadable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Command-line settings of sampling/attention.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub.
        output_dir: Folder for the figures and attention.npz; created if it does not exist.
        query: Query pixels Y,X (row, column, from 0), as in `--query 12,16 20,8`. By default the
            brightest and the darkest place.
        layer: The layer of attention.png, such as mid_block.attentions.0; by default the last of
            the up blocks' layers with the highest resolution.
        index: Index of the image for this seed, as in sampling/sample.py.
        class_label: For a class-conditional network: a class by its name, or by its number where no
            class has that name; by default index modulo the number of classes.

    The maps are those of the model's own evaluations, not of the weak ones that guide it.
    """

    model: str
    output_dir: str
    query: list[tuple[Index, Index]] = dataclasses.field(default_factory=list)
    layer: str | None = None
    index: Index = 0
    class_label: str | Index | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.query) > MAX_QUERIES:
            raise UserError(f"{len(self.query)} queries are too many; give {MAX_QUERIES} at most")

    def unused(self) -> dict[str, str]:
        return {"cache_interval": "every map is that of a whole evaluation"}

    def spec(self, pipeline: Pipeline) -> SampleSpec:
        """The image to sample.

        Raises:
            ValueError: If this pipeline cannot sample this way.
        """
        method = self.make_method(pipeline)
        return SampleSpec(
            seed=self.seed,
            index=self.index,
            steps=method.steps,
            scheduler=method.scheduler,
            scheduler_options=method.scheduler_options,
            guide=method.guide,
            class_label=self.class_label,
        )

    def describe(self, spec: SampleSpec, pipeline: Pipeline) -> str:
        """The caption of the figures: what was sampled, and how."""
        kind, scale = self.guidance.kind, self.guidance.scale
        guided = "" if kind == "none" else f", guidance {kind} with scale {scale:g}"
        return f"{spec.describe(pipeline)}{guided}"


def main() -> None:
    settings = parse(Settings)
    require_matplotlib()
    with hold_output_folder(settings.output_dir):
        draw(settings)


def draw(settings: Settings) -> None:
    """Sample the image, and draw what its attention looks at."""
    pipeline = settings.open(settings.model)
    layer = _choose_layer(pipeline, settings.layer)
    _check_queries(settings.query, pipeline.image_format.size)
    pipeline.to(resolve_device(settings.device))
    spec = settings.spec(pipeline)
    which = settings.describe(spec, pipeline)  # raises for a class that there is not
    folder = Path(settings.output_dir)

    trajectory = _record(pipeline, spec, settings.query)
    names = draw_figures(trajectory, layer, which, folder)
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
    total = runs * spec.count_evaluations(pipeline)
    with ProgressBar("denoising", "evaluation", total=total) as bar:
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
