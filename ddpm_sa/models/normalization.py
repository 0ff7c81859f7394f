"""GroupNorm, in bfloat16 where its input is."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_sa.errors import UserError


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, (B, C, ...) -> (B, C, ...), which returns bfloat16 for bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        return normalize(input, self.num_groups, self.eps, self.weight, self.bias)


def group_norm(groups: int, channels: int, eps: float) -> GroupNorm:
    """A GroupNorm of so many groups.

    Raises:
        UserError: If the groups do not divide the channels.
    """
    if groups < 1 or channels % groups:
        raise UserError(f"{groups} groups of GroupNorm do not divide {channels} channels")
    return GroupNorm(groups, channels, eps)


def normalize(
    x: Tensor, groups: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """GroupNorm (Wu & He 2018, eq. 1), of the type of x on an accelerator in bfloat16.

    CUDA's autocast would cast x to float32, and its result back before the next convolution, which
    is half of the memory traffic of this network in bfloat16 (benchmarks/ledger.py).

    Args:
        x: (B, C, ...).
        groups: Groups of channels with one mean and variance; divides C.
        eps: Added to the variance.
        weight, bias: (C,), or None for 1 and 0.
    """
    if stays_in_bfloat16(x):
        return normalize_in_own_type(x, groups, eps, weight, bias)
    return F.group_norm(x, groups, weight, bias, eps)


def stays_in_bfloat16(x: Tensor) -> bool:
    """Whether layers should keep x in bfloat16. On a CPU, autocast does so by itself."""
    return x.dtype == torch.bfloat16 and x.device.type != "cpu"


def normalize_in_own_type(
    x: Tensor, groups: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`normalize` with input, weights and output of one type, whatever autocast says.

    torch's kernel sums up mean and variance in float32 all the same.
    """
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    pixels = x.shape[2:].numel()
    # F.group_norm is on autocast's list of what is cast to float32; the operation below it is not,
    # but leaves it to its caller to bring x into the layout of the kernel.
    x = x if _kernel_takes(x) else x.contiguous()
    return torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1], pixels, groups, eps)[0]


@functools.cache
def keeps_channels_last(device: torch.device) -> bool:
    """Whether the device's GroupNorm returns channels_last for channels_last.

    CUDA's does not up to torch 2.11 (pytorch issue 111824), so the convolution behind it has to
    reorder its input again.
    """
    x = torch.ones(1, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    return F.group_norm(x, 2).is_contiguous(memory_format=torch.channels_last)


def _kernel_takes(x: Tensor) -> bool:
    """Whether GroupNorm's kernel takes x as it lies in memory. A compiler sees to that itself."""
    if torch.compiler.is_compiling() or x.is_contiguous():
        return True
    in_channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return in_channels_last and keeps_channels_last(x.device)
