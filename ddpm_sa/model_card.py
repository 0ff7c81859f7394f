"""The model card: README.md of a model folder."""

from string import Template
from typing import Any

from ddpm_sa.image_format import ImageFormat, padded_size
from ddpm_sa.models.network import Network
from ddpm_sa.models.unet import UNet

CARD = Template("""\
---
library_name: diffusers
pipeline_tag: $task
tags: [ddpm, diffusion, self-attention, ddpm_sa]
---
# A diffusion model of $height x $width $kind images
$grid
$architecture: $parameters parameters\
$classes$conditions. It predicts "$prediction" over \
$timesteps timesteps with $betas. Its images have $bits bits per value; \
-1 and 1 stand for $low and $high (`images.json`).

## With ddpm_sa
```python
from ddpm_sa import Pipeline

pipeline = Pipeline.from_pretrained("path/to/this/folder")
images = pipeline(num_images=16, steps=50, seed=0, scheduler="ddim"$arguments).images
```

## With diffusers alone
$diffusers
""")

PLAIN = Template("""\
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/to/this/folder")
images = pipeline(batch_size=16, num_inference_steps=$timesteps$array).images$crop""")

CONDITIONAL = Template("""\
# DDPMPipeline opens this folder but passes no class labels, so the loop is written out.
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


WITH_IMAGES = Template("""\
# DDPMPipeline opens this folder but passes no condition, so the loop is written out.
import torch
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/to/this/folder")
pipeline.scheduler.set_timesteps($timesteps)
x = torch.randn(16, $channels, $rows, $columns)
# Put your condition here, from -1 to 1: $layout.
condition = torch.zeros(16, $extra, $rows, $columns)
${labels}with torch.no_grad():
    for t in pipeline.scheduler.timesteps:
        output = pipeline.unet(torch.cat([x, condition], dim=1), t$argument).sample
        x = pipeline.scheduler.step(output, t, x).prev_sample
images = x.clamp(-1, 1)[..., :$height, :$width]  # -1 and 1 are the ends of the range""")


def model_card(
    image_format: ImageFormat,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    num_parameters: int,
    grid: str | None = None,
    architecture: type[Network] = UNet,
) -> str:
    """Return the text of README.md.

    Args:
        image_format: Format of the images.
        unet, scheduler: The configurations of the network and the scheduler.
        num_parameters: Number of parameters of the network.
        grid: File name of an image grid of samples in the same folder, or None.
        architecture: The class of the network.
    """
    channels, (height, width) = image_format.channels, image_format.size
    labels, embeddings = image_format.labels, unet["num_class_embeds"]
    # Without the class that stands for "no label", if there is one.
    num_classes = len(labels) if labels and embeddings else embeddings
    unlabelled = f"; {num_classes} stands for no label" if num_classes != embeddings else ""
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    names = f" ({', '.join(labels)}{unlabelled})" if labels else ""
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
        # numpy_to_pil converts only grey and RGB.
        "array": "" if channels in (1, 3) else ', output_type="np"',
    }
    label = f", class_labels={labels[0] if labels else 0!r}" if num_classes else ""
    given = ", condition=pictures" if image_format.condition is not None else ""
    return CARD.substitute(
        facts,
        task="image-generation" if num_classes else "unconditional-image-generation",
        kind=kind,
        grid=f"\n![Samples]({grid})\n" if grid else "",
        architecture=architecture.architecture,
        parameters=f"{num_parameters:,}",
        classes=f", {num_classes} classes{names}" if num_classes else "",
        prediction=scheduler["prediction_type"],
        betas=_describe_betas(scheduler),
        conditions=_conditions(image_format),
        arguments=f"{label}{given}{facts['array']}",
        diffusers=_diffusers_alone(architecture.not_in_diffusers(unet), facts, image_format),
    )


def _describe_betas(scheduler: dict[str, Any]) -> str:
    if scheduler.get("trained_betas") is not None:
        return "the betas listed in `scheduler_config.json`"
    return f'the "{scheduler["beta_schedule"]}" schedule'


def _conditions(image_format: ImageFormat) -> str:
    """What the network is conditioned on, as the end of a sentence."""
    if image_format.condition is None:
        return ""
    return f", conditioned on {image_format.condition}"


def _diffusers_alone(reason: str | None, facts: dict[str, Any], image_format: ImageFormat) -> str:
    if reason is not None:
        return f"diffusers alone cannot open it: {reason}."
    template = CONDITIONAL if facts["num_classes"] else PLAIN
    if image_format.condition is not None:
        template = WITH_IMAGES
        classes = facts["num_classes"]
        facts = facts | {
            "extra": image_format.in_channels - image_format.channels,
            "layout": image_format.condition.layout(image_format.shape),
            "labels": f"labels = torch.arange(16) % {classes}\n" if classes else "",
            "argument": ", class_labels=labels" if classes else "",
        }
    code = template.substitute(facts)
    return f"```python\n{code}\n```"
