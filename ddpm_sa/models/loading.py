"""Loading a UNet from a folder or a hub repository, and turning it into a UNet2DModel.

diffusers does the reading (shards, old attention names, the hub). What it only warns about is an
error here, since a network that lacks a weight samples noise.
"""

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging

from ddpm_sa.errors import UserError
from ddpm_sa.models.config import not_in_diffusers

# The errors of torch and diffusers for a missing or damaged file or repository.
_UNREADABLE = (OSError, RuntimeError, ValueError)


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Silence diffusers' warnings on loading: what they say is raised here, in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


class UNetFiles(ModelMixin, ConfigMixin):
    """The part of `UNet` that loads and converts."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder_or_repo: str | os.PathLike,
        subfolder: str | None = "unet",
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a UNet2DModel that diffusers, or this package, has saved.

        Args:
            folder_or_repo: A folder, or the name of a repository on the hub.
            subfolder: Where in it config.json lies; where it is not there, the root is tried.
            torch_dtype: Cast the weights to this.
            variant, revision, token, local_files_only: As in diffusers.

        Returns:
            The network, in eval mode.

        Raises:
            ValueError: If there is no such network, its configuration has arguments that are not
                known here, or a weight is missing, not expected, or of another shape.
        """
        hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "local_files_only": local_files_only,
        }
        config, subfolder = cls._find_config(folder_or_repo, subfolder, hub)
        known = inspect.signature(cls.__init__).parameters
        unknown = [key for key in config if not key.startswith("_") and key not in known]
        if unknown:
            raise UserError(
                f"{folder_or_repo}: config.json has {', '.join(unknown)}, which UNet does not know"
            )
        with _quiet_diffusers():
            try:
                unet, report = super().from_pretrained(  # type: ignore[misc]
                    folder_or_repo,
                    subfolder=subfolder,
                    torch_dtype=torch_dtype,
                    variant=variant,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they come back in the report
                    **hub,
                )
            except _UNREADABLE as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"the weights of {folder_or_repo} cannot be read: {reason}"
                ) from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[fault]:
                # A misshapen weight comes with its two shapes.
                names = [name if isinstance(name, str) else name[0] for name in report[fault]]
                raise UserError(
                    f"{folder_or_repo}: {len(names)} {fault.replace('_keys', '')} weights, "
                    f"{names[0]} first; the file and config.json are not of the same network"
                )
        return unet

    @classmethod
    def _find_config(
        cls, folder_or_repo: str | os.PathLike, subfolder: str | None, hub: dict[str, Any]
    ) -> tuple[dict[str, Any], str | None]:
        """config.json in the subfolder or else at the root, and which of them it was."""
        folder, reason = Path(folder_or_repo), ""
        for place in dict.fromkeys([subfolder, None]):
            if folder.is_dir() and not (folder / (place or "") / "config.json").is_file():
                continue
            try:
                config: Any = cls.load_config(folder_or_repo, subfolder=place, **hub)
                return config, place
            except _UNREADABLE as error:
                reason = str(error).splitlines()[0]
        if folder.exists():
            if reason:
                raise UserError(f"config.json of {folder} cannot be read: {reason}")
            raise UserError(
                f"{folder} holds no network: there is no config.json in it"
                + (f" or in its {subfolder}/" if subfolder else "")
            )
        raise UserError(
            f"{folder_or_repo} is not a local folder, and no network was found on the Hugging "
            f"Face Hub: {reason}"
        )

    def to_diffusers(self) -> UNet2DModel:
        """A UNet2DModel that shares this network's tensors.

        Raises:
            ValueError: If diffusers cannot represent the network (`not_in_diffusers`).
        """
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        lacking = not_in_diffusers(config)
        if lacking is not None:
            raise UserError(f"{lacking}: this network stays a ddpm_sa.UNet")
        del config["attention_kind"], config["num_attention_heads"]
        with torch.device("meta"):
            model = UNet2DModel(**config)
        model.load_state_dict(self.state_dict(), assign=True)
        return model.train(self.training)
