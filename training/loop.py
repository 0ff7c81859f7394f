"""The training loop: a generator that yields after each update of the weights.

The caller does everything else: averaging, logging, saving and sampling.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_sa.condition import Condition
from ddpm_sa.data.dataset import Images, prefetch
from ddpm_sa.errors import UserError
from training.config import OptimConfig, TrainConfig
from training.distributed.fsdp import full_tensor
from training.draws import Draw, Draws, Layout, seed_dropout

Loss = Callable[[nn.Module, "MicroBatch"], Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one evaluation of the network.

    Attributes:
        x_0: Clean images, (B, C, H, W), float32, in [-1, 1].
        eps: Noise, same shape.
        t: Timesteps, (B,), int64, on the CPU like the schedule's tables.
        condition: The conditioning of the network.
    """

    x_0: Tensor
    eps: Tensor
    t: Tensor
    condition: Condition

    def to(self, device: torch.device) -> "MicroBatch":
        """Move everything but t to a device."""
        return MicroBatch(
            self.x_0.to(device), self.eps.to(device), self.t, self.condition.to(device)
        )


@dataclass(frozen=True)
class Batch:
    """One process's micro-batches of a step, and the draw of the global batch."""

    draw: Draw
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class Progress:
    """One finished update.

    Attributes:
        step: Updates since the start of the run, this one included.
        loss: Mean over the global batch.
        losses, t: Loss and timestep of each image of the global batch, (B,).
        lr: Learning rate of this update.
        grad_norm: Norm of the gradient before clipping.
        seconds: Duration, including the wait for data but not the work of the caller.
        stop: Whether any process was asked to stop; the same on all processes.
        skipped: Why the update was skipped, or None.
    """

    step: int
    loss: float
    losses: np.ndarray
    t: np.ndarray
    lr: float
    grad_norm: float
    seconds: float
    stop: bool
    skipped: str | None = None


def micro_batch(images: Images, draw: Draw) -> MicroBatch:
    """Load the images of a draw, with its noise and condition."""
    x_0 = images.tensors(draw.indices, draw.flips)
    condition = images.condition(draw.indices, draw.drops)
    given = images.condition_image(x_0, draw.indices, draw.flips, draw.of_condition)
    condition = condition.replace(image=given)
    return MicroBatch(x_0, draw.noise(x_0.shape[1:]), torch.from_numpy(draw.t), condition)


def make_batches(
    config: TrainConfig, images: Images, layout: Layout, start: int
) -> Iterator[Batch]:
    """This process's batches from update `start` on; each is prefetched during the one before."""
    make = partial(make_batch, images, Draws.from_config(config, images.length), layout)
    return prefetch(make, range(start, config.steps))


def make_batch(images: Images, draws: Draws, layout: Layout, step: int) -> Batch:
    """This process's batch for update `step`, counted from 0."""
    draw = draws(step)
    return Batch(draw, [micro_batch(images, draw[span]) for span in layout.spans()])


def learning_rate(config: OptimConfig, step: int) -> float:
    """lr · min(step / warmup_steps, 1), as in the paper's code, times the decay, if any.

    `step` counts updates from 0. The decay factor falls linearly from 1 after the warm-up to 0 at
    decay_steps, and stays 0. `config` is one of `OptimConfig.for_steps`.
    """
    assert config.decay_steps != "steps"
    factor = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    if config.decay_steps is not None:
        left = (config.decay_steps - step) / (config.decay_steps - config.warmup_steps)
        factor *= min(max(left, 0.0), 1.0)
    return config.lr * factor


def train_steps(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Loss,
    batches: Iterable[Batch],
    lr_at: Callable[[int], float],
    grad_clip: float | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    on_nonfinite: Literal["stop", "skip"] = "stop",
) -> Iterator[Progress]:
    """Train on each batch, yielding after each update.

    Args:
        accelerator, network, optimizer: As `accelerator.prepare` returned them.
        loss_fn: Computes the loss of each image of a micro-batch, (B,).
        batches: One batch per update; each has a micro-batch per accumulation step.
        lr_at: Learning rate as a function of the update, counted from 0.
        grad_clip: Maximum norm of the gradient; None: no clipping.
        stop_requested: Whether this process was asked to stop.
        on_nonfinite: Whether to stop or to skip the update if the loss or gradient is not finite.
            In both cases weights and optimiser state are unchanged.

    Raises:
        ValueError: If the loss or the gradient is not finite and on_nonfinite is "stop".
    """
    parameters = list(network.parameters())
    began = time.perf_counter()
    for batch in batches:
        step = batch.draw.step
        seed_dropout(batch.draw.seed, step, accelerator.process_index)
        lr = lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        losses = []
        for micro_batch in batch.micro_batches:
            with accelerator.accumulate(network):
                loss = loss_fn(network, micro_batch.to(accelerator.device))
                accelerator.backward(loss.mean())
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(parameters, grad_clip or float("inf"))
        all_losses, norm, stop = _synchronise(
            accelerator, torch.cat(losses), grad_norm, stop_requested()
        )
        scaled = accelerator.scaler is not None
        fault = _describe_nonfinite(batch.draw, all_losses, norm, scaled)
        if fault is not None and on_nonfinite == "stop":
            raise UserError(
                f"{fault}; the weights are unchanged. Continue from the last checkpoint with "
                "--resume auto --on_nonfinite skip, or with a lower optim.lr and --override true"
            )
        if fault is None or scaled:  # the scaler skips the update by itself, and adapts
            optimizer.step()
        optimizer.zero_grad()

        seconds = time.perf_counter() - began
        yield Progress(
            step + 1,
            all_losses.mean().item(),
            all_losses.numpy(),
            batch.draw.t,
            lr,
            norm,
            seconds,
            stop,
            fault,
        )
        began = time.perf_counter()


def _synchronise(
    accelerator: Accelerator, losses: Tensor, grad_norm: Tensor | None, stop: bool
) -> tuple[Tensor, float, bool]:
    """Gather the losses in batch order (float64, CPU), the norm, and whether any process stops.

    All in one exchange and one transfer, since each makes the device wait.
    """
    assert grad_norm is not None
    mine = torch.cat([losses, full_tensor(grad_norm).reshape(1), losses.new_tensor([float(stop)])])
    gathered = accelerator.gather(mine)
    assert isinstance(gathered, Tensor)
    gathered = gathered.reshape(accelerator.num_processes, -1).double().cpu()
    # The reduced gradient, and so its norm, is the same on all processes.
    return gathered[:, :-2].flatten(), gathered[0, -2].item(), bool(gathered[:, -1].any())


def _describe_nonfinite(draw: Draw, losses: Tensor, grad_norm: float, scaled: bool) -> str | None:
    """Describe the non-finite value with its step and timesteps, or return None.

    With fp16 loss scaling an infinite gradient is expected: the scaler skips it and lowers the
    scale.
    """
    finite = losses.isfinite().numpy()
    if finite.all() and (scaled or math.isfinite(grad_norm)):
        return None
    what = "gradient" if finite.all() else "loss"
    timesteps = sorted(draw.t.tolist() if finite.all() else draw.t[~finite].tolist())
    named = ", ".join(map(str, timesteps[:16])) + (", ..." if len(timesteps) > 16 else "")
    return f"the {what} of step {draw.step + 1} is not finite (timesteps {named})"
