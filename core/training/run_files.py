"""What a task's run has left that is worth sharing: the task's arguments, its metrics, the numbers of its data."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from core.errors import InputError, MissingError
from core.torch_files import read_torch_file
from core.training.task import Task

__all__ = ["Run", "read_run"]


@dataclass(frozen=True)
class Run:
    """A task's run, or the part of it that is known.

    Attributes:
        metrics: measured on validation and test, of the weights at hand.
        data_module: ``class_path`` and ``init_args`` without text; None if the data are not known.
        class_path: of a checkpoint's task.
        hyperparameters: of a checkpoint's task.
        state: of a checkpoint, its tensors by name; the average where the run kept one.
        kept: the other entries of a checkpoint.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    data_module: dict[str, Any] | None = None
    class_path: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)


def read_run(task: Task | str | Path) -> Run:
    """The run of a task that a trainer knows, or of a checkpoint in its run folder.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if the file is no checkpoint of ``lightning fit``.
    """
    return _of_trainer(task) if isinstance(task, Task) else _of_checkpoint(Path(task))


def _of_trainer(task: Task) -> Run:
    if task._trainer is None:
        return Run()
    measured = task.trainer.callback_metrics.items()
    data = getattr(task.trainer, "datamodule", None)
    named = None if data is None else {"class_path": f"{type(data).__module__}.{type(data).__name__}", "init_args": {}}
    numbers = {name: float(value) for name, value in measured if name.startswith(("val_", "test_"))}
    return Run(numbers, named)


def _of_checkpoint(path: Path) -> Run:
    if not path.is_file():
        raise MissingError(f"there is no checkpoint {path}; give a file that lightning fit wrote")
    try:
        checkpoint = read_torch_file(path)
        stored, state = dict(checkpoint["hyper_parameters"]), checkpoint["state_dict"]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a checkpoint that lightning fit wrote ({reason}); give one") from error
    class_path = stored.pop("_class_path", None)
    if class_path is None:
        raise InputError(
            f"{path} does not say what task it holds, as checkpoints of lightning fit do; load it with its class's "
            "load_from_checkpoint and give the task to core.training.hub.save_pretrained or push_to_hub"
        )
    data = _data_module(path.parent.parent / "config.yaml")
    return Run(_measured(path, checkpoint), data, class_path, stored, state, checkpoint)


def _measured(path: Path, checkpoint: dict[str, Any]) -> dict[str, float]:
    """What validation gave last before the checkpoint, in its epoch; without the table, the score that chose it."""
    table = path.parent.parent / "metrics.csv"
    found: dict[str, float] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in _until(checkpoint, csv.DictReader(file)):
                found |= {name: float(value) for name, value in row.items() if name.startswith("val_") and value}
    if not found:
        for state in checkpoint.get("callbacks", {}).values():
            chosen = isinstance(state, dict) and state.get("monitor") and state.get("best_model_score") is not None
            if chosen and Path(state.get("best_model_path", "")).name == path.name:
                found[state["monitor"]] = float(state["best_model_score"])
    return found


def _until(checkpoint: dict[str, Any], rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The rows of validation that a checkpoint has in its epoch, without those of later weights.

    Lightning gives a row the number of steps n before it, but where the batch just trained on has made step n, only
    n - 1. Of a checkpoint between two steps that accumulate gradients, the first row n is its own, a second one later.
    """
    step = int(checkpoint.get("global_step", 0))
    loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    between = loop.get("_batches_that_stepped") == step
    for row in rows:
        measured = any(value for name, value in row.items() if name.startswith("val_"))
        if not measured or row.get("epoch") != str(checkpoint.get("epoch")):
            continue
        if int(row["step"]) < step or (between and int(row["step"]) == step):
            yield row
            between = between and int(row["step"]) < step


def _data_module(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    data = yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or {}
    return {"class_path": data.get("class_path", ""), "init_args": _numbers(data.get("init_args") or {})}


def _numbers(value: Any) -> Any:
    """Settings without text, which may be paths, names of people or machines."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items() if _is_plain(inner)}
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(inner) for inner in value)
    return isinstance(value, bool | int | float | dict)
