"""Lightning's trainer with two more verbs: export and stats."""

from pathlib import Path

import torch
from lightning import Trainer

from core.checkpoints import load_weights
from core.export import Format, export_model
from core.training.data import DataModule
from core.training.task import Task

__all__ = ["ExportingTrainer"]


class ExportingTrainer(Trainer):
    """``lightning.Trainer`` that also exports and measures, so that the command has these verbs."""

    def stats(self, model: Task, datamodule: DataModule) -> dict[str, float]:
        """Measures the mean and standard deviation of the training data, and stores them beside the data.

        Args:
            model: not used; the command builds what a configuration names.
            datamodule: what is measured.

        Returns:
            The numbers stored, by name.
        """
        return datamodule.measure()

    def export(
        self,
        model: Task,
        datamodule: DataModule,
        format: Format = "onnx",
        output: str | None = None,
        ckpt_path: str | None = None,
        fixed_size: bool = False,
    ) -> Path:
        """Exports a trained model in inference form and compares its outputs with the model's.

        Args:
            model: the task.
            datamodule: gives the validation samples that the comparison runs on.
            format: 'onnx', or 'torch_export' for a .pt2 file.
            output: folder for the file, which is named after the backbone; by default exports/ with the task's name.
            ckpt_path: checkpoint with the weights, or 'best' or 'last' of the newest run.
            fixed_size: the file takes maps of the data's height and width alone, as compilers for some devices need it.

        Returns:
            The file written.

        Raises:
            InputError: if this task has nothing to export.
        """
        if ckpt_path is not None:
            load_weights(model, ckpt_path)
        datamodule.trainer = self  # which does not fit: data to evaluate on are enough
        datamodule.prepare_data()
        datamodule.setup("validate")
        batch = next(iter(datamodule.val_dataloader()))
        parts = model.eval().to_export(datamodule.on_after_batch_transfer(batch, 0))
        with torch.no_grad():
            folder = Path(output or Path("exports", type(model).__name__))
            fixed_size = fixed_size or parts.fixed_size
            return export_model(parts.module, parts.images, folder / parts.name, format=format, fixed_size=fixed_size)
