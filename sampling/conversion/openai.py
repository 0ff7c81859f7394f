"""Weights of improved-diffusion and guided-diffusion, by the flags of their programs."""

from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler

from ddpm_sa import UNet
from ddpm_sa.checkpoints import from_openai
from ddpm_sa.checkpoints.entries import Entry
from ddpm_sa.errors import UserError, require
from sampling.conversion.process import check_outputs, check_steps, make_scheduler
from sampling.conversion.settings import ARCHITECTURE, Settings

ORIGIN = "openai/improved-diffusion or guided-diffusion"


def open_openai(entry: Entry, settings: Settings) -> tuple[UNet, DDPMScheduler]:
    """Build the network and the scheduler that the flags describe."""
    check_steps(settings)
    require(
        settings.image_size is not None,
        f"image_size must be given: weights of {ORIGIN} do not contain it",
    )
    assert settings.image_size is not None
    unet = from_openai(
        entry.weights,
        settings.image_size,
        num_heads=settings.num_heads,
        num_head_channels=settings.num_head_channels,
        use_new_attention_order=settings.use_new_attention_order,
        num_heads_upsample=settings.num_heads_upsample,
        dropout=settings.dropout or 0.0,
    )
    check_flags(unet.config, settings)
    if unet.config["in_channels"] == 6:
        raise UserError(
            "an openai network with 6 channels is for super-resolution: it also takes the small "
            "image, which the pipelines of this package do not provide; "
            "ddpm_sa.checkpoints.from_openai opens it in Python"
        )
    return unet, make_scheduler(settings, check_outputs(unet.config, ORIGIN, learnable=True))


def note_on_heads(settings: Settings) -> str | None:
    """How the way up was read, which no weight can confirm."""
    heads = settings.num_heads
    if heads is None or settings.num_heads_upsample is not None:
        return None
    return (
        f"num_heads={heads} was taken for the way up too, as by their programs; if the training "
        "had num_heads_upsample, convert again with it"
    )


def check_flags(network: Mapping[str, Any], settings: Settings) -> None:
    """Compare the flags that the weights say too.

    Args:
        network: The config of the network of the weights.
        settings: The flags; those that are None are not compared.

    Raises:
        ValueError: If one differs, naming it: the flags or the file are of another network.
    """
    size, channels = network["sample_size"], network["block_out_channels"]
    images = 3 if network["in_channels"] == 6 else network["in_channels"]  # 6: see `open_openai`
    down = network["down_block_types"]
    attended = {level for level, kind in enumerate(down) if kind.startswith("Attn")}
    said = {
        "num_channels": network["timestep_input_dim"] or channels[0],
        "num_res_blocks": network["layers_per_block"],
        "attention_resolutions": ",".join(str(size // 2**level) for level in sorted(attended)),
        "class_cond": network["num_class_embeds"] is not None,
        "learn_sigma": network["out_channels"] == 2 * images,
        "use_scale_shift_norm": network["resnet_time_scale_shift"] == "scale_shift",
        "resblock_updown": network["downsample_type"] == "resnet",
    }
    for name in sorted(ARCHITECTURE):
        given = getattr(settings, name)
        if given is None:
            continue
        same = given == said[name]
        if name == "attention_resolutions":
            same = _levels(given, size, len(channels)) == attended
        if not same:
            raise UserError(
                f"{name}={given}, but the weights say {said[name] or 'none'}; the file or the "
                "flags are of another network"
            )


def _levels(resolutions: str, size: int, levels: int) -> set[int]:
    """The levels whose heights are in a list like "32,16,8"; there may be others in it."""
    try:
        factors = {size // int(height) for height in resolutions.split(",")}
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"attention_resolutions={resolutions} must be heights in pixels, such as 32,16,8"
        ) from error
    return {level for level in range(levels) if 2**level in factors}
