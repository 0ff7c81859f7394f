"""Convert a file of weights into a model folder that diffusers and this package can open.

    python sampling/convert.py ema_0.9999_500000.pt --image_size 32 --num_heads 4 \\
        --noise_schedule cosine --diffusion_steps 4000 --rescale_timesteps true --output_dir out

The kind is detected from the names of the weights: ddpm_tf (the paper's own code, its variables as
an .npz), pesser (its PyTorch port), openai (improved-diffusion and guided-diffusion) or diffusers
(a UNet2DModel, or a UNet of this package, with its config.json). What names and shapes do not
determine is given by flags. Nested weights and prefixes of names are found and removed.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_sa import NoiseSchedule, Pipeline, UNet
from ddpm_sa.checkpoints import from_ddpm_tf, from_diffusers, from_openai, from_pesser
from ddpm_sa.checkpoints.entries import Entry
from ddpm_sa.checkpoints.reading import read_weights
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError, require
from ddpm_sa.files.folder_lock import lock_beside
from ddpm_sa.model_folder import SCHEDULER_CONFIGS, load_scheduler
from ddpm_sa.models.config import not_in_diffusers
from ddpm_sa.settings.ranges import Count, check_ranges
from sampling.common.output_folder import hold_output_folder

ORIGINS = {
    "ddpm_tf": "hojonathanho/diffusion",
    "pesser": "pesser/pytorch_diffusion",
    "openai": "openai/improved-diffusion or guided-diffusion",
    "diffusers": "diffusers",
}
# Range of the timesteps that the network is given if it was trained with rescale_timesteps.
RESCALED_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Command-line settings of sampling/convert.py.

    Attributes:
        source: A .pt, .pth, .ckpt or .bin file of torch.save (weights only), a .safetensors, or an
            .npz. It may also be the first argument, without the flag.
        output_dir: The model folder to create; it must not exist, or be empty.
        image_size: Height and width of the images; for diffusers' weights it is in config.json.
        kind: ddpm_tf, pesser, openai or diffusers; auto detects it from the names.
        entry: Where the weights are in a file with those of several networks, such as ema or
            state_dict.model: the name of an entry, or a prefix of names.
        network_config: For diffusers: the network's config.json, if it is not next to the weights.
        num_heads: For openai: attention heads; or give num_head_channels. This and the following
            are flags of OpenAI's programs.
        num_head_channels: For openai: channels of each head.
        use_new_attention_order: For openai: as in training.
        noise_schedule: For openai: linear (also if unset) or cosine. It and the settings below are
            for diffusers too, where there is no scheduler_config.json.
        diffusion_steps: For openai: number of training timesteps.
        rescale_timesteps: For openai, required unless diffusion_steps is 1000: whether the network
            was given t · 1000 / diffusion_steps (improved-diffusion's default) or t
            (guided-diffusion's). In the first case the model keeps the 1000 timesteps for which
            this is an integer.
        predict_xstart: For openai: whether the network predicts the image instead of the noise.
        sigma_small: If the variance was not learned: whether the variance of a step is the
            posterior's (as for the paper's 256 x 256 images) or beta (as for its CIFAR-10).
    """

    source: str
    output_dir: str
    image_size: Count | None = None
    kind: Literal["auto", "ddpm_tf", "pesser", "openai", "diffusers"] = "auto"
    entry: str | None = None
    network_config: str | None = None
    num_heads: Count | None = None
    num_head_channels: Count | None = None
    use_new_attention_order: bool = False
    noise_schedule: Literal["linear", "cosine"] | None = None
    diffusion_steps: Count = 1000
    rescale_timesteps: bool | None = None
    predict_xstart: bool = False
    sigma_small: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        steps, rescale = self.diffusion_steps, self.rescale_timesteps
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

    def non_defaults(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}


# Settings that apply to all kinds, and those that describe the diffusion process.
COMMON = {"source", "output_dir", "image_size", "kind", "entry"}
PROCESS = {
    *("noise_schedule", "diffusion_steps", "rescale_timesteps", "predict_xstart", "sigma_small"),
}
HEADS = {"num_heads", "num_head_channels", "use_new_attention_order"}
SETTINGS_OF = {
    "ddpm_tf": {"sigma_small"},
    "pesser": {"sigma_small"},
    "openai": PROCESS | HEADS,
    "diffusers": PROCESS | {"network_config"},
}


def main() -> None:
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--source")
    settings = parse(Settings, words)
    with hold_output_folder(settings.output_dir, lock_of=lock_beside):
        convert(settings)


