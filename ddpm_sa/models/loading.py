"""Loading a UNet from a folder or a hub repository, and turning it into a UNet2DModel.

diffusers does the reading (shards, old attention names). What it only warns about is an
error here, since a network that lacks a weight samples noise.
"""

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging

from ddpm_sa.errors import UserError, require
from ddpm_sa.files.hub import HubOptions, local_folder
from ddpm_sa.files.json_files import read_object, shown
from ddpm_sa.models.config import OURS

# What diffusers' EMAModel, as in its train_unconditional.py, adds to the configuration it saves.
_OF_EMA_MODEL = {
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
}
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


def _find_config(folder: Path, places: Sequence[str]) -> Path:
    """The first of the places in a folder that has a config.json."""
    for place in places:
        if (folder / place / "config.json").is_file():
            return folder / place
    subfolders = "".join(f" or in its {place}/" for place in places if place)
    raise UserError(f"{folder} holds no network: there is no config.json in it{subfolders}")


def _check_shards(path: Path) -> None:
    """Refuse an index of shards that names other files than those beside it."""
    shards = read_object(path).get("weight_map")
    fits = isinstance(shards, dict) and all(
        isinstance(shard, str) and (path.parent / shard).name == shard for shard in shards.values()
    )
    require(fits, f"{path}: weight_map must name a file of the same folder for each weight")


class UNetFiles(ModelMixin, ConfigMixin):
    """The part of a network that loads and converts."""

    @classmethod
    def not_in_diffusers(cls, config: Mapping[str, Any]) -> str | None:
        """Why UNet2DModel cannot represent a network of this config, or None if it can."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder_or_repo: str | os.PathLike,
        subfolder: str | None = "unet",
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Load a UNet2DModel that diffusers, or this package, has saved.

        The files may come from anybody: only JSON and tensors are read, and no code is run.

        Args:
            folder_or_repo: A folder, or the name of a repository on the Hub.
            subfolder: Where in it config.json lies; where it is not there, the root is tried.
            torch_dtype: Cast the weights to this.
            variant: Of the weights, such as "fp16": diffusion_pytorch_model.fp16.safetensors.
            revision: A branch, a tag or a commit of the repository; None for its main branch.
            token: An access token, for private and gated repositories; None for the one that
                `hf auth login` stored, False for none.
            local_files_only: Whether to open what was downloaded before and not ask the Hub.
            cache_dir: Where downloads are kept; None for the Hub client's folder.

        Returns:
            The network, in eval mode.

        Raises:
            ValueError: If there is no such network, its configuration has arguments that are not
                known here or cannot be used, or a weight is missing, not expected, or of another
                shape.
        """
        options = HubOptions(
            revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
        )
        places = [*dict.fromkeys([subfolder or "", ""])]
        folder = local_folder(folder_or_repo, places, variant=variant, options=options)
        place = _find_config(folder, places)
        cls._check_before_loading(place)
        with _quiet_diffusers():
            try:
                unet, report = super().from_pretrained(  # type: ignore[misc]
                    place,
                    torch_dtype=torch_dtype,
                    variant=variant,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they come back in the report
                    local_files_only=True,
                )
            except _UNREADABLE as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"the weights in {place} cannot be read: {reason}") from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[fault]:
                # A misshapen weight comes with its two shapes.
                names = [name if isinstance(name, str) else name[0] for name in report[fault]]
                raise UserError(
                    f"{place}: {len(names)} {fault.replace('_keys', '')} weights, "
                    f"{names[0]} first; the file and config.json are not of the same network"
                )
        return unet

    @classmethod
    def read_config(cls, path: Path) -> dict[str, Any]:
        """Read the arguments of the network from a config.json.

        Raises:
            ValueError: If it cannot be read, or has arguments that are not known here.
        """
        content = read_object(path)
        config = {key: v for key, v in content.items() if not key.startswith("_")}
        config = {key: v for key, v in config.items() if key not in _OF_EMA_MODEL}
        known = inspect.signature(cls.__init__).parameters
        unknown = [key for key in config if key not in known]
        if unknown:
            raise UserError(
                f"{path} has {', '.join(unknown)}, which {cls.__name__} does not know: it is of "
                f"a {shown(content.get('_class_name'))}"
            )
        return config

    @classmethod
    def _check_before_loading(cls, place: Path) -> None:
        """Refuse what diffusers would allocate memory for, or end in a traceback about."""
        path = place / "config.json"
        config = cls.read_config(path)
        try:
            with torch.device("meta"):
                unet = cls(**config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        for index in place.glob("*.index*.json"):
            _check_shards(index)
        # One byte is the least that any number takes.
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        files = [f for f in place.iterdir() if f.suffix in (".safetensors", ".bin")]
        stored = sum(file.stat().st_size for file in files)
        if files and stored < parameters:
            raise UserError(
                f"{path} describes a network of {parameters:,} parameters, and the files of "
                f"weights beside it have {stored:,} bytes; they are not of the same network"
            )

    def to_diffusers(self) -> UNet2DModel:
        """A UNet2DModel that shares this network's tensors.

        Raises:
            ValueError: If diffusers cannot represent the network (`not_in_diffusers`).
        """
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        lacking = self.not_in_diffusers(config)
        if lacking is not None:
            raise UserError(f"{lacking}: this network stays a ddpm_sa.{type(self).__name__}")
        config = {key: value for key, value in config.items() if key not in OURS}
        with torch.device("meta"):
            model = UNet2DModel(**config)
        model.load_state_dict(self.state_dict(), assign=True)
        return model.train(self.training)
