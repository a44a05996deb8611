"""Exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

__all__ = ["EMA"]


class EMA(EMAWeightAveraging):
    """Lightning's averaging callback, right before its first update too.

    Lightning validates, saves and ends with the initial weights until the average has been updated once
    (Lightning-AI/pytorch-lightning#21724). Here the average follows the current weights until it starts.

    Args:
        decay: share of the old average that an update keeps.
        start_step: optimizer step of the first update.
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 0) -> None:
        super().__init__(decay=decay, update_starting_at_step=start_step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End with the average."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the checkpoint's weights, the current ones beside it."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _follow(self, pl_module: LightningModule) -> None:
        average = self._average_model
        if average is not None and not average.n_averaged:
            average.module.load_state_dict(pl_module.state_dict())
