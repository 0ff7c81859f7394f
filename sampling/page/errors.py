"""Errors of the page of sampling/app.py."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ddpm_sa.errors import UserError


def report_errors(callback: Callable) -> Callable:
    """Wrap a callback so that its UserErrors are shown on the page."""
    if inspect.isgeneratorfunction(callback):

        @functools.wraps(callback)
        def steps(*inputs: Any) -> Iterator[Any]:
            try:
                yield from callback(*inputs)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return steps

    @functools.wraps(callback)
    def once(*inputs: Any) -> Any:
        try:
            return callback(*inputs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return once
