"""Whether a batch of samples fits into memory."""

from functools import cache

import torch

from ddpm_sa import Pipeline
from ddpm_sa.errors import UserError
from ddpm_sa.memory.available import format_bytes, least_available_memory
from ddpm_sa.memory.peak import counted_without_computing, largest_that_fits
from ddpm_sa.models.architectures import architecture_of

# A program's advice if there is too little memory all the same.
SMALLER_BATCH = "use a smaller --batch_size"
# A bound far above what a network without gradients takes, in tensors of its widest level at full
# resolution; below it nothing is forecast, which takes a second.
GENEROUS = 32
# Tensors of the image's own size: noise, state, the scheduler's history.
STATES = 8
# Bytes of an image's entry in samples.json, as Python objects and as text.
LISTED = 1000


def check_num_images(num_images: int) -> None:
    """Check that the list of so many images fits into the memory of the machine.

    Raises:
        ValueError: If it does not.
    """
    available = least_available_memory(torch.device("cpu"))
    if num_images * LISTED > available:
        raise UserError(
            f"num_images={num_images}: the list of so many images needs about "
            f"{format_bytes(num_images * LISTED)} of memory, more than the "
            f"{format_bytes(available)} available; make at most {available // LISTED}"
        )


def check_batch_fits(
    pipeline: Pipeline, batch_size: int, num_images: int, device: torch.device
) -> None:
    """Check that a batch of samples fits into the memory of the device, on every process.

    Args:
        pipeline: The model.
        batch_size: Images in a batch.
        num_images: How many a process samples in all, which no batch exceeds.
        device: Where they are sampled.

    Raises:
        ValueError: If it does not, with a batch that does.
    """
    batch, available = min(batch_size, num_images), least_available_memory(device)
    height, width = pipeline.padded_size
    widest = max(pipeline.unet.config["block_out_channels"])
    if batch * height * width * widest * torch.float32.itemsize * GENEROUS <= available:
        return
    needed = cache(lambda size: sampling_memory(pipeline, size))
    if needed(batch) <= available:
        return
    sizes = [2**k for k in range(batch.bit_length() - 1)] or [1]
    fits = largest_that_fits([*sizes, batch], available, needed)
    way = f"use --batch_size {fits}" if fits else "even 1 does not fit"
    raise UserError(
        f"a batch of {batch} images needs about {format_bytes(needed(batch))} of memory, more than "
        f"the {format_bytes(available)} available to each process; {way}"
    )


def sampling_memory(pipeline: Pipeline, batch_size: int) -> int:
    """Forecast the memory of one step of sampling a batch, in bytes, besides the weights."""
    with counted_without_computing() as peak, torch.no_grad():
        network = architecture_of(pipeline.unet)(**pipeline.unet.config).eval()
        weights = peak.now
        shape = (batch_size, pipeline.image_format.channels, *pipeline.padded_size)
        state = torch.zeros(STATES, *shape)
        t = torch.zeros(batch_size, dtype=torch.long)
        labels = None if network.config["num_class_embeds"] is None else t
        peak.restart()
        # A network cannot be cast here; autocast computes in half precision, too.
        with torch.autocast("cpu", torch.bfloat16, enabled=pipeline.unet.dtype != torch.float32):
            network(state[0], t, labels)
    return peak.peak - weights + peak.scratch
