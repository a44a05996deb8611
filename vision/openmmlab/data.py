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
    build_dataset,
    build_test_pipeline,
    build_unread_dataset,
    check_order,
    innermost,
    is_harmless,
    read_config,
)

__all__ = ["DetectionSpec", "OpenMMLabData", "SegmentationSpec", "output_names", "to_bgr"]

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
"""The splits of a config that each of Lightning's stages reads."""


@dataclass(frozen=True)
class SegmentationSpec(DataSpec):
    """What a segmentor must know of its data.

    Attributes:
        palette: color of each class, (red, green, blue) in 0 to 255; empty if the data name none.
    """

    palette: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class DetectionSpec(DataSpec):
    """What a detector must know of its data.

    Attributes:
        palette: color of each class, (red, green, blue) in 0 to 255; empty if the data name none.
        category_ids: id of each class in the annotation file, which may have gaps; empty if it is not known.
    """

    palette: tuple[tuple[int, int, int], ...] = ()
    category_ids: tuple[int, ...] = ()


class OpenMMLabData(SampleDataModule):
    """The train, val and test data sets of an OpenMMLab config.

    Batches to train and evaluate are MMEngine's: ``inputs``, a list of images (3, H, W) uint8, and ``data_samples``, a
    list of data samples. Batches to predict are pairs of such a batch and a list of names.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``.
        options: values of the config to replace, by dotted name.
        predict_path: an image or a folder of images for ``predict``; by default the test images.
        batch_size: images for each process and step; the config's own is not used.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.

    Raises:
        MissingError: if the config or its files are missing.
        InputError: if annotations are broken.
    """

    runs_files: ClassVar[tuple[str, ...]] = ("config", "options")

    def __init__(
        self,
        config: str,
        *,
        options: dict[str, Any] | None = None,
        predict_path: str | None = None,
        batch_size: int = 2,
        num_workers: int = 2,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            predict_path=predict_path,
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
        )
        self.config = config
        self.options = options
        self.collate = pseudo_collate
        self._config: Config | None = None
        self._spec: DataSpec | None = None

    @classmethod
    def trusts_file(cls, name: str, value: Any) -> bool:
        """Return whether this value of ``config`` or ``options`` may come from a checkpoint of anybody."""
        return is_harmless(name, value)

    def read_config(self) -> Config:
        """Return the config with the options, read at the first call and kept."""
        if self._config is None:
            self._config = read_config(self.config, self.options)
        return self._config

    def settings(self) -> DataSpec:
        """Class names and colors as far as the config knows them, without a look at the data."""
        return self._spec_of(build_unread_dataset(self.read_config(), "test"), reads_files=False)

    def spec(self) -> DataSpec:
        """Class names and colors, and for a detector the ids in the annotation file."""
        if self._spec is None:
            self.check_data()
            # the validation file, since that of the training split may take a minute to read
            self._spec = self._spec_of(build_unread_dataset(self.read_config(), "val"))
        return self._spec

    def _spec_of(self, dataset: Any, *, reads_files: bool = True) -> DataSpec:
        from vision.openmmlab.annotations import category_ids  # it imports mmdet

        classes = tuple(dataset.metainfo.get("classes") or ())
        palette = _colors(dataset.metainfo.get("palette"))
        if self.read_config().default_scope == "mmseg":
            return SegmentationSpec(classes=classes, palette=palette)

        ids = category_ids(innermost(dataset)[0]) if reads_files else ()
        return DetectionSpec(classes=classes, palette=palette, category_ids=ids)

    def check_data(self) -> None:
        """Read the config before a run folder is made."""
        self.read_config()

    def prepare_data(self) -> None:
        """Look at the images to predict on, or at the config; the annotations are read in ``setup``."""
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
            check_same_labels({"train": [build_unread_dataset(config, "train")], split: innermost(dataset)})
            if split != "train":
                check_order(config, split)

            self._spec = self._spec_of(dataset)
            self.classes = self._spec.classes
            if stage == "predict":
                files = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
                self.predict_set = _NamedImages(dataset, files)
            else:
                setattr(self, f"{split}_set", dataset)

    def find(self, path: Path) -> list[Path]:
        """Return the image itself, or all images below a folder, sorted."""
        return image_files(path)

    def dataset(self, samples: Samples, split: Split) -> Dataset[Any]:
        """Images to predict on, from files or arrays; the other splits are those of the config."""
        sources = [source for source, _ in samples]
        names = [source_name(source) for source in sources]
        return _NamedImages(_TestImages(sources, self.read_config()), names)


class _TestImages(Dataset[dict[str, Any]]):
    """Images that pass through the test pipeline of a config, without annotations.

    Args:
        sources: paths, or names with arrays (H, W, 3) uint8 RGB.
        config: whose pipeline is used.
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


class _NamedImages(Dataset[tuple[dict[str, Any], str]]):
    """Samples with the names of their images; a data sample's ``output_name`` is that of the files written for it.

    Args:
        samples: a data set in MMEngine's form.
        names: of its images.
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
    """Names for what is written about images: like the images, with their folders below the one common to all.

    The suffix is left out unless two images differ in nothing else.
    """
    full = {file: Path(os.path.normpath(Path(file).absolute())) for file in files}
    common = os.path.commonpath([path.parent for path in full.values()])
    names = {file: path.relative_to(common) for file, path in full.items()}
    short = {file: name.with_suffix("") for file, name in names.items()}
    chosen = short if len(set(short.values())) == len(set(names.values())) else names
    return {file: str(name) for file, name in chosen.items()}


def to_bgr(pixels_HW3: np.ndarray) -> np.ndarray:
    """RGB pixels as OpenMMLab's pipelines take them: (H, W, 3) uint8, blue first.

    Args:
        pixels_HW3: (H, W, 3) RGB, uint8, or float in [0, 1], which is rounded to the 8 bits that files have.

    Raises:
        InputError: if shape or range are others.
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
