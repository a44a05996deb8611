"""The image classifier."""

from typing import Any, ClassVar

from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from core.data.images import PixelSpec
from core.data.module import DataModule
from core.data.spec import DataSpec
from core.training.pixels import PixelClassification
from vision.data import ImageDataModule, ImageSpec
from vision.feature_map import PixelMap

__all__ = ["ImageClassifier"]


class ImageClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for images.

    ``task(pixels)`` takes images (B, C, H, W), float in [0, 1] or uint8, and returns logits (B, num_classes).
    """

    spec_class: ClassVar[type[DataSpec]] = ImageSpec
    data_class: ClassVar[type[DataModule]] = ImageDataModule
    pipeline_tag: ClassVar[str | None] = "image-classification"

    def build_feature_map(self, spec: Any) -> PixelMap:
        """Build the normalization by mean and standard deviation of the data."""
        return PixelMap(spec.mean, spec.std)

    def compare_with_pretrained(self, theirs: PixelSpec) -> None:
        """Warn if statistics or, in evaluation, the image size differ from those of the pretrained weights."""
        super().compare_with_pretrained(theirs)
        known = self.pretrained_pixels()
        shape = known.get("test_input_size") or known.get("input_size")
        if shape and theirs.size != shape[-1] and self.trainer.state.fn != TrainerFn.FITTING:
            rank_zero_warn(
                f"the accuracy of these weights was published for images of {shape[-1]} pixels, the data have "
                f"{theirs.size}; set --data.size {shape[-1]}"
            )

    def show(self, raw: Tensor) -> Tensor:
        """Return the images themselves, (N, C, H, W) in [0, 1]."""
        return raw if raw.is_floating_point() else raw.float() / 255
