"""A model folder: where it is found, how it appears whole or not at all, and its README.md."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import diffusers
from huggingface_hub import snapshot_download

from ddpm_sa.image_format import FILE_NAME, ImageFormat, padded_size
from ddpm_sa.models.config import not_in_diffusers

GRID_NAME = "samples.png"
OUR_FILES = {
    "model_index.json",
    "unet",
    "scheduler",
    FILE_NAME,
    "README.md",
    GRID_NAME,
}
# In the folder of each, or at the root, as in old repositories.
NETWORK_CONFIGS = ("unet/config.json", "config.json")
SCHEDULER_CONFIGS = ("scheduler/scheduler_config.json", "scheduler_config.json")


def local_folder(folder_or_repo: str | os.PathLike) -> Path:
    """The folder itself, without a look at the network; or a hub repository's, in the cache.

    Raises:
        ValueError: If there is neither.
    """
    folder = Path(folder_or_repo)
    if folder.exists():
        return folder
    wanted = ["*.json", "unet/*", "scheduler/*", "*.safetensors", "*.bin"]
    try:
        return Path(snapshot_download(str(folder_or_repo), allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder_or_repo} is no folder here, and no repository that the hub gives: {error}"
        ) from error


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of the named files that the folder has.

    Raises:
        ValueError: If it has none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} is no model folder: it has neither {' nor '.join(names)}")


def load_scheduler(folder: Path) -> Any:
    """The diffusers scheduler of a model folder.

    The folder may come from anybody, so the name in it chooses among schedulers and nothing else:
    DiffusionPipeline.from_pretrained, for one, would run Python files of the folder.

    Raises:
        ValueError: If there is none, or diffusers has none of that name, or cannot use it here.
    """
    path = first_file(folder, SCHEDULER_CONFIGS)
    try:
        name = json.loads(path.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no scheduler's configuration: {error}") from error
    kind: Any = getattr(diffusers, str(name), None)
    # Where a package is missing, diffusers has a stand-in of the same name.
    missing = getattr(kind, "_backends", None)
    if str(name).endswith("Scheduler") and missing:
        raise ValueError(f"{path} is of {name}, which needs {' and '.join(missing)}")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{path} is of {name!r}, which is no scheduler of diffusers")
    return kind.from_pretrained(path.parent)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well.

    Raises:
        ValueError: If `folder` holds anything that is no part of a model.
    """
    folder = folder.absolute()
    strange = (
        sorted({entry.name for entry in folder.iterdir()} - OUR_FILES) if folder.exists() else []
    )
    if strange:
        raise ValueError(f"{folder} holds {strange[0]}, which is no part of a model; not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise


CARD = Template("""\
---
library_name: diffusers
pipeline_tag: $task
tags: [ddpm, diffusion, self-attention, ddpm_sa]
---
# A diffusion model of $height x $width $kind images
$grid
A DDPM U-Net (Ho et al. 2020) with self-attention over pixels: $parameters parameters\
$classes. It predicts "$prediction" over \
$timesteps timesteps with the "$betas" schedule. Its images have $bits bits a value; \
-1 and 1 stand for $low and $high (`images.json`).

## With ddpm_sa
```python
from ddpm_sa import Pipeline

pipeline = Pipeline.from_pretrained("path/to/this/folder")
images = pipeline(num_images=16, steps=50, seed=0, scheduler="ddim"$label_argument$array).images
```

## With diffusers alone
$diffusers
""")

PLAIN = Template("""\
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/to/this/folder")
images = pipeline(batch_size=16, num_inference_steps=$timesteps$array).images$crop""")

CONDITIONAL = Template("""\
# DDPMPipeline opens this folder, but passes no class labels: so the loop is written out.
import torch
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/to/this/folder")
pipeline.scheduler.set_timesteps($timesteps)
x = torch.randn(16, $channels, $rows, $columns)
labels = torch.arange(16) % $num_classes
with torch.no_grad():
    for t in pipeline.scheduler.timesteps:
        output = pipeline.unet(x, t, class_labels=labels).sample
        x = pipeline.scheduler.step(output, t, x).prev_sample
images = x.clamp(-1, 1)[..., :$height, :$width]  # -1 and 1 are the ends of the range""")


def model_card(
    image_format: ImageFormat,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    num_parameters: int,
    grid: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        image_format: What the images are.
        unet, scheduler: The configurations of both.
        num_parameters: Of the network.
        grid: File name of a picture of samples that lies beside it, or None.
    """
    channels, (height, width) = image_format.channels, image_format.size
    num_classes = unet["num_class_embeds"]
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    names = f" ({', '.join(image_format.labels)})" if image_format.labels else ""
    rows, columns = padded_size((height, width), 2 ** (len(unet["block_out_channels"]) - 1))
    crop = f"  # larger than the images: crop each to its first {height} rows and {width} columns"
    low, high = image_format.value_range
    facts = {
        "channels": channels,
        "height": height,
        "width": width,
        "rows": rows,
        "columns": columns,
        "crop": crop if (rows, columns) != (height, width) else "",
        "bits": image_format.bit_depth,
        "low": f"{low:g}",
        "high": f"{high:g}",
        "num_classes": num_classes,
        "timesteps": scheduler["num_train_timesteps"],
        # numpy_to_pil knows grey and RGB alone.
        "array": "" if channels in (1, 3) else ', output_type="np"',
    }
    return CARD.substitute(
        facts,
        task="image-generation" if num_classes else "unconditional-image-generation",
        kind=kind,
        grid=f"\n![Samples]({grid})\n" if grid else "",
        parameters=f"{num_parameters:,}",
        classes=f", {num_classes} classes{names}" if num_classes else "",
        prediction=scheduler["prediction_type"],
        betas=scheduler["beta_schedule"],
        label_argument=", class_labels=0" if num_classes else "",
        diffusers=_diffusers_alone(unet, facts),
    )


def _diffusers_alone(unet: dict[str, Any], facts: dict[str, Any]) -> str:
    lacking = not_in_diffusers(unet)
    if lacking is not None:
        return f"It does not open there: {lacking}."
    lines = (CONDITIONAL if facts["num_classes"] else PLAIN).substitute(facts)
    return f"```python\n{lines}\n```"
