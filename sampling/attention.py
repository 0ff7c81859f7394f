"""Draw where pixels of an image look while it is made.

    python sampling/attention.py --model runs/mnist/model --query 12,16 --query 20,8 \
        --output_dir out

Writes attention.png (the denoising, with the maps of one layer), layers.png (all layers, at the
last moments) and attention.npz (the numbers of every layer at every step).
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.sampler import make_scheduler
from ddpm_sa.slots import attention_layers
from sampling.course import Course, brightest_and_darkest, follow

MOST_QUERIES = 12  # more are no figure that one can read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which image to make, and whose looks to draw.

    Attributes:
        model: A model folder, such as runs/mnist/model, or a DDPMPipeline's repository on the hub.
        output_dir: Where attention.png, layers.png and attention.npz go; made if it is not there.
        query: A pixel that looks, as Y,X (row, column, from 0); once for each pixel, as in
            `--query 12,16 --query 20,8`. If not given, the image's brightest and darkest places.
        layer: The layer of attention.png, such as mid_block.attentions.0; the last with the highest
            resolution on the way up, if not given.
        seed: Which images; 0 or greater.
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
    seed: int = 0
    index: int = 0
    steps: int = 50
    scheduler: str = "ddim"
    class_label: int | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "index"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or greater")
        if len(self.query) > MOST_QUERIES:
            raise ValueError(f"{len(self.query)} queries are too many; give {MOST_QUERIES} at most")


def main() -> None:
    settings = parse(Settings, gather_queries(sys.argv[1:]))
    draw = _drawing()
    pipeline = Pipeline.from_pretrained(settings.model)
    layer = _layer(pipeline, settings.layer)
    _check_queries(settings.query, pipeline.image_format.size)
    make_scheduler(settings.scheduler, pipeline.scheduler, settings.steps)  # refuses in time
    labels = pipeline.class_labels([settings.index], settings.class_label)
    folder = _made(Path(settings.output_dir))

    pipeline.set_progress_bar_config(desc="denoising", unit="evaluation")
    course = _course(pipeline, settings, labels)
    which = f"{settings.scheduler}, seed {settings.seed}, image {settings.index}"
    if labels is not None:
        which += f", class {int(labels)}"
    figure = draw.draw_course(course, layer, f"Where pixels look: {layer}, mean of heads\n{which}")
    draw.save(figure, folder / "attention.png")
    figure = draw.draw_layers(course, f"Where pixels look in each layer, mean of heads\n{which}")
    draw.save(figure, folder / "layers.png")
    course.write(folder / "attention.npz")
    print(
        f"queries {', '.join(f'{y},{x}' for y, x in course.queries)} in {layer}: "
        f"{folder / 'attention.png'}, layers.png, attention.npz"
    )


def _drawing() -> ModuleType:
    try:
        from sampling import attention_figure
    except ModuleNotFoundError as error:
        raise ValueError(f"the figures need {error.name}: pip install {error.name}") from error
    return attention_figure


def _course(pipeline: Pipeline, settings: Settings, labels: Tensor | None) -> Course:
    run = partial(
        follow,
        pipeline,
        index=settings.index,
        steps=settings.steps,
        seed=settings.seed,
        scheduler=settings.scheduler,
        labels=labels,
    )
    if settings.query:
        return run(settings.query)
    # Where the image is bright is known when it is made: once to see, and once more to record.
    return run(brightest_and_darkest(run([(0, 0)]).image))


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


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir={folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"output_dir={folder} cannot be written to")
    return folder


if __name__ == "__main__":
    run_program(main)
