"""Classification of maps that are pixels of cameras: images, and clips of them."""

from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from core.backbones.build import input_channels
from core.errors import InputError
from core.images import to_pixels
from core.torch_files import read_torch_file
from core.training.classification import ClassificationTask

__all__ = ["PixelClassification"]


class PixelClassification(ClassificationTask):
    """:class:`ClassificationTask` for pixels normalised by the data module's ``mean`` and ``std``, of its ``mode``."""

    def setup(self, stage: str) -> None:
        """Compare the model with the data: classes, channels, and the normalisation that its weights were trained with.

        Raises:
            InputError: if classes or channels differ; another normalisation is a warning, and another size than the
                published one in evaluation.
        """
        super().setup(stage)
        mode = getattr(getattr(self.trainer, "datamodule", None), "mode", None)
        channels = input_channels(self.backbone, without=len(mode or ""))
        if mode is not None and channels != len(mode):
            raise InputError(
                f"the model takes {channels} channels and the data have {len(mode)} ({mode}); "
                f"set --model.backbone_args.in_chans {len(mode)}, or --data.mode, mean and std"
            )
        self._compare_pixels()

    def _compare_pixels(self) -> None:
        """Warn of data unlike those of the weights; those of another size are ordinary in training."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not (self.hparams.get("pretrained") or self.hparams.get("weights")):
            return
        known = self._known_pixels()
        for name in ("mean", "std"):
            trained, given = tuple(known.get(name) or ()), tuple(getattr(data, name, ()))
            if len(trained) == len(given) and trained != given:
                rank_zero_warn(
                    f"the pretrained weights know pixels with {name} {trained}, the data are normalised by {given}; "
                    f"set --data.{name} '{list(trained)}'"
                )
        size, shape = getattr(data, "size", None), known.get("test_input_size") or known.get("input_size")
        if size and shape and size != shape[-1] and self.trainer.state.fn != TrainerFn.FITTING:
            rank_zero_warn(
                f"the accuracy of these weights was published for images of {shape[-1]} pixels, the data have {size}; "
                f"set --data.size {shape[-1]}"
            )

    def _known_pixels(self) -> dict[str, Any]:
        """Mean and std that the weights were trained with, of one's own run or the published ones, with their size."""
        own = Path(self.hparams.get("weights") or "")
        if own.suffix != ".ckpt":
            return getattr(self.backbone, "pretrained_cfg", None) or {}
        stored = read_torch_file(own) if own.is_file() else {}  # nothing is known of one at an address
        return {name: value for name, value in stored.items() if name in ("mean", "std")}

    def to_pictures(self, x: Tensor) -> Tensor | None:
        """The images that the maps (N, C, H, W) were made from, by the normalisation of the data."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return to_pixels(x, data.mean, data.std) if hasattr(data, "mean") else None
