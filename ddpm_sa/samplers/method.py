"""How to sample, as one object, and a trial of it on one pixel."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.samplers.denoise import Guide, denoise
from ddpm_sa.samplers.schedulers import Options, make_scheduler


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to sample: the scheduler, its steps and options, guidance, and caching.

    Attributes:
        steps: Steps of the scheduler, at most the training's timesteps.
        scheduler: One of `ddpm_sa.samplers.schedulers.SCHEDULERS`.
        scheduler_options: Its options; `ddpm_sa.samplers.schedulers.known_options` has their names.
        guide: Such as a `ddpm_sa.guidance.base.Guidance`, or None for none.
        cache_interval: Compute the deep features of the network every so many evaluations; see
            `ddpm_sa.samplers.feature_cache`.
    """

    steps: int = 50
    scheduler: str = "ddim"
    scheduler_options: Options = field(default_factory=dict)
    guide: Guide | None = None
    cache_interval: int = 1

    def make_scheduler(self, base: Any) -> Any:
        """A scheduler for one batch of a model with this scheduler; see there."""
        return make_scheduler(self.scheduler, base, self.steps, self.scheduler_options)

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.scheduler_options.items())
        return f"scheduler={self.scheduler!r} with steps={self.steps}{options}"


class Cost(NamedTuple):
    """The number of steps that `denoise` yields, and whether any of them draws noise."""

    steps: int
    stochastic: bool


def dry_run(method: Method, base: Any) -> Cost:
    """Run a method on one pixel, to check that it works and to count its steps.

    A thousand steps take a second or two, so results are remembered.

    Args:
        method: What to try.
        base: The diffusers scheduler of the model.

    Raises:
        ValueError: As `make_scheduler` does; or if the settings lead to values that are not finite.
    """
    options = sorted(method.scheduler_options.items())
    key = repr((method.scheduler, method.steps, options, type(base), sorted(base.config.items())))
    if key not in _COSTS:
        _COSTS[key] = _dry_run(method, base)
    return _COSTS[key]


_COSTS: dict[str, Cost] = {}


def _dry_run(method: Method, base: Any) -> Cost:
    kind, pixel, draws = base.config.prediction_type, torch.ones(1, 1, 1, 1), []
    scheduler = method.make_scheduler(base)

    def network(x_t: Tensor, *_: Any) -> Any:
        halves = 2 if scheduler.config.get("variance_type") == "learned_range" else 1
        return BaseOutput(sample=torch.zeros_like(x_t).repeat(1, halves, 1, 1))

    def noise(step: int) -> Tensor:
        draws.append(step)
        return pixel

    try:
        walk = list(denoise(network, scheduler, pixel, noise, predicts=kind))
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{method} fails in diffusers: {error}") from error
    for step in walk:
        if not (step.x_0.isfinite().all() and step.x_next.isfinite().all()):
            raise UserError(
                f"{method} and prediction_type={kind!r} gives values that are not finite at "
                f"t={step.t:g}; use other settings, or another scheduler such as ddim"
            )
    return Cost(len(scheduler.timesteps), bool(draws))
