"""Edit images with a model: SDEdit, interpolation, inpainting, variations, reconstruction.

    python sampling/edit.py --model runs/mnist/model --edit sdedit --image a.png --strength 0.5 \\
        --output_dir out

Writes the edited images, grid.png (input images first) and edit.json, which records how to repeat
the edit.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.resize import Fit
from ddpm_sa.editing.editor import Editor
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import image_grid, visible
from ddpm_sa.pipeline import Batch
from ddpm_sa.progress import show_progress
from ddpm_sa.settings.ranges import Count, Fraction, Index
from sampling.common.device import resolve_device
from sampling.common.image_files import read_images, read_mask
from sampling.common.model_loading import describe_environment, model_identity
from sampling.common.output_folder import hold_output_folder
from sampling.common.replaced_folder import ReplacedFolder
from sampling.common.sample_folder import GRID, image_path, save_images, save_picture
from sampling.common.sampler_settings import SamplerSettings

Edit = Literal["sdedit", "interpolate", "inpaint", "variations", "progressive", "reconstruct"]
RECORD = "edit.json"
IMAGE_NAME = re.compile(r"\d{6,}\.(png|npy)")
NEEDS_IMAGES = {"sdedit": 1, "interpolate": 2, "inpaint": 1, "reconstruct": 1}

USED_BY: dict[str, set[Edit]] = {
    "strength": {"sdedit"},
    "level": {"interpolate", "variations"},
    "count": {"interpolate", "variations", "progressive"},
    "index": {"variations", "progressive"},
    "repeats": {"inpaint"},
    "fit": {"sdedit", "interpolate", "inpaint", "reconstruct"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Command-line settings of sampling/edit.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a
            repository on the Hugging Face Hub.
        output_dir: Folder for the images: a new one, or that of an earlier edit, which is replaced.
        edit: sdedit (add noise to images and denoise them), interpolate (mix two images at a noise
            level), inpaint (fill in a mask), variations (samples that share x_t at a level),
            progressive (predicted images during sampling), reconstruct (DDIM inversion and back).
        image: Image files of the model's channels, as in `--image a.png b.png`: one or
            more; for interpolate, two.
        fit: How images and masks of another size get the model's, as in training: crop, pad,
            stretch; by default they are refused.
        mask: For inpaint: a picture of the images' size, white where they are to be filled in.
        strength: For sdedit: 0 returns the images, 1 keeps almost nothing of them.
        level: For interpolate and variations: a training timestep; higher gives larger changes.
        count: For interpolate, variations and progressive: number of images.
        index: For variations and progressive: index of the image for this seed.
        repeats: For inpaint: how often each step is repeated; more repeats fit the known pixels
            better.
        class_label: For a class-conditional network: the class of the edited images, by its name,
            or by its number where no class has that name; by default, for all of them, that of
            image `index`: index modulo the number of classes.
    """

    model: str
    output_dir: str
    edit: Edit
    image: list[str] = dataclasses.field(default_factory=list)
    fit: Fit | None = None
    mask: str | None = None
    strength: Fraction = 0.5
    level: Index = 500
    count: Count = 8
    index: Index = 0
    repeats: Count = 10
    class_label: str | Index | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = NEEDS_IMAGES.get(self.edit, 0)
        fits = len(self.image) == 2 if self.edit == "interpolate" else len(self.image) >= needed
        if not fits or (self.image and not needed):
            wanted = {0: "no image", 1: "an image or more", 2: "two images"}[needed]
            raise UserError(f"edit={self.edit} takes {wanted}, not {len(self.image)}")
        if (self.edit == "inpaint") != (self.mask is not None):
            raise UserError("a mask is required by inpaint, and used by inpaint only")

    def unused(self) -> dict[str, str]:
        unused = {
            name: f"edit={self.edit} does not use it; {', '.join(sorted(edits))} "
            f"{'does' if len(edits) == 1 else 'do'}"
            for name, edits in USED_BY.items()
            if self.edit not in edits
        }
        if self.edit == "reconstruct":
            names = ["seed", "scheduler_options", "guidance", "cache_interval"]
            names += ["scheduler"] if self.scheduler != "ddim" else []
            unused |= dict.fromkeys(names, "edit=reconstruct goes both ways by deterministic ddim")
        return unused


def main() -> None:
    settings = parse(Settings)
    with hold_output_folder(settings.output_dir):
        edit(settings)


def edit(settings: Settings) -> None:
    """Edit the images, and replace the edit that the folder holds, if any."""
    pipeline = settings.open(settings.model)
    image_format = pipeline.image_format
    given = read_images(settings.image, image_format, settings.fit)
    mask = None
    if settings.mask is not None:
        mask = read_mask(settings.mask, image_format.size, settings.fit)
    device = resolve_device(settings.device)
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "model": model_identity(pipeline),
        "environment": describe_environment(settings.model, device),
    }
    pipeline.to(device)
    show_progress(pipeline, settings.edit)
    method = settings.make_method(pipeline)
    editor = Editor(pipeline=pipeline, method=method, seed=settings.seed)
    edited = edit_images(editor, settings, given, mask)

    folder, indices = Path(settings.output_dir), list(range(len(edited)))
    names = [image_path(folder, index, image_format).name for index in indices]
    with ReplacedFolder(folder, RECORD, IMAGE_NAME, "edit").replace(record, names):
        save_images(folder, Batch(indices, edited), image_format)
        save_picture(image_grid(visible(torch.cat([given, edited]))), folder / GRID)
    print(f"{len(edited)} images made: {folder / GRID}")


def edit_images(editor: Editor, settings: Settings, given: Tensor, mask: Tensor | None) -> Tensor:
    """Run the edit that the settings ask for; returns images (N, C, H, W)."""
    counted = settings.edit in ("interpolate", "variations")
    number = settings.count if counted else max(len(given), 1)
    # One class for all: an interpolation must not change it from frame to frame.
    condition = editor.pipeline.condition([settings.index] * number, settings.class_label)
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
        steps = editor.progressive([settings.index], settings.count, condition=condition)
        return rearrange(steps, "1 steps c h w -> steps c h w")
    noise = editor.invert(given, condition=condition)
    return editor.reconstruct(noise, condition=condition)


if __name__ == "__main__":
    run_program(main)
