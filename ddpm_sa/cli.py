"""What the programs of training/ and sampling/ share: reading their flags, ending on a mistake.

A user's mistake ends in one line and exit code 2; a traceback is for our own bugs.
"""

import argparse
import json
import os
import re
import shlex
import sys
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

Config = TypeVar("Config")

# The installed command. It starts a program with `ddpm-sa NAME` as sys.argv[0].
COMMAND = "ddpm-sa"

# What an attribute's docstring says is what --help says.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(
    config: type[Config], argv: Sequence[str] | None = None, about: str | None = None
) -> Config:
    """Read a dataclass of settings from `--config FILE.yaml` and flags; later ones win.

    Every field is a flag, nested ones with a dot (`--data.size 32`). A YAML file of the folder
    configs/ beside the dataclass's module can be given by its name alone (`--config mnist`).

    Args:
        config: A dataclass whose fields have types, and docstrings for --help.
        argv: The words of the command line, or None for the process's own.
        about: What --help says first; if None, the docstring of the dataclass's module.

    Returns:
        An instance, checked by its own `__post_init__`s.

    Raises:
        ValueError: One line: an unknown name, a value of the wrong type, a missing file, or what a
            `__post_init__` refused with a ValueError.
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
    try:
        settings = parser.parse_args(argv)
        settings.pop("config", None)
        return config(**vars(parser.instantiate(settings)))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{_one_line(str(error))} (--help lists every setting)") from error


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description, which shows commands: those that are typed here."""

    def format_help(self) -> str:
        return as_started(super().format_help())


class _ConfigFile(ActionConfigFile):
    """A YAML file by its path, or by its name among those that come with the program."""

    def __init__(self, named: dict[str, Path], **kwargs: Any):
        self.named = dict(sorted(named.items()))
        names = f", or one of {', '.join(self.named)}" if named else ""
        super().__init__(help=f"A YAML file of these settings{names}.", **kwargs)

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        # A folder may well be called mnist; a file of that name is what is meant.
        if values in self.named and not Path(values).is_file():
            values = str(self.named[values])
        elif self.named and re.fullmatch(r"\w+", values) and not Path(values).exists():
            raise ValueError(
                f"--config {values} is neither a file nor one of {', '.join(self.named)}"
            )
        super().__call__(parser, namespace, values, option_string)

    def completer(self, prefix: str, **kwargs: Any) -> list[str]:
        names = [name for name in self.named if name.startswith(prefix)]
        return [*names, *super().completer(prefix, **kwargs)]


def as_started(text: str) -> str:
    """A text that names programs by their files, in the words of the command if it runs.

    `python sampling/sample.py` becomes `ddpm-sa sample` in a process that `ddpm-sa` started, and
    stays as it is in one that `python sampling/sample.py` started.
    """
    if not sys.argv[0].startswith(f"{COMMAND} "):
        return text
    file = r"(?:training|sampling)/(\w+)\.py"
    text = re.sub(rf"((?:torchrun|accelerate launch)[^\n`]*? ){file}", r"\1-m ddpm_sa \2", text)
    text = re.sub(rf"(?:python )?{file}", rf"{COMMAND} \1", text)
    return re.sub(r"training/configs/(\w+)\.yaml", r"\1", text)


def command_line() -> str:
    """The line that starts this program again with the same settings."""
    command, _, name = sys.argv[0].partition(" ")
    start = [COMMAND, name] if command == COMMAND else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def repeated(argv: Sequence[str], *names: str) -> list[str]:
    """Every `--name A --name B` of these names as the one list that `parse` knows, `--name [A,B]`.

    Raises:
        ValueError: If one of them comes without a value.
    """
    found: dict[str, list[str]] = {}
    rest, words = [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in {f"--{name}" for name in names}:
            rest.append(word)
            continue
        given = value if equals else next(words, "--")
        if given.startswith("--"):
            raise ValueError(f"{flag} needs a value")
        found.setdefault(flag, []).append(given)
    for flag, values in found.items():
        alone = len(values) == 1 and values[0].startswith("[")
        rest += [flag, values[0] if alone else json.dumps(values)]
    return rest


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run a program's `main`, and exit: 0, or 2 with one line for what its user can mend.

    Under torchrun or accelerate only the first process prints the line.
    """
    try:
        main()
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {_one_line(str(error))}", file=sys.stderr)
        # Reading RANK needs no process group: the mistake may come before there is one.
        sys.exit(2)
    sys.exit(0)


def _one_line(text: str) -> str:
    return " ".join(text.split())
