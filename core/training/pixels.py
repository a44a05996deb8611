"""Classification of images and video frames, whose maps are normalized pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from core.backbones.build import input_channels
from core.data.images import PixelSpec
from core.data.spec import DataSpec
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from core.training.classification import ClassificationTask
from core.training.task import Backbone

__all__ = ["PixelClassification"]


class PixelClassification(ClassificationTask):
    """:class:`ClassificationTask` for pixels of a :class:`~core.data.images.PixelSpec`.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        num_classes: number of classes; taken from the data where they are known.
        erasing: probability that a rectangle of a normalized training map is replaced by noise.
        kwargs: the other arguments of :class:`ClassificationTask`.

    Raises:
        InputError: if ``erasing`` is not a probability, or an argument contradicts the data.
    """

    spec_class: ClassVar[type[DataSpec]] = PixelSpec
    spec: PixelSpec

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= erasing <= 1:
            raise InputError(f"erasing={erasing}; expected a probability")
        super().__init__(backbone, num_classes, **kwargs)
        self.erasing = erasing

    @classmethod
    def map_channels(cls, spec: PixelSpec) -> int:
        """Return 3 for the mode 'RGB' and 1 for 'L': one channel for each character."""
        return len(spec.mode)

    def build(self, backbone: nn.Module) -> None:
        """Build the task; it takes gray images if the backbone has one channel and the data are not known yet."""
        if not self.knows_data and input_channels(backbone) == 1 and len(self.spec.mode) == 3:
            gray = replace(
                self.spec,
                mode="L",
                mean=(sum(self.spec.mean) / 3,),
                std=(sum(self.spec.std) / 3,),
            )
            self.store_spec(gray)
        super().build(backbone)

    def augment_map(self, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Erase rectangles and then mix, in the order of timm and of the papers' recipes."""
        if self.erasing > 0:
            erase = RandomErasing(self.erasing, mode="pixel", device=maps.device)
            maps = erase(maps)
        return super().augment_map(maps, target)

    def use_spec(self, theirs: Any) -> None:
        """Compare the classes, channels and statistics of the data with those of the model.

        Pretrained weights that were trained with other statistics cause a warning.

        Raises:
            InputError: if classes, channels or statistics differ from those that the model was trained with.
        """
        if self.knows_data:
            self._refuse_other_pixels(theirs)
        super().use_spec(theirs)
        if self.hparams.get("pretrained") or self.hparams.get("weights"):
            self.compare_with_pretrained(theirs)

    def _refuse_other_pixels(self, theirs: PixelSpec) -> None:
        """Raise an error if the data have another mode or other statistics than the model."""
        if theirs.mode != self.spec.mode:
            raise InputError(
                f"the model was built for pixels of mode {self.spec.mode!r}, but the data have {theirs.mode!r}; set "
                f"--data.mode {self.spec.mode}, with its mean and std"
            )
        for name in ("mean", "std"):
            own = getattr(self.spec, name)
            given = getattr(theirs, name)
            if own != given:
                raise InputError(
                    f"the model normalizes pixels by {name} {list(own)}, the data module has {list(given)}, which "
                    f"would have no effect; leave --data.{name} out, or set it to '{list(own)}'"
                )

    def compare_with_pretrained(self, theirs: PixelSpec) -> None:
        """Warn if the data are normalized by other statistics than those that the weights were pretrained with."""
        known = self.pretrained_pixels()
        for name in ("mean", "std"):
            trained = tuple(known.get(name) or ())
            given = getattr(theirs, name)
            if len(trained) == len(given) and trained != given:
                rank_zero_warn(
                    f"the weights were pretrained with {name} {trained}, but the data are normalized by {given}; "
                    f"set --data.{name} '{list(trained)}'"
                )

    def pretrained_pixels(self) -> dict[str, Any]:
        """Return the mean and std of the pretraining, from a checkpoint or from timm's configuration."""
        weights = Path(self.hparams.get("weights") or "")
        if weights.suffix != ".ckpt":
            return getattr(self.backbone, "pretrained_cfg", None) or {}
        if not weights.is_file():  # the statistics behind a web address are not known
            return {}

        spec = TaskCheckpoint.read(weights).spec
        return {name: spec[name] for name in ("mean", "std") if name in spec}
