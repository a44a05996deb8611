"""The data sets of OpenMMLab configs for Lightning's loops, and images to predict on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import Dataset

from core.data.images import image_files
from core.data.labeled import SampleDataModule, Split
from core.data.samples import Samples, source_name
from core.data.spec import DataSpec
from core.errors import InputError
from vision.openmmlab.config_files import (
    ConfigOptions,
    build_dataset,
    build_test_pipeline,
    build_unread_dataset,
    check_order,
    innermost,
    is_harmless,
    read_config,
)

__all__ = ["DetectionSpec", "OpenMMLabData", "OpenMMLabSpec", "SegmentationSpec", "output_names", "to_bgr"]

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
"""The splits of a config that each of Lightning's stages reads."""


@dataclass(frozen=True)
class OpenMMLabSpec(DataSpec):
    """What a detector or a segmentor must know about its data.

    Attributes:
        palette: color of each class, (red, green, blue) in 0 to 255; empty if the data have no palette.
        own_files: whether the data are files of the user. The heads then get their number of classes from the data;
            otherwise the config says it.
        size: (width, height), in pixels, into which images are resized; None for what the config says.
    """

    palette: tuple[tuple[int, int, int], ...] = ()
    own_files: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class SegmentationSpec(OpenMMLabSpec):
    """What a segmentor must know about its data.

    Attributes:
        values: value of each class in the label maps; empty if it is the number of the class.
        class_weights: weight of each class in the loss; empty for what the config says.
    """

    values: tuple[int, ...] = ()
    class_weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class DetectionSpec(OpenMMLabSpec):
    """What a detector must know about its data.

    Attributes:
        category_ids: id of each class in the annotation file, where the ids may have gaps; empty if they are unknown.
    """

    category_ids: tuple[int, ...] = ()


