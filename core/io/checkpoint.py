"""Checkpoints of tasks: the only reader of files that ``lightning fit`` wrote, and an atomic writer."""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from core.errors import InputError, MissingError, listed
from core.io.atomic import atomic_write
from core.io.untrusted import parse_yaml, read_torch_file

__all__ = ["AtomicCheckpointIO", "TaskCheckpoint", "checkpoint_file", "is_of_split"]


@dataclass(frozen=True)
class TaskCheckpoint:
    """The content of a checkpoint of ``lightning fit``: the task, its data and its run.

    Attributes:
        path: path of the file.
        class_path: import path of the task's class; empty if the task was trained without the command.
        hyperparameters: arguments of the task, without Lightning's own entries.
        spec: class names, statistics and everything else that the task knows about its data, see
            :meth:`core.data.spec.DataSpec.to_dict`.
        state_dict: tensors by name, on the CPU. If the run kept an average of its weights, this is the average.
        config: configuration of the run, from the checkpoint or from ``config.yaml`` in the run folder; None if neither
            has it.
        metrics: validation metrics of exactly these weights; empty if they were not validated.
        epoch: epoch in which the file was written, counted from 0.
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
            path: a file that ``lightning fit`` wrote, or the folder of a run, see :func:`checkpoint_file`.

        Raises:
            MissingError: if there is no such file, or the folder has no checkpoint.
            InputError: if the file is damaged, is not a checkpoint of a task, or holds weights that are not finite.
        """
        path = checkpoint_file(Path(path))
        content = read_torch_file(path)
        for entry in ("state_dict", "hyper_parameters"):
            if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
                raise InputError(
                    f"{path} is not a checkpoint that lightning fit wrote: it has no {entry!r}. Weights alone go to "
                    "--model.weights FILE, or NAME=FILE in an analysis"
                )

        _refuse_not_finite(content["state_dict"], path)

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


def checkpoint_file(path: Path, *, resume: bool = False) -> Path:
    """Return the path of a checkpoint, given the file itself or the folder of a run.

    Args:
        path: a file, or the folder of a run, which stands for its best checkpoint, or its last if there is no best.
        resume: prefer the last checkpoint of a run to its best one.

    Raises:
        MissingError: if there is no such file, or the folder has no checkpoint.
    """
    if path.is_file():
        return path

    if not path.is_dir():
        raise MissingError(
            f"there is no checkpoint {path}; give a file that lightning fit wrote, or the folder of a run"
        )

    for name in ("last", "best") if resume else ("best", "last"):
        file = path / "checkpoints" / f"{name}.ckpt"
        if file.is_file():
            return file

    run = _newest_run(path) or Path("lightning_logs/ImageClassifier/version_0")
    raise MissingError(
        f"{path} has no checkpoints/best.ckpt and no checkpoints/last.ckpt; give the folder of a run, such as {run}, "
        "or a file that lightning fit wrote"
    )


def _newest_run(folder: Path) -> Path | None:
    """Return the run below a folder of runs that was the last to write a checkpoint."""
    files = [file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/checkpoints/*.ckpt")]
    return max(files, key=lambda file: file.stat().st_mtime).parent.parent if files else None


def _refuse_not_finite(state_dict: dict[str, Tensor], path: Path) -> None:
    """Refuse the weights of a run that diverged, which compute NaN, and NaN would be taken for class 0."""
    broken = [name for name, value in state_dict.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path} holds weights that are not finite ({listed(broken, limit=3)}): its run diverged. Give an earlier "
            "checkpoint, or train again with a lower --model.lr"
        )


def _read_config(content: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Parse the run's configuration, which is YAML text in the checkpoint or a file in the run folder."""
    text = content.get("config")
    file = path.parent.parent / "config.yaml"
    if text is None and file.is_file():
        text = file.read_text(encoding="utf-8")
    if text is None:
        return None

    config = parse_yaml(str(text), f"the configuration of the run of {path}")
    return config if isinstance(config, dict) else None


def _read_metrics(content: dict[str, Any], path: Path) -> dict[str, float]:
    """Find the validation metrics of the stored weights.

    The command writes them into each checkpoint. A checkpoint of a plain Trainer has only the score by which its
    ``ModelCheckpoint`` callback chose it, and only if this file is still the best one of that callback.
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
    """Lightning's plugin for checkpoints, with atomic writes on local disks.

    Lightning writes a checkpoint into the system's folder for temporary files and moves it from there. If that folder
    is on another file system, moving means copying, and a full disk or ``kill -9`` leaves half a checkpoint in place of
    a complete one. Here the file is written next to the old one, flushed to the disk, and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint; until it is complete, the old file keeps its name.

        Raises:
            OSError: if the disk is full or cannot be written; the error names the file.
        """
        # Remote storage is left to Lightning.
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)

        # Serialize in memory first, since errors of torch.save hide why a disk cannot be written.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)

        # Remove unfinished files of a run that was killed.
        for leftover in file.parent.glob(f".{file.name}.*.part"):
            with suppress(OSError):
                leftover.unlink()

        with atomic_write(file) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is executed, whatever the caller asks for.

        Raises:
            InputError: if a local file is damaged, or would execute code.
        """
        if Path(path).is_file():
            checkpoint: dict[str, Any] = read_torch_file(Path(path))
            return checkpoint
        return super().load_checkpoint(path, map_location, weights_only=True)


def is_of_split(metric: str, *splits: str) -> bool:
    """Return whether a metric, such as ``val_acc`` or ``image/val_acc`` of a member, is of one of these splits."""
    return metric.rpartition("/")[2].startswith(tuple(f"{split}_" for split in splits))
