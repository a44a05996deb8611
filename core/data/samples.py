"""Samples and splits of a data set: sources and targets, reading them, skipping broken ones, hold-out splits."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.errors import InputError, MissingError

__all__ = [
    "EmptyBatch",
    "Sample",
    "SampleDataset",
    "Samples",
    "Splits",
    "Validation",
    "collate_found",
    "divide_in_folds",
    "hold_out",
    "named",
    "read_or_skip",
    "source_name",
]

Sample = tuple[Any, Any]
"""A source (a path, a pair of a name and an array, or anything else that a modality reads) and its target."""

Samples = Sequence[Sample]

T = TypeVar("T")


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    Attributes:
        classes: class names in the order of their labels.
        train: (source, label) pairs of the training split.
        val: (source, label) pairs of the validation split.
        test: (source, label) pairs of the test split.
    """

    classes: Sequence[str]
    train: Samples
    val: Samples
    test: Samples


def named(samples: Samples) -> list[tuple[Any, str]]:
    """Replace the targets of samples by the names of their sources, for prediction."""
    return [(source, source_name(source)) for source, _ in samples]


def source_name(source: Any) -> str:
    """Return the name of a source: the path of a file, or the name that comes with an array."""
    if isinstance(source, tuple) and isinstance(source[1], np.ndarray):
        return str(source[0])

    return str(source)


def read_or_skip(read: Callable[[], T], *, skip_broken: bool) -> T | None:
    """Return the result of ``read``, or None after a warning if the sample is broken and may be skipped.

    Args:
        read: function that reads the sample, and raises InputError or MissingError if it cannot.
        skip_broken: whether a broken sample may be skipped.

    Raises:
        MissingError: from ``read``. A missing file is never skipped, since the list of files must then be wrong.
        InputError: from ``read``, unless ``skip_broken`` is set; the message names the option that skips samples.
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


class SampleDataset(Dataset[tuple[Tensor, Any] | None]):
    """Base of the datasets that read one source after another, each with its target.

    Subclasses implement :meth:`read`.

    Args:
        samples: (source, target) pairs.
        skip_broken: leave out samples that cannot be read, with a warning, instead of stopping.
    """

    def __init__(self, samples: Samples, *, skip_broken: bool = False) -> None:
        self.samples = samples
        self.skip_broken = skip_broken

    def read(self, source: Any) -> Tensor:
        """Read the raw sample of a source.

        Raises:
            MissingError: if the file is missing.
            InputError: if the source cannot be used; the message names it.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """Return the raw sample of a source and its target, or None if it is broken and may be skipped.

        Raises:
            MissingError: from :meth:`read`.
            InputError: from :meth:`read`.
        """
        source, target = self.samples[index]
        raw = read_or_skip(lambda: self.read(source), skip_broken=self.skip_broken)
        return None if raw is None else (raw, target)


@dataclass(frozen=True)
class EmptyBatch:
    """A batch in which every sample was broken; the loaders of :class:`core.data.module.DataModule` leave it out.

    Attributes:
        kind: the word for a sample in messages, such as 'image'.
    """

    kind: str


def collate_found(samples: Sequence[Any], kind: str, collate: Callable[[list[Any]], Any] = default_collate) -> Any:
    """Collate a batch without the samples that were skipped.

    Args:
        samples: samples of the batch, with None in place of each skipped one.
        kind: the word for a sample in messages, such as 'image'.
        collate: function that makes the batch; by default torch's.

    Returns:
        The batch, or :class:`EmptyBatch` if all samples were skipped.
    """
    found = [sample for sample in samples if sample is not None]
    return collate(found) if found else EmptyBatch(kind)


def hold_out(labels: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Hold out a share of each class, with a fixed seed.

    Args:
        labels: class of each sample.
        share: share to hold out, in (0, 1). Of each class, at least one sample is held out and at least one is kept. If
            a class has a single sample, it is kept.

    Returns:
        The sorted indices of the samples to keep, and those of the held-out samples.
    """
    indices_of_class = _indices_of_classes(labels)
    generator = np.random.default_rng(0)
    held_out: set[int] = set()
    for label in sorted(indices_of_class):
        members = indices_of_class[label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out.update(generator.permutation(members)[:count].tolist())

    kept = [i for i in range(len(labels)) if i not in held_out]
    return kept, sorted(held_out)


def divide_in_folds(labels: Sequence[int], folds: int) -> list[list[int]]:
    """Divide samples into folds, with a fixed seed; each class is divided evenly.

    Args:
        labels: class of each sample.
        folds: number of folds.

    Returns:
        The sorted indices of the samples of each fold.
    """
    indices_of_class = _indices_of_classes(labels)
    generator = np.random.default_rng(0)
    divided: list[list[int]] = [[] for _ in range(folds)]
    place = 0
    for label in sorted(indices_of_class):
        for i in generator.permutation(indices_of_class[label]).tolist():
            divided[place % folds].append(i)
            place += 1  # continues with the next class, so that all folds have the same size
    return [sorted(fold) for fold in divided]


def _indices_of_classes(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return the indices of the samples of each class."""
    indices_of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        indices_of_class.setdefault(label, []).append(i)
    return indices_of_class


@dataclass(frozen=True)
class Validation:
    """How the validation split is chosen if a data set is published with training and test splits only.

    Attributes:
        val_split: 'held_out' for a share of each class in the training split, 'test' for the test split.
        val_share: share of each class to hold out, in (0, 1).

    Raises:
        InputError: if ``val_split`` is unknown or ``val_share`` is out of range.
    """

    val_split: Literal["held_out", "test"]
    val_share: float

    def __post_init__(self) -> None:
        if self.val_split not in ("held_out", "test") or not 0 < self.val_share < 1:
            raise InputError(
                f"val_split={self.val_split!r}, val_share={self.val_share}; "
                "expected 'held_out' or 'test', and a share in (0, 1)"
            )

    def splits(self, classes: Sequence[str], train: Samples, test: Samples) -> Splits:
        """Make all three splits from the two that are published."""
        if self.val_split == "test":
            return Splits(classes, train, test, test)

        kept, held_out = hold_out([int(label) for _, label in train], self.val_share)
        return Splits(
            classes,
            train=[train[i] for i in kept],
            val=[train[i] for i in held_out],
            test=test,
        )
