"""Weights of diffusers' UNet2DModel, or of a UNet of this package, by their config.json."""

from pathlib import Path
from typing import Any

from ddpm_sa import UNet
from ddpm_sa.checkpoints import from_diffusers
from ddpm_sa.checkpoints.entries import Entry
from ddpm_sa.errors import UserError, require
from ddpm_sa.model_folder import SCHEDULER_CONFIGS, load_scheduler
from sampling.conversion.process import check_outputs, check_steps, make_scheduler
from sampling.conversion.settings import PROCESS, Settings


def open_diffusers(entry: Entry, settings: Settings) -> tuple[UNet, Any]:
    """Build the network of its config.json, and the scheduler that lies with it."""
    check_steps(settings)
    path = Path(settings.network_config or Path(settings.source).parent / "config.json")
    path = path / "config.json" if path.is_dir() else path
    require(
        path.is_file(),
        f"weights of diffusers need their config.json, and {path} is not there; give it by "
        "--network_config",
    )
    config, size = UNet.read_config(path), settings.image_size
    configured = config.setdefault("sample_size", None)
    if configured is None:
        require(size is not None, f"{path} has no sample_size; give image_size")
        config["sample_size"] = size
    elif size is not None and configured not in (size, [size, size]):
        raise UserError(f"image_size={size}, but {path} has sample_size={configured}")
    unet = from_diffusers(entry.weights, config)
    folder = path.parent.parent if path.parent.name == "unet" else path.parent
    given = sorted(settings.non_defaults().keys() & PROCESS)
    if any((folder / name).is_file() for name in SCHEDULER_CONFIGS):
        if given:
            raise UserError(f"{given[0]} does not apply: {folder} has a scheduler_config.json")
        return unet, load_scheduler(folder)
    if settings.noise_schedule is None:
        raise UserError(
            f"{folder} has no scheduler_config.json, which describes the training; put it there, "
            "or describe it by --noise_schedule, --diffusion_steps and --predict_xstart"
        )
    learned = check_outputs(unet.config, "diffusers", learnable=True)
    return unet, make_scheduler(settings, learned)
