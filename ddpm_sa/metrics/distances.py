"""Fréchet and kernel distance between two sets of features."""

import torch
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.metrics.moments import Moments

BLOCK = 1024  # rows per matrix product


def frechet_distance(one: Moments, other: Moments) -> float:
    """Compute ‖m - m'‖² + tr(S + S' - 2 (S S')^1/2) (Dowson & Landau 1982, eq. 4).

    In Inception's features this is FID (Heusel et al. 2017).

    The last trace is computed as the nuclear norm of S^1/2 S'^1/2, whose singular values need no
    square root. The eigenvalues of S S' would lose half their digits if a covariance is singular,
    as it is for fewer images than features.

    Raises:
        ValueError: If the sets differ in the number of features, or have fewer than 2 rows.
    """
    if one.mean.shape != other.mean.shape:
        raise UserError(
            f"sets of {len(one.mean)} and {len(other.mean)} features cannot be compared"
        )
    S, S_other = one.covariance, other.covariance
    trace_of_root = torch.linalg.svdvals(_root(S) @ _root(S_other)).sum()
    squared_shift = (one.mean - other.mean).square().sum()
    return float(squared_shift + S.trace() + S_other.trace() - 2 * trace_of_root)


def _root(S: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(S)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Compute the unbiased squared MMD under the kernel (x·y / D + 1)³ (Bińkowski et al. 2018).

    It is their eq. 4 over all pairs, which the usual mean over random subsets of the images
    estimates. For two sets from one distribution it is 0 on average, so it may be negative.

    Args:
        one, other: Features, (N, D) and (M, D), at least 2 rows each.

    Raises:
        ValueError: If the sets differ in the number of features, or have fewer than 2 rows.
    """
    if one.shape[1] != other.shape[1]:
        raise UserError(f"sets of {one.shape[1]} and {other.shape[1]} features cannot be compared")
    if min(len(one), len(other)) < 2:
        raise UserError(f"sets of {len(one)} and {len(other)} images; each needs at least 2")
    x, y = one.double(), other.double()
    within = [
        (_kernel_sum(z, z) - float(_kernel(z.square().sum(1), z.shape[1]).sum()))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel(product: Tensor, features: int) -> Tensor:
    return (product / features + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(float(_kernel(rows @ y.T, x.shape[1]).sum()) for rows in x.split(BLOCK))
