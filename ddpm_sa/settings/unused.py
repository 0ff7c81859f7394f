"""Settings that have no effect with the values of others, as `--strength` without sdedit.

A dataclass of settings says so in a method `unused`: names of fields, each with a reason. A flag
that is typed without effect is a mistake; a value of a config file, or a default, is not.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def unused_settings(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each ineffective field of a dataclass and of those nested in it, and the reason."""
    if hasattr(settings, "unused"):
        for name, reason in settings.unused().items():
            yield f"{prefix}{name}", reason
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from unused_settings(value, f"{prefix}{field.name}.")