class OpenMMLabData(SampleDataModule):
    """The train, val and test data sets of an OpenMMLab config.

    Batches for training and evaluation have MMEngine's form: a dictionary of ``inputs``, a list of images (3, H, W)
    uint8, and ``data_samples``, a list with a data sample for each. Batches for prediction are pairs of such a batch
    and a list of names.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``; the command passes that
            of the model.
        options: values that replace those of the config, by dotted name, as in MMEngine's ``--cfg-options``.
        predict_path: an image or a folder of images for ``predict``; by default the test images.
        batch_size: images for each process and step; that of the config is not used.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.
        min_epoch_steps: an epoch goes over a small training set several times, until it has this many steps.

    Raises:
        MissingError: if the config or its files are missing.
        InputError: if there is no config, or annotations cannot be used.
    """

    runs_files: ClassVar[tuple[str, ...]] = ("config", "options")
    from_task: ClassVar[tuple[str, ...]] = ("config",)

    def __init__(
        self,
        config: str | None = None,
        *,
        options: ConfigOptions | None = None,
        predict_path: str | None = None,
        batch_size: int = 2,
        num_workers: int = 2,
        drop_last: bool = True,
        min_epoch_steps: int = 1,
    ) -> None:
        super().__init__(
            predict_path=predict_path,
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
            min_epoch_steps=min_epoch_steps,
        )
        self.config = config
        self.options = options
        self.collate = pseudo_collate
        self.mm_config: Config | None = None
        self._spec: DataSpec | None = None

    @classmethod
    def trusts_file(cls, name: str, value: Any) -> bool:
        """Return whether this value of ``config`` or ``options`` may come from an untrusted checkpoint."""
        return is_harmless(name, value)

    def read_config(self) -> Config:
        """Return the config with the options replaced; it is read at the first call and kept."""
        if self.config is None:
            raise InputError("the data have no config; type --model.config FILE, or --data.config FILE")
        if self.mm_config is None:
            self.mm_config = read_config(self.config, self.options)
        return self.mm_config

    def use_config_of_model(self, config: Config, stage: str) -> None:
        """Take the config of the model, whose pipelines fit the data that it was trained on, and set up again.

        Args:
            config: the config, with the sizes and classes of the model.
            stage: Lightning's stage, 'fit', 'validate', 'test' or 'predict'.
        """
        self.mm_config = config
        self.setup(stage)

    def settings(self) -> DataSpec:
        """Return the class names and colors that the config knows, without reading the data."""
        return self._spec_of(build_unread_dataset(self.read_config(), "test"), reads_files=False)

    def spec(self) -> DataSpec:
        """Return the class names and colors, and for a detector the ids of the classes in the annotation file."""
        if self._spec is None:
            self.check_data()
            # the validation file, since the training file may take a minute to read
            self._spec = self._spec_of(build_unread_dataset(self.read_config(), "val"))
        return self._spec

    def _spec_of(self, dataset: Any, *, reads_files: bool = True) -> DataSpec:
        """Describe a data set; ``reads_files`` permits opening its annotation file for the ids of the classes."""
        from vision.openmmlab.annotations import category_ids  # it imports mmdet

        classes = tuple(dataset.metainfo.get("classes") or ())
        palette = _colors(dataset.metainfo.get("palette"))
        if self.read_config().default_scope == "mmseg":
            return SegmentationSpec(classes=classes, palette=palette)

        ids = category_ids(innermost(dataset)[0]) if reads_files else ()
        return DetectionSpec(classes=classes, palette=palette, category_ids=ids)

    def check_data(self) -> None:
        """Check that the config can be read."""
        self.read_config()

    def prepare_data(self) -> None:
        """Check that the images to predict on exist, or that the config can be read; ``setup`` reads annotations."""
        if self.predicts_files and self.predict_path is not None:
            self.find(self.predict_path)
        else:
            self.check_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations of the splits that ``stage`` needs, by default those of ``fit``."""
        if stage == "predict" and self.predict_path is not None:
            self.classes = self.settings().classes
            self.predict_set = self._prediction_set(self.find(self.predict_path))
            return

        from vision.openmmlab.annotations import check_same_labels  # it imports mmdet

        config = self.read_config()
        for split in _SPLITS[stage or "fit"]:
            dataset = build_dataset(config, split)
            training_set = build_unread_dataset(config, "train")
            check_same_labels({"train": [training_set], split: innermost(dataset)})
            if split != "train":
                check_order(config, split)

            self._spec = self._spec_of(dataset)
            self.classes = self._spec.classes
            if stage == "predict":
                files = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
                self.predict_set = NamedImages(dataset, files)
            else:
                setattr(self, f"{split}_set", dataset)

    def find(self, path: Path) -> list[Path]:
        """Return the image itself, or all images below a folder, sorted."""
        return image_files(path)

    def dataset(self, samples: Samples, split: Split) -> Dataset[Any]:
        """Return the images to predict on, from files or arrays; the other splits are those of the config."""
        sources = [source for source, _ in samples]
        names = [source_name(source) for source in sources]
        return NamedImages(_TestImages(sources, self.read_config()), names)


class _TestImages(Dataset[dict[str, Any]]):
    """Images after the test pipeline of a config, without annotations.

    Args:
        sources: a path for each image, or a pair of a name and an array (H, W, 3) RGB, see :func:`to_bgr`.
        config: the config that has the pipeline.
    """

    def __init__(self, sources: Sequence[Any], config: Config) -> None:
        self.sources = sources
        self.from_file = build_test_pipeline(config)
        has_arrays = any(not isinstance(source, Path) for source in sources)
        self.from_array = build_test_pipeline(config, from_arrays=True) if has_arrays else None

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.sources[index]
        sample: dict[str, Any]
        if self.from_array is not None and not isinstance(source, Path):
            sample = self.from_array({"img": to_bgr(source[1]), "img_id": index})
        else:
            sample = self.from_file({"img_path": str(source), "img_id": index})
        return sample


class NamedImages(Dataset[tuple[dict[str, Any], str]]):
    """Samples with the names of their images. A data sample gets an ``output_name``, see :func:`output_names`.

    Args:
        samples: a data set in MMEngine's form.
        names: names of its images.
    """

    def __init__(self, samples: Any, names: Sequence[str]) -> None:
        self.samples = samples
        self.names = names
        self.outputs = output_names(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        sample = self.samples[index]
        name = self.names[index]
        sample["data_samples"].set_metainfo({"output_name": self.outputs[name]})
        return sample, name


def output_names(files: Sequence[str]) -> dict[str, str]:
    """Return the name of the files that are written for each image: its path below the folder common to all images.

    The suffix is left out, unless two images differ in nothing else.
    """
    full = {file: Path(os.path.normpath(Path(file).absolute())) for file in files}
    common = os.path.commonpath([path.parent for path in full.values()])
    names = {file: path.relative_to(common) for file, path in full.items()}

    without_suffix = {file: name.with_suffix("") for file, name in names.items()}
    if len(set(without_suffix.values())) == len(set(names.values())):
        names = without_suffix
    return {file: str(name) for file, name in names.items()}


def to_bgr(pixels_HW3: np.ndarray) -> np.ndarray:
    """Convert RGB pixels to what OpenMMLab's pipelines take: (H, W, 3) uint8, blue first.

    Args:
        pixels_HW3: (H, W, 3) RGB, uint8, or float in [0, 1], which is rounded to the 8 bits that files have.

    Raises:
        InputError: if the pixels have another shape, dtype or range.
    """
    pixels = pixels_HW3
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(f"an image has shape {pixels.shape}; expected (height, width, 3), red first")

    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not (np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1):
            raise InputError(
                f"an image has {pixels.dtype} pixels from {low:g} to {high:g}; expected uint8, or float in [0, 1]"
            )
        pixels = (255 * pixels.astype(np.float32)).round().astype(np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1])


def _colors(palette: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(red), int(green), int(blue)) for red, green, blue in palette or ())
