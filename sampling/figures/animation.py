"""How images come out of noise, as a picture that moves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from einops import rearrange
from PIL import Image

from ddpm_sa import Pipeline
from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.editing.editor import Editor
from ddpm_sa.image_format import image_grid, visible
from ddpm_sa.samplers.method import Method

FRAMES = 40
MILLISECONDS = 60


def save_animation(
    path: Path,
    pipeline: Pipeline,
    method: Method,
    seed: int,
    indices: Sequence[int],
    labels: Mapping[int, int | None],
) -> None:
    """Write the predicted images of up to 40 steps, in a grid, as .gif or .webp by the name.

    Args:
        labels: The class of each image, or None.
    """
    classes = [label for index in indices if (label := labels[index]) is not None]
    condition = pipeline.condition(indices, classes or None)
    editor = Editor(pipeline=pipeline, method=method, seed=seed)
    steps = editor.progressive(indices, FRAMES, condition=condition)
    save_frames([image_grid(visible(x)) for x in rearrange(steps, "n t c h w -> t n c h w")], path)


def save_frames(frames: Sequence[Image.Image], path: Path) -> None:
    """Write pictures as one that moves and stays at its last for a second."""
    times = [MILLISECONDS] * (len(frames) - 1) + [1000]
    kind = path.suffix[1:]
    with write_atomically(path) as partial:
        frames[0].save(
            partial,
            format=kind,
            save_all=True,
            append_images=frames[1:],
            duration=times,
            loop=0,
            **({"lossless": True} if kind == "webp" else {}),
        )
