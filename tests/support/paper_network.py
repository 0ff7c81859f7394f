"""What the DDPM paper's network computes, written over the names of pesser/pytorch_diffusion.

It makes networks of any ch_mult, which the recorded one is too few for; test_converted.py holds it
by that one. Nothing of the package is used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Their arguments; attention is given by level."""

    ch: int = 32
    ch_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attended: tuple[int, ...] = (1,)

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
        widths, lowest = [self.ch * mult for mult in self.ch_mult], len(self.ch_mult) - 1
        yield from _layer("temb.dense.0", 4 * self.ch, self.ch)
        yield from _layer("temb.dense.1", 4 * self.ch, 4 * self.ch)
        yield from _layer("conv_in", self.ch, 3, 3, 3)
        now, skips = self.ch, [self.ch]
        for level, width in enumerate(widths):
            for index in range(self.num_res_blocks):
                yield from self._layer_of_level(f"down.{level}", index, now, width)
                now = width
                skips.append(now)
            if level < lowest:
                yield from _layer(f"down.{level}.downsample.conv", now, now, 3, 3)
                skips.append(now)
        yield from self._block("mid.block_1", now, now)
        yield from _attention("mid.attn_1", now)
        yield from self._block("mid.block_2", now, now)
        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.num_res_blocks + 1):
                yield from self._layer_of_level(f"up.{level}", index, now + skips.pop(), width)
                now = width
            if level:
                yield from _layer(f"up.{level}.upsample.conv", now, now, 3, 3)
        yield from _layer("norm_out", now)
        yield from _layer("conv_out", 3, now, 3, 3)

    def _layer_of_level(self, level: str, index: int, before: int, after: int) -> Shapes:
        yield from self._block(f"{level}.block.{index}", before, after)
        if int(level.partition(".")[2]) in self.attended:
            yield from _attention(f"{level}.attn.{index}", after)

    def _block(self, name: str, before: int, after: int) -> Shapes:
        yield from _layer(f"{name}.norm1", before)
        yield from _layer(f"{name}.conv1", after, before, 3, 3)
        yield from _layer(f"{name}.temb_proj", after, 4 * self.ch)
        yield from _layer(f"{name}.norm2", after)
        yield from _layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            yield from _layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def __call__(self, w: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Images (B, 3, H, W) and timesteps (B,) -> (B, 3, H, W)."""
        half = self.ch // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
        temb = F.linear(torch.cat([angles.sin(), angles.cos()], 1), *_of(w, "temb.dense.0"))
        temb = F.silu(F.linear(F.silu(temb), *_of(w, "temb.dense.1")))
        x = F.conv2d(x, *_of(w, "conv_in"), padding=1)
        skips = [x]
        for level in range(len(self.ch_mult)):
            for index in range(self.num_res_blocks):
                x = _apply(w, f"down.{level}", index, x, temb)
                skips.append(x)
            if (name := f"down.{level}.downsample.conv") + ".weight" in w:
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), *_of(w, name), stride=2)
                skips.append(x)
        x = _residually(w, "mid.block_1", x, temb)
        x = _residually(w, "mid.block_2", _attend(w, "mid.attn_1", x), temb)
        for level in reversed(range(len(self.ch_mult))):
            for index in range(self.num_res_blocks + 1):
                x = _apply(w, f"up.{level}", index, torch.cat([x, skips.pop()], 1), temb)
            if (name := f"up.{level}.upsample.conv") + ".weight" in w:
                x = F.conv2d(F.interpolate(x, scale_factor=2.0), *_of(w, name), padding=1)
        return F.conv2d(F.silu(_norm(w, "norm_out", x)), *_of(w, "conv_out"), padding=1)


def _apply(w: dict[str, Tensor], level: str, index: int, x: Tensor, temb: Tensor) -> Tensor:
    x = _residually(w, f"{level}.block.{index}", x, temb)
    attention = f"{level}.attn.{index}"
    return _attend(w, attention, x) if f"{attention}.q.weight" in w else x


def _residually(w: dict[str, Tensor], name: str, x: Tensor, temb: Tensor) -> Tensor:
    h = F.conv2d(F.silu(_norm(w, f"{name}.norm1", x)), *_of(w, f"{name}.conv1"), padding=1)
    h = h + F.linear(temb, *_of(w, f"{name}.temb_proj"))[..., None, None]
    h = F.conv2d(F.silu(_norm(w, f"{name}.norm2", h)), *_of(w, f"{name}.conv2"), padding=1)
    if f"{name}.nin_shortcut.weight" in w:
        x = F.conv2d(x, *_of(w, f"{name}.nin_shortcut"))
    return x + h


def _attend(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = _norm(w, f"{name}.norm", x)
    q, k, v = (F.conv2d(h, *_of(w, f"{name}.{part}")).flatten(2) for part in "qkv")
    seen = (q.mT @ k * x.shape[1] ** -0.5).softmax(-1)
    return x + F.conv2d((v @ seen.mT).reshape(x.shape), *_of(w, f"{name}.proj_out"))


def _layer(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _attention(name: str, width: int) -> Shapes:
    yield from _layer(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.{part}", width, width, 1, 1)


def _of(w: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, *_of(w, name), eps=1e-6)
