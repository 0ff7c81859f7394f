"""A judge of digits: a small convolutional classifier, trained on the 5,000 real ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_sa.images import to_tensor
from training.sources import mnist5k


def train_judge(epochs: int = 6, held_out: int = 500) -> tuple[nn.Module, float]:
    """Train the judge, seeded.

    Returns:
        The classifier of (N, 1, 32, 32) images in [-1, 1], and its accuracy on held-out digits.
    """
    pictures, labels = mnist5k()
    digits = F.pad(to_tensor(pictures), (2, 2, 2, 2), value=-1.0)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits), generator=random)
    digits, classes = digits[order], torch.from_numpy(labels)[order]
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
    judge.eval()
    right = read(judge, digits[learned:]).argmax(1) == classes[learned:]
    return judge, right.double().mean().item()


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
