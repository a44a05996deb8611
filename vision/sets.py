"""Image data sets: class folders in ImageNet's layout, and CIFAR."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torchvision import datasets

from core.data.labeled import FolderDataModule
from core.data.samples import Sample, Samples, Splits, Validation
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
    """CIFAR-10, read from its unpacked Python archive: ``root/{data_batch_1..5,test_batch,batches.meta}``.

    The data set has 60,000 photos of 32 x 32 pixels in 10 classes, of which 10,000 are for testing. The files are
    compared with the MD5 sums that torchvision publishes, and reading them never executes code.

    Args:
        root: folder of the unpacked archive, https://www.cs.toronto.edu/~kriz/cifar.html.
        val_split: 'held_out' to hold out a share of each class of the training images; 'test' to validate on the test
            images, as most published results do.
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
    labels_key: ClassVar[str] = "labels"
    """Key of the labels in a file of images."""
    classes_key: ClassVar[str] = "label_names"
    """Key of the class names in the file of metadata."""

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
        published = [*self.published.train_list, *self.published.test_list, metadata]
        for name, md5 in published:
            file = self.root / name
            if not file.is_file():
                raise MissingError(
                    f"there is no {file}; unpack {Path(self.published.url).name} from {self.published.url} and give "
                    "the folder: --data.root FOLDER"
                )

            if self.check_md5 and _md5(file) != md5:
                raise InputError(
                    f"{file} is not the published file, whose MD5 is {md5}; unpack the archive again, or type "
                    "--data.check_md5 false for files of your own in this layout"
                )

    def splits(self) -> Splits:
        """Read all images, and choose those for validation."""
        (classes,) = _read_entries(self.root / self.published.meta["filename"], self.classes_key)
        train = self._read_images(self.published.train_list, len(classes))
        test = self._read_images(self.published.test_list, len(classes))
        return self.validation.splits(classes, train, test)

    def _read_images(self, files: Sequence[Sequence[str]], num_classes: int) -> Samples:
        """Read the images of several files, each with its label.

        Args:
            files: (name, MD5 sum) of each file.
            num_classes: number of classes in the metadata.
        """
        samples: list[Sample] = []
        for name, _ in files:
            images, labels = self._read_file(self.root / name, num_classes)
            samples += [((f"{name}/{i:05d}", images[i]), label) for i, label in enumerate(labels)]
        return samples

    def _read_file(self, file: Path, num_classes: int) -> tuple[np.ndarray, list[int]]:
        """Return the images (N, 32, 32, 3) uint8 and the N labels of a file."""
        rows, labels = (np.asarray(entry) for entry in _read_entries(file, "data", self.labels_key))

        if rows.dtype != np.uint8 or labels.dtype.kind not in "iu" or rows.shape != (*labels.shape, 3 * 32 * 32):
            raise InputError(
                f"{file} holds {rows.dtype} of shape {rows.shape} and {labels.dtype} labels of shape {labels.shape}; "
                "expected images (N, 3072) uint8 and N integer labels"
            )
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise InputError(f"{file} has label {wrong[0]}; expected 0 to {num_classes - 1}. Correct the file")

        # A row holds the red, the green and the blue plane one after the other; Pillow expects the channels last.
        images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), labels.tolist()


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _read_entries(file: Path, *keys: str) -> list[Any]:
    """Return the entries of the dictionary in a pickle, and raise an error if one is missing."""
    content = read_arrays(file)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{file} has no entry {key!r}; expected the Python version of the archive")
    return [content[key] for key in keys]


class CIFAR100(CIFAR10):
    """CIFAR-100, read from its unpacked Python archive: ``root/{train,test,meta}``; 100 classes, else like CIFAR-10.

    Args:
        root: folder of the unpacked archive, https://www.cs.toronto.edu/~kriz/cifar.html.
        mean: mean of each channel, for pixels in [0, 1]; by default the values in common use.
        std: standard deviation of each channel; by default the values in common use.
        kwargs: the other arguments of :class:`CIFAR10`.
    """

    published: ClassVar[Any] = datasets.CIFAR100
    labels_key = "fine_labels"
    classes_key = "fine_label_names"

    def __init__(
        self,
        root: str = "data/cifar-100-python",
        *,
        mean: Sequence[float] = (0.5071, 0.4865, 0.4409),
        std: Sequence[float] = (0.2673, 0.2564, 0.2762),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, mean=mean, std=std, **kwargs)
