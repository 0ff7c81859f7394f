"""Split work over the processes, and combine the results."""

import numpy as np
from accelerate import Accelerator
from torch import Tensor


def process_indices(number: int, accelerator: Accelerator) -> np.ndarray:
    """Indices of the items that this process handles; counts differ by at most one."""
    return np.arange(accelerator.process_index, number, accelerator.num_processes)


def sum_over_processes(parts: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum over the processes; exact if each row is nonzero on one process only."""
    total = accelerator.reduce(parts, "sum")
    assert isinstance(total, Tensor)
    return total.cpu()
