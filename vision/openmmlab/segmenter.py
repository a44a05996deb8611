"""MMSegmentation's segmentors as LightningModules."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from core.errors import InputError
from core.training.confusion import PairCounts
from core.training.task import Exported
from core.writing import whole_file
from vision.openmmlab.drawing import colours, draw_label_map
from vision.openmmlab.task import Batch, OpenMMLabTask

__all__ = ["MeanIoU", "Segmenter"]


class MeanIoU(PairCounts, MulticlassJaccardIndex):
    """torchmetrics' intersection over union from our counts."""


class Segmenter(OpenMMLabTask):
    """A class for every pixel: ``val_miou``, the mean over classes of intersection over union, and ``val_acc``."""

    monitor: ClassVar[str] = "val_miou"
    scope = "mmseg"

    def __init__(self, config: str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        head: Any = self.model.get_submodule("decode_head")
        head = head[-1] if isinstance(head, nn.ModuleList) else head  # of a cascade the last one predicts
        self.num_classes, self.ignore_index = head.num_classes, head.ignore_index
        options: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
        scores = MetricCollection({"miou": MeanIoU(**options), "acc": MulticlassAccuracy(average="micro", **options)})
        self.val_score, self.test_score = scores, scores.clone()

    def forward(self, batch: Batch) -> list[Any]:
        """As of any task; MMSegmentation takes images of one size, others go through one at a time."""
        images, samples = batch["inputs"], batch["data_samples"]
        sizes = {(x.shape, sample.metainfo.get("ori_shape")) for x, sample in zip(images, samples, strict=True)}
        if len(sizes) == 1:
            return super().forward(batch)
        ones = [{"inputs": [x], "data_samples": [sample]} for x, sample in zip(images, samples, strict=True)]
        return [sample for one in ones for sample in super(Segmenter, self).forward(one)]

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
        data = self._prepared({name: values[:1] for name, values in batch.items()})  # the next may have another size
        return Exported(
            Path(self.hparams["config"]).stem, _Logits(self.model).train(self.training), data["inputs"], fixed_size=True
        )

    def write_prediction(self, sample: Any, folder: Path) -> dict[str, Any]:
        """Write the label map, a PNG with the class numbers as they are."""
        path = folder / "labels" / f"{self.prediction_name(sample)}.png"
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        image = Image.fromarray(labels.astype(np.uint8 if self.num_classes <= 256 else np.uint16))
        with whole_file(path) as unfinished:
            image.save(unfinished, format="png")
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
        whole: Any = self.model.encode_decode  # mode="tensor" does not know cascades
        logits: Tensor = whole(x_B3HW, [{"img_shape": x_B3HW.shape[2:]}])
        return logits
