"""The DDPM U-Net with self-attention over pixels.

The names below are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_sa.ablation import ablate_attention
    from ddpm_sa.attention_measures import measure_attention
    from ddpm_sa.maps import record_attention
    from ddpm_sa.pipeline import Pipeline
    from ddpm_sa.presets import preset
    from ddpm_sa.schedule import NoiseSchedule
    from ddpm_sa.unet import UNet

_HOMES = {
    "NoiseSchedule": "schedule",
    "Pipeline": "pipeline",
    "UNet": "unet",
    "ablate_attention": "ablation",
    "measure_attention": "attention_measures",
    "preset": "presets",
    "record_attention": "maps",
}
__all__ = [
    "NoiseSchedule",
    "Pipeline",
    "UNet",
    "ablate_attention",
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
