"""Exponential moving averages of the weights, stored by parameter name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from training.config import EMAConfig
from training.distributed.fsdp import distribute_like


class EMA:
    """average <- decay * average + (1 - decay) * weight, in float32, after each update.

    It starts as a copy of the weights (Ho et al. 2020 do the same by a first decay of 1e-10), and
    has no debiasing. Tensors are matched by name, so a network with another parameter order cannot
    swap them silently.

    Args:
        parameters: The network's named parameters, held by reference.
        decay: Decay rate, in [0, 1).
        warmup: Limit the decay to (1 + k) / (10 + k) at update k = 0, 1, ..., as TensorFlow's
            ExponentialMovingAverage(num_updates=k) does.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, warmup: bool = False):
        self.parameters = dict(parameters)
        self.decay = decay
        self.warmup = warmup
        self.averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self.parameters.items()
        }

    def decay_at(self, update: int) -> float:
        """The decay rate of update `update`, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Update with the weights after update `update`, counted from 0."""
        weights = [parameter.detach().float() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - self.decay_at(update))

    @torch.no_grad()
    def restart(self) -> None:
        """Start again as a copy of the weights."""
        for name, average in self.averages.items():
            average.copy_(self.parameters[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, not copied."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load saved averages.

        Raises:
            ValueError: If names or shapes differ from the network's.
        """
        if wrong := sorted(state.keys() ^ self.averages.keys()):
            raise UserError(f"the saved average and the network differ in {wrong[:5]}")
        for name, average in self.averages.items():
            if state[name].shape != average.shape:
                raise UserError(
                    f"the saved average of {name} has shape {tuple(state[name].shape)}, "
                    f"the network's is {tuple(average.shape)}"
                )
            average.copy_(distribute_like(average, state[name]))


class Averages:
    """The averages of a run: `main`, which is sampled, and one for each further decay.

    Attributes:
        main: The average with `ema.decay`.
        by_name: All averages by file stem: "ema", "ema-0.999", ...
    """

    def __init__(self, network: nn.Module, config: EMAConfig):
        parameters = dict(network.named_parameters())
        self.main = EMA(parameters, config.decay, config.warmup)
        self.by_name = {"ema": self.main} | {
            f"ema-{decay}": EMA(parameters, decay, config.warmup) for decay in config.more
        }

    def update(self, update: int) -> None:
        """Update with the weights after update `update`, counted from 0."""
        for ema in self.by_name.values():
            ema.update(update)
