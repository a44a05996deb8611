"""Video classification as a LightningModule."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError
from core.training.classification import ClassificationTask
from core.training.pixels import PixelClassification
from core.training.task import Backbone
from video.augment import erase
from video.data import VideoDataModule, VideoSpec
from video.feature_map import ClipMap, Layout, clip_to_map, rectangle, rows_nearest_square, to_unit_range

__all__ = ["VideoClassifier"]

PICTURE_SIDE = 256  # of a clip in examples.png, its longer side in pixels


class VideoClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for clips, which an image backbone reads as one large image.

    ``task(frames)`` takes clips (B, T, 3, H, W), uint8 or float in [0, 1], or V views of each video
    (B, V, T, 3, H, W), whose probabilities are averaged. The backbone is one for images, so that weights of images
    load: ``pretrained``, or a file in ``weights``. Erasing, mixup and cutmix treat all frames of a clip alike.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        num_classes: number of classes; taken from the data where they are known.
        spec: what the data are; the command passes it.
        layout: 'grid' for frames side by side as in the paper's text, 'strip' for the reshape of the released code.
        rows: rows of the rectangle that the frames fill; by default as near to a square as possible.
        erasing: probability that a rectangle of a training clip is replaced by noise.
        kwargs: the other arguments of :class:`core.training.ClassificationTask`.

    Raises:
        InputError: if an argument is out of range, or contradicts the data.
    """

    spec_class: ClassVar[type[DataSpec]] = VideoSpec
    data_class: ClassVar[type[DataModule]] = VideoDataModule
    pipeline_tag: ClassVar[str | None] = "video-classification"

    feature_map: ClipMap
    spec: VideoSpec

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        spec: VideoSpec | Mapping[str, Any] | None = None,
        layout: Layout = "grid",
        rows: int | None = None,
        erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if layout not in ("grid", "strip") or (rows is not None and rows < 1):
            raise InputError(f"layout={layout!r}, rows={rows}; expected 'grid' or 'strip', and at least 1 or null")

        # The feature map is built from these while the base class is set up.
        self.layout: Layout = layout
        self.layout_rows = rows
        super().__init__(backbone, num_classes, spec=spec, erasing=erasing, **kwargs)

    def build_feature_map(self, spec: VideoSpec) -> ClipMap:
        """Return what normalizes the frames and lays them out as one image."""
        return ClipMap(spec.mean, spec.std, layout=self.layout, rows=self.layout_rows)

    def use_spec(self, theirs: VideoSpec) -> None:
        """Compare the model with the data, and check that the frames of a clip fill a rectangle.

        Raises:
            InputError: if they contradict each other, or the frames fill no rectangle.
        """
        super().use_spec(theirs)
        rectangle(theirs.num_frames, self.layout_rows)

    def forward(self, frames: Tensor) -> Tensor:
        """Clips to logits.

        Args:
            frames: (B, T, 3, H, W), or views (B, V, T, 3, H, W); uint8 or float in [0, 1].

        Returns:
            (B, num_classes); for views the logarithm of their mean probability.
        """
        if frames.ndim == 5:
            return self.read(self.to_maps(frames))

        # One view after another: a batch of all views would need V times the memory.
        views = [self.probabilities(self(view)) for view in frames.unbind(dim=1)]
        return torch.stack(views).mean(dim=0).log()

    def augment_batch(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Erase and mix training clips.

        Args:
            raw: frames (B, T, 3, H, W), or (B, N, T, 3, H, W) with N augmented clips of each video.
            target: labels (B,).

        Returns:
            Clips (M, T, 3, H, W) and their targets, with M = B * N: each of the N clips counts as a sample.
        """
        clips = raw
        if clips.ndim == 6:
            target = target.repeat_interleave(clips.shape[1])
            clips = clips.flatten(0, 1)

        if self.erasing > 0:
            clips = erase(to_unit_range(clips), self.erasing, self.feature_map.mean, self.feature_map.std)

        # Clips are mixed before they become maps, so that cutmix exchanges the same rectangle in all frames.
        return ClassificationTask.augment_map(self, to_unit_range(clips), target)

    def augment_map(self, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing: clips are augmented before they become maps."""
        return maps, target

    def mix(self, mixup: Mixup, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed clips (B, T, C, H, W) and their targets (B, num_classes), of an even number of clips."""
        # timm mixes images (B, C, H, W); here the frames of a clip are its channels.
        mixed, mixed_target = mixup(maps.flatten(1, 2), target)
        return mixed.view_as(maps), mixed_target

    def show(self, raw: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [0, 1] with the frames of a clip as a grid; of views the middle one is shown."""
        clips = raw if raw.ndim == 5 else raw[:, raw.shape[1] // 2]
        pictures = clip_to_map(to_unit_range(clips), "grid", rows_nearest_square(clips.shape[1]))

        scale = PICTURE_SIDE / max(pictures.shape[2:])
        if scale < 1:
            pictures = F.interpolate(pictures, scale_factor=scale, mode="area")
        return pictures
