"""The memory that a computation takes, counted without doing it."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Kernels need scratch space of their own, such as reordered copies of their inputs, and allocators
# lose some to fragmentation. For whole training steps on a CPU (mnist and cifar10, in float32 and
# bfloat16, with and without gradient checkpointing) this was mostly 3 to 6 times the
# largest tensor.
SCRATCH = 4


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return, for as long as they live.

    Attributes:
        now: Bytes of the tensors that are alive.
        peak: The most so far, or since `restart`.
        largest: Bytes of the largest tensor so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._alive: dict[int, weakref.ref] = {}

    def restart(self) -> None:
        """Begin a new peak, from the tensors that are alive."""
        self.peak = self.now

    @property
    def scratch(self) -> int:
        """An estimate of what kernels and allocator take besides the tensors."""
        return SCRATCH * self.largest

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        # Views share a storage, whose address is its own while it lives.
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return

        def forget(_: weakref.ref) -> None:
            del self._alive[address]
            self.now -= size

        self._alive[address] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, size)


@contextlib.contextmanager
def counted_without_computing() -> Iterator[Peak]:
    """Inside, tensors that are made have shapes but no data, and their memory is counted.

    Tensors from outside cannot be used inside.
    """
    with FakeTensorMode(), Peak() as peak:
        yield peak


def largest_that_fits(sizes: list[int], limit: float, needed: Callable[[int], float]) -> int | None:
    """The largest of some batch sizes that needs no more than `limit`; None if none does.

    Only the smallest and the largest are measured. The memory at every moment grows linearly with
    the batch, so that the peak, the largest of these lines, is convex: between two sizes it lies
    below the straight line, which is used here.

    Args:
        sizes: Ascending.
        limit, needed: In bytes; `needed` gives those of a batch size.
    """
    least, most = sizes[0], sizes[-1]
    low, high = needed(least), needed(most)
    if high <= limit:
        return most
    slope = (high - low) / max(most - least, 1)
    return max((size for size in sizes if low + slope * (size - least) <= limit), default=None)
