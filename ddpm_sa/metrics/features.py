"""What images are compared by: a network's features, and its class probabilities if it has any."""

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_sa.metrics.efficientnet import load_efficientnet
from ddpm_sa.randomness import standard_normal

KNOWN = ("efficientnet", "inception")


@dataclass(frozen=True)
class Extractor:
    """A way to describe images.

    Attributes:
        name: As the user names it.
        space: What its features are called, so that nobody takes them for others.
        module: Images (B, C, H, W) in [-1, 1] -> features (B, D), or those and logits (B, K).
        device: Where it takes the images.
    """

    name: str
    space: str
    module: Callable[[Tensor], Any]
    device: torch.device

    @property
    def frechet(self) -> str:
        """What the Fréchet distance in this space is called. FID is Inception's alone."""
        return "FID" if self.name == "inception" else f"Fréchet distance in {self.space}"

    @property
    def kernel(self) -> str:
        """What the kernel distance in this space is called. KID is Inception's alone."""
        return "KID" if self.name == "inception" else f"kernel distance in {self.space}"

    @property
    def score(self) -> str:
        """What exp E KL(p(y|x) || p(y)) is called (Salimans et al. 2016). IS is Inception's."""
        return "IS" if self.name == "inception" else f"class score in {self.space}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features, (B, D), and class probabilities, (B, K), or None; float32, on the CPU.

        Raises:
            ValueError: If images or features are not finite, or the module gives no such features.
        """
        if not images.isfinite().all():
            raise ValueError("images have values that are not finite")
        found = self.module(images.to(self.device))
        features, logits = found if isinstance(found, tuple) else (found, None)
        if not isinstance(features, Tensor) or features.shape[:1] != images.shape[:1]:
            what = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise ValueError(
                f"features={self.name} gave {what} for {len(images)} images, not (B, D)"
            )
        if features.ndim != 2:
            raise ValueError(
                f"features={self.name} gave {tuple(features.shape)}, not (B, D); flatten or pool it"
            )
        if not features.isfinite().all():
            raise ValueError(f"features={self.name} gave values that are not finite")
        probabilities = None if logits is None else logits.double().softmax(1).cpu()
        return features.float().cpu(), probabilities

    def identity(self, shape: tuple[int, int, int]) -> str:
        """Another one if the features are others: of what it makes of fixed noise.

        Args:
            shape: (C, H, W) of the images.
        """
        noise = standard_normal(shape, 0, "features: identity", range(2)).clamp(-1, 1)
        return hashlib.sha256(self(noise)[0].numpy().tobytes()).hexdigest()


def open_features(name: str, device: torch.device) -> Extractor:
    """The features of this name: "efficientnet", "inception", or "package.module:attribute".

    Of the last, the attribute is a function of images, an nn.Module, or a class of one that takes
    no arguments.

    Raises:
        ValueError: If there is none, or the package that holds it is not installed.
    """
    if name == "efficientnet":
        network = _coloured(load_efficientnet().to(device), name)
        return Extractor(name, "EfficientNet-Lite0 features", network, device)
    if name == "inception":
        network = _coloured(_inception().to(device), name)
        return Extractor(name, "Inception-v3 features", network, device)
    return Extractor(name, f"features of {name}", _named(name, device), device)


def _coloured(network: nn.Module, name: str) -> Callable[[Tensor], Any]:
    """A network of colour pictures, for grey ones too."""
    network.eval()

    def of(images: Tensor) -> Any:
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"features={name} are of grey or colour images, not of {images.shape[1]} channels; "
                "name a module of yours: --features package.module:name"
            )
        return network(images.expand(-1, 3, -1, -1))

    return of


def _inception() -> nn.Module:
    """FID's own network, by torchmetrics, for images in [-1, 1]."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(
            "features=inception needs torchmetrics, torch-fidelity and its weights: "
            f"pip install 'ddpm_sa[inception]' ({error}); features=efficientnet needs no download"
        ) from error
    return _Inception(network)


class _Inception(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # It takes what a PNG holds.
        pixels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = self.network._torch_fidelity_forward(pixels)
        return features.flatten(1), logits


def _named(name: str, device: torch.device) -> Callable[[Tensor], Any]:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(
            f"features={name!r} is unknown; known are {', '.join(KNOWN)}, and "
            "package.module:name for a module of yours"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"features={name!r} cannot be imported: {error}") from error
    if isinstance(found, type):
        found = found()
    if isinstance(found, nn.Module):
        return found.eval().to(device)
    if not callable(found):
        raise ValueError(f"features={name!r} is a {type(found).__name__}, not a function of images")
    return found
