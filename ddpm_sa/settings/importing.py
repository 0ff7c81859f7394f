"""Things of the user's own that a setting names, as package.module:name."""

import importlib
import os
import sys
from typing import Any

from ddpm_sa.errors import UserError


def import_named(setting: str, name: str) -> Any:
    """What a setting names; modules of the current folder are found, as by `python -m`.

    Args:
        setting: The setting, for messages.
        name: package.module:name.

    Raises:
        ValueError: If it has another form, or there is no such thing.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UserError(f"{setting}={name!r} must be package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{setting}={name!r} cannot be imported: {error}") from error
