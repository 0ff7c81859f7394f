"""What the programs of training/ and sampling/ share: reading their flags, ending on a mistake.

A user's mistake ends in one line and exit code 2; a traceback is for our own bugs.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

Config = TypeVar("Config")

# What an attribute's docstring says is what --help says.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a dataclass of settings from `--config FILE.yaml` and flags; later ones win.

    Every field is a flag, nested ones with a dot (`--data.size 32`).

    Args:
        config: A dataclass whose fields have types, and docstrings for --help.
        argv: The words of the command line, or None for the process's own.

    Returns:
        An instance, checked by its own `__post_init__`s.

    Raises:
        ValueError: One line: an unknown name, a value of the wrong type, a missing file, or what a
            `__post_init__` refused with a ValueError.
    """
    parser = ArgumentParser(
        prog=os.path.basename(sys.argv[0]), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these settings.")
    parser.add_class_arguments(config, as_group=False)
    try:
        settings = parser.parse_args(argv)
        settings.pop("config", None)
        return config(**vars(parser.instantiate(settings)))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{_one_line(str(error))} (--help lists every setting)") from error


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
