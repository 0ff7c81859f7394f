"""UserError: a mistake that the person at the keyboard can mend, and `require`, which raises it.

The programs print a UserError as one line and exit with code 2. Any other exception is a fault of
ours, or of a library, and keeps its traceback.
"""


class UserError(ValueError):
    """An argument, setting or file that cannot be used.

    The message names the thing, the rule and the way out. As a ValueError it is what callers of
    the package catch.
    """


def require(condition: bool, message: str) -> None:
    """Raise the message as a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)
