"""Turn a file of weights into a model folder that diffusers, and this package, opens.

    python sampling/convert.py ema_0.9999_500000.pt --image_size 32 --num_heads 4 \\
        --noise_schedule cosine --diffusion_steps 4000 --rescale_timesteps true --output_dir out

The kinds, told apart by their names: ddpm_tf (the paper's own code, its variables as an .npz),
pesser (its PyTorch port), openai (improved-diffusion and guided-diffusion) and diffusers (the
weights of a UNet2DModel beside their config.json). What names and shapes do not say are flags.
"""

import dataclasses
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor

from ddpm_sa import NoiseSchedule, Pipeline, UNet
from ddpm_sa.checkpoints import from_ddpm_tf, from_openai, from_pesser
from ddpm_sa.checkpoints.reading import read_weights
from ddpm_sa.cli import parse, run_program
from ddpm_sa.model_folder import load_scheduler
from ddpm_sa.models.config import not_in_diffusers

# A name that each kind has, and no other.
MARKS = {
    "ddpm_tf": re.compile(r"model/down_0/block_0/"),
    "pesser": re.compile(r"down\.0\.block\.0\."),
    "openai": re.compile(r"input_blocks\.0\.0\."),
    "diffusers": re.compile(r"down_blocks\.0\.resnets\.0\."),
}
ORIGINS = {
    "ddpm_tf": "hojonathanho/diffusion",
    "pesser": "pesser/pytorch_diffusion",
    "openai": "openai/improved-diffusion or guided-diffusion",
    "diffusers": "diffusers",
}
# The network tells apart as many timesteps, if it was trained with rescale_timesteps.
RESCALED_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which file, and what its weights do not say.

    Attributes:
        source: A .pt, .pth, .ckpt or .bin of torch.save (weights alone), a .safetensors, or an
            .npz. It may also come first, without the flag.
        output_dir: The model folder to make; it must not be there, or be empty.
        image_size: Height and width of the images; of diffusers' weights config.json says it.
        kind: ddpm_tf, pesser, openai or diffusers; auto goes by the names of the weights.
        entry: Of a file that holds several things by name, the one that is the weights.
        num_heads: Of openai: heads of every attention; or give num_head_channels. This and the
            following are flags of their programs.
        num_head_channels: Of openai: channels of every head.
        use_new_attention_order: Of openai: as the training had it.
        noise_schedule: Of openai: linear or cosine.
        diffusion_steps: Of openai: timesteps of the training.
        rescale_timesteps: Of openai, needed if those are not 1000: whether the network was given
            t · 1000 / diffusion_steps (improved-diffusion's default) or t (guided-diffusion's). In
            the first case the folder has the 1000 timesteps whose t is a whole number.
        predict_xstart: Of openai: whether the network predicts the image and not the noise.
        sigma_small: Unless the variance was learned: whether a step's variance is the posterior's
            (as for the paper's 256 x 256 images) or beta (as for its CIFAR-10).
    """

    source: str
    output_dir: str
    image_size: int | None = None
    kind: Literal["auto", "ddpm_tf", "pesser", "openai", "diffusers"] = "auto"
    entry: str | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool = False
    noise_schedule: Literal["linear", "cosine"] = "linear"
    diffusion_steps: int = 1000
    rescale_timesteps: bool | None = None
    predict_xstart: bool = False
    sigma_small: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size={self.image_size} must be at least 1")
        steps, rescale = self.diffusion_steps, self.rescale_timesteps
        if steps < 1:
            raise ValueError(f"diffusion_steps={steps} must be at least 1")
        if steps != RESCALED_STEPS and rescale is None:
            raise ValueError(
                f"diffusion_steps={steps} needs rescale_timesteps too: true is the default of "
                "improved-diffusion, false of guided-diffusion"
            )
        if rescale and steps % RESCALED_STEPS:
            raise ValueError(
                f"diffusion_steps={steps} with rescale_timesteps gives the network fractions of a "
                f"timestep, which diffusers does not; it must be a multiple of {RESCALED_STEPS}"
            )

    def changed(self) -> dict[str, Any]:
        """The settings that are not the defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}


# Settings that all kinds have; ddpm_tf and pesser have sigma_small too, openai has all.
COMMON = {"source", "output_dir", "image_size", "kind", "entry"}


def main() -> None:
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--source")
    settings = parse(Settings, words)
    source, folder = Path(settings.source), Path(settings.output_dir)
    _check_empty(folder)
    weights = read_weights(source, settings.entry)
    kind = kind_of(weights) if settings.kind == "auto" else settings.kind
    _check_flags(settings, kind)
    if kind == "diffusers":
        unet, scheduler = _of_diffusers(weights, settings)
    else:
        unet = network_of(weights, kind, settings)
        scheduler = scheduler_of(settings, kind, unet.config)
    pipeline = Pipeline(unet, scheduler)
    try:
        pipeline.save_pretrained(folder, about=_origin(settings, kind))
    except OSError as error:
        raise ValueError(f"output_dir={folder} cannot be written: {error.strerror}") from error
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    lacking = not_in_diffusers(unet.config)
    opens = "diffusers opens it" if lacking is None else f"ddpm_sa alone opens it, since {lacking}"
    print(
        f"{folder}: {kind}, {parameters:,} parameters in {len(weights)} weights, levels of "
        f"{', '.join(map(str, unet.config['block_out_channels']))} channels; {opens}"
    )


