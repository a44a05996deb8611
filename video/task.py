"""Video classification as a LightningModule."""

from typing import Any, ClassVar

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbones.build import input_channels
from core.errors import InputError
from core.training.pixels import PixelClassification
from core.training.task import Exported
from video.feature_map import Layout, clip_to_map, rectangle, squarest

__all__ = ["VideoClassifier"]

_SHEET = 256  # pixels of the longer side of a clip's picture


class VideoClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for clips, which it lays out as one image for an image backbone.

    Batches are (x, y) as :class:`video.VideoDataModule` makes them: x (B, T, 3, H, W), or (B, V, T, 3, H, W) of V views
    of a video, whose softmax probabilities are averaged. Mixup and cutmix treat all frames of a clip alike. The
    backbone is that of images, so that weights of images load: ``pretrained``, or a file in ``weights``.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        num_classes: number of classes.
        layout: 'grid', frames side by side as in the paper's text, or 'strip', as in the released code.
        rows: rows of the rectangle that the frames fill; by default as near to a square as possible.
        kwargs: the other arguments of :class:`core.training.ClassificationTask`.

    Raises:
        InputError: if an argument is out of range, or the data's number of frames fills no rectangle.
    """

    pipeline_tag: ClassVar[str | None] = "video-classification"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        layout: Layout = "grid",
        rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        if layout not in ("grid", "strip") or (rows is not None and rows < 1):
            raise InputError(f"layout={layout!r}, rows={rows}; expected 'grid' or 'strip', and at least 1 or null")
        super().__init__(backbone, num_classes, **kwargs)
        self.layout: Layout = layout
        self.rows = rows

    def setup(self, stage: str) -> None:
        """Compare the model with the data: classes, channels, normalisation, and the number of frames.

        Raises:
            InputError: if classes or channels differ, or the frames fill no rectangle.
        """
        super().setup(stage)
        sampling = getattr(getattr(self.trainer, "datamodule", None), "sampling", None)
        if sampling is not None:
            rectangle(sampling.frames, self.rows)

    def to_maps(self, x: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to maps (B, 3, rows * H, columns * W)."""
        return clip_to_map(x, self.layout, self.rows)

    def example_shape(self) -> tuple[int, ...]:
        """Two clips that fill the rectangle, of 64 x 64 pixels."""
        return (2, 4 * (self.rows or 4), input_channels(self.backbone), 64, 64)

    def to_export(self, batch: Any) -> Exported:
        """The backbone, with the maps of some clips."""
        parts = super().to_export(batch)
        return parts._replace(images=self.to_maps(parts.images))

    def forward(self, x: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to logits (B, num_classes); of views the logarithm of their mean probability."""
        if x.ndim == 6:
            views = torch.stack([self.probabilities(self(x[:, v])) for v in range(x.shape[1])])
            return views.mean(dim=0).log()
        logits: Tensor = self.backbone(self.to_maps(x))
        return logits

    def mix(self, mixup: Mixup, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed clips and their targets (B, num_classes): the same share or rectangle in all frames of a clip."""
        mixed, target = mixup(x.flatten(1, 2), y)
        return mixed.view_as(x), target

    def to_examples(self, x: Tensor) -> Tensor:
        """The frames of clips, or of the middle one of their views, as a small square grid (B, 3, h, w)."""
        x = x if x.ndim == 5 else x[:, x.shape[1] // 2]
        pictures = clip_to_map(x, "grid", squarest(x.shape[1]))
        scale = min(1.0, _SHEET / max(pictures.shape[2:]))
        return F.interpolate(pictures.float(), scale_factor=scale, mode="area") if scale < 1 else pictures
