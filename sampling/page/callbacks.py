"""What happens when something on the page of sampling/app.py is touched."""

import collections
import functools
import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from ddpm_sa.interpret.ablation import Replacement
from ddpm_sa.models.attention_slots import attention_layers
from sampling.common.trajectory import Denoising, Making, brightest_and_darkest
from sampling.figures.attention import draw_course
from sampling.figures.panels import save
from sampling.page.explorer import (
    MARKERS,
    Choice,
    Explorer,
    Made,
    Pixel,
    difference,
    draw_map,
    enlargement,
    numbers,
    of_head,
    show_image,
)

SECONDS_A_FRAME = 0.2
FOLDERS = 8  # of downloads, kept
MEAN = "mean of heads"
FIRST, SECOND = "A (ring)", "B (square)"
REPLACEMENTS: dict[str, Replacement] = dict(
    zip(
        (
            "each pixel sees itself alone",
            "each pixel sees all evenly",
            "each pixel sees the 3 × 3 around it",
        ),
        get_args(Replacement),
        strict=True,
    )
)
VIEWS = {"predicted image": "x_0", "what the network sees": "x_t"}


def told(action: Callable) -> Callable:
    """A user's mistake, said on the page."""
    if inspect.isgeneratorfunction(action):

        @functools.wraps(action)
        def steps(*inputs: Any) -> Iterator[Any]:
            try:
                yield from action(*inputs)
            except ValueError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return steps

    @functools.wraps(action)
    def once(*inputs: Any) -> Any:
        try:
            return action(*inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return once


class Actions:
    """Of a page that shows these models and writes downloads into this folder."""

    def __init__(self, explorer: Explorer, folder: Path) -> None:
        self.explorer, self.folder = explorer, folder
        self._folders: collections.deque[Path] = collections.deque()

    def layers(self, model: str) -> list[str]:
        return list(attention_layers(self.explorer.pipelines[model].unet))

    def default_layer(self, model: str) -> str:
        """The last with the highest resolution."""
        known = attention_layers(self.explorer.pipelines[model].unet)
        return min(reversed(known), key=lambda name: known[name].reduction)

    def heads(self, model: str, layer: str) -> list[str]:
        module = attention_layers(self.explorer.pipelines[model].unet)[layer].module
        return [MEAN, *(f"head {head}" for head in range(getattr(module, "heads", 1)))]

    def classes(self, model: str) -> int:
        return self.explorer.pipelines[model].unet.config.num_class_embeds or 0

    def choose_model(self, model: str) -> list[Any]:
        """-> steps, class, layer, head, layers to replace."""
        most, layer = self.explorer.most_steps(model), self.default_layer(model)
        return [
            gr.update(maximum=most, value=min(50, most)),
            gr.update(visible=self.classes(model) > 0, value=0),
            gr.update(choices=self.layers(model), value=layer),
            gr.update(choices=self.heads(model, layer), value=MEAN),
            gr.update(choices=self.layers(model), value=[]),
        ]

    def choose_layer(self, made: Made | None, model: str, layer: str) -> Any:
        model = made.choice.model if made else model
        return gr.update(choices=self.heads(model, layer), value=MEAN)

    def make(
        self, model: str, seed: int, scheduler: str, steps: int, label: int
    ) -> Iterator[list[Any]]:
        """-> made, other, picture, moment, status, y and x of both queries, and what is known."""
        making = Making(
            seed=seed,
            steps=int(steps),
            scheduler=scheduler,
            class_label=label if self.classes(model) else None,
        )
        choice = Choice(model, making)
        skipped = [gr.skip()] * 6
        for way, picture, status in self._frames(choice):
            if way is None:
                yield [gr.skip(), gr.skip(), picture, gr.skip(), status, *skipped]
                continue
            total, size = len(way.timesteps), self.explorer.pipelines[model].image_format.size
            first, second = brightest_and_darkest(way.image[..., : size[0], : size[1]])
            yield [
                Made(choice, way),
                None,
                picture,
                gr.update(minimum=1, maximum=max(total, 2), value=total),
                f"{status} {making.told(self.explorer.pipelines[model])}.",
                *(
                    gr.update(value=value, maximum=limit - 1)
                    for pixel in (first, second)
                    for value, limit in zip(pixel, size, strict=True)
                ),
                None,
                "",
            ]

    def replace(
        self, made: Made | None, layers: list[str], replacement: str
    ) -> Iterator[list[Any]]:
        """-> other, its picture, what it says."""
        if made is None:
            raise ValueError("make an image first")
        if not layers:
            raise ValueError("choose the layers whose attention is replaced")
        choice = Choice(
            made.choice.model, made.choice.making, tuple(layers), REPLACEMENTS[replacement]
        )
        for way, picture, status in self._frames(choice):
            yield [Made(choice, way) if way else gr.skip(), picture, status]

    def _frames(self, choice: Choice) -> Iterator[tuple[Denoising | None, Any, str]]:
        """Pictures as they come, and at last the whole way."""
        steps, shown = [], 0.0
        for step in self.explorer.make(choice):
            steps.append(step)
            if time.monotonic() - shown > SECONDS_A_FRAME:
                shown = time.monotonic()
                picture = show_image(step.x_0[0].clamp(-1, 1).cpu().numpy(), [])
                yield None, picture, f"Evaluation {len(steps)}, t = {float(step.t):.4g} ..."
        way = Denoising.of(steps)
        yield way, show_image(way.image, []), f"{len(steps)} evaluations."

    def click(
        self,
        made: Made | None,
        which: str,
        ya: int,
        xa: int,
        yb: int,
        xb: int,
        event: gr.SelectData,
    ) -> list[int]:
        """A click on the picture -> y and x of both queries."""
        if made is None:
            return [ya, xa, yb, xb]
        height, width = made.way.image.shape[-2:]
        x, y = (place // enlargement((height, width)) for place in event.index)
        if not (0 <= y < height and 0 <= x < width):
            return [ya, xa, yb, xb]
        return [y, x, yb, xb] if which == FIRST else [ya, xa, y, x]

    def show(
        self,
        made: Made | None,
        other: Made | None,
        moment: int,
        layer: str,
        head: str,
        view: str,
        *pixels: int | None,
    ) -> list[Any]:
        """-> picture, what moment it is, both maps, numbers, other's picture, their difference."""
        if made is None or any(value is None for value in pixels):
            return [gr.skip()] * 7
        way, moment = made.way, min(int(moment), len(made.way.timesteps)) - 1
        queries: list[Pixel] = [(pixels[0], pixels[1]), (pixels[2], pixels[3])]  # type: ignore[list-item]
        every = self.explorer.look(made, moment, queries)
        if layer not in every or head not in self.heads(made.choice.model, layer):
            raise ValueError(f"this image's model has no {layer}, {head}; make an image of yours")
        maps = of_head(every[layer], None if head == MEAN else int(head.split()[1]))
        pictures = [
            draw_map(
                values, way.x_0[moment], query, marker, f"{name[0]} {query} in {layer}\n{head}"
            )
            for values, query, marker, name in zip(
                maps, queries, MARKERS, (FIRST, SECOND), strict=True
            )
        ]
        seen = getattr(way, VIEWS[view])[moment]
        when = f"Evaluation {moment + 1} of {len(way.timesteps)}, t = {way.timesteps[moment]:.4g}."
        size = (way.image.shape[-2], way.image.shape[-1])
        table = _table(
            ["", *(f"{n} at {q}" for n, q in zip((FIRST, SECOND), queries, strict=True))],
            numbers(maps, queries, size),
        )
        return [
            show_image(seen, queries),
            when,
            *pictures,
            table,
            *_beside(way, other, moment, view),
        ]

    def download(self, made: Made | None, layer: str, *pixels: int | None) -> Any:
        """Write a figure and the numbers of both queries -> the files."""
        if made is None or any(value is None for value in pixels):
            raise ValueError("make an image first, and choose two pixels of it")
        queries: list[Pixel] = [(pixels[0], pixels[1]), (pixels[2], pixels[3])]  # type: ignore[list-item]
        course = self.explorer.course(made, queries)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self._folders.append(folder)
        if len(self._folders) > FOLDERS:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        which = made.choice.making.told(self.explorer.pipelines[made.choice.model])
        title = f"Where pixels look: {layer}, mean of heads\n{which}"
        save(draw_course(course, layer, title), folder / "attention.png")
        course.write(folder / "attention.npz")
        files = [str(folder / name) for name in ("attention.png", "attention.npz")]
        return gr.update(value=files, visible=True)


def _beside(way: Denoising, other: Made | None, moment: int, view: str) -> list[Any]:
    if other is None:
        return [gr.skip(), gr.skip()]
    now = [getattr(each, VIEWS[view])[moment] for each in (way, other.way)]
    return [
        show_image(now[1], []),
        f"Root mean square difference, of the range from black to white: {difference(*now):.1%} "
        f"now, **{difference(way.image, other.way.image):.1%}** at the end. Replaced in: "
        f"{', '.join(other.choice.layers)}.",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
