"""Errors that tell the user what to change. The command prints their message alone, without a traceback."""

from collections.abc import Iterable

__all__ = ["InputError", "MissingError", "listed", "printable"]


class InputError(ValueError):
    """An input of the user cannot be used. The message says what it was, what was expected and what to do."""


class MissingError(InputError, FileNotFoundError):
    """A file or folder that the user named is missing or empty."""

    def __str__(self) -> str:  # OSError would print an errno tuple
        return str(self.args[0])


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Return names as a list for a message, such as 'a, b, c'; after ``limit`` names, only the others' number."""
    words = [str(name) for name in names]
    text = ", ".join(words[:limit])
    if len(words) > limit:
        text += f" and {len(words) - limit} more"
    return text


def printable(name: str) -> str:
    r"""Return the name of a file or class as text that can be written and drawn.

    Python reads bytes of a file name that are not UTF-8 as surrogates, which cannot be written to a text file. Here
    they become escapes, as in 'caf\xe9.png'.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
