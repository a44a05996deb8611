"""Checkpoints of tasks: one reader of what ``lightning fit`` wrote, and a writer that never leaves half a file."""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from core.errors import InputError, MissingError
from core.io.atomic import atomic_write
from core.io.untrusted import read_torch_file

__all__ = ["AtomicCheckpointIO", "TaskCheckpoint"]


@dataclass(frozen=True)
class TaskCheckpoint:
    """What a checkpoint of ``lightning fit`` says about the task, its data and its run.

    Attributes:
        path: the file.
        class_path: import path of the task's class; empty if the task was trained without the command.
        hyperparameters: arguments of the task, without Lightning's own entries.
        spec: what the task knows of its data (class names, statistics), as :class:`core.data.spec.DataSpec` stores it.
        state_dict: tensors by name, on the CPU; the average of the weights if the run kept one.
        config: the run's configuration, from the file or from ``config.yaml`` beside it; None if there is none.
        metrics: what validation measured on exactly these weights; empty if it did not.
        epoch: the epoch in which the file was written, counted from 0.
        step: number of optimizer steps taken.
        averaged: whether the run kept an average of its weights.
    """

    path: Path
    class_path: str
    hyperparameters: dict[str, Any]
    spec: dict[str, Any]
    state_dict: dict[str, Tensor]
    config: dict[str, Any] | None
    metrics: dict[str, float]
    epoch: int
    step: int
    averaged: bool

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a checkpoint; nothing in it is executed.

        Args:
            path: a file that ``lightning fit`` wrote, or the folder of a run, whose best checkpoint is taken, or the
                last one if there is no best.

        Raises:
            MissingError: if there is no such file, or the folder has no checkpoint.
            InputError: if the file is damaged, or is not a checkpoint of a task.
        """
        path = _find_file(Path(path))
        content = read_torch_file(path)
        for entry in ("state_dict", "hyper_parameters"):
            if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
                raise InputError(
                    f"{path} is not a checkpoint that lightning fit wrote: it has no {entry!r}. Weights alone go to "
                    "--model.weights FILE, or NAME=FILE in an analysis"
                )

        stored = content["hyper_parameters"]
        hyperparameters = {name: value for name, value in stored.items() if not str(name).startswith("_")}
        return cls(
            path=path,
            class_path=str(stored.get("_class_path", "")),
            hyperparameters=hyperparameters,
            spec=dict(hyperparameters.get("spec") or {}),
            state_dict=content["state_dict"],
            config=_read_config(content, path),
            metrics=_read_metrics(content, path),
            epoch=int(content.get("epoch", 0)),
            step=int(content.get("global_step", 0)),
            averaged="current_model_state" in content,
        )


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingError(
            f"there is no checkpoint {path}; give a file that lightning fit wrote, or the folder of a run"
        )
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (path / name).is_file():
            return path / name
    raise MissingError(
        f"{path} has no checkpoints/best.ckpt and no checkpoints/last.ckpt; give the folder of a run, such as "
        "lightning_logs/ImageClassifier/version_0, or a file that lightning fit wrote"
    )


def _read_config(content: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Parse the run's configuration, which is YAML text in the checkpoint or a file in the run folder."""
    text = content.get("config")
    beside = path.parent.parent / "config.yaml"
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        return None
    try:
        config = yaml.safe_load(str(text))
    except yaml.YAMLError as error:
        raise InputError(f"the configuration of the run of {path} is not YAML: {error}") from error
    return config if isinstance(config, dict) else None


def _read_metrics(content: dict[str, Any], path: Path) -> dict[str, float]:
    """Find what was measured on the stored weights.

    The command writes it into each checkpoint. A checkpoint of a plain Trainer has at least the score by which its
    callback chose it, if it is still the best one of that callback.
    """
    if isinstance(content.get("metrics"), dict):
        return {str(name): float(value) for name, value in content["metrics"].items()}
    metrics = {}
    for state in content.get("callbacks", {}).values():
        if not isinstance(state, dict) or not state.get("monitor"):
            continue
        score = state.get("best_model_score")
        if score is not None and Path(state.get("best_model_path", "")).name == path.name:
            metrics[str(state["monitor"])] = float(score)
    return metrics


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's plugin that writes checkpoints, with a last step that cannot be interrupted on local disks.

    Lightning writes into the system's folder for temporary files and moves the file from there. If that folder lies on
    another file system than the run, moving means copying, and a full disk or ``kill -9`` leaves half a checkpoint in
    place of a complete one. Here the file is written beside the old one, flushed to the disk, and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint; until it is complete, the old file keeps its name.

        Raises:
            OSError: naming the file, if the disk is full or may not be written.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)

        # torch.save hides the reason why a disk could not be written, so it writes into memory.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)

        for leftover in file.parent.glob(f".{file.name}.*.part"):  # of a run that was killed
            with suppress(OSError):
                leftover.unlink()
        with atomic_write(file) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is executed, whatever the caller asks for.

        Raises:
            InputError: if a local file is damaged, or asks for code.
        """
        if Path(path).is_file():
            checkpoint: dict[str, Any] = read_torch_file(Path(path))
            return checkpoint
        return super().load_checkpoint(path, map_location, weights_only=True)
