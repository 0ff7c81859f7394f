"""Command-line interface of the programs of training/ and sampling/: flags, and errors.

A user's mistake is reported in one line and exit code 2; a traceback is for our own bugs.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

Config = TypeVar("Config")

# --help shows the docstrings of attributes.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a dataclass of settings from `--config FILE.yaml` and flags; later values win.

    Every field is a flag; nested fields have a dot (`--data.size 32`).

    Args:
        config: A dataclass whose fields have types, and docstrings for --help.
        argv: The command-line arguments; None for those of the process.

    Returns:
        An instance of `config`, checked by its `__post_init__`.

    Raises:
        ValueError: If a name is unknown, a value has the wrong type, a file is missing, or a
            `__post_init__` raises a ValueError. The message is one line.
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


def join_repeated_flags(argv: Sequence[str], *names: str) -> list[str]:
    """Join repeated flags, `--name A --name B`, into the list that `parse` reads, `--name [A,B]`.

    Raises:
        ValueError: If one of the flags has no value.
    """
    values_of: dict[str, list[str]] = {}
    rest, words = [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in {f"--{name}" for name in names}:
            rest.append(word)
            continue
        argument = value if equals else next(words, "--")
        if argument.startswith("--"):
            raise ValueError(f"{flag} needs a value")
        values_of.setdefault(flag, []).append(argument)
    for flag, values in values_of.items():
        is_list = len(values) == 1 and values[0].startswith("[")
        rest += [flag, values[0] if is_list else json.dumps(values)]
    return rest


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run `main` and exit with code 0, or with code 2 and one line if it raises a ValueError.

    Under torchrun or accelerate, only process 0 prints the line.
    """
    try:
        main()
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {_one_line(str(error))}", file=sys.stderr)
        # RANK is set before there is a process group.
        sys.exit(2)
    sys.exit(0)


def _one_line(text: str) -> str:
    return " ".join(text.split())
