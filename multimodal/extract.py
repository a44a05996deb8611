"""Take a member out of a joint checkpoint, as a checkpoint of a single modality: ``python -m multimodal.extract``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import yaml

from core.errors import InputError
from core.io.checkpoint import AtomicCheckpointIO, TaskCheckpoint
from core.training.hub import build_task
from core.training.task import Task
from multimodal.task import JointTask

__all__ = ["extract"]

_USAGE = "usage: python -m multimodal.extract CHECKPOINT_OR_RUN MEMBER FILE.ckpt"


def extract(checkpoint: str | Path, member: str, output: str | Path) -> Path:
    """Write a member of a joint checkpoint as a checkpoint of its own modality.

    The file is one that ``lightning fit`` could have written: ``lightning predict --ckpt_path``, ``test``, ``export``
    and ``push``, the analyses, :func:`core.load_weights` and timm read it.

    Args:
        checkpoint: a checkpoint of a joint run, or the folder of the run.
        member: name of the member.
        output: file to write.

    Returns:
        The path of the file.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if it is no joint checkpoint, has no such member, or the file exists.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"{output} exists; give another file, or delete it first")

    read = TaskCheckpoint.read(checkpoint)
    joint = build_task(read) if read.class_path.rpartition(".")[2] == JointTask.__name__ else None
    if not isinstance(joint, JointTask):
        raise InputError(f"{read.path} holds {read.class_path or 'a task without a name'}, which has no members")

    task = joint.member(member)
    settings = joint.member_settings[member]
    metrics = {
        name.removeprefix(f"{member}/"): value for name, value in read.metrics.items() if name.startswith(f"{member}/")
    }
    content: dict[str, Any] = {
        "epoch": read.epoch,
        "global_step": read.step,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": task.state_dict(),
        "hparams_name": "kwargs",
        "hyper_parameters": {**_arguments(task), "spec": task.spec.to_dict(), "_class_path": settings["class_path"]},
        "metrics": metrics,
    }
    config = _config(task, settings["class_path"], member, read.config)
    if config is not None:
        content["config"] = yaml.safe_dump(config, sort_keys=False)

    output.parent.mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint(content, output)
    return output


def _arguments(task: Task) -> dict[str, Any]:
    """Return the arguments of a task, without those of weights that it was once trained from."""
    stored = {name: value for name, value in dict(task.hparams).items() if not name.startswith("_") and name != "spec"}
    return stored | {"pretrained": False, "weights": None}


def _config(task: Task, class_path: str, member: str, joint: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the configuration of a run of the member alone, from that of the joint run."""
    data_args = ((joint or {}).get("data") or {}).get("init_args") or {}
    data = (data_args.get("members") or {}).get(member)
    if joint is None or not isinstance(data, dict):
        return None

    given = {name: data_args[name] for name in ("num_workers",) if name in data_args}
    return {
        "model": {"class_path": class_path, "init_args": _arguments(task)},
        "data": {"class_path": data.get("class_path"), "init_args": {**given, **(data.get("init_args") or {})}},
        "trainer": {"precision": (joint.get("trainer") or {}).get("precision")},
    }


def main(words: Sequence[str]) -> None:
    """Run the command with its words."""
    if len(words) != 3:
        raise SystemExit(_USAGE)
    try:
        print(f"wrote {extract(*words)}")
    except InputError as error:
        raise SystemExit(f"extract: error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
