"""DeepCache (Ma et al. 2024): deep features reused between steps.

From one step to the next the low-resolution part of a U-Net changes less than the rest, so it is
computed only at every n-th evaluation.
"""

from typing import Any

import torch
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.models.network import Network, UNetOutput
from ddpm_sa.models.unet import UNet


class DeepReuse:
    """A network that computes everything below its highest resolution only every n-th time.

    It keeps state: create one for each batch.

    Args:
        unet: A ddpm_sa.UNet of at least two levels.
        interval: n; with 1 every evaluation is complete, bit for bit that of the network.

    Raises:
        ValueError: If the interval is below 1, or the network does not support it.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        check_interval(unet, interval)
        self.unet, self.interval = unet, interval
        self.evaluations = 0
        self.deep: Tensor | None = None

    def __call__(self, sample: Tensor, t: Tensor, class_labels: Tensor | None = None) -> UNetOutput:
        """Called as the network is."""
        complete = self.evaluations % self.interval == 0
        self.evaluations += 1
        # Guidance in an interval of timesteps changes the size of the batch.
        if complete or self.deep is None or len(self.deep) != len(sample):
            return self._complete(sample, t, class_labels)
        return self._shallow(sample, t, class_labels, self.deep)

    def _complete(self, sample: Tensor, t: Tensor, class_labels: Tensor | None) -> UNetOutput:
        def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
            self.deep = inputs[0]

        hook = self.unet.up_blocks[-1].register_forward_pre_hook(keep)
        try:
            return self.unet(sample, t, class_labels)
        finally:
            hook.remove()

    def _shallow(
        self, sample: Tensor, t: Tensor, class_labels: Tensor | None, deep: Tensor
    ) -> UNetOutput:
        unet = self.unet
        if unet.config["center_input_sample"]:
            sample = 2 * sample - 1
        t = torch.as_tensor(t, device=sample.device).expand(len(sample))
        temb = unet.activation(unet._embed(t, class_labels))
        skips = [unet.conv_in(sample)]
        first = unet.down_blocks[0]
        for index in range(len(first.resnets)):
            skips.append(first._layer(index, skips[-1], temb))
        x, _ = unet.up_blocks[-1](deep, skips, temb, None)
        return UNetOutput(sample=unet.output(x))


def check_interval(unet: Any, interval: int) -> None:
    """
    Raises:
        ValueError: If this network cannot reuse its deep features with this interval.
    """
    if interval < 1:
        raise UserError(f"cache_interval={interval} must be at least 1, which reuses nothing")
    if interval == 1:
        return
    if isinstance(unet, Network) and not isinstance(unet, UNet):
        raise UserError(
            f"cache_interval={interval} must be 1 for a {type(unet).__name__}, whose features are "
            "not reused"
        )
    if not isinstance(unet, UNet):
        raise UserError(
            f"cache_interval={interval} needs a ddpm_sa.UNet, not a {type(unet).__name__}; open "
            "its folder with ddpm_sa.UNet.from_pretrained, the weights are the same"
        )
    if unet._compiled_call_impl is not None:
        raise UserError(f"cache_interval={interval} needs a network that is not compiled")
    if len(unet.down_blocks) < 2:
        raise UserError(f"cache_interval={interval} needs a network of two levels or more")
    for block in (unet.down_blocks[0], unet.up_blocks[-1]):
        if not block.reusable:
            raise UserError(
                f"cache_interval={interval} does not support networks of {type(block).__name__}"
            )
