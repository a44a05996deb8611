"""Data modules of labeled samples: splits, class folders, and prediction on any files.

A modality and a data set each implement one half of a data module::

    modality    find, dataset, settings    its files, the raw samples they become, what a model must know
    data set    check_data, splits         whether the data exist, and which samples belong to which split
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from core.data.folders import ClassFolders
from core.data.module import DataModule
from core.data.samples import SampleDataset, Samples, Splits, labels_of, named
from core.data.spec import DataSpec
from core.data.tables import LabelTable
from core.errors import InputError

__all__ = ["FolderDataModule", "SampleDataModule", "Split"]

_EVEN = 1.5
"""The largest class may have this many times the samples of the smallest before classes count as uneven."""

Split = Literal["train", "val", "test", "predict"]


class SampleDataModule(DataModule):
    """Base of the data modules of labeled samples.

    Args:
        predict_path: a file or a folder of files for ``predict``; by default the test split is predicted.
        skip_broken: leave out files that cannot be used, with a warning, instead of stopping; ``predict`` gives them a
            row with the reason in any case.
        batch_size: samples for each process and step.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.
        min_epoch_steps: an epoch goes over a small training set several times, until it has this many steps.
        balance: b in [0, 1]: a training sample whose class has n samples is drawn with the weight n^-b; 0 takes each
            sample once. Of several labels, the rarest one counts.
    """

    spec_only: ClassVar[tuple[str, ...]] = ("classes", "multi_label")
    """Fields of the specification that are not arguments of the data module."""

    multi_label = False
    """Whether a sample may have several labels; data sets that know it override this."""

    def __init__(
        self,
        *,
        predict_path: str | None = None,
        skip_broken: bool = False,
        batch_size: int = 64,
        num_workers: int = 2,
        drop_last: bool = True,
        min_epoch_steps: int = 1,
        balance: float = 0.0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
            min_epoch_steps=min_epoch_steps,
        )
        if not 0 <= balance <= 1:
            raise InputError(f"balance={balance}; expected a number in [0, 1]")

        self.predict_path = Path(predict_path) if predict_path else None
        self.skip_broken = skip_broken
        self.balance = balance
        self._splits: Splits | None = None

    # A modality implements these, and settings

    def find(self, path: Path) -> list[Any]:
        """Find all sources of the modality below a folder, sorted; a path to a file gives that file alone.

        Raises:
            MissingError: if there is none.
        """
        raise NotImplementedError

    def dataset(self, samples: Samples, split: Split) -> Dataset[Any]:
        """Return a dataset that reads each (source, target) pair as (raw sample, target)."""
        raise NotImplementedError

    # A data set implements this and check_data

    def splits(self) -> Splits:
        """List the class names and the (source, target) pairs of each split.

        Raises:
            MissingError: if a file or folder is missing.
            InputError: if the data cannot be used.
        """
        raise NotImplementedError

    # Written once for all of them

    @classmethod
    def from_spec(cls, spec: Any, *, batch_size: int, num_workers: int) -> Self:
        """Build a data module for prediction that reads files as a model with this specification needs them."""
        names = [field.name for field in fields(spec) if field.name not in cls.spec_only]
        options = {name: getattr(spec, name) for name in names}
        return cls(**options, batch_size=batch_size, num_workers=num_workers)

    def read_splits(self) -> Splits:
        """Return the splits, which are listed at the first call only, since listing a large data set takes minutes."""
        if self._splits is None:
            self.check_data()
            self._splits = self.splits()
            self.classes = list(self._splits.classes)
        return self._splits

    def spec(self) -> DataSpec:
        """Return the settings together with the class names of the data."""
        return replace(self.settings(), classes=tuple(self.read_splits().classes))

    @property
    def predicts_files(self) -> bool:
        """Whether the trainer runs ``predict`` on ``predict_path``."""
        return self.predict_path is not None and self.trainer is not None and bool(self.trainer.predicting)

    def prepare_data(self) -> None:
        """Check that the files to predict on exist or, in all other runs, that the data set exists.

        Raises:
            MissingError: if there is nothing to read.
            InputError: if the data cannot be used.
        """
        if self.predicts_files and self.predict_path is not None:
            self.find(self.predict_path)
        else:
            self.read_splits()

    def setup(self, stage: str | None = None) -> None:
        """List the samples of all splits, or, for ``predict`` with a path, only the files to predict on."""
        if stage == "predict" and self.predict_path is not None:
            self.predict_set = self._prediction_set(self.find(self.predict_path))
            return

        splits = self.read_splits()
        self.train_set = self.dataset(splits.train, "train")
        if self.balance > 0:
            self.train_weights = _class_weights(splits, self.balance)
        self.val_set = self.dataset(splits.val, "val")
        self.test_set = self.dataset(splits.test, "test")
        self.predict_set = self._prediction_set([source for source, _ in splits.test])

    def use_sources(self, given: Any) -> None:
        """Predict on files, folders or arrays instead of ``predict_path``; see :meth:`sources`."""
        self.predict_set = self._prediction_set(self.sources(given))

    def use_windows(self) -> None:
        """Prepare ``predict_set`` for a prediction of windows in time; by default the task cuts them."""

    def sources(self, given: Any) -> list[Any]:
        """Turn user input into a list of sources.

        Args:
            given: a file, a folder, an array of one sample, or a list of these. An array gets the name 'array i', where
                i is its index in the result.

        Raises:
            MissingError: if there is no such file.
            InputError: if an item is neither a path nor numbers.
        """
        items = given if isinstance(given, list | tuple) else [given]
        sources: list[Any] = []
        for item in items:
            if isinstance(item, str | Path):
                sources += self.find(Path(item))
            else:
                sources.append((f"array {len(sources)}", _to_array(item)))
        return sources

    def _prediction_set(self, sources: Sequence[Any]) -> Dataset[Any]:
        samples = named([(source, None) for source in sources])
        dataset = self.dataset(samples, "predict")
        if isinstance(dataset, SampleDataset):
            dataset.keeps_broken = True
        return dataset


class FolderDataModule(SampleDataModule):
    """Class folders: ``root/train/<class>/<file>`` and ``root/val/<class>/<file>``, or ``root/<class>/<file>``.

    With ``labels_csv``, the labels stand in a table instead, see :class:`core.data.tables.LabelTable`.

    Labels follow the sorted class names. ``root/test`` is the test split; without it, the validation split is used.
    Without ``root/val``, a share of each class is held out of the training files, and a message says so. Folders whose
    names begin with an underscore are left out. Evaluation needs no training folder.

    The data module of a modality's class folders derives from this class and from the modality's base, in this order.

    Args:
        root: folder of the data; only ``predict`` works without it.
        labels_csv: CSV file with the columns ``file`` (relative to ``root``, or else to this file) and ``labels``, and
            perhaps ``split``, instead of class folders.
        multi_label: whether a file of ``labels_csv`` may have any number of labels, separated by ';'.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out when there is no validation folder.
        folds: divide the training files into so many equal parts, and hold out one of them instead of ``val_share``.
            The command trains once for each part and prints mean and spread.
        fold: part that is held out, counted from 0; by default the first one or, in the command, each in turn.
        kwargs: arguments of the modality's data module.

    Attributes:
        folders: the class folders, which list the files.
        table: the table of labels, which lists the files if it was given.
    """

    pattern: ClassVar[str] = "*"
    """Pattern of the file names in messages, such as '*.jpg'."""

    def __init__(
        self,
        root: str | None = None,
        *,
        labels_csv: str | None = None,
        multi_label: bool = False,
        train_split: str = "train",
        val_split: str = "val",
        val_share: float = 0.1,
        folds: int = 0,
        fold: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if multi_label and labels_csv is None:
            raise InputError(
                "multi_label=True, and class folders give each file one label; type --data.labels_csv FILE, a CSV file "
                "with the columns file, labels, or leave multi_label out"
            )

        self.multi_label = multi_label
        self.folders = ClassFolders(
            root=Path(root) if root else None,
            find=self.find,
            pattern=self.pattern,
            train_split=train_split,
            val_split=val_split,
            val_share=val_share,
            folds=folds,
            fold=fold or 0,
        )
        self.table: LabelTable | None = None
        if labels_csv is not None:
            self.table = LabelTable(Path(labels_csv), self.folders, multi_label)

    def check_data(self) -> None:
        """Check the folder that defines the classes.

        Raises:
            MissingError: if the folder is missing, or one of its class folders is empty.
            InputError: if a folder looks like a split under another name.
        """
        (self.table or self.folders).check()

    def prepare_data(self) -> None:
        """Check the files to predict on or the data set; ``fit`` needs training files."""
        super().prepare_data()
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            (self.table or self.folders).check_training()

    def setup(self, stage: str | None = None) -> None:
        """List the files of all splits; ``fit`` needs training files."""
        if stage in ("fit", None):
            (self.table or self.folders).check_training()
        super().setup(stage)

    def splits(self) -> Splits:
        """List the files of all splits."""
        return (self.table or self.folders).split()


def _class_weights(splits: Splits, balance: float) -> list[float] | None:
    """Return the weight of each training sample, or None if the classes are even.

    A sample with several labels has the weight of its rarest one, as in repeat factor sampling (LVIS, CVPR 2019), and
    samples without a label count as a class of their own.

    Args:
        splits: the splits, with labels that count from 0, or targets (K,).
        balance: b in the weight n^-b of a sample whose class has n of them.
    """
    if not all(isinstance(target, int | np.integer | Tensor) for _, target in splits.train):
        return None

    labels: list[Sequence[int | None]] = [labels_of(target) or [None] for _, target in splits.train]
    counts: Counter[int | None] = Counter(label for own in labels for label in own)
    if not counts or max(counts.values()) <= _EVEN * min(counts.values()):
        return None

    rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    names = ["no label" if label is None else splits.classes[label] for label in (rarest, commonest)]
    rank_zero_info(
        f"The classes have {counts[rarest]} ({names[0]}) to {counts[commonest]} ({names[1]}) training samples; rare "
        f"ones are drawn more often (--data.balance {balance})"
    )
    return [min(counts[label] for label in own) ** -balance for own in labels]


def _to_array(item: Any) -> np.ndarray:
    """Convert a tensor, array or nested list to an array of numbers."""
    array = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"cannot predict on {type(item).__name__}; give a path, a folder, an array, or a list of these"
        )
    return array
