"""What a model must know about its data, as plain values that every checkpoint stores."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from core.errors import InputError, listed

__all__ = ["DataSpec", "numbered_classes"]


@dataclass(frozen=True)
class DataSpec:
    """Everything that a model must know about its data, such as class names and statistics.

    A data module creates it, the task reads it in one place, and every checkpoint stores it. Each modality derives a
    class with further fields. All values are plain: numbers, strings, None, and tuples of these.

    Attributes:
        classes: class names in the order of the labels; empty if there are no classes.
        multi_label: whether a sample may have any number of these labels.
    """

    classes: tuple[str, ...] = ()
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values; tuples become lists."""
        return {field.name: _to_plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a specification from the result of :meth:`to_dict`.

        Raises:
            InputError: if this class does not have one of the fields; the message names it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"{cls.__name__} has no {listed(unknown)}; it has {listed(sorted(known), limit=20)}")

        return cls(**{name: _to_tuples(value) for name, value in values.items()})


def numbered_classes(count: int) -> tuple[str, ...]:
    """Return the class names '0', '1', ... for a model whose data are not known."""
    return tuple(str(i) for i in range(count))


def _to_plain(value: Any) -> Any:
    """Turn tuples into lists, at any depth."""
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def _to_tuples(value: Any) -> Any:
    """Turn lists into tuples, at any depth."""
    if isinstance(value, tuple | list):
        return tuple(_to_tuples(item) for item in value)
    return value
