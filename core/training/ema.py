"""Exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["EMA"]


class EMA(EMAWeightAveraging):
    """Lightning's averaging callback, right before its first update too.

    Lightning validates, saves and ends with the initial weights until the average has been updated once
    (Lightning-AI/pytorch-lightning#21724). Here the average follows the current weights until it starts. It lives where
    the model is trained, and all tensors of a kind are averaged at once, where Lightning's stays on the CPU, to which
    every update would copy the weights of a GPU one by one.

    Args:
        decay: share of the old average that an update keeps.
        start_step: optimizer step of the first update.
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 0) -> None:
        super().__init__(decay=decay, update_starting_at_step=start_step)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model; in this moment it is still on the CPU, also if a GPU will train it."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.avg_fn = None
            self._average_model.multi_avg_fn = get_ema_multi_avg_fn(self.decay)

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
