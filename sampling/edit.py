"""Make images from images with a model: edit, mix, fill in, and see how they come about.

    python sampling/edit.py --model runs/mnist/model --edit sdedit --image a.png --strength 0.5 \\
        --output_dir out

Writes the images made, grid.png (the images given first) and edit.json, which repeats it.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.cli import parse, run_program
from ddpm_sa.editing.editor import Editor
from ddpm_sa.image_format import image_grid, visible
from ddpm_sa.pipeline import Batch
from sampling.common.device import device_named
from sampling.common.image_files import read_images, read_mask
from sampling.common.model_loading import ModelSettings, environment_of, identity_of
from sampling.common.sample_folder import GRID, save_images, save_picture
from sampling.common.sampler_settings import MethodSettings

Edit = Literal["sdedit", "interpolate", "inpaint", "variations", "progressive", "reconstruct"]
NEEDS_IMAGES = {"sdedit": 1, "interpolate": 2, "inpaint": 1, "reconstruct": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings, ModelSettings):
    """What to make of what.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a
            repository on the hub.
        output_dir: Where the images go; a new folder, or one of an earlier edit, which is replaced.
        edit: sdedit (noise images to a strength and denoise them), interpolate (mix two images at a
            level), inpaint (fill in), variations (images that part at a level), progressive (the
            image predicted on the way), reconstruct (to noise and back, by DDIM).
        image: Image files of the model's size and channels, as a list: one or more; for
            interpolate, two.
        mask: Of inpaint: a picture of the images' size, white where they are to be made anew.
        strength: Of sdedit: 0 returns the images, 1 keeps next to nothing of them.
        level: Of interpolate and variations: a timestep of the training; the higher, the freer.
        count: Of interpolate, variations and progressive: how many images.
        index: Of variations and progressive: which image of the seed.
        repeats: Of inpaint: how often each step is made; more agree better with what is known.
        class_label: For a class-conditional network: the class of what is made.
    """

    model: str
    output_dir: str
    edit: Edit
    image: list[str] = dataclasses.field(default_factory=list)
    mask: str | None = None
    strength: float = 0.5
    level: int = 500
    count: int = 8
    index: int = 0
    repeats: int = 10
    class_label: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(0, "index")
        self.require_at_least(1, "count")
        needed = NEEDS_IMAGES.get(self.edit, 0)
        fits = len(self.image) == 2 if self.edit == "interpolate" else len(self.image) >= needed
        if not fits or (self.image and not needed):
            wanted = {0: "no image", 1: "an image or more", 2: "two images"}[needed]
            raise ValueError(f"edit={self.edit} takes {wanted}, not {len(self.image)}")
        if (self.edit == "inpaint") != (self.mask is not None):
            raise ValueError("a mask is what inpaint needs, and inpaint alone")


def main() -> None:
    settings = parse(Settings)
    pipeline = settings.open(settings.model)
    image_format = pipeline.image_format
    given = read_images(settings.image, image_format)
    mask = None if settings.mask is None else read_mask(settings.mask, image_format.size)
    device = device_named(settings.device)
    record = {
        "settings": dataclasses.asdict(settings),
        "model": identity_of(pipeline),
        "environment": environment_of(settings.model, device),
    }
    pipeline.to(device)
    method = settings.method(pipeline)
    made = edited(
        Editor(pipeline=pipeline, method=method, seed=settings.seed), settings, given, mask
    )

    folder = _made(Path(settings.output_dir))
    for old in folder.glob("[0-9]*.*"):
        old.unlink()
    save_images(folder, Batch(list(range(len(made))), made), image_format)
    save_picture(image_grid(visible(torch.cat([given, made]))), folder / GRID)
    with write_atomically(folder / "edit.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(made)} images made: {folder / GRID}")


def edited(editor: Editor, settings: Settings, given: Tensor, mask: Tensor | None) -> Tensor:
    """The images that the settings ask for, (N, C, H, W)."""
    on_the_way = settings.edit in ("interpolate", "variations")
    number = settings.count if on_the_way else max(len(given), 1)
    indices = [settings.index] if settings.edit == "progressive" else range(number)
    condition = editor.pipeline.condition(indices, settings.class_label)
    if settings.edit == "sdedit":
        return editor.sdedit(given, settings.strength, condition=condition)
    if settings.edit == "interpolate":
        weights = np.linspace(0, 1, settings.count).tolist()
        return editor.interpolate(
            given[:1], given[1:], settings.level, weights, condition=condition
        )
    if settings.edit == "inpaint":
        assert mask is not None
        return editor.inpaint(given, mask, settings.repeats, condition=condition)
    if settings.edit == "variations":
        return editor.variations(
            settings.index, settings.count, settings.level, condition=condition
        )
    if settings.edit == "progressive":
        steps = editor.progressive(indices, settings.count, condition=condition)
        return rearrange(steps, "1 steps c h w -> steps c h w")
    noise = editor.invert(given, condition=condition)
    return editor.reconstruct(noise, condition=condition)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir={folder} cannot be made: {error.strerror}") from error
    if any(folder.iterdir()) and not (folder / "edit.json").exists():
        raise ValueError(f"{folder} holds what is no edit; give another output_dir")
    return folder


if __name__ == "__main__":
    run_program(main)
