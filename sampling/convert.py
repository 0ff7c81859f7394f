"""Convert a file of weights into a model folder that diffusers and this package can open.

    python sampling/convert.py ema_0.9999_500000.pt --image_size 32 --num_heads 4 \\
        --noise_schedule cosine --diffusion_steps 4000 --rescale_timesteps true --output_dir out

The kind is detected from the names of the weights: ddpm_tf (the paper's own code, its variables as
an .npz), pesser (its PyTorch port), openai (improved-diffusion and guided-diffusion), diffusers
(a UNet2DModel, or a UNet of this package, with its config.json), lucidrains
(denoising-diffusion-pytorch) or edm (the DDPM++ networks of NVlabs/edm). What names and shapes do
not determine is given by flags. Nested weights and prefixes of names are found and removed.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa import Pipeline
from ddpm_sa.checkpoints.entries import Entry
from ddpm_sa.checkpoints.reading import read_weights
from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError
from ddpm_sa.files.folder_lock import lock_beside
from ddpm_sa.models.network import Network
from sampling.common.output_folder import hold_output_folder
from sampling.conversion.kinds import KINDS, Kind
from sampling.conversion.settings import COMMON, Settings


def main() -> None:
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--source")
    settings = parse(Settings, words, __doc__)
    with hold_output_folder(settings.output_dir, lock_of=lock_beside):
        convert(settings)


def convert(settings: Settings) -> None:
    """Write the model folder."""
    source, folder = Path(settings.source), Path(settings.output_dir)
    _check_empty(folder)
    entry = read_weights(source, settings.entry, settings.kind)
    kind = KINDS[entry.kind]
    _check_flags(settings, kind)
    network, scheduler = kind.open(entry, settings)
    try:
        about = _describe_origin(settings, kind)
        Pipeline(network, scheduler).save_pretrained(folder, about=about)
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written: {error.strerror}") from error
    print(f"{folder}: {entry.kind}, {_describe_network(network, entry)}")
    for line in [*_describe_entry(entry, kind), kind.note(settings)]:
        if line is not None:
            print(line)


def _describe_network(network: Network, entry: Entry) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    reason = network.not_in_diffusers(network.config)
    opens = "diffusers can open it" if reason is None else f"only ddpm_sa can open it: {reason}"
    return (
        f"{parameters:,} parameters in {len(entry.weights)} weights, levels of "
        f"{', '.join(map(str, network.config['block_out_channels']))} channels; {opens}"
    )


def _describe_entry(entry: Entry, kind: Kind) -> list[str]:
    """What was taken of a file that holds more than the bare weights of one network."""
    lines = []
    if entry.prefix:
        lines.append(f"taken from the file: {entry.prefix}*, without this prefix")
    used = {name for name in kind.beside if name in entry.beside}
    if used:
        lines.append(f"taken from beside it: {', '.join(sorted(used))}")
    left_out = [name for name in entry.left_out if name.removeprefix(entry.home) not in used]
    if left_out:
        lines.append(f"left out of the file: {len(left_out)} other tensors, {left_out[0]} first")
    return lines


def _check_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"output_dir={folder} exists and is not an empty folder")


def _check_flags(settings: Settings, kind: Kind) -> None:
    unsupported = sorted(settings.non_defaults().keys() - COMMON - kind.settings)
    if unsupported:
        raise UserError(f"{unsupported[0]} does not apply to weights of {kind.origin}")


def _describe_origin(settings: Settings, kind: Kind) -> str:
    """The section of the model card about the origin of the weights."""
    source = Path(settings.source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unsaid = COMMON | {"network_config"}
    given = {name: value for name, value in settings.non_defaults().items() if name not in unsaid}
    flags = ", ".join(f"{name}={value}" for name, value in given.items())
    return (
        "## Where it comes from\n"
        f"`{source.name}` (sha256 {digest}), weights of {kind.origin}, converted by ddpm_sa's "
        f"`sampling/convert.py`{f' with {flags}' if flags else ''}. The licence is that of "
        "the original weights.\n"
    )


if __name__ == "__main__":
    run_program(main)
