"""The tensors of a run, to and from the files of a checkpoint."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from training.distributed.fsdp import distribute_like, gather_full
from training.ema import Averages

# The optimisers' state of one parameter.
ADAM_STATE, MUON_STATE = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}


@dataclass(frozen=True)
class TrainingState:
    """The tensors of a run that a checkpoint holds: network, averages and optimiser state."""

    network: nn.Module
    averages: Averages
    optimizer: torch.optim.Optimizer

    def tensors(self, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """All tensors: file stem -> name -> tensor; the optimiser's names are `parameter:quantity`.

        If the network is sharded, every process must call this; those with `keep` get the tensors.
        """
        optimizer = {
            f"{name}:{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        weights = dict(self.network.state_dict())
        averages = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        files = {"weights": weights, "optimizer": optimizer, **averages}
        return {stem: gather_full(tensors, keep) for stem, tensors in files.items()}

    def extra_weights(self, raw: bool, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """The further averages, and the raw weights if `raw`, by name."""
        weights = {name: ema.state_dict() for name, ema in self.averages.by_name.items()}
        del weights["ema"]
        weights |= {"raw": dict(self.network.state_dict())} if raw else {}
        return {name: gather_full(tensors, keep) for name, tensors in weights.items()}

    def load(self, folder: Path) -> list[str]:
        """Load the tensors of a checkpoint.

        A further average that it lacks starts as a copy of its weights; where the optimiser is
        another one, the state of a parameter starts anew.

        Returns:
            A note to print for each of these.

        Raises:
            ValueError: If the weights do not fit this network.
        """
        self._load_weights(load_file(folder / "weights.safetensors"), folder)
        notes = []
        for name, ema in self.averages.by_name.items():
            path = folder / f"{name}.safetensors"
            if name != "ema" and not path.exists():
                ema.restart()
                notes.append(f"new         {name}: {folder} lacks it; it starts from the weights")
            else:
                ema.load_state_dict(load_file(path))
        return notes + self._load_optimizer(load_file(folder / "optimizer.safetensors"))

    def _load_weights(self, weights: dict[str, Tensor], folder: Path) -> None:
        current = self.network.state_dict()
        wrong = [
            name
            for name in sorted(current.keys() | weights.keys())
            if name not in weights
            or name not in current
            or weights[name].shape != current[name].shape
        ]
        if wrong:
            raise UserError(
                f"{folder} does not fit the network: {len(wrong)} weights are missing, not "
                f"expected or of another shape, {wrong[0]} first. Use the run's settings of the "
                "network, its channels and its classes; --override cannot change these"
            )
        self.network.load_state_dict(
            {name: distribute_like(current[name], value) for name, value in weights.items()}
        )

    def _load_optimizer(self, saved: dict[str, Tensor]) -> list[str]:
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in saved.items():
            owner, _, quantity = name.rpartition(":")
            states[owner][quantity] = value
        groups = self.optimizer.param_groups
        by_muon = {id(one) for group in groups if group.get("muon") for one in group["params"]}
        parameters = dict(self.network.named_parameters())
        other = []
        for owner, state in states.items():
            parameter = parameters[owner]
            if state.keys() != (MUON_STATE if id(parameter) in by_muon else ADAM_STATE):
                other.append(owner)
                continue
            for quantity, value in state.items():
                self.optimizer.state[parameter][quantity] = self._to_state(parameter, value)
        if not other:
            return []
        return [
            f"new         the optimiser's state of {len(other)} of {len(states)} parameters, which "
            "another optimiser saved"
        ]

    def _to_state(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """A tensor of the optimiser's state as the optimiser creates it."""
        if value.shape == parameter.shape:
            value = distribute_like(parameter, value)
            # In the memory format of the parameter.
            return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        # Adam's step count is a scalar, which the optimiser keeps on the CPU unless fused.
        fused = self.optimizer.param_groups[0].get("fused")
        return value.to(parameter.device) if fused else value
