"""What the programs of training/ and sampling/ share: reading their flags, ending on a mistake.

A user's mistake ends in one line and exit code 2; a traceback is for our own bugs.
"""

import json
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
