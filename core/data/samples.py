"""Samples and splits of a data set: sources and targets, reading them, skipping broken ones, hold-out splits."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.errors import InputError, MissingError

__all__ = [
    "Broken",
    "EmptyBatch",
    "PartlyBroken",
    "Sample",
    "SampleDataset",
    "Samples",
    "Splits",
    "Validation",
    "collate_found",
    "divide_in_folds",
    "hold_out",
    "labels_of",
    "named",
    "read_or_skip",
    "sample_name",
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
        train: (source, target) pairs of the training split. A target is a label or, if a sample may have several
            labels, (K,) float32 of 0 and 1.
        val: (source, target) pairs of the validation split.
        test: (source, target) pairs of the test split.
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


def sample_name(dataset: Any, position: int) -> str:
    """Return the name of a sample: that of its source if the dataset lists ``samples``, or else its number."""
    samples = getattr(dataset, "samples", None)  # SampleDataset and the image folders of torchvision
    if samples is None:
        return f"sample {position}"
    return source_name(samples[position][0])


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


class Broken(NamedTuple):
    """A sample that cannot be read, in its place.

    Attributes:
        name: name of the sample.
        reason: why it cannot be read.
    """

    name: str
    reason: str


class PartlyBroken(NamedTuple):
    """A batch for prediction that has samples which cannot be read.

    It is a named tuple, since trainers move those between devices.

    Attributes:
        batch: batch of the other samples; None if there are none.
        broken: the samples that cannot be read, each after its place among all samples of the batch.
    """

    batch: Any
    broken: list[tuple[int, Broken]]


class SampleDataset(Dataset[tuple[Tensor, Any] | Broken | None]):
    """Base of the datasets that read one source after another, each with its target.

    Subclasses implement :meth:`read`.

    Args:
        samples: (source, target) pairs.
        skip_broken: leave out samples that cannot be read, with a warning, instead of stopping.

    Attributes:
        keeps_broken: give :class:`Broken` in place of a sample that cannot be read, whatever ``skip_broken`` says; for
            prediction, whose targets are names.
    """

    keeps_broken = False

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

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | Broken | None:
        """Return the raw sample of a source and its target, or None if it is broken and may be skipped.

        Raises:
            MissingError: from :meth:`read`, unless ``keeps_broken`` is set.
            InputError: from :meth:`read`, unless ``keeps_broken`` is set.
        """
        source, target = self.samples[index]
        if self.keeps_broken:
            try:
                return self.read(source), target
            except InputError as error:
                return Broken(source_name(source), str(error))

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
    """Collate a batch without the samples that were skipped or cannot be read.

    Args:
        samples: samples of the batch, with None in place of each skipped one.
        kind: the word for a sample in messages, such as 'image'.
        collate: function that makes the batch; by default torch's.

    Returns:
        The batch, :class:`EmptyBatch` if all samples were skipped, or :class:`PartlyBroken` if there is a
        :class:`Broken` sample.
    """
    broken = [(i, sample) for i, sample in enumerate(samples) if isinstance(sample, Broken)]
    found = [sample for sample in samples if sample is not None and not isinstance(sample, Broken)]
    if broken:
        return PartlyBroken(collate(found) if found else None, broken)
    return collate(found) if found else EmptyBatch(kind)


def labels_of(target: Any) -> list[int]:
    """Return the labels of a sample: one, or all at which its target (K,) is 1."""
    return target.nonzero()[:, 0].tolist() if isinstance(target, Tensor) and target.ndim else [int(target)]


def hold_out(labels: Sequence[int] | Sequence[Tensor], share: float) -> tuple[list[int], list[int]]:
    """Hold out a share of each class, with a fixed seed.

    Args:
        labels: class of each sample, or targets (K,) of samples with several labels. Of these, about the share of each
            class is held out.
        share: share to hold out, in (0, 1). Of each class, at least one sample is held out and at least one is kept. If
            a class has a single sample, it is kept.

    Returns:
        The sorted indices of the samples to keep, and those of the held-out samples.
    """
    if _have_several(labels):
        first, second = _divide_several([labels_of(target) for target in labels], [1 - share, share])
        return _with_every_class(first, second, labels)

    indices_of_class = _indices_of_classes(labels)
    generator = np.random.default_rng(0)
    held_out: set[int] = set()
    for label in sorted(indices_of_class):
        members = indices_of_class[label]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out.update(generator.permutation(members)[:count].tolist())

    kept = [i for i in range(len(labels)) if i not in held_out]
    return kept, sorted(held_out)


def divide_in_folds(labels: Sequence[int] | Sequence[Tensor], folds: int) -> list[list[int]]:
    """Divide samples into folds, with a fixed seed; each class is divided evenly.

    Args:
        labels: class of each sample, or targets (K,) of samples with several labels.
        folds: number of folds.

    Returns:
        The sorted indices of the samples of each fold.
    """
    if _have_several(labels):
        return _divide_several([labels_of(target) for target in labels], [1 / folds] * folds)

    indices_of_class = _indices_of_classes(labels)
    generator = np.random.default_rng(0)
    divided: list[list[int]] = [[] for _ in range(folds)]
    place = 0
    for label in sorted(indices_of_class):
        for i in generator.permutation(indices_of_class[label]).tolist():
            divided[place % folds].append(i)
            place += 1  # continues with the next class, so that all folds have the same size
    return [sorted(fold) for fold in divided]


def _indices_of_classes(labels: Sequence[Any]) -> dict[int, list[int]]:
    """Return the indices of the samples of each class."""
    indices_of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        indices_of_class.setdefault(label, []).append(i)
    return indices_of_class


def _have_several(labels: Sequence[Any]) -> bool:
    return bool(labels) and isinstance(labels[0], Tensor) and labels[0].ndim > 0


def _divide_several(labels: Sequence[Sequence[int]], shares: Sequence[float]) -> list[list[int]]:
    """Divide samples with several labels into parts, by iterative stratification (Sechidis et al., ECML 2011).

    The label with the fewest samples left comes first. Each of its samples goes into the part that lacks most samples
    of this label and, among those, most samples in all. Samples without a label come last.

    Args:
        labels: labels of each sample.
        shares: share of each part; they add up to 1.

    Returns:
        The sorted indices of the samples of each part.
    """
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    left: dict[int, set[int]] = {}
    for i in order:
        for label in labels[i]:
            left.setdefault(label, set()).add(i)

    # Samples that each part still lacks, of each label and in all
    lacking = {label: [share * len(members) for share in shares] for label, members in left.items()}
    lacking_in_all = [share * len(labels) for share in shares]
    place = {i: rank for rank, i in enumerate(order)}
    parts: list[list[int]] = [[] for _ in shares]

    def put(i: int, wanted: Sequence[float]) -> None:
        part = max(range(len(shares)), key=lambda j: (wanted[j], lacking_in_all[j]))
        parts[part].append(i)
        lacking_in_all[part] -= 1
        for label in labels[i]:
            lacking[label][part] -= 1
            left[label].discard(i)

    while any(left.values()):
        rarest = min((label for label in left if left[label]), key=lambda label: (len(left[label]), label))
        for i in sorted(left[rarest], key=place.__getitem__):
            put(i, lacking[rarest])
    for i in order:
        if not labels[i]:
            put(i, lacking_in_all)

    return [sorted(part) for part in parts]


def _with_every_class(kept: list[int], held_out: list[int], targets: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Move samples so that each class of two samples or more is held out once, and above all each class is kept once.

    Args:
        kept: indices of the samples to keep.
        held_out: indices of the held-out samples.
        targets: targets (K,) of all samples.

    Returns:
        The sorted indices of both.
    """
    labels = [labels_of(target) for target in targets]
    for source, other, fewest in ((kept, held_out, 2), (held_out, kept, 1)):
        counts = Counter(label for i in source for label in labels[i])
        found = {label for i in other for label in labels[i]}
        for label in sorted(counts):
            if counts[label] >= fewest and label not in found:
                moved = next(i for i in source if label in labels[i])
                source.remove(moved)
                other.append(moved)
                counts.subtract(labels[moved])
                found.update(labels[moved])
    return sorted(kept), sorted(held_out)


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
