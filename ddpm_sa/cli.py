"""Command-line interface of the programs of training/ and sampling/: flags, and errors.

A user's mistake is reported in one line and exit code 2; a traceback is for our own bugs.
"""

import argparse
import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from ddpm_sa import __version__
from ddpm_sa.errors import OutOfMemoryError, UserError, advise_out_of_memory, require
from ddpm_sa.progress import silence_bars_of_libraries
from ddpm_sa.settings.unused import unused_settings
from ddpm_sa.settings.words import config_first, flag_types, given_flags, join_lists, typed_as

Config = TypeVar("Config")

# The installed command. It starts a program with `ddpm-sa NAME` as sys.argv[0].
COMMAND = "ddpm-sa"

# --help shows the docstrings of attributes.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(
    config: type[Config], argv: Sequence[str] | None = None, about: str | None = None
) -> Config:
    """Read a dataclass of settings from `--config FILE.yaml` and flags, which override the file.

    Every field is a flag, nested ones with a dot (`--data.size 32`). Lists are typed as
    `settings.words.join_lists` describes. A YAML file of the folder configs/ beside the dataclass's
    module can be given by its name alone (`--config mnist`).

    Args:
        config: A dataclass whose fields have types, and docstrings for --help.
        argv: The command-line arguments; None for those of the process.
        about: The first lines of --help; None for the docstring of the dataclass's module.

    Returns:
        An instance of `config`, checked by its `__post_init__`.

    Raises:
        UserError: If a name is unknown, a value has the wrong type, a file is missing, a
            `__post_init__` raises a UserError, or a flag has no effect (`settings.unused`). The
            message is one line.
    """
    home = sys.modules[config.__module__]
    parser = ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=home.__doc__ if about is None else about,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    files = Path(getattr(home, "__file__", "")).parent.glob("configs/*.yaml")
    parser.add_argument("--config", action=_ConfigFile, named={path.stem: path for path in files})
    parser.add_class_arguments(config, as_group=False)
    types = dict(flag_types(config))
    for action in parser._actions:
        if (values := typed_as(types.get(action.dest))) is not None:
            action.metavar = values
            # jsonargparse's own `--flag+ VALUE`, which adds to a list, works but is not needed.
            action.option_strings = [f"--{action.dest}"]
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = parser.parse_args(join_lists(config_first(argv), config))
        settings.pop("config", None)
        checked = config(**vars(parser.instantiate(settings)))
        given = given_flags(argv)
        for flag, reason in unused_settings(checked):
            is_given = any(name == flag or name.startswith(f"{flag}.") for name in given)
            require(not is_given, f"--{flag} has no effect: {reason}")
        return checked
    except (ArgumentError, UserError) as error:
        raise UserError(f"{_one_line(str(error))} (--help lists every setting)") from error


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description, and shows commands as they were typed."""

    def format_help(self) -> str:
        return as_started(super().format_help())

    def _get_type_str(self, action: argparse.Action) -> str | None:
        # A number with its range: "int (at least 1)" instead of "Annotated[int, at least 1]".
        shown = super()._get_type_str(action)
        return shown and re.sub(r"Annotated\[(\w+), (.*?)\]", r"\1 (\2)", shown)


class _ConfigFile(ActionConfigFile):
    """A YAML file by its path, or by its name among those that come with the program."""

    def __init__(self, named: dict[str, Path], **kwargs: Any):
        self.named = dict(sorted(named.items()))
        names = f", or one of {', '.join(self.named)}" if named else ""
        super().__init__(help=f"A YAML file of these settings{names}.", **kwargs)

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        # A file of that name takes precedence; a folder may well be called mnist.
        if values in self.named and not Path(values).is_file():
            values = str(self.named[values])
        elif not Path(values).is_file():
            names = f" nor one of {', '.join(self.named)}" if self.named else ""
            raise UserError(f"--config {values} is {'neither' if names else 'not'} a file{names}")
        super().__call__(parser, namespace, values, option_string)

    def completer(self, prefix: str, **kwargs: Any) -> list[str]:
        names = [name for name in self.named if name.startswith(prefix)]
        return [*names, *super().completer(prefix, **kwargs)]


def as_started(text: str) -> str:
    """Rewrite a text that names programs by their files for users of the installed command.

    `python sampling/sample.py` becomes `ddpm-sa sample` if this process was started by `ddpm-sa`;
    otherwise the text stays as it is.
    """
    if not sys.argv[0].startswith(f"{COMMAND} "):
        return text
    file = r"(?:training|sampling)/(\w+)\.py"
    text = re.sub(rf"((?:torchrun|accelerate launch)[^\n`]*? ){file}", r"\1-m ddpm_sa \2", text)
    text = re.sub(rf"(?:python )?{file}", rf"{COMMAND} \1", text)
    return re.sub(r"training/configs/(\w+)\.yaml", r"\1", text)


def command_line() -> str:
    """The command line that repeats this program with the same settings."""
    command, _, name = sys.argv[0].partition(" ")
    start = [COMMAND, name] if command == COMMAND else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run `main` and exit with code 0, or with code 2 and one line if it raises a UserError.

    Under torchrun or accelerate, only process 0 prints the line, unless another is out of memory.
    Any other exception is a fault of ours: it keeps its traceback, with a line below that says
    where to report it.
    """
    silence_bars_of_libraries()
    try:
        with advise_out_of_memory("close other programs, or use a machine with more memory"):
            main()
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            error = UserError(f"{error.strerror}: {error.filename}")
        if isinstance(error, UserError):
            # RANK is set before there is a process group.
            if os.environ.get("RANK", "0") == "0" or isinstance(error, OutOfMemoryError):
                print(f"error: {_one_line(str(error))}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        print(
            f"This is a fault of ddpm_sa {__version__}, not of your input. Please report it with "
            f"the lines above and this command: {command_line()}",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(0)


def _one_line(text: str) -> str:
    return " ".join(text.split())
