"""Numbers of a restoration: how well the samples fit the measurement, and the truth."""

import math

from torch import Tensor

from ddpm_sa.restoration import LinearOperator


def summarise(
    y: Tensor, samples: Tensor, truth: Tensor | None, operator: LinearOperator
) -> list[dict[str, float]]:
    """For each image its "residual", and with a truth the "psnr" of the mean of its samples.

    The residual is the root mean square of y - A x, in units where images are in [-1, 1]: about
    sigma if the samples fit. The peak signal-to-noise ratio is in dB.

    Args:
        y: (N, ...).
        samples: (N, S, C, H, W).
        truth: (N, C, H, W), or None.
        operator: A.
    """
    numbers = []
    for i, (measured, of_image) in enumerate(zip(y, samples, strict=True)):
        row = {"residual": (operator(of_image) - measured).square().mean().sqrt().item()}
        if truth is not None:
            error = (of_image.mean(0).clamp(-1, 1) - truth[i]).square().mean().item()
            row["psnr"] = 10 * math.log10(4 / error) if error else math.inf
        numbers.append(row)
    return numbers
