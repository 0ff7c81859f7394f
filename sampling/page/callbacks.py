"""Callbacks of the page of sampling/app.py."""

import collections
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from ddpm_sa.errors import UserError
from ddpm_sa.interpret.ablation import Replacement
from ddpm_sa.models.attention_slots import attention_layers
from sampling.common.trajectory import SampleSpec, Trajectory, brightest_and_darkest
from sampling.figures.attention import draw_trajectory
from sampling.figures.panels import save_figure
from sampling.page.explorer import (
    MARKERS,
    Choice,
    Explorer,
    GeneratedImage,
    Pixel,
    draw_map,
    enlargement_factor,
    measure_maps,
    render_image,
    rms_difference,
    select_head,
)

SECONDS_PER_FRAME = 0.2
MAX_DOWNLOADS = 8  # folders of downloads that are kept
MEAN = "mean of heads"
FIRST, SECOND = "A (ring)", "B (square)"
REPLACEMENTS: dict[str, Replacement] = dict(
    zip(
        (
            "each pixel attends only to itself",
            "each pixel attends to all equally",
            "each pixel attends to the 3 × 3 around it",
        ),
        get_args(Replacement),
        strict=True,
    )
)
VIEWS = {"predicted image": "x_0", "network input": "x_t"}


class Callbacks:
    """The callbacks of a page that shows these models and writes downloads to this folder."""

    def __init__(self, explorer: Explorer, folder: Path) -> None:
        self.explorer, self.folder = explorer, folder
        self._folders: collections.deque[Path] = collections.deque()

    def layers(self, model: str) -> list[str]:
        return list(attention_layers(self.explorer.pipelines[model].unet))

    def default_layer(self, model: str) -> str:
        """The last layer with the highest resolution."""
        layers = attention_layers(self.explorer.pipelines[model].unet)
        return min(reversed(layers), key=lambda name: layers[name].reduction)

    def heads(self, model: str, layer: str) -> list[str]:
        module = attention_layers(self.explorer.pipelines[model].unet)[layer].module
        return [MEAN, *(f"head {head}" for head in range(getattr(module, "heads", 1)))]

    def classes(self, model: str) -> int:
        return self.explorer.pipelines[model].unet.config.num_class_embeds or 0

    def choose_model(self, model: str) -> list[Any]:
        """Update steps, class, layer, head, and the layers to replace."""
        most, layer = self.explorer.max_steps(model), self.default_layer(model)
        return [
            gr.update(maximum=most, value=min(50, most)),
            gr.update(visible=self.classes(model) > 0, value=0),
            gr.update(choices=self.layers(model), value=layer),
            gr.update(choices=self.heads(model, layer), value=MEAN),
            gr.update(choices=self.layers(model), value=[]),
        ]

    def choose_layer(self, generated: GeneratedImage | None, model: str, layer: str) -> Any:
        model = generated.choice.model if generated else model
        return gr.update(choices=self.heads(model, layer), value=MEAN)

    def make(
        self, model: str, seed: int, scheduler: str, steps: int, label: int
    ) -> Iterator[list[Any]]:
        """Sample an image, yielding updates of the image and its controls."""
        spec = SampleSpec(
            seed=seed,
            steps=int(steps),
            scheduler=scheduler,
            class_label=label if self.classes(model) else None,
        )
        choice = Choice(model, spec)
        skipped = [gr.skip()] * 6
        for trajectory, picture, status in self._frames(choice):
            if trajectory is None:
                yield [gr.skip(), gr.skip(), picture, gr.skip(), status, *skipped]
                continue
            total, size = (
                len(trajectory.timesteps),
                self.explorer.pipelines[model].image_format.size,
            )
            first, second = brightest_and_darkest(trajectory.image[..., : size[0], : size[1]])
            yield [
                GeneratedImage(choice, trajectory),
                None,
                picture,
                gr.update(minimum=1, maximum=max(total, 2), value=total),
                f"{status} {spec.describe(self.explorer.pipelines[model])}.",
                *(
                    gr.update(value=value, maximum=limit - 1)
                    for pixel in (first, second)
                    for value, limit in zip(pixel, size, strict=True)
                ),
                None,
                "",
            ]

    def replace(
        self, generated: GeneratedImage | None, layers: list[str], replacement: str
    ) -> Iterator[list[Any]]:
        """Sample the same image with attention replaced, yielding image, picture and status."""
        if generated is None:
            raise UserError("sample an image first")
        if not layers:
            raise UserError("choose the layers whose attention is replaced")
        choice = Choice(
            generated.choice.model, generated.choice.spec, tuple(layers), REPLACEMENTS[replacement]
        )
        for trajectory, picture, status in self._frames(choice):
            yield [GeneratedImage(choice, trajectory) if trajectory else gr.skip(), picture, status]

    def _frames(self, choice: Choice) -> Iterator[tuple[Trajectory | None, Any, str]]:
        """Yield pictures while sampling; the last comes with the trajectory."""
        steps, shown = [], 0.0
        for step in self.explorer.generate(choice):
            steps.append(step)
            if time.monotonic() - shown > SECONDS_PER_FRAME:
                shown = time.monotonic()
                picture = render_image(step.x_0[0].clamp(-1, 1).cpu().numpy(), [])
                yield None, picture, f"Evaluation {len(steps)}, t = {float(step.t):.4g} ..."
        trajectory = Trajectory.from_steps(steps)
        yield trajectory, render_image(trajectory.image, []), f"{len(steps)} evaluations."

    def click(
        self,
        generated: GeneratedImage | None,
        which: str,
        ya: int,
        xa: int,
        yb: int,
        xb: int,
        event: gr.SelectData,
    ) -> list[int]:
        """Move one of the two queries, (y, x) each, to the clicked pixel."""
        if generated is None:
            return [ya, xa, yb, xb]
        height, width = generated.trajectory.image.shape[-2:]
        x, y = (place // enlargement_factor((height, width)) for place in event.index)
        if not (0 <= y < height and 0 <= x < width):
            return [ya, xa, yb, xb]
        return [y, x, yb, xb] if which == FIRST else [ya, xa, y, x]

    def show(
        self,
        generated: GeneratedImage | None,
        other: GeneratedImage | None,
        evaluation: int,
        layer: str,
        head: str,
        view: str,
        *pixels: int | None,
    ) -> list[Any]:
        """Update picture, caption, maps and table, and the comparison with the other image."""
        if generated is None or any(value is None for value in pixels):
            return [gr.skip()] * 7
        trajectory, evaluation = (
            generated.trajectory,
            min(int(evaluation), len(generated.trajectory.timesteps)) - 1,
        )
        queries: list[Pixel] = [(pixels[0], pixels[1]), (pixels[2], pixels[3])]  # type: ignore[list-item]
        maps_by_layer = self.explorer.attention_maps(generated, evaluation, queries)
        if layer not in maps_by_layer or head not in self.heads(generated.choice.model, layer):
            raise UserError(
                f"the model of this image has no {layer}, {head}; sample an image with the model "
                "chosen above"
            )
        maps = select_head(maps_by_layer[layer], None if head == MEAN else int(head.split()[1]))
        pictures = [
            draw_map(
                values,
                trajectory.x_0[evaluation],
                query,
                marker,
                f"{name[0]} {query} in {layer}\n{head}",
            )
            for values, query, marker, name in zip(
                maps, queries, MARKERS, (FIRST, SECOND), strict=True
            )
        ]
        seen = getattr(trajectory, VIEWS[view])[evaluation]
        t = trajectory.timesteps[evaluation]
        when = f"Evaluation {evaluation + 1} of {len(trajectory.timesteps)}, t = {t:.4g}."
        size = (trajectory.image.shape[-2], trajectory.image.shape[-1])
        table = _table(
            ["", *(f"{n} at {q}" for n, q in zip((FIRST, SECOND), queries, strict=True))],
            measure_maps(maps, queries, size),
        )
        return [
            render_image(seen, queries),
            when,
            *pictures,
            table,
            *_compare(trajectory, other, evaluation, view),
        ]

    def download(self, generated: GeneratedImage | None, layer: str, *pixels: int | None) -> Any:
        """Write a figure and the numbers of both queries, and offer the files for download."""
        if generated is None or any(value is None for value in pixels):
            raise UserError("sample an image first, and choose two pixels of it")
        queries: list[Pixel] = [(pixels[0], pixels[1]), (pixels[2], pixels[3])]  # type: ignore[list-item]
        trajectory = self.explorer.record(generated, queries)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self._folders.append(folder)
        if len(self._folders) > MAX_DOWNLOADS:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        which = generated.choice.spec.describe(self.explorer.pipelines[generated.choice.model])
        title = f"Attention maps of {layer}, mean of heads\n{which}"
        save_figure(draw_trajectory(trajectory, layer, title), folder / "attention.png")
        trajectory.save(folder / "attention.npz")
        files = [str(folder / name) for name in ("attention.png", "attention.npz")]
        return gr.update(value=files, visible=True)


def _compare(
    trajectory: Trajectory, other: GeneratedImage | None, evaluation: int, view: str
) -> list[Any]:
    if other is None:
        return [gr.skip(), gr.skip()]
    at_evaluation = [
        getattr(each, VIEWS[view])[evaluation] for each in (trajectory, other.trajectory)
    ]
    final = rms_difference(trajectory.image, other.trajectory.image)
    return [
        render_image(at_evaluation[1], []),
        "Root mean square difference, as a share of the range from black to white: "
        f"{rms_difference(*at_evaluation):.1%} at this evaluation, **{final:.1%}** at the end. "
        f"Replaced in: {', '.join(other.choice.layers)}.",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
