"""MMDetection's detectors and MMSegmentation's segmentors as LightningModules."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.detection import MeanAveragePrecision

from core.checkpoints import load_weights
from core.errors import InputError
from core.training.data import padding_in_batch
from core.training.pictures import image_sheet, save_figure
from core.training.run_folder import run_folder
from core.training.task import Exported, Task
from vision.openmmlab.drawing import Sheet, colours, draw_label_map, draw_objects
from vision.openmmlab.models import build_model, read_config

__all__ = ["Detector", "Segmenter"]

Batch = dict[str, list[Any]]
"""``inputs``: B images (3, H, W) uint8; ``data_samples``: B data samples of MMDetection or MMSegmentation."""


class _OpenMMLabTask(Task):
    """A model of OpenMMLab in Lightning's loops: its own loss and predictions, LarKit's optimizer and schedule.

    Args:
        config: path of an OpenMMLab config, or the name of one in ``vision/openmmlab/configs``.
        options: values of the config to replace, by dotted name.
        pretrained: load what ``init_cfg`` of the config's backbone names.
        weights: file or Hub name with weights of the whole model or of its backbone, for :func:`core.load_weights`.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        MissingError: if the config is not there.
        InputError: if it cannot be built, or is for the other package.
    """

    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    val_score: Metric | MetricCollection
    test_score: Metric | MetricCollection
    scope: ClassVar[str]
    """The package whose config it takes."""

    def __init__(
        self,
        config: str,
        *,
        options: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        read = read_config(config, options)
        if read.default_scope != self.scope:
            raise InputError(
                f"{config} is for {read.default_scope}; {type(self).__name__} takes configs of {self.scope}"
            )
        super().__init__(build_model(read, pretrained=pretrained), **kwargs)
        self.class_names: list[str] = []
        self.palette: list[Any] = []
        self.sheet = Sheet()
        if weights is not None:
            load_weights(self.model, weights)

    def attach(self, backbone: nn.Module) -> None:
        """Keep the whole model, which holds the backbone."""
        self.model = backbone

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The backbone inside the model."""
        return self.model.get_submodule("backbone")

    def forward(self, batch: Batch) -> list[Any]:
        """Predictions of a batch, one data sample an image, boxes and maps in the size of the original image."""
        data = self._prepared(batch)
        with DefaultScope.overwrite_default_scope(self.scope):
            predictions: list[Any] = self.model(**data, mode="predict")
        return predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The model's own loss; its parts are logged as ``train_...``."""
        self.check_batch(batch)
        with DefaultScope.overwrite_default_scope(self.scope):
            losses = self.model(**self._prepared(batch), mode="loss")
        loss, parts = self.model.parse_losses(losses)  # type: ignore[operator]
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(batch["inputs"])}
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, **options)
        self.log_dict({f"train_{k}": v for k, v in parts.items() if k != "loss"}, sync_dist=True, **options)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)
        return loss

    def _prepared(self, batch: Batch) -> dict[str, Any]:
        """The batch on the model's device, normalised and padded."""
        preprocessor: Any = self.model.get_submodule("data_preprocessor")
        preprocessor.to(self.device)  # it keeps a note of its own about its device
        data: dict[str, Any] = preprocessor(batch, self.training)
        return data

    def check_batch(self, batch: Batch) -> None:
        """Refuse labels that the model has no class for.

        Raises:
            InputError: naming the image.
        """

    def setup(self, stage: str) -> None:
        """Take the class names and colours from the data."""
        data = getattr(self.trainer, "datamodule", None)
        self.class_names = list(getattr(data, "classes", ())) or self.class_names
        self.palette = list(getattr(data, "palette", ())) or self.palette

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the predictions of one batch to the validation metric."""
        self._evaluate(batch, batch_idx, self.trainer.val_dataloaders, self.val_score)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the predictions of one batch to the test metric."""
        self._evaluate(batch, batch_idx, self.trainer.test_dataloaders, self.test_score)

    def _evaluate(self, batch: Batch, batch_idx: int, loader: Any, score: Metric | MetricCollection) -> None:
        self.check_batch(batch)
        predictions = self(batch)
        own = len(predictions) - padding_in_batch(loader, batch_idx, len(predictions))
        self.update_metric(score, predictions[:own])
        if not self.trainer.sanity_checking:
            for sample in predictions[: self.sheet.wanted(len(loader))]:
                self.sheet.keep(self.draw_truth(sample), self.draw(sample))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """One row an image for ``predictions.csv``, and its overlay in the run folder.

        Returns:
            Columns ``file``, ``overlay`` and those of :meth:`write_prediction`.
        """
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)
        (folder / "overlays").mkdir(parents=True, exist_ok=True)
        rows = []
        for sample in self(batch):
            file = Path(sample.img_path)
            overlay = folder / "overlays" / f"{file.stem}.png"
            Image.fromarray(self.draw(sample).permute(1, 2, 0).numpy()).save(overlay)
            rows.append({"file": str(file), "overlay": str(overlay), **self.write_prediction(sample, folder)})
        return {name: [row[name] for row in rows] for name in rows[0]}

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Keep or write what was predicted for one image; gives further columns of its row."""
        raise NotImplementedError

    def draw(self, sample: Any) -> Tensor:
        """The image of a data sample with what was predicted, (3, H, W) uint8."""
        raise NotImplementedError

    def draw_truth(self, sample: Any) -> Tensor:
        """The image of a data sample with what is true, (3, H, W) uint8."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class names and colours, which are not known without the training data."""
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["palette"] = [list(colour) for colour in self.palette]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the class names and colours."""
        self.class_names = checkpoint.get("class_names", self.class_names)
        self.palette = checkpoint.get("palette", self.palette)

    def update_metric(self, score: Metric | MetricCollection, predictions: list[Any]) -> None:
        """Add predictions, which hold the truth too, to a metric."""
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """Log the metric of the whole split."""
        self._log_score("val", self.val_score)

    def on_test_epoch_end(self) -> None:
        """Log the metric of the whole split."""
        self._log_score("test", self.test_score)

    def _log_score(self, split: str, score: Metric | MetricCollection) -> None:
        values = self.named_values(score.compute())
        score.reset()
        pictures = self.sheet.take()
        if pictures is not None:
            titles = ["truth | prediction"] * len(pictures)
            save_figure(self.trainer, "examples", image_sheet(pictures, titles, columns=3))
        self.log_dict({f"{split}_{name}": value for name, value in values.items()}, prog_bar=True)

    def named_values(self, computed: Any) -> dict[str, Tensor]:
        """What is logged of a computed metric, by name."""
        raise NotImplementedError


class Detector(_OpenMMLabTask):
    """Boxes, and masks where the model has them: ``val_bbox_map``, ``val_bbox_map_50``, ``val_segm_map``, ..."""

    monitor: ClassVar[str] = "val_bbox_map"
    scope = "mmdet"
    shown_score: ClassVar[float] = 0.3
    """Objects with a lower score are not drawn; ``predictions.json`` has them all."""

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.results: list[dict[str, Any]] = []
        head: Any = getattr(self.model, "roi_head", None) or self.model.get_submodule("bbox_head")
        head = getattr(head, "bbox_head", head)
        self.num_classes: int = cast(Any, head[0] if isinstance(head, nn.ModuleList) else head).num_classes
        self.has_masks = bool(getattr(self.model, "with_mask", False))
        kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if self.has_masks else ("bbox",)
        self.val_score = MeanAveragePrecision(iou_type=kinds, backend="pycocotools")
        self.test_score = MeanAveragePrecision(iou_type=kinds, backend="pycocotools")

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
            result = {"image_id": sample.img_id, "file_name": sample.img_path, "category_id": label + 1, "score": score}
            result |= {"category": self.class_name(label)}
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

    def on_predict_end(self) -> None:
        """Write the objects of all images as ``predictions.json``."""
        folder = run_folder(self.trainer) or Path(self.trainer.default_root_dir)
        place = f".{self.global_rank}" if self.trainer.world_size > 1 else ""
        (folder / f"predictions{place}.json").write_text(json.dumps(self.results), encoding="utf-8")
        self.results = []

    def named_values(self, computed: Any) -> dict[str, Tensor]:
        """Mean average precision over IoU 0.5 to 0.95, at 0.5 and at 0.75, of boxes and masks."""
        prefixes = {"bbox": "bbox_", "segm": "segm_"} if self.has_masks else {"bbox": ""}
        names = ("map", "map_50", "map_75")
        return {f"{kind}_{n}": computed[f"{prefix}{n}"] for kind, prefix in prefixes.items() for n in names}


class Segmenter(_OpenMMLabTask):
    """A class for every pixel: ``val_miou``, the mean over classes of intersection over union, and ``val_acc``."""

    monitor: ClassVar[str] = "val_miou"
    scope = "mmseg"

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        head: Any = self.model.get_submodule("decode_head")
        self.num_classes, self.ignore_index = head.num_classes, head.ignore_index
        options: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
        scores = MetricCollection(
            {"miou": MulticlassJaccardIndex(**options), "acc": MulticlassAccuracy(average="micro", **options)}
        )
        self.val_score, self.test_score = scores, scores.clone()

    def check_batch(self, batch: Batch) -> None:
        """Refuse a pixel of a class that the model does not have.

        Raises:
            InputError: naming the image.
        """
        for sample in batch["data_samples"]:
            labels = sample.gt_sem_seg.data
            wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
            if len(wrong):
                raise InputError(
                    f"the label map of {sample.img_path} holds {int(wrong[0])}; the model has classes 0 to "
                    f"{self.num_classes - 1}, and {self.ignore_index} is ignored. Correct the map, or set the class "
                    "count of the heads with --model.options"
                )

    def update_metric(self, score: Metric | MetricCollection, predictions: list[Any]) -> None:
        """Add label maps (1, H, W)."""
        for sample in predictions:
            score.update(sample.pred_sem_seg.data, sample.gt_sem_seg.data)

    def to_export(self, batch: Batch) -> Exported:
        """Normalised images (B, 3, H, W) to logits (B, num_classes, H, W); UPerNet's pooling wants a fixed size."""
        data = self._prepared({name: values[:4] for name, values in batch.items()})
        return Exported(
            Path(self.hparams["config"]).stem, _Logits(self.model).train(self.training), data["inputs"], fixed_size=True
        )

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Write the label map, a PNG with the class numbers as they are."""
        path = folder / "labels" / f"{Path(sample.img_path).stem}.png"
        path.parent.mkdir(exist_ok=True)
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        Image.fromarray(labels.astype(np.uint8 if self.num_classes <= 256 else np.uint16)).save(path)
        return {"labels": str(path)}

    def draw(self, sample: Any) -> Tensor:
        """The predicted label map."""
        return draw_label_map(sample.img_path, sample.pred_sem_seg.data[0], colours(self.num_classes, self.palette))

    def draw_truth(self, sample: Any) -> Tensor:
        """The true label map."""
        return draw_label_map(sample.img_path, sample.gt_sem_seg.data[0], colours(self.num_classes, self.palette))

    def named_values(self, computed: Any) -> dict[str, Tensor]:
        """The collection's values as they are."""
        return dict(computed)


class _Logits(nn.Module):
    """A segmentor as a function of normalised images alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, num_classes, H, W)."""
        logits: Tensor = self.model(x_B3HW, mode="tensor")
        return F.interpolate(logits, size=x_B3HW.shape[2:], mode="bilinear", align_corners=False)


def _plain(values: Any) -> Tensor:
    """A tensor, out of MMDetection's box type if it is in one."""
    tensor: Tensor = getattr(values, "tensor", values)
    return tensor
