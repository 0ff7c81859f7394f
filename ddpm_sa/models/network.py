"""What the package asks of a network: a U-Net whose levels are found by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from ddpm_sa.models.loading import UNetFiles


@dataclass
class UNetOutput(BaseOutput):
    """sample: what the network predicts, (B, out_channels, H, W)."""

    sample: Tensor


class Network(UNetFiles):
    """Base class of the networks of this package.

    A network is called as (sample, timestep, class_labels=None, return_dict=True) and returns a
    `UNetOutput`. Its config has at least sample_size, in_channels, out_channels, block_out_channels
    (one for each level) and num_class_embeds (None without classes). Sampling, recording, guidance
    and the model card need no more. `architectures.ARCHITECTURES` lists the subclasses.

    Attributes:
        architecture: A noun phrase for the model card.
        down_blocks, up_blocks: A module for each level, in the order in which images pass them.
            Layer `SelfAttention`s anywhere in them are found, recorded and ablated.
        mid_block: The middle, or None.
    """

    architecture: ClassVar[str]

    down_blocks: nn.ModuleList
    mid_block: Any
    up_blocks: nn.ModuleList

    @classmethod
    def not_in_diffusers(cls, config: Mapping[str, Any]) -> str | None:
        return f"diffusers has no {cls.__name__}"

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this: 2 for each level but the lowest."""
        return 2 ** (len(self.down_blocks) - 1)

    def _check_size(self, sample: Tensor) -> None:
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise UserError(
                f"an image of {height} x {width} cannot be halved at each of the "
                f"{len(self.down_blocks)} levels; pad it to multiples of {self.size_multiple}"
            )

    def _check_labels(self, class_labels: Tensor | None, conditional: bool) -> None:
        if class_labels is not None and not conditional:
            raise UserError("this network is unconditional: leave class_labels out")
        if class_labels is None and conditional:
            raise UserError("this network is class-conditional: give class_labels")
