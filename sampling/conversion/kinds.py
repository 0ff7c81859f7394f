"""The kinds of weights: a third program's is an entry here, and a pattern of its names."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DDPMScheduler

from ddpm_sa import UNet
from ddpm_sa.checkpoints import (
    edm_scheduler,
    from_ddpm_tf,
    from_edm,
    from_lucidrains,
    from_pesser,
    lucidrains_scheduler,
)
from ddpm_sa.checkpoints.entries import Entry
from ddpm_sa.errors import UserError, require
from ddpm_sa.models.families.lucidrains import LucidrainsUNet
from ddpm_sa.models.families.song import SongUNet
from ddpm_sa.models.network import Network
from sampling.conversion import openai
from sampling.conversion.diffusers import open_diffusers
from sampling.conversion.process import check_outputs, make_schedule, make_scheduler
from sampling.conversion.settings import (
    ARCHITECTURE,
    HEADS,
    PROCESS,
    TRAINING,
    Settings,
)


@dataclass(frozen=True)
class Kind:
    """Weights of one program.

    Attributes:
        origin: The program, for messages and the model card.
        settings: The settings that apply, besides those that apply to all.
        open: Makes the network and the scheduler of its training.
        beside: Names of tensors beside the network's that are used too.
        note: What to tell about a flag that was left out, or None.
    """

    origin: str
    settings: set[str]
    open: Callable[[Entry, Settings], tuple[Network, DDPMScheduler]]
    beside: tuple[str, ...] = ()
    note: Callable[[Settings], str | None] = lambda _: None


def open_ddpm(
    entry: Entry, settings: Settings, build: Callable[..., UNet], origin: str
) -> tuple[UNet, DDPMScheduler]:
    """The paper's network, in either spelling, and the paper's process."""
    unet = build(entry.weights, _image_size(settings, origin))
    check_outputs(unet.config, origin, learnable=False)
    return unet, make_scheduler(settings)


def open_lucidrains(entry: Entry, settings: Settings) -> tuple[LucidrainsUNet, DDPMScheduler]:
    """Their network, and the process of the betas beside it or of the flags."""
    origin = KINDS["lucidrains"].origin
    unet = from_lucidrains(entry.weights, _image_size(settings, origin))
    if settings.objective is None:
        raise UserError(
            "objective must be given: the weights do not say what they predict; it is an argument "
            "of GaussianDiffusion, and pred_v if unset in version 2"
        )
    betas = entry.beside.get("betas")
    given = sorted(settings.non_defaults().keys() & PROCESS)
    if betas is not None and given:
        raise UserError(f"{given[0]} does not apply: {settings.source} has the betas")
    if betas is None:
        require(
            settings.noise_schedule is not None,
            f"{settings.source} has no betas beside the network's weights, as the state dict of a "
            "GaussianDiffusion has; convert that one, or give noise_schedule, and diffusion_steps "
            "if they are not 1000",
        )
        betas = make_schedule(settings).betas
    learned = check_outputs(unet.config, origin, learnable=True)
    return unet, lucidrains_scheduler(betas, settings.objective, learned)


def open_edm(entry: Entry, settings: Settings) -> tuple[SongUNet, DDPMScheduler]:
    """DDPM++, and the schedule of its sigmas."""
    if settings.preconditioning is None:
        raise UserError(
            "preconditioning must be given: the weights do not say it; edm for networks that "
            "EDM's train.py made by default (EDMPrecond), vp for VPPrecond"
        )
    unet = from_edm(entry.weights, settings.preconditioning)
    size = unet.config["sample_size"]
    require(
        settings.image_size in (None, size),
        f"image_size={settings.image_size}, but the names of the weights say {size}",
    )
    check_outputs(unet.config, KINDS["edm"].origin, learnable=False)
    return unet, edm_scheduler(unet)


def _image_size(settings: Settings, origin: str) -> int:
    if settings.image_size is None:
        raise UserError(f"image_size must be given: weights of {origin} do not contain it")
    return settings.image_size


def _ddpm(origin: str, build: Callable[..., UNet]) -> Kind:
    return Kind(
        origin, {"sigma_small"}, lambda entry, settings: open_ddpm(entry, settings, build, origin)
    )


KINDS: dict[str, Kind] = {
    "ddpm_tf": _ddpm("hojonathanho/diffusion", from_ddpm_tf),
    "pesser": _ddpm("pesser/pytorch_diffusion", from_pesser),
    "openai": Kind(
        openai.ORIGIN,
        PROCESS | HEADS | ARCHITECTURE | TRAINING,
        openai.open_openai,
        note=openai.note_on_heads,
    ),
    "diffusers": Kind("diffusers", PROCESS | {"network_config"}, open_diffusers),
    "lucidrains": Kind(
        "lucidrains/denoising-diffusion-pytorch",
        {"objective", "noise_schedule", "diffusion_steps"},
        open_lucidrains,
        beside=("betas",),
    ),
    "edm": Kind("NVlabs/edm", {"preconditioning"}, open_edm),
}
