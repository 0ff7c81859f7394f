"""The scheduler of the diffusion process that a network was trained for."""

from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler

from ddpm_sa import NoiseSchedule
from ddpm_sa.errors import UserError
from sampling.conversion.settings import Settings

# Range of the timesteps that the network is given if it was trained with rescale_timesteps.
RESCALED_STEPS = 1000


def check_steps(settings: Settings) -> None:
    """
    Raises:
        ValueError: If the flags do not say which timesteps the network was given.
    """
    steps, rescale = settings.diffusion_steps, settings.rescale_timesteps
    if steps != RESCALED_STEPS and rescale is None:
        raise UserError(
            f"diffusion_steps={steps} needs rescale_timesteps too: true is the default of "
            "improved-diffusion, false of guided-diffusion"
        )
    if rescale and steps % RESCALED_STEPS:
        raise UserError(
            f"diffusion_steps={steps} with rescale_timesteps gives the network fractions of a "
            f"timestep, which diffusers does not; it must be a multiple of {RESCALED_STEPS}"
        )


def check_outputs(network: Mapping[str, Any], origin: str, learnable: bool) -> bool:
    """Whether a network, by its config, has a learned variance beside each output.

    Raises:
        ValueError: If it has neither one output for each channel nor, where the variance may be
            learned, two.
    """
    channels, outputs = network["in_channels"], network["out_channels"]
    learned = outputs == 2 * channels
    if outputs != channels and not (learned and learnable):
        raise UserError(
            f"the network takes {channels} channels and gives {outputs}; no diffusers scheduler "
            f"can interpret the output of {origin}"
        )
    return learned


def make_schedule(settings: Settings) -> NoiseSchedule:
    """The noise schedule of noise_schedule and diffusion_steps."""
    if settings.noise_schedule == "cosine":
        return NoiseSchedule.cosine(settings.diffusion_steps)
    return NoiseSchedule.linear(settings.diffusion_steps, *_linear_ends(settings))


def make_scheduler(settings: Settings, learned_variance: bool = False) -> DDPMScheduler:
    """Make the scheduler that the flags describe."""
    steps, betas = settings.diffusion_steps, None
    start, end = _linear_ends(settings)
    if settings.rescale_timesteps and steps != RESCALED_STEPS:
        kept = make_schedule(settings).alphas_cumprod[:: steps // RESCALED_STEPS]
        before = kept.new_ones(RESCALED_STEPS)
        before[1:] = kept[:-1]
        betas, steps = (1 - kept / before).tolist(), RESCALED_STEPS
    variance = "fixed_small" if settings.sigma_small else "fixed_large"
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2" if settings.noise_schedule == "cosine" else "linear",
        beta_start=start,
        beta_end=end,
        trained_betas=betas,
        variance_type="learned_range" if learned_variance else variance,
        prediction_type="sample" if settings.predict_xstart else "epsilon",
        clip_sample=True,
    )


def _linear_ends(settings: Settings) -> tuple[float, float]:
    """OpenAI scales the betas of the linear schedule by 1000 / steps (gaussian_diffusion.py)."""
    return 0.1 / settings.diffusion_steps, 20 / settings.diffusion_steps
