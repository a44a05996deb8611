"""Classification of maps that are pixels of cameras: images, and clips of them."""

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from core.backbones.build import input_channels
from core.errors import InputError
from core.images import to_pixels
from core.training.classification import ClassificationTask

__all__ = ["PixelClassification"]


class PixelClassification(ClassificationTask):
    """:class:`ClassificationTask` for pixels normalised by the data module's ``mean`` and ``std``, of its ``mode``."""

    def setup(self, stage: str) -> None:
        """Compare the model with the data: classes, channels, and the normalisation that its weights were trained with.

        Raises:
            InputError: if classes or channels differ; another normalisation is a warning.
        """
        super().setup(stage)
        mode = getattr(getattr(self.trainer, "datamodule", None), "mode", None)
        channels = input_channels(self.backbone, without=len(mode or ""))
        if mode is not None and channels != len(mode):
            raise InputError(
                f"the model takes {channels} channels and the data have {len(mode)} ({mode}); "
                f"set --model.backbone_args.in_chans {len(mode)}, or --data.mode, mean and std"
            )
        self._compare_normalisation()

    def _compare_normalisation(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        cfg = getattr(self.backbone, "pretrained_cfg", None) or {}
        loaded = self.hparams.get("pretrained") or self.hparams.get("weights")
        if not loaded or len(cfg.get("mean") or ()) != len(getattr(data, "mean", ())):
            return
        for name in ("mean", "std"):
            trained, given = tuple(cfg[name]), tuple(getattr(data, name))
            if trained != given:
                rank_zero_warn(
                    f"the pretrained weights know pixels with {name} {trained}, the data are normalised by {given}; "
                    f"set --data.{name} '{list(trained)}'"
                )

    def to_pictures(self, x: Tensor) -> Tensor | None:
        """The images that the maps (N, C, H, W) were made from, by the normalisation of the data."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return to_pixels(x, data.mean, data.std) if hasattr(data, "mean") else None
