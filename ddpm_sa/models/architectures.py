"""The networks that a model folder may hold, by the class name in its config.json."""

from typing import Any

from ddpm_sa.models.families.lucidrains import LucidrainsUNet
from ddpm_sa.models.families.song import SongUNet
from ddpm_sa.models.network import Network
from ddpm_sa.models.unet import UNet

ARCHITECTURES: dict[str, type[Network]] = {
    architecture.__name__: architecture for architecture in (UNet, LucidrainsUNet, SongUNet)
}
"""Every other name, such as UNet2DModel, is read as `UNet`, which refuses unknown arguments."""


def architecture_named(name: Any) -> type[Network]:
    """The class of a network by its `_class_name` in config.json."""
    return ARCHITECTURES.get(name, UNet) if isinstance(name, str) else UNet


def architecture_of(network: Any) -> type[Network]:
    """The class of a network; `UNet` for a UNet2DModel, whose arguments and weights it takes."""
    return type(network) if isinstance(network, Network) else UNet
