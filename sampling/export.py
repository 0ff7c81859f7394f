"""Export the network of a model to a file that runs without this package.

    python sampling/export.py --model runs/mnist/model --format onnx --output_dir out

writes out/model.onnx, for onnxruntime and other programs that read ONNX; `--format pt2` writes
out/model.pt2, for torch.export.load. The batch size is free. The file is compared with the network
before it appears.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError
from ddpm_sa.export import export_onnx, export_pt2
from ddpm_sa.export.program import Precision
from sampling.common.model_loading import Weights, open_model
from sampling.common.output_folder import hold_output_folder

WRITERS = {"onnx": export_onnx, "pt2": export_pt2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Command-line settings of sampling/export.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub, as owner/name or owner/name@revision.
        output_dir: Folder for model.onnx or model.pt2; one that is there is replaced.
        format: onnx, which needs the extra `export` (pip install 'ddpm_sa[export]'); or pt2.
        dtype: Type of the weights, the sample and the output. The timestep is float32.
        dynamic_size: Leave the height and width of the images free too, in multiples of what the
            levels of the network need. The network was trained at one size; others may look bad.
        weights: ema, the averaged weights; or raw, the weights in model-raw/ next to them.
    """

    model: str
    output_dir: str
    format: Literal["onnx", "pt2"]
    dtype: Precision = "float32"
    dynamic_size: bool = False
    weights: Weights = "ema"


def main() -> None:
    settings = parse(Settings)
    with hold_output_folder(settings.output_dir):
        export(settings)


def export(settings: Settings) -> None:
    """Write the file, and say what it takes and gives."""
    path = Path(settings.output_dir) / f"model.{settings.format}"
    pipeline = open_model(settings.model, settings.weights)
    try:
        difference = WRITERS[settings.format](
            pipeline, path, dtype=settings.dtype, dynamic_size=settings.dynamic_size
        )
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    height, width = pipeline.padded_size
    size = "height, width" if settings.dynamic_size else f"{height}, {width}"
    conditional = pipeline.unet.config.num_class_embeds is not None
    print(
        f"{path}: sample (batch, {pipeline.image_format.in_channels}, {size}) {settings.dtype}, "
        f"timestep (batch){', class_labels (batch)' if conditional else ''} -> out_sample; "
        f"differs from the network by {difference:.0e} of its output at most"
    )


if __name__ == "__main__":
    run_program(main)
