"""What a program needs to know besides the network to make images, as texts inside a file."""

import json

from ddpm_sa import __version__
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.pipeline import Pipeline


def metadata(pipeline: Pipeline) -> dict[str, str]:
    """Name -> JSON.

    alphas_cumprod: the noise schedule, T numbers.
    scheduler: as in scheduler_config.json: the prediction type, clipping, timestep spacing.
    images: as in images.json: channels, size, bit depth, value range, labels.
    sample_size: [height, width] of the network's input, of which `images` is the upper left part.
    size_multiple: heights and widths are multiples of this.
    ddpm_sa: the version that wrote it.
    """
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    return {
        "alphas_cumprod": json.dumps(schedule.alphas_cumprod.tolist()),
        "scheduler": pipeline.scheduler.to_json_string(),
        "images": json.dumps(pipeline.image_format.to_json()),
        "sample_size": json.dumps(pipeline.padded_size),
        "size_multiple": json.dumps(pipeline.size_multiple),
        "ddpm_sa": json.dumps(__version__),
    }
