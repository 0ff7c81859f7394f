"""A page in the browser to explore where pixels look while an image is made.

    python sampling/app.py --model runs/mnist/model

It listens on this computer alone, unless --host says otherwise, and writes into a folder of its own
that is gone after it.
"""

import dataclasses
import os
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa.cli import parse, run_program
from ddpm_sa.models.attention_slots import attention_layers
from sampling.common.device import device_named
from sampling.common.model_loading import open_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which models to show, and where.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the hub; or a list of them, as in "[runs/a, runs/b]".
        host: Who may open the page: 127.0.0.1, this computer alone; 0.0.0.0, whoever reaches it.
        port: Where the page is; 0 takes one that is free.
        device: cpu, cuda, cuda:1, mps, ...; the accelerator if there is one, if not given.
    """

    model: str | list[str]
    host: str = "127.0.0.1"
    port: int = 7860
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.models():
            raise ValueError("model=[] must name at least one model")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} must lie between 0 and 65535")

    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model


def main() -> None:
    settings = parse(Settings)
    device = device_named(settings.device)
    pipelines = {}
    for name in settings.models():
        pipelines[name] = open_model(name)
        attention_layers(pipelines[name].unet)  # refuses one that has none
        pipelines[name].to(device)
        pipelines[name].unet.eval()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ddpm_sa-page-") as folder:
        # gradio reads these when it is imported: where its files go, and that it calls nobody.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        layout = _page_layout()
        layout.serve(pipelines, folder, settings.host, settings.port)


def _page_layout():
    try:
        from sampling.page import layout
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page needs {error.name}: pip install 'ddpm_sa[page]', or pip install gradio"
        ) from error
    return layout


if __name__ == "__main__":
    run_program(main)
