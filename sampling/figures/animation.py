"""Animation of the denoising of a grid of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from einops import rearrange
from PIL import Image

from ddpm_sa import Pipeline
from ddpm_sa.editing.editor import Editor
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.image_format import image_grid, visible
from ddpm_sa.samplers.method import Method

FRAMES = 40
MILLISECONDS = 60


def save_denoising_animation(
    path: Path,
    pipeline: Pipeline,
    method: Method,
    seed: int,
    indices: Sequence[int],
    labels: Mapping[int, int | None],
) -> None:
    """Write a grid of predicted images over up to 40 steps; the suffix chooses .gif or .webp.

    Args:
        path: The file to write.
        pipeline, method, seed: As for sampling.
        indices: The images to show.
        labels: The class of each image, or None.
    """
    classes = [label for index in indices if (label := labels[index]) is not None]
    condition = pipeline.condition(indices, classes or None)
    editor = Editor(pipeline=pipeline, method=method, seed=seed)
    steps = editor.progressive(indices, FRAMES, condition=condition)
    frames = [image_grid(visible(x)) for x in rearrange(steps, "n t c h w -> t n c h w")]
    save_animation_frames(frames, path)


def save_animation_frames(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation that shows its last frame for a second."""
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
