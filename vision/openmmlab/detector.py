"""MMDetection's detectors as LightningModules."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from core.errors import InputError
from core.training.run_folder import run_folder
from core.training.task import Exported
from core.writing import whole_file
from vision.openmmlab.drawing import colours, draw_objects
from vision.openmmlab.task import Batch, OpenMMLabTask

__all__ = ["Detector"]


class Detector(OpenMMLabTask):
    """Boxes, and masks where the model has them: ``val_bbox_map``, ``val_bbox_map_50``, ``val_segm_map``, ..."""

    monitor: ClassVar[str] = "val_bbox_map"
    scope = "mmdet"
    shown_score: ClassVar[float] = 0.3
    """Objects with a lower score are not drawn; ``predictions.json`` has them all."""

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.results: list[dict[str, Any]] = []
        self.category_ids: list[int] = []
        self.num_classes = _class_count(self.model)
        self.has_masks = bool(getattr(self.model, "with_mask", False))
        kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if self.has_masks else ("bbox",)
        self.val_score = MeanAveragePrecision(iou_type=kinds, backend="pycocotools")
        self.test_score = MeanAveragePrecision(iou_type=kinds, backend="pycocotools")

    def setup(self, stage: str) -> None:
        """Take the classes' ids in the annotation file too."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self.category_ids = list(getattr(data, "category_ids", ())) or self.category_ids

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep those ids too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["category_ids"] = list(self.category_ids)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.category_ids = checkpoint.get("category_ids", self.category_ids)

    def check_batch(self, batch: Batch) -> None:
        """Refuse a box of a class that the model does not have.

        Raises:
            InputError: naming the image.
        """
        for sample in batch["data_samples"]:
            labels = sample.gt_instances.labels
            if len(labels) and int(labels.max()) >= self.num_classes:
                raise InputError(
                    f"{sample.img_path} has a box of class {int(labels.max())} and the model classes 0 to "
                    f"{self.num_classes - 1}; set the class count of its heads with --model.options"
                )

    def update_metric(self, score: Metric | MetricCollection, predictions: list[Any]) -> None:
        """Add boxes, scores, labels and masks, in pixels of the original image."""
        found = [self._instances(sample.pred_instances) for sample in predictions]
        score.update(found, [self._truth(sample) for sample in predictions])

    def _instances(self, instances: Any) -> dict[str, Tensor]:
        values = {"boxes": instances.bboxes, "labels": instances.labels}
        if "scores" in instances:
            values["scores"] = instances.scores
        if self.has_masks:
            masks = instances.masks
            values["masks"] = masks if isinstance(masks, Tensor) else masks.to_tensor(torch.bool, self.device)
        return values

    def _truth(self, sample: Any) -> dict[str, Tensor]:
        """Boxes of an image; those to be ignored are marked as crowds."""
        parts = [self._instances(sample.gt_instances), self._instances(sample.ignored_instances)]
        truth = {name: torch.cat([_plain(part[name]) for part in parts]) for name in parts[0]}
        counts = [len(part["labels"]) for part in parts]
        truth["iscrowd"] = torch.tensor([0] * counts[0] + [1] * counts[1], device=self.device)
        return truth

    def to_export(self, batch: Batch) -> Exported:
        """Nothing yet.

        Raises:
            InputError: always.
        """
        raise InputError("detectors are not exported; their backbone is: core.export.export_model, or use mmdeploy")

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Keep the objects in COCO's result format; ``predictions.json`` is written at the end."""
        found = sample.pred_instances.cpu()
        x1, y1, x2, y2 = (column.tolist() for column in found.bboxes.T)
        for i, (score, label) in enumerate(zip(found.scores.tolist(), found.labels.tolist(), strict=True)):
            result = {"image_id": sample.img_id, "file_name": sample.img_path, "score": score}
            result |= {"category_id": self.category_id(label), "category": self.class_name(label)}
            result |= {"bbox": [x1[i], y1[i], x2[i] - x1[i], y2[i] - y1[i]]}
            if self.has_masks:
                packed = coco_mask.encode(np.asfortranarray(found.masks[i].numpy()))
                result["segmentation"] = packed | {"counts": packed["counts"].decode("ascii")}
            self.results.append(result)
        return {"objects": len(found)}

    def draw(self, sample: Any) -> Tensor:
        """Objects with a score of at least :attr:`shown_score`."""
        found = sample.pred_instances
        found = found[found.scores >= self.shown_score]
        scores = [f" {score:.2f}" for score in found.scores.tolist()]
        return self._draw(sample.img_path, found, scores)

    def draw_truth(self, sample: Any) -> Tensor:
        """Objects of the annotation file."""
        return self._draw(sample.img_path, sample.gt_instances, [""] * len(sample.gt_instances))

    def _draw(self, path: str, objects: Any, texts: list[str]) -> Tensor:
        known = self._instances(objects)
        labels = known["labels"].tolist()
        chosen = colours(self.num_classes, self.palette)
        texts = [f"{self.class_name(label)}{text}" for label, text in zip(labels, texts, strict=True)]
        boxes = _plain(known["boxes"])
        return draw_objects(path, boxes, texts, [chosen[label] for label in labels], known.get("masks"))

    def class_name(self, label: int) -> str:
        """Name of a class, or its number where the data have not been seen."""
        return self.class_names[label] if self.class_names else str(label)

    def category_id(self, label: int) -> int:
        """A class's id in the annotation file, which may have gaps; counted from 1 where no file has been seen."""
        return self.category_ids[label] if label < len(self.category_ids) else label + 1

    def on_predict_end(self) -> None:
        """Write the objects of all images as ``predictions.json``."""
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)
        place = f".{self.global_rank}" if self.trainer.world_size > 1 else ""
        with whole_file(folder / f"predictions{place}.json") as unfinished:
            unfinished.write_text(json.dumps(self.results), encoding="utf-8")
        self.results = []

    def named_values(self, computed: Any) -> dict[str, Tensor]:
        """Mean average precision over IoU 0.5 to 0.95, at 0.5 and at 0.75, of boxes and masks."""
        prefixes = {"bbox": "bbox_", "segm": "segm_"} if self.has_masks else {"bbox": ""}
        names = ("map", "map_50", "map_75")
        return {f"{kind}_{n}": computed[f"{prefix}{n}"] for kind, prefix in prefixes.items() for n in names}


def _class_count(model: nn.Module) -> int:
    head: Any = getattr(model, "roi_head", None)
    head = getattr(model if head is None else head, "bbox_head", None)
    head = head[0] if isinstance(head, nn.ModuleList) else head
    if not hasattr(head, "num_classes"):
        raise InputError(
            f"{type(model).__name__} has no head for boxes (bbox_head, or one in roi_head), and Detector takes models "
            "that predict boxes; train this one with MMDetection's tools/train.py"
        )
    count: int = head.num_classes
    return count


def _plain(values: Any) -> Tensor:
    """A tensor, out of MMDetection's box type if it is in one."""
    tensor: Tensor = getattr(values, "tensor", values)
    return tensor
