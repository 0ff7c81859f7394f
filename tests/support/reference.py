"""What tests compare with: numbers that the original programs gave, and diffusers' network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from einops import rearrange
from torch import Tensor, nn

from ddpm_sa.models.unet import UNet

FIXTURES = Path(__file__).parents[1] / "fixtures"

# A U-Net of two levels, as small as it can be with attention at both places, several groups, and
# several channels in each.
SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


class Fixture:
    """One recorded run of an original program.

    `fixture["out/y"]` is an array as it was stored, `.image("out/y")` one in torch's axis order.
    """

    def __init__(self, name: str) -> None:
        with np.load(FIXTURES / f"{name}.npz") as file:
            self.arrays = dict(file)
        self.channels_last = name.startswith("ddpm_tf")

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def image(self, key: str) -> Tensor:
        array = self[key]
        if array.ndim < 4 or not self.channels_last:
            return array
        # Contiguous, since torch's GroupNorm for channels_last tensors on a CPU takes E[x²] - E[x]²
        # and so loses the digits that the nearly constant image of the fixtures is about.
        return rearrange(array, "b h w c -> b c h w").contiguous()

    def weights(self) -> dict[str, np.ndarray]:
        return {name[2:]: a for name, a in self.arrays.items() if name.startswith("w/")}


def randomise_(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that switch no branch off: normal ones, with norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            value = 0.2 * noise + name.endswith("weight")
        else:
            value = noise * (0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
        parameter.data.copy_(value)
    return network


def twins(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[UNet, UNet2DModel]:
    """Ours and diffusers' network with the same weights, in eval mode."""
    theirs = UNet2DModel(**config)
    randomise_(theirs)
    # diffusers forgets to cast the sinusoid of class labels; in float32 this changes nothing.
    theirs.time_proj.register_forward_hook(lambda _, __, out: out.to(dtype))
    ours = UNet(**config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def assert_same_weights(network: nn.Module, expected: nn.Module) -> None:
    """Names, their order, types, and every bit."""
    weights, others = network.state_dict(), expected.state_dict()
    assert list(weights) == list(others)
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        assert torch.equal(weight, others[name]), name


def scales_between(log_sigma: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s at t; between two timesteps log(s/a) is linear, as in k-diffusion."""
    below = t.floor().long()
    above = (below + 1).clamp(max=len(log_sigma) - 1)
    sigma = log_sigma[below].lerp(log_sigma[above], t - below).exp().reshape(-1, 1, 1, 1)
    return 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()


def error_of_each_image(ours: Tensor, theirs: Tensor) -> Tensor:
    """Largest difference within each image, over that image's largest value: (B,)."""
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    difference = (ours - theirs).abs().flatten(1).amax(1)
    return difference / theirs.abs().flatten(1).amax(1)
