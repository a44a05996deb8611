"""What the data modules of labelled samples share: checks before a run, splits, prediction on any files, class folders.

A modality and a data set each fill one half of a data module:

    modality    find, dataset            which files are its own, and how (source, target) pairs become a data set
    data set    check_data, splits       whether the data are there, and which pairs train, validate and test
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from core.files import ClassFolders, Splits
from core.samples import Samples, named
from core.training.data import DataModule

__all__ = ["FolderDataModule", "SampleDataModule", "Split"]

Split = Literal["train", "val", "test", "predict"]


class SampleDataModule(DataModule):
    """Base of data modules of labelled samples; what is predicted without a path is the test split.

    Args:
        predict_path: a file or a folder of files for ``predict``; by default the test split.
        kwargs: arguments of :class:`core.training.DataModule`.
    """

    def __init__(self, *, predict_path: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predict_path = Path(predict_path) if predict_path else None

    def find(self, path: Path) -> list[Any]:
        """The file itself, or all sources of the modality below a folder, sorted; a modality says how.

        Raises:
            MissingError: if there is none.
        """
        raise NotImplementedError

    def dataset(self, samples: Samples, split: Split) -> Dataset[Any]:
        """(source, target) pairs as what a split reads; a modality says how."""
        raise NotImplementedError

    def splits(self) -> Splits:
        """Class names and the (source, target) pairs of the splits; a data set says which.

        Raises:
            MissingError: if something is not there.
            InputError: if it cannot be used.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Check what is predicted, or the data, before a run folder is made.

        Raises:
            MissingError: if there is nothing to read.
            InputError: if it cannot be used.
        """
        if self.predict_path and self.trainer and self.trainer.predicting:
            self.find(self.predict_path)
        else:
            self.check_data()

    def setup(self, stage: str | None = None) -> None:
        """List the samples of all splits; for ``predict`` with a path those alone that it names."""
        if stage == "predict" and self.predict_path:
            files = [(path, None) for path in self.find(self.predict_path)]
            self.predict_set = self.dataset(named(files), "predict")
            return
        splits = self.splits()
        self.classes = list(splits.classes)
        self.train_set, self.val_set = self.dataset(splits.train, "train"), self.dataset(splits.val, "val")
        self.test_set = self.dataset(splits.test, "test")
        self.predict_set = self.dataset(named(splits.test), "predict")


class FolderDataModule(SampleDataModule):
    """Class folders in ImageNet's layout: ``root/train/<class>/<file>`` and ``root/val/<class>/<file>``.

    Classes are numbered by name. ``root/test`` is used for ``test`` if it is there, else ``root/val``. Without a
    ``val`` folder a share of each class is held out of ``train``. For evaluation alone ``train`` may be missing.
    Folders that begin with an underscore are left out. A ``valid`` or ``testing`` in the place of a split is refused.

    A modality's class folders derive from this class and from its base, in this order.

    Args:
        root: folder with the split folders; may be left out for ``predict`` alone.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out when there is no validation folder.
        kwargs: arguments of the modality's data module.

    Attributes:
        folders: where the splits lie.
    """

    pattern: ClassVar[str] = "*"
    """How a file is written in messages, as in '*.jpg'."""

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
        folder = Path(root) if root else None
        self.folders = ClassFolders(folder, self.find, self.pattern, train_split, val_split, val_share)

    def check_data(self) -> None:
        """Look at the training folder, or where a trainer only evaluates at the first split that is there.

        Raises:
            MissingError: if it is missing, or a class folder is empty.
        """
        self.folders.check(training=self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING)

    def setup(self, stage: str | None = None) -> None:
        """List the files of all splits; to fit, there must be some to train on."""
        if stage in ("fit", None) and not self.folders.has_training():
            self.folders.check()  # says so; large sets are not listed once more
        super().setup(stage)

    def splits(self) -> Splits:
        """List the files of all splits."""
        return self.folders.split()
