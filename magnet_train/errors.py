"""Exceptions that the command line prints as one sentence instead of a traceback."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """An error that the user can correct.

    The message is one sentence that names the file, key or value and says what to do. Any other exception is a bug
    in this package and keeps its traceback.
    """


class AgreedError(UserError):
    """A UserError that every rank raises at the same step: rank 0 prints it, the others exit silently."""


class Preempted(Exception):  # noqa: N818  nothing went wrong
    """A signal stopped the run; every rank raises this at the same step, with everything saved."""


def cannot_read(path: object, error: OSError, remedy: str = "copy it again") -> UserError:
    """Describe an existing file that cannot be read; `remedy` is for causes other than permissions."""
    if isinstance(error, PermissionError):
        remedy = "correct its permissions"
    return UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}.")


def require_extra(module: str, extra: str, what: str) -> None:
    """Check that an optional dependency is installed.

    Args:
        module: Its import name.
        extra: The extra of this package that installs it.
        what: What needs it, as the subject of the sentence.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f'{what} needs {module}, which is not installed; run pip install "magnet-train[{extra}]".'
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name; libraries append pages of advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".;: ")


def memory_reason(error: BaseException) -> str:
    """Return the first two sentences of an error of a full memory, without the place in torch's source."""
    sentences = first_line(error).rpartition("err == 0. ")[2].split(". ")
    return ". ".join(sentences[:2])
