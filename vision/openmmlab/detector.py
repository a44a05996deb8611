"""MMDetection's detectors as LightningModules."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from core.errors import InputError
from core.export import Exported
from core.io.atomic import atomic_write
from core.training.report import Section
from core.training.run_folder import run_folder
from core.training.task import EvaluationSplit
from vision.openmmlab.data import DetectionSpec
from vision.openmmlab.overlays import class_colors, draw_objects
from vision.openmmlab.report import class_precisions, detection_section
from vision.openmmlab.task import Batch, OpenMMLabTask

__all__ = ["Detector"]


class Detector(OpenMMLabTask):
    """Finds objects: their boxes and, if the model predicts them, their masks.

    Logs the mean average precision of boxes, ``val_bbox_map``, ``val_bbox_map_50`` and ``val_bbox_map_75``, and that of
    masks, ``val_segm_map`` and so on.

    ``task(pixels)`` takes images (B, 3, H, W) RGB, uint8 or float in [0, 1], and returns a data sample for each, with
    ``bboxes``, ``scores``, ``labels`` and ``masks`` in ``pred_instances``.

    Args:
        config: path of an MMDetection config, or the name of one in ``vision/openmmlab/configs``.
        kwargs: the other arguments of :class:`vision.openmmlab.task.OpenMMLabTask`.
    """

    monitor: ClassVar[str] = "val_bbox_map"
    spec_class = DetectionSpec
    scope = "mmdet"
    can_export: ClassVar[bool] = False
    shown_score: ClassVar[float] = 0.3
    """Objects with a lower score are not drawn; ``predictions.json`` contains all objects."""

    spec: DetectionSpec

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.has_masks = bool(getattr(self.model, "with_mask", False))
        self.results: list[dict[str, Any]] = []

        self.kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if self.has_masks else ("bbox",)
        # The summary holds the curves of each class, from which the report has their average precision.
        options: dict[str, Any] = {"iou_type": self.kinds, "backend": "pycocotools", "extended_summary": True}
        self.val_score = MeanAveragePrecision(**options)
        self.test_score = MeanAveragePrecision(**options)
        self.precisions: dict[str, np.ndarray] = {}

    def count_classes(self, model: nn.Module) -> int:
        """Return the number of classes of the head that predicts boxes.

        Raises:
            InputError: if there is no such head.
        """
        owner = getattr(model, "roi_head", None) or model
        head: Any = getattr(owner, "bbox_head", None)
        if isinstance(head, nn.ModuleList):  # a cascade
            head = head[0]
        if not hasattr(head, "num_classes"):
            raise InputError(
                f"{type(model).__name__} has no head for boxes (bbox_head, or one in roi_head), and Detector supports "
                "only models that predict boxes; train this one with MMDetection's tools/train.py"
            )
        count: int = head.num_classes
        return count

    def check_truth(self, samples: list[Any]) -> None:
        """Refuse boxes of a class that the model does not have.

        Raises:
            InputError: if there is such a box; the message names its image.
        """
        for sample in samples:
            labels = sample.gt_instances.labels
            if len(labels) and int(labels.max()) >= self.num_classes:
                raise InputError(
                    f"{sample.img_path} has a box of class {int(labels.max())}, but the model has classes 0 to "
                    f"{self.num_classes - 1}; set the class count of its heads with --model.options"
                )

    def use_spec(self, theirs: DetectionSpec) -> None:
        """Check the specification of the data, and take its category ids: predictions use those of the current file."""
        super().use_spec(theirs)
        if theirs.category_ids:
            self.store_spec(replace(self.spec, category_ids=theirs.category_ids))

    # Evaluation

    def update_metrics(self, split: EvaluationSplit, raw: Batch, output: list[Any], target: list[Any]) -> None:
        """Add the predicted and the true objects, in pixels of the original image."""
        self.check_truth(target)
        predictions = [self._values(sample.pred_instances) for sample in output]
        truths = [self._truth(sample) for sample in output]
        self.score(split).update(predictions, truths)

    def compute_scores(self, split: EvaluationSplit) -> dict[str, Tensor]:
        """Return the mean average precision over IoU 0.5 to 0.95, at 0.5 and at 0.75, and reset the metric."""
        values = self.score(split).compute()
        self.score(split).reset()

        scores = {}
        self.precisions = {}
        for kind in self.kinds:
            prefix = f"{kind}_" if self.has_masks else ""  # torchmetrics has no prefix if there is only one kind
            for name in ("map", "map_50", "map_75"):
                scores[f"{kind}_{name}"] = values[f"{prefix}{name}"]
            curves = values.get(f"{prefix}precision")  # missing without images
            if curves is not None:
                self.precisions[kind] = class_precisions(curves, values["classes"].cpu(), self.num_classes)
        return scores

    def sample_results(self, raw: Batch, output: list[Any], target: list[Any]) -> dict[str, Tensor]:
        """Return how many objects of each class an image has, and how many were found."""
        truths = [sample.gt_instances.labels for sample in output]
        found = [s.pred_instances.labels[s.pred_instances.scores >= self.shown_score] for s in output]
        return {
            "objects": torch.stack([labels.bincount(minlength=self.num_classes).short() for labels in truths]),
            "found": torch.stack([labels.bincount(minlength=self.num_classes).short() for labels in found]),
        }

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the average precision of each class besides the logged figures and the pictures."""
        first, *others = super().report_sections(split, results)
        if not results or not self.precisions:
            return [first, *others]
        objects, found = results["objects"], results["found"]
        classes = detection_section(self.precisions, self.class_names, objects, found, self.shown_score)
        return [first, classes, *others]

    def _values(self, instances: Any) -> dict[str, Tensor]:
        """Return objects in the form that torchmetrics takes; those that are true have no scores."""
        values = {"boxes": _plain(instances.bboxes), "labels": instances.labels}
        if "scores" in instances:
            values["scores"] = instances.scores
        if self.has_masks:
            masks = instances.masks
            values["masks"] = masks if isinstance(masks, Tensor) else masks.to_tensor(torch.bool, self.device)
        return values

    def _truth(self, sample: Any) -> dict[str, Tensor]:
        """Return the true objects of an image; those to be ignored are marked as crowds."""
        objects = self._values(sample.gt_instances)
        ignored = self._values(sample.ignored_instances)
        truth = {name: torch.cat([objects[name], ignored[name]]) for name in objects}
        crowd = [0] * len(objects["labels"]) + [1] * len(ignored["labels"])
        truth["iscrowd"] = torch.tensor(crowd, device=self.device)
        return truth

    # Prediction

    def rows(self, output: list[Any], names: Any) -> dict[str, list[Any]]:
        """Return the file of each image and the objects found, best score first.

        Returns:
            Columns ``file``, ``classes`` (names), ``scores`` (in [0, 1]), ``boxes`` (x1, y1, x2, y2 in pixels) and, if
            the model has masks, ``masks`` (an array (N, H, W) bool).
        """
        columns: dict[str, list[Any]] = {"file": list(names), "classes": [], "scores": [], "boxes": []}
        if self.has_masks:
            columns["masks"] = []

        for sample in output:
            found = sample.pred_instances.cpu()
            columns["classes"].append([self.class_names[label] for label in found.labels.tolist()])
            columns["scores"].append(found.scores.tolist())
            columns["boxes"].append(found.bboxes.tolist())
            if self.has_masks:
                columns["masks"].append(found.masks.numpy())
        return columns

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Add the objects to :attr:`results`, in COCO's result format, for ``predictions.json``."""
        found = sample.pred_instances.cpu()
        for i, label in enumerate(found.labels.tolist()):
            x1, y1, x2, y2 = found.bboxes[i].tolist()
            result = {
                "image_id": sample.img_id,
                "file_name": sample.img_path,
                "score": float(found.scores[i]),
                "category_id": self.category_id(label),
                "category": self.class_names[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if self.has_masks:
                encoded = coco_mask.encode(np.asfortranarray(found.masks[i].numpy()))
                result["segmentation"] = {**encoded, "counts": encoded["counts"].decode("ascii")}
            self.results.append(result)
        return {"objects": len(found)}

    def report(self, split: EvaluationSplit) -> None:
        """Log the scores and draw the examples; for predictions, write the objects to ``predictions.json``."""
        if split == "predict":
            self._write_results()
            return

        has_objects = any(len(labels) for labels in self.score(split).groundtruth_labels)
        if not has_objects and not self.trainer.sanity_checking:
            rank_zero_warn(f"The {split} data have no objects; their mean average precision is given as -1, as by COCO")
        super().report(split)

    def _write_results(self) -> None:
        """Write :attr:`results` to ``predictions.json``; with several processes, each writes a file of its own."""
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)
        rank = f".{self.global_rank}" if self.trainer.world_size > 1 else ""
        with atomic_write(folder / f"predictions{rank}.json") as unfinished:
            unfinished.write_text(json.dumps(self.results), encoding="utf-8")
        self.results = []

    def category_id(self, label: int) -> int:
        """Return the id of a class in the annotation file, or label + 1 if the file is not known."""
        ids = self.spec.category_ids
        return ids[label] if label < len(ids) else label + 1

    # Pictures

    def draw(self, sample: Any) -> Tensor:
        """Return the image with the objects whose score is at least :attr:`shown_score`."""
        found = sample.pred_instances
        found = found[found.scores >= self.shown_score]
        scores = [f" {score:.2f}" for score in found.scores.tolist()]
        return self._draw(sample, found, scores)

    def draw_truth(self, sample: Any) -> Tensor:
        """Return the image with the objects of the annotation file."""
        return self._draw(sample, sample.gt_instances, [""] * len(sample.gt_instances))

    def _draw(self, sample: Any, objects: Any, scores: list[str]) -> Tensor:
        values = self._values(objects)
        labels = values["labels"].tolist()
        colors = class_colors(self.num_classes, self.spec.palette)
        return draw_objects(
            sample.img_path,
            values["boxes"],
            [f"{self.class_names[label]}{score}" for label, score in zip(labels, scores, strict=True)],
            [colors[label] for label in labels],
            values.get("masks"),
        )

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Raise an error, since detectors cannot be exported.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a detector cannot be exported; export its backbone with core.export.export_model, or the detector with "
            "MMDeploy"
        )


def _plain(boxes: Any) -> Tensor:
    """Return boxes as a tensor; MMDetection wraps the true ones in a class of its own."""
    tensor: Tensor = getattr(boxes, "tensor", boxes)
    return tensor
