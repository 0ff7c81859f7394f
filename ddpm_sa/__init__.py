"""The DDPM U-Net with self-attention over pixels.

The names below are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddpm_sa.diffusion.schedule import NoiseSchedule
    from ddpm_sa.interpret.ablation import ablate_attention
    from ddpm_sa.interpret.measures import measure_attention
    from ddpm_sa.interpret.recording import record_attention
    from ddpm_sa.models.presets import preset
    from ddpm_sa.models.unet import UNet
    from ddpm_sa.pipeline import Pipeline
    from ddpm_sa.samplers.denoiser import denoiser

_HOMES = {
    "NoiseSchedule": "diffusion.schedule",
    "Pipeline": "pipeline",
    "UNet": "models.unet",
    "ablate_attention": "interpret.ablation",
    "denoiser": "samplers.denoiser",
    "measure_attention": "interpret.measures",
    "preset": "models.presets",
    "record_attention": "interpret.recording",
}
__all__ = [
    "NoiseSchedule",
    "Pipeline",
    "UNet",
    "ablate_attention",
    "denoiser",
    "measure_attention",
    "preset",
    "record_attention",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    # Submodules too, so that `import ddpm_sa` is enough for ddpm_sa.checkpoints.from_ddpm_tf.
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