def convert(settings: Settings) -> None:
    """Write the model folder."""
    source, folder = Path(settings.source), Path(settings.output_dir)
    _check_empty(folder)
    entry = read_weights(source, settings.entry, settings.kind)
    kind, weights = entry.kind, entry.weights
    _check_flags(settings, kind)
    if kind == "diffusers":
        unet, scheduler = _load_diffusers(weights, settings)
    else:
        unet = convert_network(weights, kind, settings)
        scheduler = make_scheduler(settings, kind, unet.config)
    pipeline = Pipeline(unet, scheduler)
    try:
        pipeline.save_pretrained(folder, about=_describe_origin(settings, kind))
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written: {error.strerror}") from error
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    reason = not_in_diffusers(unet.config)
    opens = "diffusers can open it" if reason is None else f"only ddpm_sa can open it: {reason}"
    print(
        f"{folder}: {kind}, {parameters:,} parameters in {len(weights)} weights, levels of "
        f"{', '.join(map(str, unet.config['block_out_channels']))} channels; {opens}"
    )
    for line in _describe_entry(entry):
        print(line)


def convert_network(weights: Mapping[str, Tensor], kind: str, settings: Settings) -> UNet:
    """Build the network from weights of another kind than diffusers."""
    if settings.image_size is None:
        raise UserError(f"image_size must be given: weights of {ORIGINS[kind]} do not contain it")
    if kind == "openai":
        return from_openai(
            weights,
            settings.image_size,
            num_heads=settings.num_heads,
            num_head_channels=settings.num_head_channels,
            use_new_attention_order=settings.use_new_attention_order,
        )
    return {"ddpm_tf": from_ddpm_tf, "pesser": from_pesser}[kind](weights, settings.image_size)


def make_scheduler(settings: Settings, kind: str, network: Mapping[str, Any]) -> DDPMScheduler:
    """Make the scheduler of the diffusion process that the network was trained for.

    Raises:
        ValueError: If the network's channels do not match a diffusion process on images.
    """
    channels, outputs = network["in_channels"], network["out_channels"]
    learned = outputs == 2 * channels
    if kind == "openai" and channels == 6:
        raise UserError(
            "an openai network with 6 channels is for super-resolution: it also takes the small "
            "image, which the pipelines of this package do not provide"
        )
    if outputs != channels and not (learned and kind in ("openai", "diffusers")):
        raise UserError(
            f"the network takes {channels} channels and gives {outputs}; no diffusers scheduler "
            f"can interpret the output of {ORIGINS[kind]}"
        )
    steps = settings.diffusion_steps
    # OpenAI scales the betas of the linear schedule by 1000 / steps (gaussian_diffusion.py).
    start, end = 0.1 / steps, 20 / steps
    cosine, betas = settings.noise_schedule == "cosine", None
    if settings.rescale_timesteps and steps != RESCALED_STEPS:
        full = NoiseSchedule.cosine(steps) if cosine else NoiseSchedule.linear(steps, start, end)
        kept = full.alphas_cumprod[:: steps // RESCALED_STEPS]
        before = kept.new_ones(RESCALED_STEPS)
        before[1:] = kept[:-1]
        betas, steps = (1 - kept / before).tolist(), RESCALED_STEPS
    variance = "fixed_small" if settings.sigma_small else "fixed_large"
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2" if cosine else "linear",
        beta_start=start,
        beta_end=end,
        trained_betas=betas,
        variance_type="learned_range" if learned else variance,
        prediction_type="sample" if settings.predict_xstart else "epsilon",
        clip_sample=True,
    )


def _load_diffusers(weights: Mapping[str, Tensor], settings: Settings) -> tuple[UNet, Any]:
    """Build the network of its config.json, and the scheduler that lies with it."""
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
    unet = from_diffusers(weights, config)
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
    return unet, make_scheduler(settings, "diffusers", unet.config)


def _describe_entry(entry: Entry) -> list[str]:
    """What was taken of a file that holds more than the bare weights of one network."""
    lines = []
    if entry.prefix:
        lines.append(f"taken from the file: {entry.prefix}*, without this prefix")
    if entry.left_out:
        count = len(entry.left_out)
        lines.append(f"left out of the file: {count} other tensors, {entry.left_out[0]} first")
    return lines


def _check_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"output_dir={folder} exists and is not an empty folder")


def _check_flags(settings: Settings, kind: str) -> None:
    unsupported = sorted(settings.non_defaults().keys() - COMMON - SETTINGS_OF[kind])
    if unsupported:
        raise UserError(f"{unsupported[0]} does not apply to weights of {ORIGINS[kind]}")


def _describe_origin(settings: Settings, kind: str) -> str:
    """The section of the model card about the origin of the weights."""
    source = Path(settings.source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unsaid = COMMON | {"network_config"}
    given = {name: value for name, value in settings.non_defaults().items() if name not in unsaid}
    flags = ", ".join(f"{name}={value}" for name, value in given.items())
    return (
        "## Where it comes from\n"
        f"`{source.name}` (sha256 {digest}), weights of {ORIGINS[kind]}, converted by ddpm_sa's "
        f"`sampling/convert.py`{f' with {flags}' if flags else ''}. The licence is that of "
        "the original weights.\n"
    )


if __name__ == "__main__":
    run_program(main)
