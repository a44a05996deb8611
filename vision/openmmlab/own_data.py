"""What the data modules of a user's own boxes and label maps share: files, hold-out, image size, and the scenes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info
from mmengine.config import Config
from PIL import Image

from core.data.folders import find_files
from core.data.images import SUFFIXES, check_size, upright_size
from core.data.samples import hold_out
from core.errors import InputError, MissingError, listed
from vision.openmmlab.config_files import fit_to_data, innermost
from vision.openmmlab.data import NamedImages, OpenMMLabSpec
from vision.openmmlab.demo import DigitScenes, draw_scenes

__all__ = ["HELD_OUT", "MULTIPLE", "FileSplit", "OwnData", "divided", "image_sizes", "relative_files"]

FileSplit = Literal["train", "val", "test"]

HELD_OUT: tuple[FileSplit, ...] = ("val", "test")
"""The splits that need not be given."""

MULTIPLE = 32
"""Detectors and segmentors pad images to multiples of this number of pixels."""


class OwnData(DigitScenes):
    """Base of the data modules that read a user's files into the model of an OpenMMLab config.

    Without files, they read the built-in scenes of digits, which are drawn at the first use, as a user's files. If the
    config is not made for own data, and no files are given, its own data are read.

    Args:
        config: an OpenMMLab config; the command passes that of the model.
        images: folder of the images.
        val_images: folder of the validation images; by default ``images``.
        test_images: folder of the test images; by default ``images``.
        val_share: share of the images that is held out for validation if no validation files are given.
        size: longer side, in pixels, to which images are resized; by default it follows from the training images.
        flip: mirror half of the training images; false if left and right differ, as in text.
        kwargs: the other arguments of :class:`vision.openmmlab.demo.DigitScenes`.

    Raises:
        InputError: if a number is out of range.
    """

    most_pixels = 256
    """Longer side, in pixels, of the size that is chosen for large images."""

    def __init__(
        self,
        config: str | None = None,
        *,
        images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
        val_share: float = 0.2,
        size: int | None = None,
        flip: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        if not 0 < val_share < 1:
            raise InputError(f"val_share={val_share}; expected a share in (0, 1)")
        if size is not None:
            check_size(size)

        self.folders: dict[FileSplit, str | None] = {"train": images, "val": val_images, "test": test_images}
        self.val_share = val_share
        self.size = size
        self.flip = flip
        self._is_fitted = False
        self._own_spec: Any = None

    # A subclass implements these

    @property
    def has_files(self) -> bool:
        """Whether the user has named files."""
        raise NotImplementedError

    def use_scenes(self) -> None:
        """Set the options of this class to the files of the built-in scenes in :attr:`root`."""
        raise NotImplementedError

    def read_files(self) -> Any:
        """Read and check the files, and return their specification without a size; what is read is kept.

        Raises:
            MissingError: if a file is missing.
            InputError: if the files cannot be used.
        """
        raise NotImplementedError

    def training_sizes(self) -> Sequence[tuple[int, int]]:
        """Return (width, height) of the training images, in pixels."""
        raise NotImplementedError

    def split_dataset(self, split: FileSplit, pipeline: Any) -> Any:
        """Return the OpenMMLab data set of a split."""
        raise NotImplementedError

    # Written once

    @property
    def is_own(self) -> bool:
        """Whether the data are files of the user or the scenes, and not what the config names."""
        return self.has_files or bool(self.read_config().get("own_data"))

    def settings(self) -> OpenMMLabSpec:
        """Return the settings without reading the data: the model knows its classes and the size of its images."""
        return self.empty_spec() if self.is_own else super().settings()  # type: ignore[return-value]

    def empty_spec(self) -> OpenMMLabSpec:
        """Return a specification of unknown files."""
        raise NotImplementedError

    def spec(self) -> OpenMMLabSpec:
        """Return class names and image size, which are read from the files."""
        if not self.is_own:
            return super().spec()  # type: ignore[return-value]
        self.check_data()
        own: OpenMMLabSpec = self._own_spec
        return own

    def check_data(self) -> None:
        """Read the files, and check them before a run starts; without files, draw the scenes."""
        if not self.is_own:
            super().check_data()
            return
        if self._own_spec is not None:
            return

        if not self.has_files:
            if not self.root.exists():
                draw_scenes(self.root)
            self.use_scenes()
            self.flip = False
        spec = self.read_files()
        self._own_spec = spec if spec.size is not None else self._with_size(spec)
        self.classes = self._own_spec.classes

    def _with_size(self, spec: OpenMMLabSpec) -> OpenMMLabSpec:
        """Add the size of the images, if the config leaves it to the data."""
        if not self.read_config().get("own_data"):
            if self.size is not None:
                raise InputError(
                    f"--data.size is for the configs of det.yaml and seg.yaml; {self.config} has pipelines of its "
                    "own, so set the size there"
                )
            return spec

        sizes = self.training_sizes()
        return replace(spec, size=fitting_size(sizes, self.size or self.chosen_side(sizes)))

    def chosen_side(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Return the longer side, in pixels, that fits images of these sizes."""
        longer = float(np.median([max(size) for size in sizes]))
        return min(self.most_pixels, math.ceil(longer / MULTIPLE) * MULTIPLE)

    def use_config_of_model(self, config: Config, stage: str) -> None:
        """Take the config of the model, whose classes and size are those that it was trained with."""
        self._is_fitted = True
        super().use_config_of_model(config, stage)

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets of the splits that ``stage`` needs, by default those of ``fit``."""
        if not self.is_own or (stage == "predict" and self.predict_path is not None):
            super().setup(stage)
            return

        spec = self.spec()
        config = self.read_config()
        if not self._is_fitted:
            fit_to_data(config, spec)
            self._is_fitted = True
        if stage in ("fit", None):
            rank_zero_info(self.summary())
            self.train_set = self.split_dataset("train", self._pipeline(config, "train"))
            self.val_set = self.split_dataset("val", self._pipeline(config, "val"))
        elif stage == "validate":
            self.val_set = self.split_dataset("val", self._pipeline(config, "val"))
        else:
            self.test_set = self.split_dataset("test", self._pipeline(config, "test"))
        if stage == "predict":
            test_set: Any = self.test_set
            files = [test_set.get_data_info(i)["img_path"] for i in range(len(test_set))]
            self.predict_set = NamedImages(test_set, files)

    def _pipeline(self, config: Config, split: str) -> list[Any]:
        """Return the pipeline of a split, with the mirroring that the user has chosen."""
        pipeline = [dict(step) for step in innermost(config[f"{split}_dataloader"].dataset)[0].pipeline]
        if split == "train" and config.get("own_data"):
            for step in pipeline:
                if step["type"] == "RandomFlip":
                    step["prob"] = 0.5 if self.flip else 0.0
        return pipeline

    def summary(self) -> str:
        """Return one line about what was chosen."""
        raise NotImplementedError

    def size_chosen(self) -> str:
        """Return the part of the line about the size."""
        spec = self._own_spec
        if spec.size is None:
            return "images are resized by the config"
        return f"images are resized into {spec.size[0]} x {spec.size[1]} pixels (--data.size {max(spec.size)})"


def fitting_size(sizes: Sequence[tuple[int, int]], longer: int) -> tuple[int, int]:
    """Return (width, height) in multiples of 32 pixels: the shape of most images, or a square if their shapes differ.

    Args:
        sizes: (width, height) of the images.
        longer: the longer side.
    """
    longer = max(MULTIPLE, math.ceil(longer / MULTIPLE) * MULTIPLE)
    ratio = float(np.median([min(size) / max(size) for size in sizes]))
    shorter = min(longer, max(MULTIPLE, math.ceil(longer * ratio / MULTIPLE) * MULTIPLE))

    wide = float(np.mean([width >= height for width, height in sizes]))
    if wide >= 0.8:
        return longer, shorter
    return (shorter, longer) if wide <= 0.2 else (longer, longer)


def divided(labels: Sequence[int], share: float, kind: str) -> tuple[list[int], list[int]]:
    """Return the indices of the samples to keep and of those held out for validation, and print that they are.

    Args:
        labels: a class of each sample; of each class a share is held out.
        share: the share.
        kind: the word for a sample in messages, such as 'images'.

    Raises:
        InputError: if there are fewer than two samples.
    """
    if len(labels) < 2:
        raise InputError(
            f"there are {len(labels)} {kind}, and at least two are needed, since one is held out for validation"
        )

    kept, held_out = hold_out(labels, share)
    if not held_out:  # a single sample of each class
        kept, held_out = hold_out([0] * len(labels), share)
    rank_zero_info(f"{len(held_out)} of {len(labels)} {kind} are held out for validation, with a fixed seed")
    return kept, held_out


def relative_files(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by their path in it, such as 'a/b.jpg'.

    Raises:
        MissingError: if there is none.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; give the folder that holds the images with --data.images")
    return {file.relative_to(folder).as_posix(): file for file in find_files(folder, SUFFIXES, "images")}


def image_sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return (width, height) of images, in pixels, after their EXIF rotation; it is read from their headers.

    Raises:
        InputError: if a file is no image.
    """
    sizes = []
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.append(upright_size(image))
        except Exception as error:  # PIL's decoders raise errors of any type
            raise InputError(f"{file} cannot be decoded as an image: {error}; replace it") from error
    return sizes


def differing_sizes(found: Mapping[str, tuple[tuple[int, int], tuple[int, int]]], what: str) -> str | None:
    """Return a message about files whose size is not the expected one, or None if there are none.

    Args:
        found: the expected and the actual (width, height) by the name of the file; equal ones are left out.
        what: the first words of the message.
    """
    wrong = [
        f"{name} ({own[0]} x {own[1]} instead of {expected[0]} x {expected[1]})"
        for name, (expected, own) in found.items()
        if own != expected
    ]
    return f"{what}: {listed(wrong, limit=3)}" if wrong else None
