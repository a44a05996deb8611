"""The base of the tasks around MMDetection's detectors and MMSegmentation's segmentors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torch import Tensor, nn

from core.data.module import DataModule, attached_data_module
from core.data.spec import DataSpec, numbered_classes
from core.errors import InputError, listed
from core.io.atomic import atomic_write
from core.io.weights import load_weights
from core.training.plots import Examples
from core.training.run_folder import from_here, run_folder
from core.training.task import FINE_TUNING_LAYER_DECAY, FINE_TUNING_LR, EvaluationSplit, Task
from vision.openmmlab.config_files import (
    ConfigOptions,
    build_model,
    build_test_pipeline,
    config_path,
    fit_to_data,
    is_harmless,
    read_config,
    unused_settings,
    use_backbone,
)
from vision.openmmlab.data import OpenMMLabData, OpenMMLabSpec, to_bgr
from vision.openmmlab.overlays import side_by_side

__all__ = ["Batch", "OpenMMLabTask"]

Batch = dict[str, list[Any]]
"""A batch in MMEngine's form: B images (3, H, W) uint8 as ``inputs``, and their B data samples as ``data_samples``."""


class OpenMMLabTask(Task):
    """A model of OpenMMLab in Lightning's loops: its own loss and predictions, LarKit's optimizer and schedule.

    ``task(pixels)`` takes images and returns OpenMMLab's data samples with the predictions, in pixels of these images.
    The images first pass through the test pipeline of the config, as in ``lightning predict``.

    Only the model and the data sets of the config are used. A warning lists the other settings of the config, and the
    options that replace them.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``.
        options: values that replace those of the config, by dotted name, as in MMEngine's ``--cfg-options``.
        backbone: name of a model of LarKit or timm that takes the place of the config's backbone.
        backbone_args: arguments of that model.
        spec: class names and colors of the data; the command passes it. If the data are files of the user, the heads
            get their number of classes from it.
        pretrained: load the weights that ``init_cfg`` of the config's backbone names.
        weights: file or Hub name with weights of the whole model or of its backbone, for :func:`core.load_weights`.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        MissingError: if the config does not exist.
        InputError: if its model cannot be built, or it is a config of the other package.
    """

    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    runs_files: ClassVar[tuple[str, ...]] = ("config", "options")
    data_class = OpenMMLabData
    scope: ClassVar[str]
    """The package whose configs the task takes, 'mmdet' or 'mmseg'."""

    spec: OpenMMLabSpec
    num_classes: int
    val_score: Any
    test_score: Any

    def __init__(
        self,
        config: str,
        *,
        options: ConfigOptions | None = None,
        backbone: str | None = None,
        backbone_args: dict[str, Any] | None = None,
        spec: DataSpec | Mapping[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        read = read_config(config, options)
        if read.default_scope != self.scope:
            raise InputError(
                f"{config} is for {read.default_scope}; {type(self).__name__} takes configs of {self.scope}"
            )
        if backbone is not None:
            use_backbone(read, backbone, backbone_args)
        elif backbone_args:
            raise InputError("backbone_args need --model.backbone NAME; those of the config are set by --model.options")
        fit_to_data(read, self.to_spec(spec))
        model = build_model(read, pretrained=pretrained and weights is None)
        if pretrained:  # the base sees a module, whose weights it does not know
            defaults = {"lr": FINE_TUNING_LR, "layer_decay": FINE_TUNING_LAYER_DECAY}
            kwargs |= {name: value for name, value in defaults.items() if kwargs.get(name) is None}

        super().__init__(model, spec=spec, weights=weights, **kwargs)

        self.hparams["backbone"] = backbone  # the base does not store modules, and takes the model for one
        self.config_name = config
        self.config_options = options
        self.mm_config = read
        self.unused = unused_settings(read, pretrained=pretrained, weights=weights)
        self.examples = Examples(size=8, columns=2, width=4.5)

    def build(self, backbone: nn.Module) -> None:
        """Store the whole model, which contains the backbone. If the data name no classes, they are numbered."""
        self.model = backbone
        self.num_classes = self.count_classes(backbone)
        if not self.spec.classes:
            self.store_spec(replace(self.spec, classes=numbered_classes(self.num_classes)))
        self.check_class_count(self.spec.classes)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The backbone inside the model."""
        return self.model.get_submodule("backbone")

    @property
    def feature_map(self) -> nn.Module:  # type: ignore[override]
        """The model's data preprocessor, which normalizes images and pads them to one size."""
        return self.model.get_submodule("data_preprocessor")

    def load(self, source: str) -> None:
        """Load weights of the whole model or of its backbone."""
        load_weights(self.model, source)

    @classmethod
    def trusts_file(cls, name: str, value: Any) -> bool:
        """Return whether this value of ``config`` or ``options`` may come from an untrusted checkpoint."""
        return is_harmless(name, value)

    # The data

    def check_class_count(self, theirs: tuple[str, ...]) -> None:
        """Refuse data with more or fewer classes than the heads have.

        Raises:
            InputError: if the numbers differ; the message lists the classes of the data.
        """
        if theirs and len(theirs) != self.num_classes:
            raise InputError(
                f"the heads of the model have {self.num_classes} classes and the data {len(theirs)} "
                f"({listed(theirs)}); set the class count of the heads with --model.options, or the classes with "
                "--data.options"
            )

    def use_classes(self, theirs: tuple[str, ...]) -> None:
        """Take the class names of the data, and refuse data with another number of classes."""
        self.check_class_count(theirs)
        super().use_classes(theirs)

    def use_data(self, data: DataModule, stage: str) -> None:
        """Refuse data of another config; before training, warn of the settings of the config that are not used.

        Raises:
            InputError: if the data come from another config than the model.
        """
        if isinstance(data, OpenMMLabData):
            self.check_config(data)
            if self.spec.own_files and stage != "fit":
                data.use_config_of_model(self.mm_config, stage)
        if stage == "fit" and self.unused:
            rank_zero_warn(self.unused)

    def check_config(self, data: OpenMMLabData) -> None:
        """Refuse data of another config than the model's, since their files and pipelines would be used silently.

        Raises:
            InputError: if the configs differ; the message names both.
        """
        own = config_path(self.config_name)
        theirs = config_path(data.config) if data.config is not None else None
        if own is None or theirs is None or own.resolve() == theirs.resolve():
            return

        raise InputError(
            f"the model is that of {self.config_name} and the data are those of {data.config}; one config describes "
            f"both. Leave --data.config out, or type --model.config {data.config}"
        )

    def prediction_data(self, *, batch_size: int, num_workers: int) -> OpenMMLabData:
        """Return the data module that reads images for :meth:`predict`, with the test pipeline of the task's config."""
        data = OpenMMLabData(self.config_name, batch_size=batch_size, num_workers=num_workers)
        data.mm_config = self.mm_config
        return data

    # The flow

    def unpack(self, batch: Any) -> tuple[Batch, list[Any]]:
        """Split a batch into the raw batch and its targets: the data samples, or for prediction the names."""
        if isinstance(batch, dict):
            return batch, batch["data_samples"]
        raw, names = batch
        return raw, list(names)

    def batch_length(self, raw: Batch) -> int:
        """Return the number of images in a batch."""
        return len(raw["inputs"])

    def forward(self, raw: Batch | Tensor) -> list[Any]:
        """Predict on images.

        Args:
            raw: images (B, 3, H, W) RGB, uint8 or float in [0, 1], which is rounded to the 8 bits that files have; or
                a batch in MMEngine's form.

        Returns:
            A data sample for each image, in pixels of the given image. A detector sets ``pred_instances``: ``bboxes``
            (N, 4), ``scores`` (N,), ``labels`` (N,) and ``masks`` (N, H, W) bool. A segmentor sets ``pred_sem_seg``,
            whose ``data`` is the label map (1, H, W) int64.
        """
        batch = self.to_batch(raw) if isinstance(raw, Tensor) else raw
        return self.predict_samples(batch)

    def to_batch(self, pixels_B3HW: Tensor) -> Batch:
        """Pass images (B, 3, H, W) RGB through the test pipeline of the config."""
        pipeline = build_test_pipeline(self.mm_config, from_arrays=True)
        samples = []
        for i, image_3HW in enumerate(pixels_B3HW):
            pixels_HW3 = image_3HW.detach().permute(1, 2, 0).cpu().numpy()
            samples.append(pipeline({"img": to_bgr(pixels_HW3), "img_id": i}))

        batch: Batch = pseudo_collate(samples)
        return batch

    def predict_samples(self, batch: Batch) -> list[Any]:
        """Return the data samples of a batch with the predictions."""
        data = self.prepared(batch)
        with DefaultScope.overwrite_default_scope(self.scope):
            predictions: list[Any] = self.model(**data, mode="predict")
        return predictions

    def prepared(self, batch: Batch) -> dict[str, Any]:
        """Return a batch on the model's device, normalized and padded to one size."""
        preprocessor: Any = self.feature_map
        preprocessor.to(self.device)  # it stores its device itself, and only its own to() updates that
        data: dict[str, Any] = preprocessor(batch, self.training)
        return data

    def training_loss(self, raw: Batch, target: list[Any]) -> Tensor:
        """Return the model's own loss, and log its parts as ``train_...``."""
        self.check_truth(target)
        with DefaultScope.overwrite_default_scope(self.scope):
            losses = self.model(**self.prepared(raw), mode="loss")

        loss: Tensor
        loss, parts = self.model.parse_losses(losses)  # type: ignore[operator]
        self.log_dict(
            {f"train_{name}": value for name, value in parts.items() if name != "loss"},
            on_step=False,
            on_epoch=True,
            batch_size=self.batch_length(raw),
            sync_dist=True,
        )
        return loss

    # Evaluation

    def score(self, split: EvaluationSplit) -> Any:
        """Return the metric, or the collection of metrics, of a split."""
        return self.val_score if split == "val" else self.test_score

    def keep_examples(self, split: EvaluationSplit, raw: Batch, output: list[Any], target: list[Any]) -> None:
        """Keep some images for the picture with the truth beside the prediction."""
        if split == "predict" or self.trainer.sanity_checking:
            return

        titles = ["truth | prediction"] * len(output)
        wrong = [False] * len(output)
        self.examples.keep(partial(self._show, output), titles, wrong, self.batch_count(split))

    def _show(self, output: list[Any], chosen: list[int]) -> Tensor:
        """Return pictures (N, 3, H, W) in [0, 1] of the chosen images, with the truth left of the prediction."""
        pictures = [side_by_side(self.draw_truth(output[i]), self.draw(output[i])) for i in chosen]
        return torch.stack(pictures) / 255

    def report(self, split: EvaluationSplit) -> None:
        """Log the scores of the whole split, and draw the examples."""
        if split == "predict":
            return

        scores = self.compute_scores(split)
        self.log_dict({f"{split}_{name}": value for name, value in scores.items()}, prog_bar=True)
        self.examples.draw(self.trainer)

    def file_name(self, split: EvaluationSplit, positions: np.ndarray, place: int) -> str:
        """Return the file of an image of an evaluation.

        Args:
            split: the split.
            positions: positions in the data set of the images that were evaluated.
            place: place of the image among them.
        """
        data = attached_data_module(self.trainer)
        dataset: Any = None if data is None else getattr(data, f"{split}_set")
        if dataset is None:
            return f"image {positions[place]}"
        return from_here(Path(dataset.get_data_info(int(positions[place]))["img_path"]))

    # Prediction

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[Any]]:
        """Return a row for each image, and write its overlay and what else is too large for ``predictions.csv``.

        Returns:
            Columns ``file``, ``overlay`` and those of :meth:`write_prediction`.
        """
        raw, names = self.unpack(batch)
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)

        rows = []
        for name, sample in zip(names, self(raw), strict=True):
            overlay = folder / "overlays" / f"{sample.output_name}.png"
            write_png(self.draw(sample).permute(1, 2, 0).numpy(), overlay)
            written = self.write_prediction(sample, folder)
            rows.append({"file": name, "overlay": str(overlay), **written})
        return {column: [row[column] for row in rows] for column in rows[0]}

    # A subclass implements these

    def count_classes(self, model: nn.Module) -> int:
        """Return the number of classes of the model's heads."""
        raise NotImplementedError

    def check_truth(self, samples: list[Any]) -> None:
        """Refuse labels that are no class of the model.

        Raises:
            InputError: if there is such a label; the message names its image.
        """
        raise NotImplementedError

    def compute_scores(self, split: EvaluationSplit) -> dict[str, Tensor]:
        """Return the scores of a whole split by name, and reset the metrics."""
        raise NotImplementedError

    def draw(self, sample: Any) -> Tensor:
        """Return the image of a data sample with the prediction, (3, H, W) uint8."""
        raise NotImplementedError

    def draw_truth(self, sample: Any) -> Tensor:
        """Return the image of a data sample with the truth, (3, H, W) uint8."""
        raise NotImplementedError

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Store or write the prediction for one image, and return further columns of its row."""
        raise NotImplementedError


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) or (H, W) pixels, uint8 or uint16, as a PNG that appears once it is complete."""
    with atomic_write(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="png")
