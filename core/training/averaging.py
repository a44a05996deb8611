"""Exponential moving average of the weights."""

from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["EMA"]


class EMA(EMAWeightAveraging):
    """Exponential moving average of the weights, which is validated and saved in their place.

    Three things differ from Lightning's callback:

    - Until the first update, the average equals the current weights. Lightning would validate, save and end with the
      initial weights (Lightning-AI/pytorch-lightning#21724).
    - The average is on the device that trains, and all tensors of a dtype are averaged in one call. Lightning's is on
      the CPU, to which every update would copy the weights of a GPU one by one.
    - The average of 16-bit weights is kept in float32, since an update by a small share would be rounded away in 16
      bits. Validation measures the average rounded to the dtype of the model.

    Args:
        decay: share of the old average that an update keeps, in [0, 1].
        start_step: optimizer step of the first update.
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 0) -> None:
        super().__init__(decay=decay, update_starting_at_step=start_step)
        self.decay = decay
        self._current: list[Tensor] = []  # copies of the trained weights, while validation measures the average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average on the device that will train; at this point the model itself is still on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.avg_fn = None
            self._average_model.multi_avg_fn = get_ema_multi_avg_fn(self.decay)
            for tensor in _tensors(self._average_model.module):
                if tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average tensor by tensor if the model was converted to 16 bits, since one call takes only one dtype."""
        average = self._average_model
        if average is None:
            return
        pairs = zip(_tensors(average.module), _tensors(pl_module), strict=True)
        if any(own.dtype != current.dtype for own, current in pairs):
            average.multi_avg_fn = None
            average.avg_fn = partial(_updated, decay=self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average into the model for validation.

        Lightning would swap the two, which would round the average to the dtype of the model.
        """
        if self._average_model is None:
            return
        self._copy_weights_before_first_update(pl_module)
        self._current = [tensor.data.clone() for tensor in _tensors(pl_module)]
        self._copy_average_to_current(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the current weights back into the model."""
        if self._average_model is None:
            return
        for tensor, current in zip(_tensors(pl_module), self._current, strict=True):
            tensor.data.copy_(current)
        self._current = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average into the model, which then keeps it."""
        self._copy_weights_before_first_update(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights of the checkpoint, and the current weights beside it."""
        self._copy_weights_before_first_update(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _copy_weights_before_first_update(self, pl_module: LightningModule) -> None:
        """Set the average to the current weights as long as it was never updated."""
        average = self._average_model
        if average is not None and not average.n_averaged:
            average.module.load_state_dict(pl_module.state_dict())


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return list(chain(module.parameters(), module.buffers()))


def _updated(average: Tensor, current: Tensor, number: Any, *, decay: float) -> Tensor:
    """Return the average after an update by the current tensor, which may have another dtype."""
    return decay * average + (1 - decay) * current.to(average.dtype)
