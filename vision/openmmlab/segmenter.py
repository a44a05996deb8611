"""MMSegmentation's segmentors as LightningModules."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from core.data.module import DataModule
from core.errors import InputError
from core.export import Exported
from core.training.classification import ConfusionCounts
from core.training.report import Section, logged_figures, picture_sections
from core.training.task import EvaluationSplit
from vision.openmmlab.config_files import innermost
from vision.openmmlab.data import OpenMMLabData, SegmentationSpec
from vision.openmmlab.overlays import class_colors, draw_label_map
from vision.openmmlab.report import pixel_counts, segmentation_sections
from vision.openmmlab.task import Batch, OpenMMLabTask, write_png

__all__ = ["MeanIoU", "PixelAccuracy", "Segmenter"]


class MeanIoU(ConfusionCounts, MulticlassJaccardIndex):
    """torchmetrics' mean intersection over union, computed from :class:`ConfusionCounts`."""


class PixelAccuracy(ConfusionCounts):
    """Share of the labeled pixels that are classified correctly; NaN if no pixel is labeled."""

    def compute(self) -> Tensor:
        """Return the share, a scalar in [0, 1]."""
        return self.confmat.trace() / self.confmat.sum()


class Segmenter(OpenMMLabTask):
    """Predicts the class of every pixel.

    Logs ``val_miou``, the mean over classes of intersection over union, and ``val_acc``, the share of pixels that are
    classified correctly.

    ``task(pixels)`` takes images (B, 3, H, W) RGB, uint8 or float in [0, 1], and returns a data sample for each, with
    the label map (1, H, W) in ``pred_sem_seg.data``.

    Args:
        config: path of an MMSegmentation config, or the name of one in ``vision/openmmlab/configs``.
        kwargs: the other arguments of :class:`vision.openmmlab.task.OpenMMLabTask`.
    """

    monitor: ClassVar[str] = "val_miou"
    spec_class = SegmentationSpec
    scope = "mmseg"

    spec: SegmentationSpec

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.ignore_index: int = _last_head(self.model).ignore_index
        scores = MetricCollection(
            {
                "miou": MeanIoU(num_classes=self.num_classes, ignore_index=self.ignore_index),
                "acc": PixelAccuracy(num_classes=self.num_classes, ignore_index=self.ignore_index),
            }
        )
        self.val_score = scores
        self.test_score = scores.clone()

    def count_classes(self, model: nn.Module) -> int:
        """Return the number of classes of the head that predicts.

        Raises:
            InputError: if there is only one class.
        """
        count: int = _last_head(model).num_classes
        if count < 2:
            raise InputError(
                "the heads of the model have one class, but a segmentor needs at least two, since every pixel gets a "
                "class; add one for the rest of the image: classes=('background', 'object') in metainfo, and "
                "num_classes=2 in the heads"
            )
        return count

    def use_data(self, data: DataModule, stage: str) -> None:
        """Check some label maps, so that wrong values stop the run before it begins.

        Raises:
            InputError: if a value is no class of the model; the message names the label map.
        """
        super().use_data(data, stage)
        if stage == "predict" or not isinstance(data, OpenMMLabData):
            return

        from vision.openmmlab.annotations import check_label_values  # it imports mmdet

        for dataset in (data.train_set, data.val_set, data.test_set):
            for part in innermost(dataset) if dataset is not None else []:
                check_label_values(part, num_classes=self.num_classes, ignore_index=self.ignore_index)

    def predict_samples(self, batch: Batch) -> list[Any]:
        """Return the data samples of a batch with the predicted label maps.

        MMSegmentation needs images of one size, so images of different sizes are predicted one at a time.
        """
        pairs = list(zip(batch["inputs"], batch["data_samples"], strict=True))
        sizes = {(image.shape, sample.metainfo.get("ori_shape")) for image, sample in pairs}
        if len(sizes) == 1:
            predictions = super().predict_samples(batch)
        else:
            predictions = []
            for image, sample in pairs:
                predictions += super().predict_samples({"inputs": [image], "data_samples": [sample]})

        for prediction in predictions:
            labels = prediction.pred_sem_seg
            labels.data = labels.data.long()  # a head with one channel for two classes gives floats
        return predictions

    def check_truth(self, samples: list[Any]) -> None:
        """Refuse label maps with a class that the model does not have.

        Raises:
            InputError: if a label map has such a class; the message names its image.
        """
        for sample in samples:
            labels = sample.gt_sem_seg.data
            wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
            if len(wrong):
                raise InputError(
                    f"the label map of {sample.img_path} holds {int(wrong[0])}; the model has classes 0 to "
                    f"{self.num_classes - 1}, and {self.ignore_index} is ignored. Correct the map, or set the class "
                    "count of the heads with --model.options"
                )

    def update_metrics(self, split: EvaluationSplit, raw: Batch, output: list[Any], target: list[Any]) -> None:
        """Add the predicted and the true label maps, (1, H, W) each."""
        self.check_truth(target)
        for sample in output:
            self.score(split).update(sample.pred_sem_seg.data, sample.gt_sem_seg.data)

    def compute_scores(self, split: EvaluationSplit) -> dict[str, Tensor]:
        """Return the mean intersection over union and the pixel accuracy, and reset the metrics."""
        values: dict[str, Tensor] = dict(self.score(split).compute())
        self.score(split).reset()
        return values

    def sample_results(self, raw: Batch, output: list[Any], target: list[Any]) -> dict[str, Tensor]:
        """Return how many pixels of each class an image has, how many were predicted, and how many of them rightly."""
        counts = [
            pixel_counts(s.pred_sem_seg.data, s.gt_sem_seg.data, self.num_classes, self.ignore_index) for s in output
        ]
        return {"pixels": torch.stack(counts)}

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the results beside those of the most frequent class, the classes, the worst images, the pictures."""
        if not results:
            return super().report_sections(split, results)
        logged = logged_figures(self.trainer, split)
        file_of = partial(self.file_name, split, results["position"])
        sections = segmentation_sections(results["pixels"], self.class_names, logged, file_of)
        return sections + picture_sections(self.trainer, self.pictures)

    def rows(self, output: list[Any], names: Any) -> dict[str, list[Any]]:
        """Return the file, the classes found, their shares of the pixels and the label map of each image.

        Returns:
            Columns ``file``, ``classes`` (names, largest share first), ``shares`` (in [0, 1]) and ``labels`` (an array
            (H, W) of class numbers, or of the values of the user's own masks).
        """
        columns: dict[str, list[Any]] = {"file": list(names), "classes": [], "shares": [], "labels": []}
        for sample in output:
            labels_HW = sample.pred_sem_seg.data[0].cpu()
            counts = torch.bincount(labels_HW.flatten(), minlength=self.num_classes)
            found = [label for label in counts.argsort(descending=True, stable=True).tolist() if counts[label]]

            columns["classes"].append([self.class_names[label] for label in found])
            columns["shares"].append([int(counts[label]) / labels_HW.numel() for label in found])
            columns["labels"].append(self.mask_values(labels_HW.numpy()))
        return columns

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Write the label map as a PNG whose pixels are the class numbers, or the values of the user's own masks."""
        path = folder / "labels" / f"{sample.output_name}.png"
        labels = self.mask_values(sample.pred_sem_seg.data[0].cpu().numpy())
        write_png(labels.astype(np.uint8 if self.num_classes <= 256 else np.uint16), path)
        return {"labels": str(path)}

    def mask_values(self, labels_HW: np.ndarray) -> np.ndarray:
        """Replace class numbers by the values that the classes have in the user's masks, if they are known."""
        values = self.spec.values
        return np.asarray(values, dtype=labels_HW.dtype)[labels_HW] if values else labels_HW

    def draw(self, sample: Any) -> Tensor:
        """Return the image with the predicted label map."""
        return self._draw(sample, sample.pred_sem_seg)

    def draw_truth(self, sample: Any) -> Tensor:
        """Return the image with the true label map."""
        return self._draw(sample, sample.gt_sem_seg)

    def _draw(self, sample: Any, labels: Any) -> Tensor:
        colors = class_colors(self.num_classes, self.spec.palette)
        return draw_label_map(sample.img_path, labels.data[0], colors, self.class_names)

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Return the model from normalized images (B, 3, H, W) to the head's logits (B, C, H, W), to export.

        The size is fixed, since UPerNet pools to sizes that it computes from that of the image.

        Raises:
            InputError: for ``source='raw'``, since the exporter cannot follow OpenMMLab's pipelines.
        """
        if source == "raw":
            raise InputError("the exported file of a segmentor begins with normalized images; type --from map")

        (batch,) = raw
        first = {name: values[:1] for name, values in batch.items()}  # the images of a batch may differ in size
        images = self.prepared(first)["inputs"]
        return Exported(
            name=Path(self.config_name).stem,
            module=_Logits(self.model).train(self.training),
            inputs=(images,),
            fixed_size=True,
        )


class _Logits(nn.Module):
    """A segmentor as a function of normalized images alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return logits (B, C, H, W): a channel for each class, or a single one for the second of two classes."""
        encode_decode: Any = self.model.encode_decode  # the model's mode="tensor" does not support cascades
        logits: Tensor = encode_decode(x_B3HW, [{"img_shape": x_B3HW.shape[2:]}])
        return logits


def _last_head(model: nn.Module) -> Any:
    """Return the head that predicts, which is the last one of a cascade."""
    head = model.get_submodule("decode_head")
    return head[-1] if isinstance(head, nn.ModuleList) else head
