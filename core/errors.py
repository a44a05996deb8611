"""Errors that tell the user what to change. The command prints their message alone, without a traceback."""

from collections.abc import Iterable

__all__ = ["InputError", "MissingError", "listed"]


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was got, what was expected and what to do."""


class MissingError(InputError, FileNotFoundError):
    """A file or folder the user named is not there, or has nothing in it."""

    def __str__(self) -> str:  # OSError would print an errno tuple
        return str(self.args[0])


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Names for a message: the first ``limit``, and how many more there are."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")
