"""The video classifier."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError
from core.training.answers import WindowOutput
from core.training.classification import ClassificationTask
from core.training.pixels import PixelClassification
from core.training.task import Backbone
from video.augment import erase
from video.data import VideoDataModule, VideoSpec, Window
from video.feature_map import ClipMap, Layout, clip_to_map, rectangle, rows_nearest_square, to_unit_range

__all__ = ["VideoClassifier"]

PICTURE_SIDE = 256
"""Largest side of a clip in ``examples.png``, in pixels."""


class VideoClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for videos, whose clips an image backbone reads as one large image.

    ``task(frames)`` takes clips (B, T, 3, H, W), float in [0, 1] or uint8, and returns logits (B, num_classes). It also
    takes V views of each video (B, V, T, 3, H, W), and averages their probabilities. The backbone can start from the
    weights of an image model, by ``pretrained`` or ``weights``. Erasing, mixup and cutmix treat all frames of a clip
    alike.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        num_classes: number of classes; taken from the data where they are known.
        spec: description of the data; the command passes it.
        layout: 'grid' for frames side by side as in the paper's text, 'strip' for the reshape of the released code.
        rows: number of rows of the layout; by default the layout is as close to a square as possible.
        erasing: probability that a rectangle of a training clip is replaced by noise.
        kwargs: the other arguments of :class:`core.training.ClassificationTask`.

    Raises:
        InputError: if an argument is out of range, or contradicts the data.
    """

    spec_class: ClassVar[type[DataSpec]] = VideoSpec
    data_class: ClassVar[type[DataModule]] = VideoDataModule
    has_windows: ClassVar[bool] = True
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

        # The base class builds the feature map from these.
        self.layout: Layout = layout
        self.layout_rows = rows
        super().__init__(backbone, num_classes, spec=spec, erasing=erasing, **kwargs)

    def build_feature_map(self, spec: VideoSpec) -> ClipMap:
        """Build the normalization of the frames and their layout as one image."""
        return ClipMap(spec.mean, spec.std, layout=self.layout, rows=self.layout_rows)

    def use_spec(self, theirs: VideoSpec) -> None:
        """Compare the data with the model, and check that the frames of a clip fill a rectangle.

        Raises:
            InputError: if the data contradict the model, or the frames fill no rectangle.
        """
        super().use_spec(theirs)
        rectangle(theirs.num_frames, self.layout_rows)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits of clips, or of the mean over the views of each video.

        Args:
            frames: clips (B, T, 3, H, W) or views (B, V, T, 3, H, W), float in [0, 1] or uint8.

        Returns:
            Logits (B, num_classes); for views, those of their mean probabilities.
        """
        if frames.ndim == 5:
            return self.read(self.to_maps(frames))

        # One view after another, since a batch of all views would need V times the memory.
        return self.mean_logits(torch.stack([self(view) for view in frames.unbind(dim=1)]))

    def window_output(self, raw: Tensor, names: list[Window]) -> WindowOutput:
        """Return the logits of clips (B, T, 3, H, W), each of which is a window of a video."""
        return WindowOutput(
            output=self(raw),
            names=[window.name for window in names],
            starts=[window.start for window in names],
            ends=[window.end for window in names],
            counts=[1] * len(names),
        )

    def augment_batch(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Erase and mix training clips.

        Args:
            raw: clips (B, T, 3, H, W), or N augmented clips of each video (B, N, T, 3, H, W).
            target: labels (B,), or (B, num_classes) of 0 and 1.

        Returns:
            Clips (B * N, T, 3, H, W), each of which counts as a sample, and their targets.
        """
        clips = raw
        if clips.ndim == 6:
            target = target.repeat_interleave(clips.shape[1], dim=0)
            clips = clips.flatten(0, 1)

        if self.erasing > 0:
            clips = erase(to_unit_range(clips), self.erasing, self.feature_map.mean, self.feature_map.std)

        # Clips are mixed before they become maps, so that cutmix replaces the same rectangle in all frames.
        return ClassificationTask.augment_map(self, to_unit_range(clips), target)

    def augment_map(self, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps as they are, since :meth:`augment_batch` has augmented the clips."""
        return maps, target

    def mix(self, mixup: Mixup, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix an even number of clips (B, T, C, H, W) and their targets, which become (B, num_classes)."""
        # timm mixes images (B, C, H, W), so the frames of a clip become channels.
        mixed, mixed_target = mixup(maps.flatten(1, 2), target)
        return mixed.view_as(maps), mixed_target

    def show(self, raw: Tensor) -> Tensor:
        """Return pictures (N, 3, h, w) in [0, 1], the frames of each clip as a grid; of views, only the middle one."""
        clips = raw if raw.ndim == 5 else raw[:, raw.shape[1] // 2]
        pictures = clip_to_map(to_unit_range(clips), "grid", rows_nearest_square(clips.shape[1]))

        scale = PICTURE_SIDE / max(pictures.shape[2:])
        if scale < 1:
            pictures = F.interpolate(pictures, scale_factor=scale, mode="area")
        return pictures
