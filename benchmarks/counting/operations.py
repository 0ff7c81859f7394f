"""Count the operations of PyTorch, by kind: kernels, bytes, products, and the least time."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
CAST, LAYOUT, OTHER = "cast", "layout change", "elementwise"
# By the name of an operation, the first that it contains; the rest are elementwise.
KINDS = {
    "convolution": "convolution",
    "dot_product": "attention",
    "group_norm": "normalisation",
    "addmm": "matrix product",
    "bmm": "matrix product",
    "mm": "matrix product",
    "softmax": "softmax",
    "cat": "concatenation",
    "upsample": "resampling",
    "sum": "reduction",
    "mean": "reduction",
}
KINDS_IN_ORDER = tuple(dict.fromkeys([*KINDS.values(), OTHER, CAST, LAYOUT]))
COPIES = {aten._to_copy.default, aten.clone.default, aten.copy_.default}
ALLOCATES = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
# The statistics take a pass of their own, before the values are normalised.
READ_TWICE = {aten.native_group_norm.default, aten.native_group_norm_backward.default}


@dataclasses.dataclass(frozen=True)
class Work:
    """Some operations.

    Attributes:
        kernels: How many.
        casts, layout_changes: How many of them copy to another type, or another order in memory.
        bytes: Read and written.
        flops: Of convolutions, matrix products and attention, a multiplication and an addition
            counted as two.
        seconds: The least time: of each kernel, that of its bytes or its flops.
    """

    kernels: int = 0
    casts: int = 0
    layout_changes: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(a + b for a, b in pairs))


class Counter(TorchDispatchMode):
    """Counts the operations on tensors of the meta device.

    Args:
        bandwidth: Bytes per second.
        rates: Flops per second in each type.

    Attributes:
        work: By kind of operation.
    """

    def __init__(self, bandwidth: float, rates: Mapping[torch.dtype, float]) -> None:
        super().__init__()
        self.bandwidth, self.rates = bandwidth, rates
        self.work: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        args = self._in_one_layout(func, args)
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func not in ALLOCATES and not _is_view(func, inputs, outputs):
            packet = func._overloadpacket  # pyright: ignore[reportFunctionMemberAccess]
            flops = 0
            if packet in flop_registry:
                flops = flop_registry[packet](*args, **kwargs, out_val=result)
            self._count(func, inputs, outputs, flops)
        return result

    def _in_one_layout(self, func: Callable[..., Any], args: tuple) -> tuple:
        """The arguments as CUDA's kernel takes them; reordering them is counted.

        A convolution runs in channels_last if any of its images is in it. GroupNorm makes its
        images contiguous.
        """
        name, images = str(func), [a for a in args if isinstance(a, Tensor) and a.ndim == 4]
        if "convolution" not in name and "group_norm" not in name:
            return args
        order = torch.contiguous_format
        if "convolution" in name and torch.channels_last in map(suggest_memory_format, images):
            order = torch.channels_last
        return tuple(
            self._reordered(a, order) if isinstance(a, Tensor) and a.ndim == 4 else a for a in args
        )

    def _reordered(self, image: Tensor, order: torch.memory_format) -> Tensor:
        if image.is_contiguous(memory_format=order):
            return image
        changed = torch.empty_like(image, memory_format=order)
        self._count(aten.clone.default, [image], [changed], 0)
        return changed

    def _count(
        self, func: Callable[..., Any], inputs: list[Tensor], outputs: list[Tensor], flops: int
    ) -> None:
        kind = _kind(func, inputs, outputs)
        read = sum(map(_touched, inputs)) + (_touched(inputs[0]) if func in READ_TWICE else 0)
        moved = read + sum(map(_touched, outputs))
        seconds = moved / self.bandwidth
        if flops:
            seconds = max(seconds, flops / self.rates[outputs[0].dtype])
        self.work[kind] += Work(1, kind == CAST, kind == LAYOUT, moved, flops, seconds)


def _kind(func: Callable[..., Any], inputs: list[Tensor], outputs: list[Tensor]) -> str:
    if func in COPIES:
        return CAST if inputs[-1].dtype != outputs[0].dtype else LAYOUT
    name = str(func)
    return next((kind for part, kind in KINDS.items() if part in name), OTHER)


def _is_view(func: Callable[..., Any], inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operation returns memory that was there, and does not write to it."""
    if not outputs or func._schema.is_mutable:  # pyright: ignore[reportFunctionMemberAccess]
        return not outputs
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(output.untyped_storage()._cdata in storages for output in outputs)


def _touched(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; what is expanded is read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    count = 1
    for size in sizes:
        count *= size
    return count * tensor.element_size() if tensor.numel() else 0
