"""What openai's UNetModel computes, written over the names of its state dict.

It makes networks of any configuration, which the recorded ones are too few for; test_openai.py
holds it by those. Nothing of the package is used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class UNetModel:
    """Their arguments; attention is given by level, and heads by the width of the attention.

    Those of the way up are `heads` too if there are no others.
    """

    model_channels: int = 32
    channel_mult: tuple[float, ...] = (1, 2)
    num_res_blocks: int = 1
    attended: tuple[int, ...] = (1,)
    heads: dict[int, int]
    heads_up: dict[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 6
    num_classes: int | None = None
    scale_shift: bool = True
    resblock_updown: bool = False
    conv_resample: bool = True
    new_order: bool = False

    def weights(self, seed: int = 0) -> dict[str, Tensor]:
        """Normal weights, norms around 1."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, shape in self.shapes():
            noise = torch.randn(shape, generator=generator)
            norm = len(shape) == 1 and name.endswith("weight")
            made[name] = noise * (0.1 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5) + norm
        return made

    def shapes(self) -> Shapes:
        """Names and shapes of all weights."""
        wide = 4 * self.model_channels
        widths = [int(mult * self.model_channels) for mult in self.channel_mult]
        yield from _layer("time_embed.0", wide, self.model_channels)
        yield from _layer("time_embed.2", wide, wide)
        if self.num_classes is not None:
            yield "label_emb.weight", (self.num_classes, wide)
        yield from _layer("input_blocks.0.0", widths[0], self.in_channels, 3, 3)
        number, now, skips = 1, widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                yield from self._block(f"input_blocks.{number}", now, width, level in self.attended)
                skips.append(width)
                number, now = number + 1, width
            if level < len(widths) - 1:
                yield from self._resampler(f"input_blocks.{number}.0", "op", width)
                skips.append(width)
                number += 1
        yield from self._residual("middle_block.0", now, now)
        yield from _attention("middle_block.1", now)
        yield from self._residual("middle_block.2", now, now)
        number = 0
        for level, width in reversed(list(enumerate(widths))):
            for last in [False] * self.num_res_blocks + [True]:
                block, attends = f"output_blocks.{number}", level in self.attended
                yield from self._block(block, now + skips.pop(), width, attends)
                if last and level:
                    yield from self._resampler(f"{block}.{1 + attends}", "conv", width)
                number, now = number + 1, width
        yield from _layer("out.0", now)
        yield from _layer("out.2", self.out_channels, now, 3, 3)

    def _block(self, name: str, before: int, after: int, attends: bool) -> Shapes:
        yield from self._residual(f"{name}.0", before, after)
        if attends:
            yield from _attention(f"{name}.1", after)

    def _residual(self, name: str, before: int, after: int) -> Shapes:
        yield from _layer(f"{name}.in_layers.0", before)
        yield from _layer(f"{name}.in_layers.2", after, before, 3, 3)
        wide = after * (2 if self.scale_shift else 1)
        yield from _layer(f"{name}.emb_layers.1", wide, 4 * self.model_channels)
        yield from _layer(f"{name}.out_layers.0", after)
        yield from _layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            yield from _layer(f"{name}.skip_connection", after, before, 1, 1)

    def _resampler(self, name: str, convolution: str, width: int) -> Shapes:
        if self.resblock_updown:
            yield from self._residual(name, width, width)
        elif self.conv_resample:
            yield from _layer(f"{name}.{convolution}", width, width, 3, 3)

    def __call__(self, w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Images (B, 3, H, W), timesteps (B,) and classes (B,) -> (B, out_channels, H, W)."""
        half = self.model_channels // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = F.linear(torch.cat([angles.cos(), angles.sin()], 1), *_of(w, "time_embed.0"))
        emb = F.linear(F.silu(emb), *_of(w, "time_embed.2"))
        if y is not None:
            emb = emb + w["label_emb.weight"][y]
        x = F.conv2d(x, *_of(w, "input_blocks.0.0"), padding=1)
        skips, a_level = [x], self.num_res_blocks + 1
        for number in range(1, len(self.channel_mult) * a_level):
            how = None if number % a_level else 0.5
            x = self._apply(w, f"input_blocks.{number}", x, emb, [how])
            skips.append(x)
        x = self._apply(w, "middle_block", x, emb, [None] * 3)
        for number in range(len(self.channel_mult) * a_level):
            x = torch.cat([x, skips.pop()], 1)
            x = self._apply(w, f"output_blocks.{number}", x, emb, [None, 2, 2])
        return F.conv2d(F.silu(_norm(w, "out.0", x)), *_of(w, "out.2"), padding=1)

    def _apply(self, w: dict, block: str, x: Tensor, emb: Tensor, how: list) -> Tensor:
        """The modules of a block, which names tell apart; `how` scales what resamples."""
        if not (self.conv_resample or self.resblock_updown) and how == [0.5]:
            return _scaled(x, 0.5)
        for place in range(3):
            name = f"{block}.{place}"
            if f"{name}.in_layers.0.weight" in w:
                x = self._residually(w, name, x, emb, how[place])
            elif f"{name}.qkv.weight" in w:
                x = self._attend(w, name, x)
            elif f"{name}.op.weight" in w:
                x = F.conv2d(x, *_of(w, f"{name}.op"), stride=2, padding=1)
            elif f"{name}.conv.weight" in w:
                doubled = F.interpolate(x, scale_factor=2.0)
                x = F.conv2d(doubled, *_of(w, f"{name}.conv"), padding=1)
        if not (self.conv_resample or self.resblock_updown) and self._ends_level(block):
            x = _scaled(x, 2)
        return x

    def _ends_level(self, block: str) -> bool:
        """Whether a level on the way up, but the last, ends with this block."""
        kind, _, number = block.partition(".")
        after = int(number or 0) + 1
        a_level = self.num_res_blocks + 1
        last = after == len(self.channel_mult) * a_level
        return kind == "output_blocks" and after % a_level == 0 and not last

    def _residually(
        self, w: dict, name: str, x: Tensor, emb: Tensor, scale: float | None
    ) -> Tensor:
        h = F.silu(_norm(w, f"{name}.in_layers.0", x))
        if scale:
            x, h = _scaled(x, scale), _scaled(h, scale)
        h = F.conv2d(h, *_of(w, f"{name}.in_layers.2"), padding=1)
        shift = F.linear(F.silu(emb), *_of(w, f"{name}.emb_layers.1"))[..., None, None]
        if self.scale_shift:
            factor, shift = shift.chunk(2, 1)
            h = _norm(w, f"{name}.out_layers.0", h) * (1 + factor) + shift
        else:
            h = _norm(w, f"{name}.out_layers.0", h + shift)
        h = F.conv2d(F.silu(h), *_of(w, f"{name}.out_layers.3"), padding=1)
        if f"{name}.skip_connection.weight" in w:
            x = F.conv2d(x, *_of(w, f"{name}.skip_connection"))
        return x + h

    def _attend(self, w: dict, name: str, x: Tensor) -> Tensor:
        upwards = name.startswith("output_blocks") and self.heads_up is not None
        heads = (self.heads_up if upwards else self.heads)[x.shape[1]]
        pixels = x.flatten(2)
        qkv = F.conv1d(_norm(w, f"{name}.norm", pixels), *_of(w, f"{name}.qkv"))
        rows = "(three h c)" if self.new_order else "(h three c)"
        q, k, v = rearrange(qkv, f"b {rows} n -> three b h c n", three=3, h=heads)
        seen = (torch.einsum("bhct,bhcs->bhts", q, k) * q.shape[2] ** -0.5).softmax(-1)
        mixed = torch.einsum("bhts,bhcs->bhct", seen, v).flatten(1, 2)
        return x + F.conv1d(mixed, *_of(w, f"{name}.proj_out")).reshape(x.shape)


def _layer(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _attention(name: str, width: int) -> Shapes:
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.qkv", 3 * width, width, 1)
    yield from _layer(f"{name}.proj_out", width, width, 1)


def _of(w: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, *_of(w, name), eps=1e-5)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return F.avg_pool2d(x, 2) if scale < 1 else F.interpolate(x, scale_factor=scale)
