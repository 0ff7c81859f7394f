"""Loading a UNet from a folder or a hub repository, and turning it into a UNet2DModel.

diffusers does the reading (shards, old attention names). What it only warns about is an
error here, since a network that lacks a weight samples noise.
"""

import contextlib
import inspect
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging

from ddpm_sa.errors import NotFoundError, UserError, first_line, require
from ddpm_sa.files.hub import WEIGHTS_NAME, local_folder
from ddpm_sa.files.json_files import read_object, shown
from ddpm_sa.models.config import OURS
from ddpm_sa.models.load_options import LoadOptions, check_options, for_diffusers

# What diffusers adds to the configurations that it saves: EMAModel, as in its
# train_unconditional.py, and its quantisers.
_QUANTISED = "quantization_config"
_OF_DIFFUSERS = {
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power", _QUANTISED),
}
# The errors of torch and diffusers for options that contradict each other or need a library.
_REFUSALS = (RuntimeError, ValueError, ImportError)


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
    raise NotFoundError(f"{folder} holds no network: there is no config.json in it{subfolders}")


def _check_shards(path: Path) -> None:
    """Refuse an index of shards that names other files than those beside it."""
    shards = read_object(path).get("weight_map")
    fits = isinstance(shards, dict) and all(
        isinstance(shard, str) and (path.parent / shard).name == shard for shard in shards.values()
    )
    require(fits, f"{path}: weight_map must name a file of the same folder for each weight")


def _other_variant(place: Path, variant: str | None) -> str:
    """The way out where there are weights of other variants than the one asked for."""
    pattern = rf"{WEIGHTS_NAME}(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(safetensors|bin)"
    names = (re.fullmatch(pattern, file.name) for file in place.iterdir())
    variants = {name["variant"] for name in names if name}
    if not variants or variant in variants:
        return ""
    ways = sorted("no variant" if name is None else f"variant={name!r}" for name in variants)
    return f"; there are weights of {', '.join(ways)}"


