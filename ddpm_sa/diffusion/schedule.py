"""The noise schedule: beta_t and all tables derived from it, in float64.

t counts from 0, the least noise, to T - 1. Every table is computed in float64, as in the paper's
code, and cast only where it meets an image: in float32, and much more so in half precision, the
small timesteps would be lost.
"""

import dataclasses
import math
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from ddpm_sa.errors import UserError

VarianceType = Literal["fixed_small", "fixed_large"]
# diffusers' names of the schedules below.
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


class _HasConfig(Protocol):
    """Any diffusers scheduler, as far as this module needs one."""

    @property
    def config(self) -> dict: ...


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The forward process q(x_t | x_0) = N(a_t x_0, s_t² I) and its posterior.

    Ho et al. 2020, sections 2 and 3. All tables are float64, (T,).

    Attributes:
        betas: Variance added at each step, each in (0, 1], with 1 at the last step alone.

    Raises:
        ValueError: If betas is no float64 vector, or leaves that range.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or self.betas.dtype != torch.float64 or not len(self):
            raise UserError(
                f"betas must be a float64 vector, not {tuple(self.betas.shape)} {self.betas.dtype}"
            )
        inside = (self.betas > 0) & (self.betas < 1)
        # beta = 1 at the last step is a schedule with zero terminal signal (Lin et al. 2023).
        inside[-1] |= self.betas[-1] == 1
        if not inside.all():
            t = int((~inside).nonzero()[0])
            raise UserError(f"betas[{t}]={self.betas[t].item()} must lie between 0 and 1")

    # Construction

    @classmethod
    def linear(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> "NoiseSchedule":
        """The paper's: betas evenly spaced from beta_start to beta_end (Ho et al. 2020, sec. 4)."""
        return cls(torch.linspace(beta_start, beta_end, T, dtype=torch.float64))

    @classmethod
    def quadratic(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> "NoiseSchedule":
        """sqrt(beta) evenly spaced; diffusers calls it "scaled_linear", Ho et al.'s code "quad"."""
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls(root**2)

    @classmethod
    def cosine(cls, T: int = 1000, max_beta: float = 0.999) -> "NoiseSchedule":
        """a² falls as a squared cosine (Nichol & Dhariwal 2021, eq. 17, offset 0.008)."""
        u = torch.arange(T + 1, dtype=torch.float64) / T
        signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1 - signal[1:] / signal[:-1]).clamp(max=max_beta))

    @classmethod
    def from_scheduler(cls, scheduler: _HasConfig) -> "NoiseSchedule":
        """The schedule that a diffusers scheduler's configuration describes.

        Computed anew in float64: the scheduler's own tables are float32.

        Raises:
            ValueError: If the configuration names an unknown beta schedule.
        """
        config = scheduler.config
        T, kind = config["num_train_timesteps"], config["beta_schedule"]
        start, end = config["beta_start"], config["beta_end"]
        if config.get("trained_betas") is not None:
            schedule = cls(torch.as_tensor(config["trained_betas"], dtype=torch.float64))
        elif kind == "linear":
            schedule = cls.linear(T, start, end)
        elif kind == "scaled_linear":
            schedule = cls.quadratic(T, start, end)
        elif kind == "squaredcos_cap_v2":
            schedule = cls.cosine(T)
        elif kind == "sigmoid":
            gate = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid()
            schedule = cls(start + (end - start) * gate)
        else:
            raise UserError(
                f"beta_schedule={kind!r} is unknown; known are {', '.join(BETA_SCHEDULES)}, "
                "or trained_betas"
            )
        if config.get("rescale_betas_zero_snr"):
            schedule = schedule.with_zero_terminal_snr()
        return schedule

    def with_zero_terminal_snr(self) -> "NoiseSchedule":
        """a shifted and scaled so that the last step keeps no signal (Lin et al. 2023, alg. 1)."""
        first, last = self.a[0], self.a[-1]
        alphas_cumprod = ((self.a - last) * first / (first - last)) ** 2
        ratio = alphas_cumprod[1:] / alphas_cumprod[:-1]
        return type(self)(torch.cat([1 - alphas_cumprod[:1], 1 - ratio]))

    def with_some_terminal_snr(self) -> "NoiseSchedule":
        """The schedule itself, unless its last step keeps no signal: then with a little of it.

        a² becomes 2^-24 there, as in those of diffusers' schedulers that know such schedules, or
        half of the a² before it if that is less. For samplers that divide by a.
        """
        if self.betas[-1] < 1:
            return self
        betas = self.betas.clone()
        betas[-1] = max(1 - 2**-24 / self.alphas_cumprod_prev[-1].item(), 0.5)
        return type(self)(betas)

    # Tables

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """a_t² = prod_{i<=t} (1 - beta_i)  (eq. 4)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """alphas_cumprod of the step before; 1 before the first."""
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def a(self) -> Tensor:
        """Signal scale sqrt(alphas_cumprod)."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def s(self) -> Tensor:
        """Noise scale sqrt(1 - alphas_cumprod)."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio (a/s)²."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0)  (eq. 7); 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """Weight of x_0 in the posterior mean (eq. 7)."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """Weight of x_t in the posterior mean (eq. 7)."""
        kept = (1 - self.betas).sqrt()
        return kept * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """log posterior_variance, whose first entry (log 0) is replaced by the second."""
        return self._log_with_second_first(self.posterior_variance)

    def variance(self, kind: VarianceType) -> Tensor:
        """Variance of the reverse step (sec. 3.2): "fixed_small" is the posterior's, right if x_0
        is a single point; "fixed_large" is beta, right if x_0 is standard normal."""
        return self.posterior_variance if kind == "fixed_small" else self.betas

    def log_variance(self, kind: VarianceType) -> Tensor:
        """log of `variance`, at t = 0 that of the second posterior variance for both kinds.

        The decoder of the likelihood needs a finite value there (diffusion_utils_2.py).
        """
        return self._log_with_second_first(self.variance(kind))

    def _log_with_second_first(self, variance: Tensor) -> Tensor:
        # A schedule of one step has no second entry; its only variance is then beta.
        second = self.posterior_variance[1:2] if len(self) > 1 else self.betas
        return torch.cat([second, variance[1:]]).log()

    # Images

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Draw x_t ~ q(x_t | x_0):  x_t = a x_0 + s eps  (eq. 4).

        In float32 (float64 for float64 images) whatever precision the network trains in: in
        bfloat16 the first ten steps of the linear schedule would add no noise at all.

        Args:
            x_0: Clean images, (B, C, H, W), in [-1, 1].
            eps: Standard normal noise, same shape as x_0.
            t: Timesteps, (B,), int64, in [0, T).

        Returns:
            Noisy images, (B, C, H, W), float32, or float64 if x_0 is.

        Raises:
            ValueError: If eps and x_0 differ in shape (broadcasting would hide it).
        """
        if eps.shape != x_0.shape:
            raise UserError(f"eps {tuple(eps.shape)} and x_0 {tuple(x_0.shape)} differ in shape")
        x_0, eps = _at_least_float32(x_0), _at_least_float32(eps)
        return self.at(self.a, t, x_0) * x_0 + self.at(self.s, t, x_0) * eps

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)  (eq. 7). Images (B, C, H, W), t (B,) int64."""
        coef1 = self.at(self.posterior_mean_coef1, t, x_0)
        return coef1 * x_0 + self.at(self.posterior_mean_coef2, t, x_t) * x_t

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Entries t of a table, (B, 1, 1, 1), in the dtype and on the device of `like`."""
        # Look the entries up on the table's device (the CPU) and move only these few numbers.
        entries = table[t.to(table.device)].to(dtype=like.dtype)
        return entries.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _at_least_float32(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))
