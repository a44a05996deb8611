"""How the command writes and reads checkpoints: whole or not at all, and without running what a file asks for."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from core.writing import whole_file

__all__ = ["RunCheckpoint", "WholeCheckpointIO"]


class RunCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` under a name of its own in checkpoints, which those that a user adds beside it cannot have.

    Lightning's name is made of when a callback saves, and refuses two that save at the same time.
    """

    @property
    def state_key(self) -> str:
        """What the state is found under in a checkpoint: file name and metric."""
        return self._generate_state_key(filename=self.filename, monitor=self.monitor)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of a checkpoint that was written under Lightning's name."""
        states, before = checkpoint["callbacks"], super().state_key
        before = before.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
        if before in states:
            states.setdefault(self.state_key, states[before])


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's, on local disks with a last step that cannot be interrupted.

    Lightning writes into the system's folder for temporary files and moves the file from there. Where that lies on
    another file system than the run, moving means copying, and a full disk or ``kill -9`` leaves half a checkpoint in
    place of a whole one. Here the file is written beside the old one, flushed to the disk, and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint; until it is complete, the file that is there stays.

        Raises:
            OSError: naming the file, if the disk is full or may not be written.
        """
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        buffer, file = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        for leftover in file.parent.glob(f".{file.name}.*.part"):  # of a run that was killed
            with suppress(OSError):
                leftover.unlink()
        with whole_file(file) as unfinished, unfinished.open("wb") as stream:
            stream.write(buffer.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        return None

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; whatever the caller says, nothing in it is run."""
        return super().load_checkpoint(path, map_location, weights_only=True)