def _check_report(place: Path, report: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse weights that are missing, not expected, or of another shape."""
    for fault in ("missing", "unexpected", "mismatched"):
        names = _names(report, fault)
        if names and fault not in allowed:
            way = "; ignore_mismatched_sizes=True initialises them" if fault == "mismatched" else ""
            raise UserError(
                f"{place}: {len(names)} {fault} weights, {names[0]} first; the file and "
                f"config.json are not of the same network{way}"
            )


def _names(report: Mapping[str, Any], fault: str) -> list[str]:
    # A misshapen weight comes with its two shapes; FlashPack reports nothing.
    return [name if isinstance(name, str) else name[0] for name in report.get(f"{fault}_keys", ())]


class UNetFiles(ModelMixin, ConfigMixin):
    """The part of a network that loads, saves and converts.

    `save_pretrained` is ModelMixin's, with all of its options.
    """

    @classmethod
    def not_in_diffusers(cls, config: Mapping[str, Any]) -> str | None:
        """Why UNet2DModel cannot represent a network of this config, or None if it can."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = "unet",
        *,
        output_loading_info: bool = False,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load a UNet2DModel that diffusers, or this package, has saved.

        The files may come from anybody: only JSON and tensors are read, and no code is run.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hub.
            subfolder: Where in it config.json lies; where it is not there, the root is tried.
            output_loading_info: Whether to return a pair: the network and, as a dict, what
                diffusers reports about its weights.
            options: See `LoadOptions`. Arguments of the network may be among them, and replace
                those of config.json.

        Returns:
            The network, in eval mode.

        Raises:
            ValueError: If there is no such network, its configuration has arguments that are not
                known here or cannot be used, a weight is missing, not expected, or of another
                shape, or an option is unknown or contradicts another. What is missing or cannot be
                read is an OSError too.
        """
        arguments = cls.argument_names()
        check_options(options, arguments)
        places = [*dict.fromkeys([subfolder or "", ""])]
        folder = local_folder(pretrained_model_name_or_path, places, options=options)
        place = _find_config(folder, places)
        replaced = {name: value for name, value in options.items() if name in arguments}
        cls._check_before_loading(place, replaced)
        # Weights of another shape come back in the report.
        reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        passed = for_diffusers(options) | reporting
        with _quiet_diffusers():
            try:
                unet, report = super().from_pretrained(place, **passed)  # type: ignore[misc]
            except OSError as error:
                reason = first_line(error) + _other_variant(place, options.get("variant"))
                raise NotFoundError(f"the weights in {place} cannot be read: {reason}") from error
            except _REFUSALS as error:
                raise UserError(f"{place} cannot be loaded: {first_line(error)}") from error
        ignored = ["mismatched"] if options.get("ignore_mismatched_sizes") else []
        _check_report(place, report, ignored)
        unet._initialise(_names(report, "mismatched"))
        return (unet, report) if output_loading_info else unet  # pyright: ignore[reportReturnType]

    def _initialise(self, names: Sequence[str]) -> None:
        """Give these weights the values of a new network; diffusers leaves them without any."""
        if not names:
            return
        given, new = self.state_dict(), type(self)(**self.arguments).state_dict()
        weights = {name: new[name].to(given[name].dtype) for name in names}
        self.load_state_dict(weights, strict=False, assign=True)

    @classmethod
    def read_config(cls, path: Path) -> dict[str, Any]:
        """Read the arguments of the network from a config.json.

        Raises:
            ValueError: If it cannot be read, or has arguments that are not known here.
        """
        content = read_object(path)
        config = {key: v for key, v in content.items() if not key.startswith("_")}
        config = {key: v for key, v in config.items() if key not in _OF_DIFFUSERS}
        known = cls.argument_names()
        unknown = [key for key in config if key not in known]
        if unknown:
            raise UserError(
                f"{path} has {', '.join(unknown)}, which {cls.__name__} does not know: it is of "
                f"a {shown(content.get('_class_name'))}"
            )
        return config

    @classmethod
    def argument_names(cls) -> set[str]:
        """The names of the constructor's arguments."""
        return set(inspect.signature(cls.__init__).parameters) - {"self"}

    @classmethod
    def _check_before_loading(cls, place: Path, replaced: dict[str, Any]) -> None:
        """Refuse what diffusers would allocate memory for, or end in a traceback about."""
        path = place / "config.json"
        config = cls.read_config(path) | replaced
        try:
            with torch.device("meta"):
                unet = cls(**config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        for index in place.glob("*.index*.json"):
            _check_shards(index)
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        # One byte is the least that any number takes, and half a byte where it is quantised.
        least = parameters // 2 if _QUANTISED in read_object(path) else parameters
        files = [f for f in place.iterdir() if f.suffix in (".safetensors", ".bin")]
        stored = sum(file.stat().st_size for file in files)
        if files and stored < least:
            raise UserError(
                f"{path} describes a network of {parameters:,} parameters, and the files of "
                f"weights beside it have {stored:,} bytes; they are not of the same network"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network was built with, by name; its `config` may hold more."""
        known = self.argument_names()
        return {name: value for name, value in self.config.items() if name in known}

    def to_json_string(self) -> str:
        """The text of config.json: that of the same UNet2DModel, where there is one."""
        text = super().to_json_string()
        if self.not_in_diffusers(self.config) is not None:
            return text
        config = {key: value for key, value in json.loads(text).items() if key not in OURS}
        return json.dumps(config | {"_class_name": "UNet2DModel"}, indent=2, sort_keys=True) + "\n"

    def to_diffusers(self) -> UNet2DModel:
        """A UNet2DModel that shares this network's tensors.

        Raises:
            ValueError: If diffusers cannot represent the network (`not_in_diffusers`).
        """
        lacking = self.not_in_diffusers(self.config)
        if lacking is not None:
            raise UserError(f"{lacking}: this network stays a ddpm_sa.{type(self).__name__}")
        with torch.device("meta"):
            model = UNet2DModel(**{k: v for k, v in self.arguments.items() if k not in OURS})
        model.load_state_dict(self.state_dict(), assign=True)
        return model.train(self.training)
