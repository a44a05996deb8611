"""The data sets of OpenMMLab configs for Lightning's loops, and images to predict on."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset

from core.errors import InputError
from core.images import image_files
from core.training.data import DataModule
from vision.openmmlab.models import build_dataset, read_config

__all__ = ["OpenMMLabData"]


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
                self.predict_set = _Images(image_files(self.predict_path), config)
                self._take_classes(config.test_dataloader.dataset.get("metainfo", {}))
                continue
            dataset = build_dataset(config, split)
            _check_order(config, split)
            self._take_classes(dataset.metainfo)
            name = "predict" if stage == "predict" else split
            setattr(self, f"{name}_set", dataset)

    def _take_classes(self, metainfo: Any) -> None:
        self.classes = tuple(metainfo.get("classes") or self.classes)
        self.palette = list(metainfo.get("palette") or self.palette)


def _check_order(config: Config, split: str) -> None:
    """Predictions are in pixels of the original image, and so the truth has to be."""
    kinds = [step.type for step in config[f"{split}_dataloader"].dataset.pipeline]
    if split == "train" or not {"Resize", "LoadAnnotations"} <= set(kinds):
        return
    if kinds.index("LoadAnnotations") < kinds.index("Resize"):
        raise InputError(
            f"the {split} pipeline of {config.filename} loads annotations before Resize, which would scale them; put "
            "LoadAnnotations after it"
        )


class _Images(Dataset[dict[str, Any]]):
    """Image files through the test pipeline of a config, without annotations."""

    def __init__(self, files: list[Path], config: Config) -> None:
        self.files = files
        steps = [s for s in config.test_dataloader.dataset.pipeline if s.type != "LoadAnnotations"]
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self.pipeline = Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.pipeline({"img_path": str(self.files[index]), "img_id": index})
        return sample
