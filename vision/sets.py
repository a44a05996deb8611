"""Image data sets: class folders in ImageNet's layout, and CIFAR."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torchvision import datasets

from core.data.labeled import FolderDataModule
from core.data.samples import Samples, Splits, Validation
from core.errors import InputError, MissingError
from core.io.untrusted import read_arrays
from vision.augment import Crop
from vision.data import ImageDataModule

__all__ = ["CIFAR10", "CIFAR100", "ImageFolder"]


class ImageFolder(FolderDataModule, ImageDataModule):
    """Class folders of images: ``root/train/<class>/*.jpg`` or ``root/<class>/*.jpg``.

    See :class:`core.data.labeled.FolderDataModule` for the layouts and their options.

    The validation images of ImageNet-1K must be sorted into class folders first, as for torchvision and timm.
    """

    pattern = "*.jpg"


class CIFAR10(ImageDataModule):
    """CIFAR-10 as its Python archive unpacks: ``root/data_batch_{1..5}``, ``test_batch`` and ``batches.meta``.

    The data set has 60,000 photos of 32 x 32 pixels in 10 classes, of which 10,000 are for testing. The files are
    compared with the MD5 sums that torchvision publishes, and reading them never executes code.

    Args:
        root: folder of the unpacked archive, https://www.cs.toronto.edu/~kriz/cifar.html.
        val_split: 'held_out' to hold out a share of each class of the training images; 'test' to validate on the test
            images, by which most published results choose their checkpoint.
        val_share: share of each class to hold out.
        check_md5: compare the files with the published MD5 sums; false for your own files in this layout.
        size: side of an image, in pixels.
        mean: mean of each channel, for pixels in [0, 1]; by default the values in common use.
        std: standard deviation of each channel; by default the values in common use.
        scale: range of the share of a training image that its crop covers.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        kwargs: the other arguments of :class:`ImageDataModule`.

    Raises:
        InputError: if ``val_split`` is unknown or ``val_share`` out of range.
    """

    published: ClassVar[Any] = datasets.CIFAR10
    """torchvision's class, which holds the names of the files and their MD5 sums."""
    keys: ClassVar[tuple[str, str]] = ("labels", "label_names")
    """Keys of the labels in a file of images, and of the class names in the file of metadata."""

    def __init__(
        self,
        root: str = "data/cifar-10-batches-py",
        *,
        val_split: Literal["held_out", "test"] = "held_out",
        val_share: float = 0.1,
        check_md5: bool = True,
        size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.247, 0.2435, 0.2616),
        scale: tuple[float, float] = (0.5, 1.0),
        crop: Crop = "squash",
        **kwargs: Any,
    ) -> None:
        super().__init__(size=size, mean=mean, std=std, scale=scale, crop=crop, **kwargs)
        self.validation = Validation(val_split, val_share)
        self.root = Path(root)
        self.check_md5 = check_md5

    def check_data(self) -> None:
        """Check that all files exist, and compare them with the published MD5 sums.

        Raises:
            MissingError: if a file is missing.
            InputError: if a file is not the published one.
        """
        metadata = (self.published.meta["filename"], self.published.meta["md5"])
        for name, md5 in (*self.published.train_list, *self.published.test_list, metadata):
            file = self.root / name
            if not file.is_file():
                raise MissingError(
                    f"there is no {file}; unpack {Path(self.published.url).name} from {self.published.url} and give "
                    "the folder: --data.root FOLDER"
                )
            if self.check_md5 and hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != md5:
                raise InputError(
                    f"{file} is not the published file, whose MD5 is {md5}; unpack the archive again, or type "
                    "--data.check_md5 false for files of your own in this layout"
                )

    def splits(self) -> Splits:
        """Read all images, and choose those for validation."""
        metadata = read_arrays(self.root / self.published.meta["filename"])
        classes = self._entry(metadata, self.keys[1])
        train = [sample for name, _ in self.published.train_list for sample in self._read(name, len(classes))]
        test = [sample for name, _ in self.published.test_list for sample in self._read(name, len(classes))]
        return self.validation.splits(classes, train, test)

    def _read(self, name: str, classes: int) -> Samples:
        """Read the images of a file, with their labels."""
        content = read_arrays(self.root / name)
        rows = np.asarray(self._entry(content, "data"))
        labels = np.asarray(self._entry(content, self.keys[0]))

        if rows.dtype != np.uint8 or labels.dtype.kind not in "iu" or rows.shape != (*labels.shape, 3 * 32 * 32):
            raise InputError(
                f"{self.root / name} holds {rows.dtype} of shape {rows.shape} and {labels.dtype} labels of shape "
                f"{labels.shape}; expected uint8, (images, 3072), and a number for each"
            )
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise InputError(f"{self.root / name} has label {wrong[0]}; expected 0 to {classes - 1}. Correct the file")

        # A row has the three colors of an image one after the other; images have the colors of a pixel together.
        images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return [((f"{name}/{i:05d}", images[i]), label) for i, label in enumerate(labels.tolist())]

    def _entry(self, content: Any, key: str) -> Any:
        """Return an entry of the dictionary in a file, and raise an error if it is missing."""
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{self.root} has a file without {key!r}; expected the Python version of the archive")
        return content[key]


class CIFAR100(CIFAR10):
    """CIFAR-100 as its Python archive unpacks, ``root/{train,test,meta}``: 100 classes, otherwise like CIFAR-10.

    Args:
        root: folder of the unpacked archive, https://www.cs.toronto.edu/~kriz/cifar.html.
        mean: mean of each channel, for pixels in [0, 1]; by default the values in common use.
        std: standard deviation of each channel; by default the values in common use.
        kwargs: arguments of :class:`CIFAR10`.
    """

    published: ClassVar[Any] = datasets.CIFAR100
    keys = ("fine_labels", "fine_label_names")

    def __init__(
        self,
        root: str = "data/cifar-100-python",
        *,
        mean: Sequence[float] = (0.5071, 0.4865, 0.4409),
        std: Sequence[float] = (0.2673, 0.2564, 0.2762),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, mean=mean, std=std, **kwargs)
