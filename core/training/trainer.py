"""Lightning's trainer with three more methods: export, stats and backtest."""

from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from core.data.module import DataModule
from core.export import Exported, Format, Source, export_model
from core.io.checkpoint import TaskCheckpoint
from core.training.task import Task, first_samples

__all__ = ["ExportingTrainer"]


class ExportingTrainer(Trainer):
    """A trainer that also exports models, measures data, and backtests, for these verbs of the command."""

    def stats(self, model: Task | None, datamodule: DataModule) -> dict[str, float]:
        """Measure and print statistics of the training data.

        Args:
            model: not used.
            datamodule: data module whose training data are measured.

        Returns:
            The statistics by name.
        """
        statistics = datamodule.measure()
        for name, value in statistics.items():
            print(f"{name}: {value}")
        return statistics

    def backtest(
        self,
        model: Task,
        datamodule: DataModule,
        stride: int | None = None,
        output: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Forecast the test part of a series from many origins, and compare the errors with those of simple forecasts.

        Args:
            model: a task that forecasts.
            datamodule: data module with the series.
            stride: number of steps from one origin to the next; by default the length of the horizon.
            output: folder of table and picture; by default backtest/ in the run folder of the checkpoint.
            ckpt_path: checkpoint with the weights.

        Raises:
            InputError: if this task does not forecast, or the stride is below 1.
        """
        if ckpt_path is not None:
            model.load_state_dict(TaskCheckpoint.read(ckpt_path).state_dict)
        folder = Path("backtests", type(model).__name__)
        if ckpt_path is not None and Path(ckpt_path).parent.name == "checkpoints":
            folder = Path(ckpt_path).parents[1] / "backtest"

        datamodule.trainer = self
        model.to(self.strategy.root_device).eval()
        model.backtest(datamodule, Path(output) if output else folder, stride=stride)

    def export(
        self,
        model: Task,
        datamodule: DataModule,
        format: Format = "onnx",
        output: str | None = None,
        ckpt_path: str | None = None,
        fixed_size: bool = False,
        source: Source | None = None,
    ) -> Path:
        """Export a trained model in inference form, and compare the outputs of the file with those of the model.

        Args:
            model: task to export.
            datamodule: data module that gives validation samples for the comparison.
            format: 'onnx', or 'torch_export' for a .pt2 file.
            output: folder for the file, which is named after the backbone; by default exports/<task>.
            ckpt_path: checkpoint with the weights, a run folder, or 'best' or 'last' of the newest run.
            fixed_size: let the file take only the height and width of the data, as compilers for some devices need.
            source: input of the file: 'raw' samples, or the 'map' that the feature map makes of them; by default raw
                samples, if the exporter can follow the way from there.

        Returns:
            The path of the file.

        Raises:
            InputError: if this task cannot be exported, or not from this source.
        """
        if not model.can_export:
            model.to_export((), source or "raw")  # says why, before data are read
        if ckpt_path is not None:
            model.load_state_dict(TaskCheckpoint.read(ckpt_path).state_dict)
        model.eval()

        raw = _validation_samples(self, model, datamodule)
        folder = Path(output or Path("exports", type(model).__name__))
        export = partial(_export, model, folder, format, fixed_size=fixed_size)
        if source is not None:
            return export(model.to_export(raw, source), source)

        # Hide the output at first, since exporters that fail print whole graphs.
        printed = StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(StringIO()):
                file = export(model.to_export(raw, "raw"), "raw")
        except Exception as error:  # the exporters raise errors of any type
            from_map = model.to_export(raw, "map")
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            rank_zero_info(
                f"The way from raw samples cannot be exported ({reason[:200]}); the file begins with the map"
            )
            return export(from_map, "map")

        print(printed.getvalue(), end="")
        return file


def _validation_samples(trainer: Trainer, model: Task, datamodule: DataModule, count: int = 4) -> tuple[Any, ...]:
    """Return the first raw samples of the validation split, as the arguments of ``task(*raw)``."""
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("validate")
    batch = next(iter(datamodule.val_dataloader()))

    raw, _ = model.unpack(batch)
    some = first_samples(raw, count)
    return some if isinstance(some, tuple) else (some,)


@torch.no_grad()
def _export(model: Task, folder: Path, format: Format, parts: Exported, source: Source, *, fixed_size: bool) -> Path:
    """Write the file with its metadata, and return its path."""
    print("exporting from raw samples to the answer" if source == "raw" else "exporting from the map to the answer")
    return export_model(
        parts.module,
        parts.inputs,
        folder / parts.name,
        format=format,
        fixed_size=fixed_size or parts.fixed_size,
        metadata={
            "task": type(model).__name__,
            "from": source,
            "classes": model.class_names,
            "spec": model.spec.to_dict(),
        },
    )
