"""Work that processes share: each does its part, and all get the whole."""

import numpy as np
from accelerate import Accelerator
from torch import Tensor


def share(number: int, accelerator: Accelerator) -> np.ndarray:
    """Which of `number` things this process takes; no two processes differ by more than one."""
    return np.arange(accelerator.process_index, number, accelerator.num_processes)


def together(parts: Tensor, accelerator: Accelerator) -> Tensor:
    """What the processes have filled in, each a row that is 0 in all others: exactly their sum."""
    whole = accelerator.reduce(parts, "sum")
    assert isinstance(whole, Tensor)
    return whole.cpu()
