"""Feature extractors: a network's features, and its class probabilities if it has any."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from ddpm_sa.metrics.efficientnet import load_efficientnet
from ddpm_sa.randomness import standard_normal
from ddpm_sa.settings.importing import import_named

KNOWN = ("efficientnet", "inception", "pixels")
GRID = 4  # cells a side of the features "pixels"


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        name: The name that the user gave.
        space: The name of the feature space, for the names of metrics.
        module: Images (B, C, H, W) in [-1, 1] -> features (B, D), or (features, logits (B, K)).
        device: The device of the module.
    """

    name: str
    space: str
    module: Callable[[Tensor], Any]
    device: torch.device

    @property
    def frechet(self) -> str:
        """Name of the Fréchet distance in this space. Only with Inception is it FID."""
        return "FID" if self.name == "inception" else f"Fréchet distance in {self.space}"

    @property
    def kernel(self) -> str:
        """Name of the kernel distance in this space. Only with Inception is it KID."""
        return "KID" if self.name == "inception" else f"kernel distance in {self.space}"

    @property
    def score(self) -> str:
        """Name of exp E KL(p(y|x) || p(y)) (Salimans et al. 2016). Only with Inception is it IS."""
        return "IS" if self.name == "inception" else f"class score in {self.space}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return float32 features, (B, D), and class probabilities, (B, K), or None; on the CPU.

        Raises:
            ValueError: If images or features are not finite, or the module does not return (B, D).
        """
        if not images.isfinite().all():
            raise UserError("images have values that are not finite")
        output = self.module(images.to(self.device))
        features, logits = output if isinstance(output, tuple) else (output, None)
        if not isinstance(features, Tensor) or features.shape[:1] != images.shape[:1]:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise UserError(
                f"features={self.name} gave {shape} for {len(images)} images, not (B, D)"
            )
        if features.ndim != 2:
            raise UserError(
                f"features={self.name} gave {tuple(features.shape)}, not (B, D); flatten or pool it"
            )
        if not features.isfinite().all():
            raise UserError(f"features={self.name} gave values that are not finite")
        probabilities = None if logits is None else logits.double().softmax(1).cpu()
        return features.float().cpu(), probabilities

    def identity(self, shape: tuple[int, int, int]) -> str:
        """A hash of the features of fixed noise, which identifies the extractor.

        Args:
            shape: (C, H, W) of the images.
        """
        noise = standard_normal(shape, 0, "features: identity", range(2)).clamp(-1, 1)
        return hashlib.sha256(self(noise)[0].numpy().tobytes()).hexdigest()


def open_features(name: str, device: torch.device) -> Extractor:
    """Open a feature extractor: a name of `KNOWN`, or "package.module:attribute".

    The attribute is a function of images, an nn.Module, or a class of one without arguments.

    Raises:
        ValueError: If the name is unknown, or a package is not installed.
    """
    if name == "efficientnet":
        network = _accept_grey(load_efficientnet().to(device), name)
        return Extractor(name, "EfficientNet-Lite0 features", network, device)
    if name == "inception":
        network = _accept_grey(_inception().to(device), name)
        return Extractor(name, "Inception-v3 features", network, device)
    if name == "pixels":
        return Extractor(name, f"pixels of a {GRID} x {GRID} grid", pixel_features, device)
    return Extractor(name, f"features of {name}", _import_features(name, device), device)


def pixel_features(images: Tensor) -> Tensor:
    """The brightness and the contrast of each channel in each cell of a 4 x 4 grid.

    They see layout, colours and texture's strength, for images of any number of channels, and know
    nothing of what the images show.

    Args:
        images: (B, C, H, W) in [-1, 1].

    Returns:
        (B, 32 C): mean and standard deviation of the pixels of each cell, in [-1, 1].
    """
    pixels = images.double()  # the difference of squares below would lose float32's last digits
    mean = F.adaptive_avg_pool2d(pixels, GRID)
    variance = F.adaptive_avg_pool2d(pixels.square(), GRID) - mean.square()
    return torch.cat([mean, variance.clamp(min=0).sqrt()], dim=1).flatten(1)


def _accept_grey(network: nn.Module, name: str) -> Callable[[Tensor], Any]:
    """Let a network of RGB images accept grey images too."""
    network.eval()

    def evaluate(images: Tensor) -> Any:
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"features={name} are of grey or RGB images, not of {images.shape[1]} channels; "
                "give --features pixels, or a module of your own as package.module:name"
            )
        return network(images.expand(-1, 3, -1, -1))

    return evaluate


def _inception() -> nn.Module:
    """The Inception network of FID, from torchmetrics, for images in [-1, 1]."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    except (ModuleNotFoundError, OSError) as error:
        raise UserError(
            "features=inception needs torchmetrics, torch-fidelity and its weights: "
            f"pip install torchmetrics torch-fidelity ({error}); features=efficientnet needs no "
            "download"
        ) from error
    return _Inception(network)


class _Inception(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # The network takes uint8 pixels.
        pixels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = self.network._torch_fidelity_forward(pixels)
        return features.flatten(1), logits


def _import_features(name: str, device: torch.device) -> Callable[[Tensor], Any]:
    if ":" not in name.strip(":"):
        raise UserError(
            f"features={name!r} is unknown; known are {', '.join(KNOWN)}, and "
            "package.module:name for a module of your own"
        )
    module = import_named("features", name)
    if isinstance(module, type):
        module = module()
    if isinstance(module, nn.Module):
        return module.eval().to(device)
    if not callable(module):
        raise UserError(f"features={name!r} is a {type(module).__name__}, not a function of images")
    return module
