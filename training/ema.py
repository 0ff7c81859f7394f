"""Exponential moving averages of the weights, kept by name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.config import EMAConfig
from training.distributed.fsdp import laid_out_as


class EMA:
    """average <- decay * average + (1 - decay) * weight, in float32, after each update.

    It starts as a copy of the weights (Ho et al. 2020 do the same by a first decay of 1e-10), and
    has no debiasing. Tensors are found by name, so a network whose parameters come in another
    order cannot swap them silently.

    Args:
        parameters: The network's named parameters; kept by reference and read at each update.
        decay: Share of the average that an update keeps, in [0, 1).
        warmup: Keep no more than (1 + k) / (10 + k) at update k = 0, 1, ..., as TensorFlow's
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
        """The share kept by update number `update`, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Take in the weights after update number `update`, counted from 0."""
        weights = [parameter.detach().float() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - self.decay_at(update))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name (not copies)."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved averages.

        Raises:
            ValueError: If a name or a shape is not the network's.
        """
        if wrong := sorted(state.keys() ^ self.averages.keys()):
            raise ValueError(f"the saved average and the network differ in {wrong[:5]}")
        for name, average in self.averages.items():
            if state[name].shape != average.shape:
                raise ValueError(
                    f"the saved average of {name} has shape {tuple(state[name].shape)}, "
                    f"the network's is {tuple(average.shape)}"
                )
            average.copy_(laid_out_as(average, state[name]))


class Averages:
    """A run's averages: `main`, whose model is sampled, and one for each further decay.

    Attributes:
        main: Of `ema.decay`.
        by_name: All of them, as their files are named: "ema", "ema-0.999", ...
    """

    def __init__(self, network: nn.Module, config: EMAConfig):
        parameters = dict(network.named_parameters())
        self.main = EMA(parameters, config.decay, config.warmup)
        self.by_name = {"ema": self.main} | {
            f"ema-{decay}": EMA(parameters, decay, config.warmup) for decay in config.more
        }

    def update(self, update: int) -> None:
        """Take in the weights after update number `update`, counted from 0."""
        for ema in self.by_name.values():
            ema.update(update)
