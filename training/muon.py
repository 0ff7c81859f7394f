"""Muon: orthogonalised momentum for weight matrices, AdamW for everything else.

Keller Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the step
size is that of Liu et al. 2025 ("Muon is scalable for LLM training"), so AdamW's lr suits both.
torch.optim.Muon takes only two-dimensional weights, one at a time; a U-Net has convolutions of few
shapes, which are orthogonalised together.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

# The quintic a x + b x³ + c x⁵, five times, takes any singular value from 0.001 to 1 to between 0.7
# and 1.2: Jordan's coefficients, chosen for their slope at 0.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95
# Prefixes of the input and output layers, which are not hidden.
ENDS = ("conv_in.", "conv_out.", "class_embedding.")


class Muon(torch.optim.AdamW):
    """Muon for hidden weights; AdamW for biases, norms, and the input and output layers.

    Args:
        network: The network, whose parameters are named as in UNet.
        lr: Learning rate of both.
        betas, eps: For AdamW.
        weight_decay: Decoupled weight decay of both.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        matrices, others = [], []
        for name, parameter in network.named_parameters():
            hidden = parameter.ndim >= 2 and not name.startswith(ENDS)
            (matrices if hidden else others).append(parameter)
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; AdamW skips those without one."""
        assert closure is None
        group = next(group for group in self.param_groups if group["muon"])
        taken = [parameter for parameter in group["params"] if parameter.grad is not None]
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in taken:
            by_shape[parameter.flatten(1).shape].append(parameter)
        for alike in by_shape.values():
            self._move(alike, group["lr"], group["weight_decay"])
        for parameter in taken:
            parameter.grad = None
        super().step()

    def _move(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Update weights that are matrices of one shape, outputs x (inputs of a pixel's output)."""
        directions = orthogonalize(torch.stack([self._momentum(p) for p in parameters]))
        # An orthogonal m x n matrix has a root mean square of 1 / sqrt(max(m, n)), AdamW's usual
        # step one of 0.2 to 0.4.
        size = lr * 0.2 * max(directions.shape[1:]) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.sub_(direction.view(parameter.shape), alpha=size)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of the gradient, as a matrix."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM).flatten(1)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Map each U S Vᵀ to U S' Vᵀ with S' near 1, by a quintic Newton-Schulz iteration.

    In float32, since a CPU is not faster in bfloat16 for such small matrices.

    Args:
        matrices: (N, m, n), float32.

    Returns:
        (N, m, n); singular values between 0.7 and 1.2 where they were above a thousandth of the
        matrix's norm.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if wide is matrices else x.mT