def kind_of(weights: Mapping[str, Tensor]) -> str:
    """Whose names these are.

    Raises:
        ValueError: If nobody's.
    """
    for kind, mark in MARKS.items():
        if any(mark.match(name) for name in weights):
            return kind
    raise ValueError(
        f"{next(iter(weights))!r} and the other names are of no known kind; known are "
        f"{', '.join(f'{kind} ({origin})' for kind, origin in ORIGINS.items())}"
    )


def network_of(weights: Mapping[str, Tensor], kind: str, settings: Settings) -> UNet:
    """The network of weights that are not diffusers'."""
    if settings.image_size is None:
        raise ValueError(f"image_size must be given: weights of {ORIGINS[kind]} do not say it")
    if kind == "openai":
        return from_openai(
            weights,
            settings.image_size,
            num_heads=settings.num_heads,
            num_head_channels=settings.num_head_channels,
            use_new_attention_order=settings.use_new_attention_order,
        )
    return {"ddpm_tf": from_ddpm_tf, "pesser": from_pesser}[kind](weights, settings.image_size)


def scheduler_of(settings: Settings, kind: str, network: Mapping[str, Any]) -> DDPMScheduler:
    """The process that the network was trained for.

    Raises:
        ValueError: If the network's channels are not those of a diffusion of images.
    """
    channels, outputs = network["in_channels"], network["out_channels"]
    learned = outputs == 2 * channels
    if kind == "openai" and channels == 6:
        raise ValueError(
            "a network of openai's with 6 channels is for super-resolution: it takes the small "
            "image too, which no pipeline here gives it"
        )
    if outputs != channels and not (learned and kind == "openai"):
        raise ValueError(
            f"the network takes {channels} channels and gives {outputs}; no scheduler of diffusers "
            f"knows what those of {ORIGINS[kind]} mean"
        )
    steps = settings.diffusion_steps
    # Betas of their linear schedule grow as the steps are fewer (gaussian_diffusion.py).
    start, end = 0.1 / steps, 20 / steps
    betas = None
    if settings.rescale_timesteps and steps != RESCALED_STEPS:
        cosine = settings.noise_schedule == "cosine"
        whole = NoiseSchedule.cosine(steps) if cosine else NoiseSchedule.linear(steps, start, end)
        kept = whole.alphas_cumprod[:: steps // RESCALED_STEPS]
        before = kept.new_ones(RESCALED_STEPS)
        before[1:] = kept[:-1]
        betas, steps = (1 - kept / before).tolist(), RESCALED_STEPS
    variance = "fixed_small" if settings.sigma_small else "fixed_large"
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="linear" if settings.noise_schedule == "linear" else "squaredcos_cap_v2",
        beta_start=start,
        beta_end=end,
        trained_betas=betas,
        variance_type="learned_range" if learned else variance,
        prediction_type="sample" if settings.predict_xstart else "epsilon",
        clip_sample=True,
    )


def _of_diffusers(weights: Mapping[str, Tensor], settings: Settings) -> tuple[UNet, Any]:
    """The network and the scheduler that the files beside the weights describe."""
    here = Path(settings.source).parent
    if not (here / "config.json").is_file():
        raise ValueError(f"weights of diffusers need their config.json beside them, in {here}")
    # Loading finds whatever name and container the weights had, and old names of attention.
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(here / "config.json", temporary)
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(whole, f"{temporary}/diffusion_pytorch_model.safetensors", {"format": "pt"})
        unet = UNet.from_pretrained(temporary, subfolder=None)
    said, size = unet.config["sample_size"], settings.image_size
    if None not in (said, size) and said != size:
        raise ValueError(f"image_size={size}, and config.json says {said}")
    if said is None:
        if size is None:
            raise ValueError("config.json does not say how large the images are; give image_size")
        unet.register_to_config(sample_size=size)
    return unet, load_scheduler(here.parent if here.name == "unet" else here)


def _check_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"output_dir={folder} is there already and is not an empty folder")


def _check_flags(settings: Settings, kind: str) -> None:
    allowed = COMMON | ({"sigma_small"} if kind in ("ddpm_tf", "pesser") else set())
    strange = sorted(settings.changed().keys() - allowed)
    if strange and kind != "openai":
        raise ValueError(f"{strange[0]} is no setting of weights of {ORIGINS[kind]}")


def _origin(settings: Settings, kind: str) -> str:
    """What the model card says of it."""
    source = Path(settings.source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    told = {name: value for name, value in settings.changed().items() if name not in COMMON}
    flags = ", ".join(f"{name}={value}" for name, value in told.items())
    return (
        "## Where it comes from\n"
        f"`{source.name}` (sha256 {digest}), weights of {ORIGINS[kind]}, converted by ddpm_sa's "
        f"`sampling/convert.py`{f' with {flags}' if flags else ''}. Who made the weights says "
        "under which licence they may be used.\n"
    )


if __name__ == "__main__":
    run_program(main)
