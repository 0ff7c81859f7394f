"""The residual blocks, conditioned on the timestep."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ddpm_sa.models.attention import divided
from ddpm_sa.models.normalization import group_norm, normalize

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


@dataclass(frozen=True, kw_only=True)
class ResnetSpec:
    """What all residual blocks of a level have in common.

    Attributes:
        temb_channels: Width of the time embedding.
        groups: Groups of the GroupNorms, which divide the channels.
        eps: Their epsilon.
        act_fn: A key of `ACTIVATIONS`.
        dropout: Probability.
        scale_shift: Whether the embedding scales as well as shifts.
        output_scale: The sum with the shortcut is divided by this.
    """

    temb_channels: int
    groups: int
    eps: float
    act_fn: str = "silu"
    dropout: float = 0.0
    scale_shift: bool = False
    output_scale: float = 1.0


class ResnetBlock(nn.Module):
    """shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))) + W temb)))).

    Ho et al. 2020, appendix B. With scale_shift the embedding scales and shifts after norm2 instead
    (Dhariwal & Nichol 2021, eq. 5). With resample, activations and shortcut are resampled before
    conv1. Parameters have the names and shapes of diffusers' `ResnetBlock2D`.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        spec: See `ResnetSpec`.
        groups_out: Groups of norm2; spec.groups if None.
        resample: Such as `resampling.halve`; None: the size stays.
        project_shortcut: Whether the shortcut has a 1 x 1 convolution; None: where it must.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spec: ResnetSpec,
        *,
        groups_out: int | None = None,
        resample: Callable[[Tensor], Tensor] | None = None,
        project_shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = spec.scale_shift
        self.output_scale = spec.output_scale
        self.resample = resample
        self.norm1 = group_norm(spec.groups, in_channels, spec.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        shifts = out_channels * (2 if spec.scale_shift else 1)
        self.time_emb_proj = nn.Linear(spec.temb_channels, shifts)
        self.norm2 = group_norm(groups_out or spec.groups, out_channels, spec.eps)
        self.dropout = nn.Dropout(spec.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[spec.act_fn]()
        if project_shortcut is None:
            project_shortcut = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if project_shortcut else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: (B, C_in, H, W); temb: (B, temb_channels), already activated -> (B, C_out, H', W')."""
        h = self.nonlinearity(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        shift = self.time_emb_proj(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return divided(shortcut + h, self.output_scale)


class AdaGroupNorm(nn.Module):
    """(1 + scale) GroupNorm(x) + shift, with scale and shift linear in the time embedding.

    Args:
        channels: Features of each pixel.
        groups: Groups; divides channels.
        spec: Gives the embedding's width and epsilon.
    """

    def __init__(self, channels: int, groups: int, spec: ResnetSpec) -> None:
        super().__init__()
        group_norm(groups, channels, spec.eps)  # refuses what F.group_norm would only at a call
        self.groups, self.eps = groups, spec.eps
        self.linear = nn.Linear(spec.temb_channels, 2 * channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        scale, shift = self.linear(temb)[:, :, None, None].chunk(2, dim=1)
        return normalize(x, self.groups, self.eps) * (1 + scale) + shift


class AdaResnetBlock(nn.Module):
    """shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))))))), both norms adaptive.

    The residual block of Crowson's k-diffusion; parameters have the names and shapes of diffusers'
    `ResnetBlockCondNorm2D`.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        spec: See `ResnetSpec`; its groups are norm1's, scale_shift and output_scale do not apply.
        groups_out: Groups of norm2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, spec: ResnetSpec, *, groups_out: int
    ) -> None:
        super().__init__()
        self.norm1 = AdaGroupNorm(in_channels, spec.groups, spec)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaGroupNorm(out_channels, groups_out, spec)
        self.dropout = nn.Dropout(spec.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[spec.act_fn]()
        same = in_channels == out_channels
        self.conv_shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: (B, C_in, H, W); temb: (B, temb_channels), not activated -> (B, C_out, H, W)."""
        h = self.conv1(self.nonlinearity(self.norm1(x, temb)))
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h, temb))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def default_groups(channels: int) -> int:
    """Groups of a GroupNorm where norm_num_groups is None, as in diffusers."""
    return min(channels // 4, 32)
