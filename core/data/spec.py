"""What a model must know of its data, as plain values that are stored in checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from core.errors import InputError, listed

__all__ = ["DataSpec", "numbered_classes"]


@dataclass(frozen=True)
class DataSpec:
    """Everything about the data that a model is built from and must agree with.

    A data module makes it once, the task reads it in one place, and every checkpoint holds it. Each modality derives
    its own class with further fields. Values are plain: numbers, texts, None, and tuples of these.

    Attributes:
        classes: class names in the order of the labels; empty where there are none.
    """

    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: tuples become lists."""
        return {field.name: _to_plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: if there are fields that this class does not have.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"{cls.__name__} has no {listed(unknown)}; it has {listed(sorted(known), limit=20)}")

        return cls(**{name: _to_tuples(value) for name, value in values.items()})


def numbered_classes(count: int) -> tuple[str, ...]:
    """Class names for a model whose data are not known: '0', '1', ..."""
    return tuple(str(i) for i in range(count))


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def _to_tuples(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_to_tuples(item) for item in value)
    return value
