"""Whether an exported file computes what the network computes."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.export.program import Inputs, network_copy, trials
from ddpm_sa.pipeline import Pipeline

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest difference from the network, over the largest value of its output. Of float16, which has
11 bits, hundreds of roundings in a row."""


@torch.no_grad()
def check(
    run: Callable[[Inputs], Tensor], pipeline: Pipeline, dtype: torch.dtype, dynamic_size: bool
) -> float:
    """Compare an exported file with the network at several sizes.

    Args:
        run: Evaluates what was read back from the file.
        pipeline, dtype, dynamic_size: As in `capture`.

    Returns:
        The largest difference, over the largest value of the network's output.

    Raises:
        ValueError: If it is above the tolerance in float16, whose range a network may exceed.
        RuntimeError: If it is in float32: a fault of the exporter.
    """
    # The weights of the file, with which float32 is computed.
    network = network_copy(pipeline, dtype).float()
    largest = 0.0
    for inputs in trials(pipeline, dtype, dynamic_size):
        expected = network(**inputs | {"sample": inputs["sample"].float()})
        error = (run(inputs).float() - expected).abs().max() / expected.abs().max()
        # A NaN is not at most the tolerance either.
        if not error <= TOLERANCE[dtype]:
            message = f"the exported network differs from the model by {error:.1e} of its output"
            if dtype == torch.float16:
                raise UserError(f"{message}: half precision is too little for it; use float32")
            raise RuntimeError(f"{message}, for a sample of {tuple(inputs['sample'].shape)}")
        largest = max(largest, error.item())
    return largest
