"""Samples of a data set that may be broken: named, or left out on request."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import default_collate

from core.errors import InputError, MissingError

__all__ = ["NothingFound", "Sample", "Samples", "collate_found", "named", "read_or_skip", "source_name"]

Sample = tuple[Any, Any]
"""Where a sample is read from (a path; a name and an array; what else a modality reads), and its target."""

Samples = Sequence[Sample]

T = TypeVar("T")


def read_or_skip(read: Callable[[], T], *, skip_broken: bool) -> T | None:
    """What ``read`` gives; None, with a warning, if the sample cannot be used and may be left out.

    Args:
        read: reads the sample, and raises InputError or MissingError where it cannot.
        skip_broken: whether it may be left out.

    Raises:
        MissingError: as ``read`` raises it, since a file that is not there is a wrong list.
        InputError: as ``read`` raises it, with the option that leaves such samples out.
    """
    try:
        return read()
    except MissingError:
        raise
    except InputError as error:
        if not skip_broken:
            raise InputError(f"{error}, or type --data.skip_broken true") from error
        warnings.warn(f"skipped: {error}", stacklevel=3)
        return None


@dataclass(frozen=True)
class NothingFound:
    """A batch of which no sample could be used; loaders leave it out, see :class:`core.training.DataModule`.

    Attributes:
        kind: what a sample is called in messages, as in 'image'.
    """

    kind: str


def collate_found(samples: Sequence[Any], kind: str, collate: Callable[[list[Any]], Any] = default_collate) -> Any:
    """A batch of the samples that could be used.

    Args:
        samples: of a batch; None for one that was skipped.
        kind: what one is called in messages, as in 'image'.
        collate: makes the batch; by default as torch does.

    Returns:
        The batch, or :class:`NothingFound` if all were skipped.
    """
    left = [sample for sample in samples if sample is not None]
    return collate(left) if left else NothingFound(kind)


def named(samples: Samples) -> list[tuple[Any, str]]:
    """The same samples with their names as targets, for prediction."""
    return [(source, source_name(source)) for source, _ in samples]


def source_name(source: Any) -> str:
    """What the source of a sample is called: a file by its path, an array by the name beside it."""
    return str(source[0]) if isinstance(source, tuple) and isinstance(source[1], np.ndarray) else str(source)
