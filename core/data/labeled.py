"""Data modules of labeled samples: splits, class folders, and prediction on any files.

A modality and a data set each fill one half of a data module::

    modality    find, dataset, settings, from_spec    its files, the raw samples they become, what a model must know
    data set    check_data, splits                    whether the data are there, and which pairs train and evaluate
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import Dataset

from core.data.folders import ClassFolders
from core.data.module import DataModule
from core.data.samples import Samples, Splits, named
from core.data.spec import DataSpec
from core.errors import InputError

__all__ = ["FolderDataModule", "SampleDataModule", "Split"]

Split = Literal["train", "val", "test", "predict"]


class SampleDataModule(DataModule):
    """Base of the data modules of labeled samples; ``predict`` without a path reads the test split.

    Args:
        predict_path: a file or a folder of files for ``predict``; by default the test split.
        skip_broken: leave out files that cannot be used, with a warning, instead of stopping.
        batch_size: samples for each process and step.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.
    """

    def __init__(
        self,
        *,
        predict_path: str | None = None,
        skip_broken: bool = False,
        batch_size: int = 64,
        num_workers: int = 2,
        drop_last: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, drop_last=drop_last)
        self.predict_path = Path(predict_path) if predict_path else None
        self.skip_broken = skip_broken
        self._splits: Splits | None = None

    # A modality says

    def find(self, path: Path) -> list[Any]:
        """The file itself, or all sources of the modality below a folder, sorted.

        Raises:
            MissingError: if there is none.
        """
        raise NotImplementedError

    def dataset(self, samples: Samples, split: Split) -> Dataset[Any]:
        """A data set that reads (source, target) pairs as (raw sample, target)."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: Any, *, batch_size: int, num_workers: int) -> Self:
        """A data module that reads files as a model with this spec needs them, for prediction."""
        raise NotImplementedError

    # A data set says

    def splits(self) -> Splits:
        """Class names and the (source, target) pairs of the splits.

        Raises:
            MissingError: if something is not there.
            InputError: if it cannot be used.
        """
        raise NotImplementedError

    # What follows

    def read_splits(self) -> Splits:
        """The splits, listed at the first call and kept: large sets take minutes to list."""
        if self._splits is None:
            self.check_data()
            self._splits = self.splits()
            self.classes = list(self._splits.classes)
        return self._splits

    def spec(self) -> DataSpec:
        """The settings with the class names of the data."""
        return replace(self.settings(), classes=tuple(self.read_splits().classes))

    @property
    def predicts_files(self) -> bool:
        """Whether ``predict`` reads ``predict_path``."""
        return self.predict_path is not None and self.trainer is not None and bool(self.trainer.predicting)

    def prepare_data(self) -> None:
        """Check the files to predict on, or the data, before training starts.

        Raises:
            MissingError: if there is nothing to read.
            InputError: if it cannot be used.
        """
        if self.predicts_files and self.predict_path is not None:
            self.find(self.predict_path)
        else:
            self.read_splits()

    def setup(self, stage: str | None = None) -> None:
        """List the samples of all splits; for ``predict`` with a path only the files that it names."""
        if stage == "predict" and self.predict_path is not None:
            self.predict_set = self._prediction_set(self.find(self.predict_path))
            return

        splits = self.read_splits()
        self.train_set = self.dataset(splits.train, "train")
        self.val_set = self.dataset(splits.val, "val")
        self.test_set = self.dataset(splits.test, "test")
        self.predict_set = self._prediction_set([source for source, _ in splits.test])

    def use_sources(self, given: Any) -> None:
        """Predict on files, folders or arrays instead of ``predict_path``; see :meth:`sources`."""
        self.predict_set = self._prediction_set(self.sources(given))

    def sources(self, given: Any) -> list[Any]:
        """The sources that something names: a path, a folder, an array of one sample, or a list of these.

        Arrays are named 'array 0', 'array 1' and so on.

        Raises:
            MissingError: if there is no such file.
            InputError: if something is neither a path nor an array of numbers.
        """
        sources: list[Any] = []
        for item in given if isinstance(given, list | tuple) else [given]:
            if isinstance(item, str | Path):
                sources += self.find(Path(item))
            else:
                sources.append((f"array {len(sources)}", _to_array(item)))
        return sources

    def _prediction_set(self, sources: Sequence[Any]) -> Dataset[Any]:
        return self.dataset(named([(source, None) for source in sources]), "predict")


class FolderDataModule(SampleDataModule):
    """Class folders: ``root/train/<class>/<file>`` and ``root/val/<class>/<file>``, or ``root/<class>/<file>``.

    Classes are numbered by name. ``root/test`` is used for ``test`` if it is there, else the validation files are.
    Without a ``val`` folder a share of each class is held out of the training files, and a line says so. Folders that
    begin with an underscore are left out. Evaluation alone needs no training folder.

    A modality's class folders derive from this class and from the modality's base, in this order.

    Args:
        root: folder of the data; may be left out for ``predict`` alone.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out when there is no validation folder.
        kwargs: arguments of the modality's data module.

    Attributes:
        folders: finds the files.
    """

    pattern: ClassVar[str] = "*"
    """The form of a file in messages, as in '*.jpg'."""

    def __init__(
        self,
        root: str | None = None,
        *,
        train_split: str = "train",
        val_split: str = "val",
        val_share: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folders = ClassFolders(
            root=Path(root) if root else None,
            find=self.find,
            pattern=self.pattern,
            train_split=train_split,
            val_split=val_split,
            val_share=val_share,
        )

    def check_data(self) -> None:
        """Look at the folder that names the classes.

        Raises:
            MissingError: if it is missing, or a class folder is empty.
            InputError: if a split has another name than the one that is read.
        """
        self.folders.check()

    def prepare_data(self) -> None:
        """Check the files to predict on, or the data; to fit, there must be some to train on."""
        super().prepare_data()
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.folders.check_training()

    def setup(self, stage: str | None = None) -> None:
        """List the files of all splits; to fit, there must be some to train on."""
        if stage in ("fit", None):
            self.folders.check_training()
        super().setup(stage)

    def splits(self) -> Splits:
        """List the files of all splits."""
        return self.folders.split()


def _to_array(item: Any) -> np.ndarray:
    array = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"cannot predict on {type(item).__name__}; give a path, a folder, an array, or a list of these"
        )
    return array
