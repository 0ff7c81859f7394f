"""Draw where pixels of an image look while it is made.

    python sampling/attention.py --model runs/mnist/model --query 12,16 --query 20,8 \
        --output_dir out

Writes attention.png (the denoising, with the maps of one layer), attention.gif (the same, moving),
layers-Y-X.png for each query (all layers), measures.png (how wide, far and local attention is) and
attention.npz (the numbers of every layer and head at every step).
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.models.attention_slots import attention_layers
from sampling.common.device import device_named
from sampling.common.model_loading import ModelSettings
from sampling.common.output_folder import make_output_folder, require_matplotlib
from sampling.common.trajectory import Course, Denoising, Making, brightest_and_darkest, follow

MOST_QUERIES = 12  # more are no figure that one can read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Which image to make, and whose looks to draw.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the hub.
        output_dir: Where the figures and attention.npz go; made if it is not there.
        query: A pixel that looks, as Y,X (row, column, from 0); once for each pixel, as in
            `--query 12,16 --query 20,8`. If not given, the image's brightest and darkest places.
        layer: The layer of attention.png, such as mid_block.attentions.0; the last with the highest
            resolution on the way up, if not given.
        index: Which image of the seed, as sampling/sample.py numbers them.
        steps: Steps of the scheduler, at most the timesteps of the training.
        scheduler: ddpm, ddim, dpmsolver++, dpmsolver++sde, unipc, euler, euler_ancestral, heun or
            pndm.
        class_label: For a class-conditional network; index modulo the number of classes, if not
            given.
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
        if len(self.query) > MOST_QUERIES:
            raise ValueError(f"{len(self.query)} queries are too many; give {MOST_QUERIES} at most")

    def making(self) -> Making:
        return Making(
            seed=self.seed,
            index=self.index,
            steps=self.steps,
            scheduler=self.scheduler,
            class_label=self.class_label,
        )


def main() -> None:
    settings = parse(Settings, gather_queries(sys.argv[1:]))
    require_matplotlib()
    pipeline = settings.open(settings.model)
    layer = _layer(pipeline, settings.layer)
    _check_queries(settings.query, pipeline.image_format.size)
    making = settings.making()
    making.evaluations(pipeline)  # refuses in time
    pipeline.to(device_named(settings.device))
    folder = make_output_folder(Path(settings.output_dir))

    pipeline.set_progress_bar_config(desc="denoising", unit="evaluation")
    course = _course(pipeline, making, settings.query)
    names = draw_all(course, layer, making.told(pipeline), folder)
    print(
        f"queries {', '.join(f'{y},{x}' for y, x in course.queries)} in {layer}: "
        f"{folder / names[0]}, {', '.join(names[1:])}"
    )


def draw_all(course: Course, layer: str, which: str, folder: Path) -> list[str]:
    """Write every figure and the numbers; returns the names of the files."""
    from sampling.figures.attention import draw_course, draw_layers, save_animation
    from sampling.figures.attention_measures import draw_measures
    from sampling.figures.panels import save

    figures = {
        "attention.png": draw_course(
            course, layer, f"Where pixels look: {layer}, mean of heads\n{which}"
        )
    }
    for number, (y, x) in enumerate(course.queries):
        title = f"Where a pixel looks in each layer, mean of heads\n{which}"
        figures[f"layers-{y}-{x}.png"] = draw_layers(course, number, title)
    title = f"Attention of each head, mean over the pixels of an image\n{which}"
    figures["measures.png"] = draw_measures(course, title)
    for name, figure in figures.items():
        save(figure, folder / name)
    save_animation(course, layer, f"{layer}, mean of heads\n{which}", folder / "attention.gif")
    course.write(folder / "attention.npz")
    return [*figures, "attention.gif", "attention.npz"]


def _course(pipeline: Pipeline, making: Making, queries: Sequence[tuple[int, int]]) -> Course:
    # Where the image is bright is known when it is made: once to see, and once more to record.
    runs = 1 if queries else 2
    with pipeline.progress_bar(total=runs * making.evaluations(pipeline)) as bar:  # type: ignore[call-arg]
        if not queries:
            steps = []
            for step in making.walk(pipeline):
                steps.append(step)
                bar.update()
            # What the network sees beyond the image is no place to look from.
            height, width = pipeline.image_format.size
            queries = brightest_and_darkest(Denoising.of(steps).image[..., :height, :width])
        return follow(pipeline, making, queries, bar.update)


def gather_queries(words: Sequence[str]) -> list[str]:
    """Every `--query Y,X` of a command line as the one list that the parser knows.

    Raises:
        ValueError: If one is no pair of whole numbers.
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
            raise ValueError(f"query={value!r} must be a pixel Y,X of the image, as in 12,16")
        queries.append(f"[{value}]")
    return rest + (["--query", f"[{','.join(queries)}]"] if queries else [])


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--query=") else [word]


def _layer(pipeline: Pipeline, name: str | None) -> str:
    layers = attention_layers(pipeline.unet)
    if name is None:
        upwards = [known for known in layers if known.startswith("up_blocks")] or list(layers)
        return min(reversed(upwards), key=lambda known: layers[known].reduction)
    if name not in layers:
        raise ValueError(f"layer={name!r} is unknown; known are {', '.join(layers)}")
    return name


def _check_queries(queries: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
    for y, x in queries:
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ValueError(
                f"query={y},{x} lies outside the image of {size[0]} x {size[1]} pixels; y comes "
                "first, both count from 0"
            )


if __name__ == "__main__":
    run_program(main)
