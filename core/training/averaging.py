"""Exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["EMA"]


class EMA(EMAWeightAveraging):
    """Lightning's averaging callback, corrected before its first update and fast on GPUs.

    Until the first update of the average, Lightning validates, saves and ends with the initial weights
    (Lightning-AI/pytorch-lightning#21724). Here the average equals the current weights until then. It also lives on the
    device that trains, and all tensors of a dtype are averaged in one call; Lightning's stays on the CPU, to which
    every update would copy the weights of a GPU one by one.

    Args:
        decay: share of the old average that an update keeps.
        start_step: optimizer step of the first update.
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 0) -> None:
        super().__init__(decay=decay, update_starting_at_step=start_step)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model to the device that will train it; at this point the model is still on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.avg_fn = None
            self._average_model.multi_avg_fn = get_ema_multi_avg_fn(self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._copy_weights_before_first_update(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        self._copy_weights_before_first_update(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the checkpoint's weights, and the current weights beside it."""
        self._copy_weights_before_first_update(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _copy_weights_before_first_update(self, pl_module: LightningModule) -> None:
        average = self._average_model
        if average is not None and not average.n_averaged:
            average.module.load_state_dict(pl_module.state_dict())
