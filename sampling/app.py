"""Serve a web page to explore the attention maps of a model.

    python sampling/app.py --model runs/mnist/model

It listens on this computer only, unless --host says otherwise, and writes to a temporary folder,
which is removed at the end.
"""

import dataclasses
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa.cli import parse, run_program
from ddpm_sa.errors import UserError
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.settings.ranges import Range, check_ranges
from sampling.common.device import resolve_device
from sampling.common.model_loading import open_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Command-line settings of sampling/app.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub; or several of them, as in `--model runs/a runs/b`.
        host: Address to listen on: 127.0.0.1, this computer only; 0.0.0.0, all networks.
        port: Port to listen on; 0 takes a free one.
        device: cpu, cuda, cuda:1, mps, ...; by default the accelerator if there is one.
    """

    model: str | list[str]
    host: str = "127.0.0.1"
    port: Annotated[int, Range(least=0, most=65535)] = 7860
    device: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.models():
            raise UserError("model=[] must name at least one model")

    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model


def main() -> None:
    settings = parse(Settings)
    device = resolve_device(settings.device)
    pipelines = {}
    for name in settings.models():
        pipelines[name] = open_model(name)
        attention_layers(pipelines[name].unet)  # raises if it has none
        pipelines[name].to(device)
        pipelines[name].unet.eval()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ddpm_sa-page-") as folder:
        # Read by gradio when it is imported: the folder for its files, and no telemetry.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        layout = _import_layout()
        layout.serve(pipelines, folder, settings.host, settings.port)


def _import_layout():
    try:
        from sampling.page import layout
    except ModuleNotFoundError as error:
        raise UserError(
            f"the page needs {error.name}: pip install gradio matplotlib, or, in a checkout, "
            "pip install '.[page]'"
        ) from error
    return layout


if __name__ == "__main__":
    run_program(main)
