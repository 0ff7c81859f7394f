"""Small pieces that residual blocks and attention share."""

from torch import Tensor, nn

from ddpm_sa.errors import UserError


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """A GroupNorm of so many groups.

    Raises:
        UserError: If the groups do not divide the channels.
    """
    if groups < 1 or channels % groups:
        raise UserError(f"{groups} groups of GroupNorm do not divide {channels} channels")
    return nn.GroupNorm(groups, channels, eps)


def divided(x: Tensor, scale: float) -> Tensor:
    """x / scale, without a pass over memory in the usual case of scale 1."""
    return x if scale == 1 else x / scale
