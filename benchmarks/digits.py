"""How many of a model's digits a classifier of real ones is sure of.

    python benchmarks/digits.py --model runs/demo/model

The classifier learns 4,500 of the 5,000 real digits. Beside the share of samples that it reads
with a probability above 0.9 stands the same share of the 500 digits that it has not seen, the most
that can be hoped for. It is as easily sure of a noisy digit as of a clean one: look at them too.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.judge import read, train_judge
from ddpm_sa.cli import parse, run_program
from sampling.method import GuidanceSettings
from sampling.model import open_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which digits to read.

    Attributes:
        model: A model folder that makes grey 32 x 32 digits.
        num_images: How many samples to read.
        steps: Steps of the scheduler.
        scheduler: A short name, as sampling/sample.py has them.
        seed: Which samples.
        epochs: How long the classifier learns.
        guidance: As sampling/sample.py has it.
    """

    model: str
    num_images: int = 256
    steps: int = 50
    scheduler: str = "euler_ancestral"
    seed: int = 0
    epochs: int = 15
    guidance: GuidanceSettings = dataclasses.field(default_factory=GuidanceSettings)


def main() -> None:
    settings = parse(Settings)
    pipeline = open_model(settings.model)
    if pipeline.image_format.shape != (1, 32, 32):
        raise ValueError(
            f"the classifier reads 1 x 32 x 32 digits; {settings.model} makes "
            f"{pipeline.image_format}"
        )
    digits = pipeline(
        num_images=settings.num_images,
        steps=settings.steps,
        seed=settings.seed,
        batch_size=64,
        scheduler=settings.scheduler,
        guide=settings.guidance.guide(pipeline),
        output_type="pt",
    ).images
    judge, real, labels = train_judge(settings.epochs)
    sure, read_as = read(judge, torch.as_tensor(digits) * 2 - 1).max(1)
    real_sure, real_read_as = read(judge, real).max(1)
    right = (real_read_as == labels).double().mean()
    print(f"real digits, unseen: {right:.1%} read right, {share(real_sure):.1%} with p > 0.9")
    print(f"{len(sure)} samples: {share(sure):.1%} with p > 0.9")
    print(f"samples read as 0 ... 9: {read_as.bincount(minlength=10).tolist()}")


def share(sure: Tensor) -> float:
    """Share of probabilities above 0.9."""
    return (sure > 0.9).double().mean().item()


if __name__ == "__main__":
    run_program(main)
