"""A trained network as the denoiser D(x, sigma) that other libraries call.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", write a
noisy image as x = x_0 + sigma eps, and a network as D, which minimises E||D(x; sigma) - x_0||²
(eq. 2). Samplers and solvers of inverse problems that follow them need nothing else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_sa.condition import NO_CONDITION, Condition, checked_labels
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError, require
from ddpm_sa.samplers.denoise import MOST_ERROR

ROUNDING = 1e-3
"""How far sigma may exceed sigma_max, relative to it: a = 0.006 of the linear schedule's last step
comes out of float32's 1 - s² with an error of this order."""


def denoiser(pipeline: Any) -> "Denoiser":
    """D(x, sigma) of a pipeline's network; see `Denoiser`.

    Args:
        pipeline: A `ddpm_sa.Pipeline`. Its network is shared, and put in eval mode.

    Raises:
        UserError: If its network is conditioned on images.
    """
    require(
        pipeline.image_format.condition is None,
        "a network that is conditioned on images is no denoiser of x alone: concatenate x_t and "
        "the condition, and call it yourself",
    )
    labels = pipeline.image_format.labels
    return Denoiser(pipeline.unet, pipeline.scheduler, labels).eval()


class Denoiser(nn.Module):
    """D(x, sigma), the minimiser of E||D - x_0||² for x = x_0 + sigma eps (Karras et al. 2022).

    The network sees a x = a x_0 + s eps with a = 1 / sqrt(1 + sigma²) and s = sigma a, at the t
    whose noise level sigma is. Between two timesteps log sigma, and so the log of the
    signal-to-noise ratio, is linear in t. A network with one learned embedding for each timestep
    gets the nearest one. Below sigma_min, where hardly any noise is left, t is 0 and a and s are
    still those of sigma: some solvers end there.

    Where x_0 would amplify an error of the network too much it is clamped to [-1, 1]; see
    `samplers.denoise.MOST_ERROR`.

    Args:
        network: Called as `UNet` and UNet2DModel are.
        scheduler: A diffusers scheduler that describes the training: betas and prediction type.
        labels: Names of the classes in the order of their indices, or None.

    Attributes:
        sigma_min, sigma_max: The least and the greatest noise level of the training. A last
            timestep without signal has a little here, see `NoiseSchedule.with_some_terminal_snr`.
    """

    def __init__(
        self, network: nn.Module, scheduler: Any, labels: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        config: Any = network.config
        self.network = network
        self.labels, self.num_classes = labels, config.get("num_class_embeds")
        self.fractional = config.get("time_embedding_type") != "learned"
        self.prediction = prediction(scheduler.config.prediction_type)
        schedule = NoiseSchedule.from_scheduler(scheduler).with_some_terminal_snr()
        # Not a buffer, which would be cast and moved with the network: float64, on the CPU.
        self.log_sigma = (schedule.snr.log() / -2).numpy()
        self.sigma_min, self.sigma_max = np.exp(self.log_sigma[[0, -1]]).tolist()

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Any = None) -> Tensor:
        """The mean of the images that x may be a noisy version of. Differentiable in x.

        Args:
            x: x_0 + sigma eps, (B, C, H, W), any floating type, with x_0 in [-1, 1]. Its height and
                width are what the network can halve: `Pipeline.padded_size`.
            sigma: Standard deviation of the noise: one number for all images, or one for each,
                (B,), above 0 and up to sigma_max.
            class_labels: For a class-conditional network and only for one: one class for all
                images, or one for each, by index or by name.

        Returns:
            D(x, sigma), like x.

        Raises:
            ValueError: If a sigma is out of range, there are not as many sigmas or classes as
                images, or the network needs classes, or has none.
        """
        level = self._checked(sigma, len(x))
        condition = self._condition(class_labels, len(x)).to(x.device)
        # At least float32, since half precision does not hold the noise levels.
        noisy = x.to(torch.promote_types(x.dtype, torch.float32))
        a = (1 + level**2).rsqrt()
        a, s = (scale[:, None, None, None].to(noisy) for scale in (a, level * a))
        x_t = a * noisy
        t = self.timestep(level)
        t = (t.to(noisy.dtype) if self.fractional else t).to(x.device)
        dtype = getattr(self.network, "dtype", noisy.dtype)
        output = condition.evaluate(self.network, x_t.to(dtype), t).sample.to(noisy)
        F = output[:, : x.shape[1]]  # a learned variance has as many channels again
        x_0 = self.prediction.x_0(F, x_t, a, s)
        strays = self.prediction.error_of_x_0(a, s) > MOST_ERROR
        return torch.where(strays, x_0.clamp(-1, 1), x_0).to(x.dtype)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The t that the network is given for each noise level.

        Args:
            sigma: (B,), float64, on the CPU. Beyond an end of the training's range, t is that end.

        Returns:
            (B,), float64, between two timesteps where sigma is; int64 for a learned embedding.
        """
        t = np.interp(sigma.log().numpy(), self.log_sigma, np.arange(len(self.log_sigma)))
        return torch.from_numpy(t if self.fractional else t.round().astype(np.int64))

    def _checked(self, sigma: Tensor | float, count: int) -> Tensor:
        """The noise level of each image, (B,), float64, on the CPU."""
        level = torch.as_tensor(sigma).detach().to("cpu", torch.float64).flatten()
        require(
            len(level) in (1, count),
            f"sigma has {len(level)} values for {count} images; give one, or one for each",
        )
        inside = (level > 0) & (level <= self.sigma_max * (1 + ROUNDING))
        if not inside.all():
            raise UserError(
                f"sigma={level[~inside][0]:g} must be above 0 and at most {self.sigma_max:.4g}, "
                "the noisiest that this model was trained on; start the sampler at sigma_max"
            )
        return level.expand(count)

    def _condition(self, class_labels: Any, count: int) -> Condition:
        if class_labels is None:
            return NO_CONDITION  # which a class-conditional network refuses
        require(
            self.num_classes is not None,
            "class_labels need a network with num_class_embeds; this has none",
        )
        if isinstance(class_labels, Tensor):
            class_labels = class_labels.cpu()
        labels = checked_labels(class_labels, count, self.num_classes, self.labels)
        return Condition(class_labels=labels)
