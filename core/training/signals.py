"""SIGTERM in a run of several processes."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer

__all__ = ["EndedAtOnce"]


class EndedAtOnce(Callback):
    """Lets SIGTERM end each of several processes by itself, as the command has it for one.

    Lightning's handler first waits for a message from process 0 to all, also where the signal came in the middle of
    another such message: then none of them ends. Left as it is under SLURM, where Lightning saves and requeues.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)  # of the command, before Lightning adds its own

    def __getstate__(self) -> dict[str, Any]:
        """Without the handler, which is of this process alone: spawned ones have no command around them."""
        return self.__dict__ | {"handler": None}

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and "SLURM_JOB_ID" not in os.environ and callable(self.handler):
            signal.signal(signal.SIGTERM, self.handler)

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _restore
