"""The data sets of OpenMMLab configs for Lightning's loops, and images to predict on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset

from core.errors import InputError
from core.images import image_files
from core.training.data import DataModule
from vision.openmmlab.models import build_dataset, innermost, read_config

__all__ = ["OpenMMLabData", "prediction_names"]


class OpenMMLabData(DataModule):
    """``train_dataloader.dataset``, ``val_dataloader.dataset`` and ``test_dataloader.dataset`` of a config.

    Batches are MMEngine's: ``inputs``, a list of images (3, H, W) uint8, and ``data_samples``, a list of data samples.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``.
        options: values of the config to replace, by dotted name.
        predict_path: an image or a folder of images for ``predict``; by default the test images.
        batch_size: images a process and step, which replaces the config's.
        kwargs: the other arguments of :class:`core.training.DataModule`.

    Raises:
        MissingError: if the config or its files are not there.
        InputError: if annotations are broken.
    """

    def __init__(
        self,
        config: str,
        *,
        options: dict[str, Any] | None = None,
        predict_path: str | None = None,
        batch_size: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.config, self.options = config, options
        self.predict_path = Path(predict_path) if predict_path else None
        self.collate = pseudo_collate
        self.palette: list[Any] = []
        self.category_ids: list[int] = []
        self.prediction_names: dict[str, str] = {}

    def check_data(self) -> None:
        """Read the config, and look whether the images to predict on are there, before a run folder is made."""
        read_config(self.config, self.options)
        if self.predict_path and self.trainer and self.trainer.predicting:
            image_files(self.predict_path)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations of the splits that ``stage`` needs, by default those of ``fit``."""
        config = read_config(self.config, self.options)
        stage = stage or "fit"
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in wanted:
            if stage == "predict" and self.predict_path:
                files = image_files(self.predict_path)
                self.predict_set = _Images(files, config)
                self.prediction_names = prediction_names([str(file) for file in files])
                self._take_classes(innermost(config.test_dataloader.dataset)[0].get("metainfo", {}))
                continue
            dataset = build_dataset(config, split)
            _check_order(config, split)
            self._take_classes(dataset.metainfo)
            self.category_ids = list(getattr(innermost(dataset)[0], "cat_ids", None) or self.category_ids)
            name = "predict" if stage == "predict" else split
            setattr(self, f"{name}_set", dataset)
            if stage == "predict":
                self.prediction_names = prediction_names(
                    [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
                )

    def _take_classes(self, metainfo: Any) -> None:
        self.classes = tuple(metainfo.get("classes") or self.classes)
        self.palette = list(metainfo.get("palette") or self.palette)


def prediction_names(files: Sequence[str]) -> dict[str, str]:
    """What is written for each image is called like the image, with its folders below the one common to all.

    The suffix is left out unless two images differ in nothing else.
    """
    full = {file: Path(os.path.normpath(Path(file).absolute())) for file in files}
    common = os.path.commonpath([path.parent for path in full.values()])
    names = {file: path.relative_to(common) for file, path in full.items()}
    short = {file: name.with_suffix("") for file, name in names.items()}
    chosen = short if len(set(short.values())) == len(set(names.values())) else names
    return {file: str(name) for file, name in chosen.items()}


def _check_order(config: Config, split: str) -> None:
    """Predictions are in pixels of the original image, and so the truth has to be."""
    if split == "train":
        return
    for part in innermost(config[f"{split}_dataloader"].dataset):
        kinds = [_kind(step) for step in part.get("pipeline", [])]
        last = max((i for i, kind in enumerate(kinds) if "Resize" in kind), default=-1)
        if any(_loads_truth(kind) for kind in kinds[: last + 1]):
            raise InputError(
                f"the {split} pipeline of {config.filename} loads annotations before {kinds[last]}, which would scale "
                "them; put LoadAnnotations after it"
            )


def _kind(step: Any) -> str:
    """A step's name without the package that may stand before it: 'mmdet.Resize'."""
    return str(step.type).rpartition(".")[2]


def _loads_truth(kind: str) -> bool:
    return kind.startswith("Load") and kind.endswith("Annotations")


class _Images(Dataset[dict[str, Any]]):
    """Image files through the test pipeline of a config, without annotations."""

    def __init__(self, files: list[Path], config: Config) -> None:
        self.files = files
        pipeline = innermost(config.test_dataloader.dataset)[0].pipeline
        steps = [step for step in pipeline if not _loads_truth(_kind(step))]
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self.pipeline = Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.pipeline({"img_path": str(self.files[index]), "img_id": index})
        return sample
