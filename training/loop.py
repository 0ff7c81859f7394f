"""The training loop: a generator that yields after each update of the weights.

What is done with an update (averaging, logging, saving, sampling) is its caller's business.
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
from training.config import OptimConfig, TrainConfig
from training.distributed.fsdp import whole
from training.draws import Draw, Draws, Layout, seed_dropout
from training.network import memory_format

Loss = Callable[[nn.Module, "MicroBatch"], Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """What the network evaluates at once.

    Attributes:
        x_0: Clean images, (B, C, H, W), float32, in [-1, 1].
        eps: Noise, same shape.
        t: Timesteps, (B,), int64, on the CPU, where the schedule's tables are.
        condition: What else the network is told.
    """

    x_0: Tensor
    eps: Tensor
    t: Tensor
    condition: Condition

    def to(self, device: torch.device) -> "MicroBatch":
        """Everything but t on a device, in the memory format that suits it."""
        order = memory_format(device)
        return MicroBatch(
            self.x_0.to(device).contiguous(memory_format=order),
            self.eps.to(device).contiguous(memory_format=order),
            self.t,
            self.condition.to(device),
        )


@dataclass(frozen=True)
class Batch:
    """One process's share of a step: its micro-batches, and the whole batch's draw."""

    draw: Draw
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class Progress:
    """One finished update.

    Attributes:
        step: Updates done since the run's start, this one included.
        loss: Mean over the global batch.
        losses, t: Each image's, in the batch's order, (B,), and its timestep.
        lr: Learning rate that this update used.
        grad_norm: Norm of the batch's gradient before clipping.
        seconds: Time it took, waiting for data included, the caller's own work not.
        stop: Whether some process was asked to stop; all processes agree.
        skipped: Why the update was left out, or None.
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
    """The images of a draw, with its noise and condition."""
    x_0 = images.tensors(draw.indices, draw.flips)
    condition = images.condition(draw.indices, draw.drops)
    return MicroBatch(x_0, draw.noise(x_0.shape[1:]), torch.from_numpy(draw.t), condition)


def make_batches(
    config: TrainConfig, images: Images, layout: Layout, start: int
) -> Iterator[Batch]:
    """This process's share of every update from `start` on, each made while the last is used."""
    make = partial(make_batch, images, Draws.of(config, images.length), layout)
    return prefetch(make, range(start, config.steps))


def make_batch(images: Images, draws: Draws, layout: Layout, step: int) -> Batch:
    """This process's share of update number `step`, counted from 0."""
    draw = draws(step)
    return Batch(draw, [micro_batch(images, draw[span]) for span in layout.spans()])


def learning_rate(config: OptimConfig, step: int) -> float:
    """lr · min(step / warmup_steps, 1), as the paper's code, times the decay where there is one.

    step counts updates from 0. The decay falls linearly from 1 after the warm-up to 0 at
    decay_steps, and stays there.
    """
    factor = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    if config.decay_steps is not None:
        left = (config.decay_steps - step) / (config.decay_steps - config.warmup_steps)
        factor *= min(max(left, 0.0), 1.0)
    return config.lr * factor


def train_steps(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    batches: Iterable[Batch],
    lr_at: Callable[[int], float],
    grad_clip: float | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
    on_nonfinite: Literal["stop", "skip"] = "stop",
) -> Iterator[Progress]:
    """Train on each batch in turn; yield after each update.

    Args:
        accelerator, network, optimizer: As `accelerator.prepare` returned them.
        loss_of: Loss of each image of a micro-batch, (B,).
        batches: One for each update; the accumulation follows from their micro-batches.
        lr_at: Learning rate of an update, counted from 0.
        grad_clip: Largest norm of the gradient; None: no limit.
        stop_asked: Whether this process wants to stop.
        on_nonfinite: What a loss or gradient that is not finite does. Either way the weights and
            the optimiser stay as they are.

    Raises:
        ValueError: If the loss or the gradient is not finite, and that stops.
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
                loss = loss_of(network, micro_batch.to(accelerator.device))
                accelerator.backward(loss.mean())
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(parameters, grad_clip or float("inf"))
        all_losses, norm, stop = _agree(accelerator, torch.cat(losses), grad_norm, stop_asked())
        scaled = accelerator.scaler is not None
        fault = _not_finite(batch.draw, all_losses, norm, scaled)
        if fault is not None and on_nonfinite == "stop":
            raise ValueError(
                f"{fault}; the weights were not touched. Go on from the last checkpoint with "
                "--resume auto --on_nonfinite skip, or with a lower optim.lr and --override true"
            )
        if fault is None or scaled:  # the scaler leaves the update out by itself, and must know
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


def _agree(
    accelerator: Accelerator, losses: Tensor, grad_norm: Tensor | None, stop: bool
) -> tuple[Tensor, float, bool]:
    """All images' losses in the batch's order (float64, CPU), the norm, whether anyone stops.

    One exchange and one transfer, since each makes the device wait.
    """
    assert grad_norm is not None
    mine = torch.cat([losses, whole(grad_norm).reshape(1), losses.new_tensor([float(stop)])])
    gathered = accelerator.gather(mine)
    assert isinstance(gathered, Tensor)
    gathered = gathered.reshape(accelerator.num_processes, -1).double().cpu()
    # The reduced gradient, and so its norm, is the same everywhere.
    return gathered[:, :-2].flatten(), gathered[0, -2].item(), bool(gathered[:, -1].any())


def _not_finite(draw: Draw, losses: Tensor, grad_norm: float, scaled: bool) -> str | None:
    """What is not finite, of which step and timesteps, or None.

    With fp16's loss scaling an infinite gradient is a sign to lower the scale, and skips itself.
    """
    finite = losses.isfinite().numpy()
    if finite.all() and (scaled or math.isfinite(grad_norm)):
        return None
    what = "gradient" if finite.all() else "loss"
    timesteps = sorted(draw.t.tolist() if finite.all() else draw.t[~finite].tolist())
    named = ", ".join(map(str, timesteps[:16])) + (", ..." if len(timesteps) > 16 else "")
    return f"the {what} of step {draw.step + 1} is not finite (timesteps {named})"
