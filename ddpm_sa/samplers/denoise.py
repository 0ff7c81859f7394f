"""The sampling loop: from noise to images, driven by a diffusers scheduler.

Each image has noise of its own. A scheduler that draws noise is given that of the images at hand,
so an image does not depend on the batch it is sampled in.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.diffusion.prediction import prediction

Network = Callable[..., Any]
"""Called as UNet and UNet2DModel are; the `.sample` of its output is F."""

Evaluate = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t, t, condition) -> the network's output, in float32; see `denoise`."""


MOST_ERROR = 160.0
"""The predicted x_0 is clamped to [-1, 1] where it amplifies an error of F by more than this.

The paper's linear schedule ends with a factor of 157 for eps, a cosine schedule with 20,000: at its
last few timesteps a fast solver would take its next step from noise. DDPM, DDIM and Heun have a
clamp of their own, and follow their settings alone.
"""


class View(NamedTuple):
    """The input of the network at one step.

    Attributes:
        x_t: a x_0 + s eps, (B, C, H, W), float32.
        t: Timesteps, (B,).
        condition: The conditioning.
        a, s: Signal and noise scale, scalars.
    """

    x_t: Tensor
    t: Tensor
    condition: Condition
    a: Tensor
    s: Tensor


Guide = Callable[[Evaluate, View], Tensor]
"""Combines several evaluations into one output; see `ddpm_sa.guidance.base`."""


class Step(NamedTuple):
    """One evaluation of the network and its result.

    Attributes:
        number: 0, 1, ... from the noisiest on.
        t: Timestep given to the network, a scalar; some schedulers evaluate between two integers.
        x_t: What the network saw, a x_0 + s eps, (B, C, H, W).
        x_0: The predicted clean image, (B, C, H, W), clamped only where `MOST_ERROR` applies.
        x_next: The scheduler's state after the step, in its own scale; at the end the image.
    """

    number: int
    t: Tensor
    x_t: Tensor
    x_0: Tensor
    x_next: Tensor


Walk = Generator[Step, Tensor | None, None]
"""The steps from noise to images; see `denoise`."""


@torch.no_grad()
def denoise(
    network: Network,
    scheduler: Any,
    x_T: Tensor,
    noise_of_step: Callable[[int], Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    condition: Condition = NO_CONDITION,
    predicts: str | None = None,
    guide: Guide | None = None,
    start: int = 0,
) -> Walk:
    """Denoise one batch, yielding at every step of the scheduler.

    The state stays in float32; only the network runs in `dtype`. A tensor that is sent in reply to
    a step replaces its x_next.

    Args:
        network: Sees x_t (B, C, H, W) in `dtype` and t (B,); gives F with C channels, or 2 C where
            the second half is a learned variance (used by "ddpm" with "learned_range" alone).
        scheduler: From `make_scheduler`, for this batch alone.
        x_T: Standard normal noise, (B, C, H, W), float32; with a start, the x_t to begin with.
        noise_of_step: Index of a step -> standard normal noise for it, shaped like x_T.
        dtype: In which the network computes.
        condition: The conditioning of the network, on its device.
        predicts: What F is, if the scheduler's own prediction type is another.
        guide: Replaces the plain evaluation of the network.
        start: The first of the scheduler's timesteps to visit.
    """
    steps_with = prediction(scheduler.config.prediction_type)
    denoiser = steps_with if predicts is None else prediction(predicts)
    learned_variance = scheduler.config.get("variance_type") == "learned_range"
    channels, clips_itself = x_T.shape[1], "clip_sample" in scheduler.config

    def evaluate(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return condition.evaluate(network, x_t.to(dtype), t).sample.float()

    x = x_T * _begin(scheduler, start)
    for index, t in enumerate(scheduler.timesteps[start:], start):
        x_t = scheduler.scale_model_input(x, t)
        a, s = scales(scheduler, index, t)
        view = View(x_t, t.to(x.device).expand(len(x)), condition, a, s)
        output = guide(evaluate, view) if guide else evaluate(*view[:3])
        F = output[:, :channels]
        x_0, eps = denoiser.x_0(F, x_t, a, s), denoiser.eps(F, x_t, a, s)
        strays = not clips_itself and bool(denoiser.error_of_x_0(a, s) > MOST_ERROR)
        if strays:
            x_0 = x_0.clamp(-1, 1)
            eps = (x_t - a * x_0) / s
        if strays or denoiser is not steps_with:
            F = steps_with.target(x_0, eps, a, s)
            output = torch.cat([F, output[:, channels:]], dim=1)
        with _ServedNoise(lambda index=index: noise_of_step(index)):
            x = scheduler.step(output if learned_variance else F, t, x).prev_sample
        changed = yield Step(index, t, x_t, x_0, x)
        x = x if changed is None else changed


def last_state(
    walk: Walk, tick: Callable[[], object], on_step: Callable[[Step], Tensor | None]
) -> Tensor:
    """Run all steps; returns the state after the last, (B, C, H, W).

    Args:
        walk: From `denoise`.
        tick: Called at every step, such as a progress bar's update.
        on_step: Called at every step; a tensor that it returns replaces the step's x_next.
    """
    step, reply = next(walk), None
    while True:
        tick()
        reply = on_step(step)
        try:
            step = walk.send(reply)
        except StopIteration:
            return step.x_next if reply is None else reply


def _begin(scheduler: Any, start: int) -> Tensor | float:
    """Start a scheduler at one of its timesteps; returns the scale of its state relative to x_t.

    diffusers' sigma-based schedulers define the inverse of that scale by scale_model_input.
    """
    # Otherwise they look their first timestep up, and among equal ones take the second.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if start == 0:
        return scheduler.init_noise_sigma
    if not hasattr(scheduler, "set_begin_index"):
        return 1.0  # schedulers without an index go by the timestep they are given
    one = torch.ones(())
    return one / scheduler.scale_model_input(one, scheduler.timesteps[start])


def scales(scheduler: Any, index: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of what the network sees at a step, float32 scalars."""
    if hasattr(scheduler, "sigmas"):
        sigma = scheduler.sigmas[index]
        if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
            # KDPM2 evaluates between two sigmas, its ancestral form one place earlier in the list.
            ancestral = "Ancestral" in type(scheduler).__name__
            sigma = scheduler.sigmas_interpol[index - ancestral]
        a_squared = 1 / (1 + sigma.double() ** 2)
    else:
        a_squared = scheduler.alphas_cumprod[t].double()
    return a_squared.sqrt().float(), (1 - a_squared).sqrt().float()


class _ServedNoise(TorchFunctionMode):
    """Inside the context, `torch.randn` returns the given noise.

    It works like `with torch.device(...)`. diffusers' schedulers accept only torch Generators,
    whose CPU seeds have 32 bits and whose numbers depend on the image's dtype and device.
    """

    def __init__(self, serve: Callable[[], Tensor]) -> None:
        super().__init__()
        self.serve, self.served = serve, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        assert not self.served, "a scheduler drew twice in one step; the noise would be the same"
        self.served = True
        noise = self.serve()
        assert noise.shape == tuple(args[0])
        return noise.to(device=kwargs["device"], dtype=kwargs["dtype"])


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode inside, in the mode it had outside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
