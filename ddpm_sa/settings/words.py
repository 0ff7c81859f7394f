"""The words of a command line: lists as people type them, and which flags were given."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from itertools import zip_longest
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ddpm_sa.errors import require


def flag_types(settings: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each flag of a dataclass of settings, nested ones with a dot, and its type."""
    for name, hint in get_type_hints(settings).items():
        if is_dataclass(hint):
            yield from flag_types(hint, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield f"{prefix}{name}", hint


def given_flags(argv: Sequence[str] | None = None) -> frozenset[str]:
    """Names of the settings that a command line gives as flags, rather than in a --config file.

    A flag for a group of settings, `--optim "{lr: 1e-3}"`, gives the settings that it names.

    Args:
        argv: The command-line arguments; None for those of the process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    names = set()
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        names.add(name.removesuffix("+"))
        try:
            group = yaml.safe_load(value if equals else following)
        except yaml.YAMLError:
            continue
        names |= {f"{name}.{key}" for key in group} if isinstance(group, dict) else set()
    return frozenset(names)


def config_first(argv: Sequence[str]) -> list[str]:
    """Move each `--config FILE` to the front, so that flags override it wherever they are typed."""
    files, rest, words = [], [], [*argv]
    while words:
        word = words.pop(0)
        if word == "--config" and words:
            files += [word, words.pop(0)]
        else:
            (files if word.startswith("--config=") else rest).append(word)
    return files + rest


def join_lists(argv: Sequence[str], settings: type) -> list[str]:
    """Join the words of each list into one, as in `--image a b --image c`.

    It becomes `--image=["a", "b"] --image=["a", "b", "c"]`, of which the last one counts. A list in
    brackets stays as it is. Tuples are typed as `12,16` in a list, and like that or as `12 16`
    otherwise; a later one replaces it.

    Args:
        argv: The command line.
        settings: The dataclass that says which flags take lists.

    Raises:
        UserError: If a flag of a list has no value, or both a list in brackets and other values.
    """
    types = dict(flag_types(settings))
    dicts = tuple(f"{name}." for name, hint in types.items() if get_origin(hint) is dict)
    before: dict[str, list[str]] = {}
    joined, words = [], [*argv]
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name, values = flag.removeprefix("--"), [value] if equals else []
        is_list = word.startswith("--") and _list_arm(types.get(name)) is not None
        takes_many = is_list or name.startswith(dicts)
        # argparse takes "-1e-3" for a flag, unless it is joined to the one before.
        while words and word.startswith("--") and _is_value(words[0], takes_many):
            values.append(words.pop(0))
        if is_list:
            before[name] = _extended(flag, before.get(name, []), values, types[name])
            joined.append(f"{flag}={_as_list(flag, before[name], types[name])}")
        elif takes_many and len(values) > 1:
            joined.append(f"{flag}=[{', '.join(values)}]")
        else:
            joined += [f"{flag}={values[0]}", *values[1:]] if values else [word]
    return joined


def _is_value(word: str, takes_many: bool) -> bool:
    negative = re.match(r"-\.?\d", word) is not None
    return negative or (takes_many and not word.startswith("-"))


def _extended(flag: str, before: list[str], values: list[str], hint: Any) -> list[str]:
    """The values of a list after one more occurrence of its flag."""
    require(bool(values), f"{flag} needs a value")
    require(
        not before or _in_brackets(values) == _in_brackets(before),
        f"{flag} takes a list in brackets or one value after another, not both",
    )
    replaces = _in_brackets(values) or get_origin(_list_arm(hint)) is tuple
    return values if replaces else before + values


def typed_as(hint: Any) -> str | None:
    """How --help shows the values of a flag that takes a list; None for one that takes a value."""
    kind = _list_arm(hint)
    if kind is None:
        return None
    items = get_args(kind)
    if get_origin(kind) is tuple:
        return " ".join(["VALUE"] * len(items))
    item = ",".join(["VALUE"] * len(get_args(items[0]))) if _holds_tuples(kind) else "VALUE"
    return f"{item} [{item} ...]"


def _as_list(flag: str, values: list[str], hint: Any) -> str:
    """The value of a flag that takes a list, as the parser reads it."""
    others = [arm for arm in _arms(hint) if get_origin(arm) not in (list, tuple)]
    kind, null = _list_arm(hint), values == ["null"] and NoneType in others
    takes_one = len(values) == 1 and bool({*others} - {NoneType}) and not _is_tuple(values[0], kind)
    if _in_brackets(values) or null or takes_one:
        return values[0]
    if get_origin(kind) is tuple:
        return json.dumps(values[0].split(",") if len(values) == 1 else values)
    if not _holds_tuples(kind):
        return json.dumps(values)
    length = len(get_args(get_args(kind)[0]))
    items = [value.split(",") for value in values]
    for value, item in zip(values, items, strict=True):
        require(
            len(item) == length,
            f"{flag} {value}: each value is {length} numbers with commas, as in 12,16",
        )
    return json.dumps(items)


def _is_tuple(value: str, kind: Any) -> bool:
    """Whether one word is a tuple, as 12,16, where another type would take it too."""
    return get_origin(kind) is tuple and value.count(",") == len(get_args(kind)) - 1


def _list_arm(hint: Any) -> Any:
    """The list or tuple in a type, or None."""
    return next((arm for arm in _arms(hint) if get_origin(arm) in (list, tuple)), None)


def _holds_tuples(kind: Any) -> bool:
    return get_origin(kind) is list and get_origin(get_args(kind)[0]) is tuple


def _arms(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of another type, itself."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(arm for part in get_args(hint) for arm in _arms(part))
    return (hint,)


def _in_brackets(values: list[str]) -> bool:
    return len(values) == 1 and values[0].startswith("[") and values[0].endswith("]")
