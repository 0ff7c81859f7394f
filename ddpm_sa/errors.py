"""UserError: a mistake that the person at the keyboard can mend, and `require`, which raises it.

The programs print a UserError as one line and exit with code 2. Any other exception is a fault of
ours, or of a library, and keeps its traceback.
"""

import contextlib
from collections.abc import Iterator

# What torch says in a plain RuntimeError: on the CPU of Linux and of other systems, on Apple's
# GPUs, and in CUDA's libraries.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "STATUS_ALLOC_FAILED",
)


class UserError(ValueError):
    """An argument, setting or file that cannot be used.

    The message names the thing, the rule and the way out. As a ValueError it is what callers of
    the package catch.
    """


class NotFoundError(UserError, OSError):
    """A folder, a file of a model or a repository that is missing or cannot be read.

    An OSError too, which is what diffusers raises, so that code written for it catches this.
    """


class OutOfMemoryError(UserError):
    """The machine or the GPU has run out of memory; one process of several may be alone in it."""


def require(condition: bool, message: str) -> None:
    """Raise the message as a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)


@contextlib.contextmanager
def advise_out_of_memory(advice: str) -> Iterator[None]:
    """Inside, or in a function that this decorates, an error for lack of memory gets advice.

    Args:
        advice: What the user can do about it.

    Raises:
        OutOfMemoryError: In place of a MemoryError, or of what torch raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory; {advice} ({first_line(error)})") from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that there was not enough memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def first_line(error: Exception) -> str:
    """What an error of a library says, shortened to one line without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
