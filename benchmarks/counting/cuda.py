"""What CUDA does and the meta device does not: autocast, and attention in one kernel."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# The parts of AT_FORALL_LOWER_PRECISION_FP, and of AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE
# in ATen/autocast_mode.h, that these networks and their loss use.
IN_HALF = {"conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "scaled_dot_product_attention"}
IN_FLOAT32 = {"group_norm", "layer_norm", "softmax", "exp", "pow", "sum"}


class _Autocast(TorchFunctionMode):
    """Casts floating-point tensors before the operations of either set.

    A parameter's cast is kept for as long as the mode is on, as by autocast itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        dtype = torch.bfloat16 if name in IN_HALF else torch.float32 if name in IN_FLOAT32 else None
        kwargs = kwargs or {}
        if dtype is not None:
            args, kwargs = tree_map_only(Tensor, lambda x: self._cast(x, dtype), (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if not tensor.is_leaf or not isinstance(tensor, torch.nn.Parameter):
            return tensor.to(dtype)
        if id(tensor) not in self.kept:
            self.kept[id(tensor)] = tensor.to(dtype)
        return self.kept[id(tensor)]


class _FusedAttention(TorchFunctionMode):
    """Attention as one kernel: flash attention in half precision, the other in float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        kwargs = {k: v for k, v in (kwargs or {}).items() if v is not None}
        q, k, v = args if args else (kwargs.pop(name) for name in ("query", "key", "value"))
        scale = kwargs.get("scale")
        if q.dtype == torch.float32:
            kernel = torch.ops.aten._scaled_dot_product_efficient_attention
            return kernel(q, k, v, None, torch.is_grad_enabled(), scale=scale)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


@contextlib.contextmanager
def autocast_as_on_cuda(enabled: bool) -> Iterator[None]:
    """CUDA's autocast to bfloat16, for the meta device, which has none."""
    with _Autocast() if enabled else contextlib.nullcontext():
        yield


def fused_attention() -> TorchFunctionMode:
    """Has F.scaled_dot_product_attention call one of CUDA's kernels."""
    return _FusedAttention()
