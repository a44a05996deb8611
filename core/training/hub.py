"""Share tasks on the Hugging Face Hub, or in folders of the same layout: weights, settings and a model card.

Nothing in such a folder runs as code: weights are safetensors, settings are JSON, and the class is looked up among
those that the installed modalities offer. Backbones alone are shared by timm's own ``timm.models.push_to_hf_hub``.
"""

import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.downloads import hub_file
from core.errors import InputError, MissingError
from core.training.card import model_card
from core.training.rebuild import build_task, class_path_of, hyperparameters_of
from core.training.run_files import read_run
from core.training.task import Task
from core.writing import whole_folder

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_REPOSITORY = r"[\w.-]+/[\w.-]+"


def save_pretrained(
    task: Task | str | Path,
    folder: str | Path,
    *,
    metrics: Mapping[str, float] | None = None,
    license: str = "apache-2.0",
) -> Path:
    """Write a task into a folder: ``model.safetensors``, ``config.json`` and the model card ``README.md``.

    ``config.json`` holds the class and its arguments, the class names and the normalisation, the data module's numbers
    (of a run of the command; no text, which could be a path of yours), the metrics and the versions of the libraries.

    Args:
        task: a task whose backbone was given by name, in training or inference form; or a checkpoint that
            ``lightning fit`` wrote, whose metrics are then read from the run's ``metrics.csv``.
        folder: must be empty or not there.
        metrics: what was measured, as in ``{"test_acc": 0.98}``; added to what the run or the trainer knows.
        license: the Hub's word for the licence of the weights.

    Returns:
        The folder.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if the folder holds files, or the task cannot be built again from its arguments.
    """
    folder = Path(folder)
    if folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the folder you are in; give a new one below it")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty; give a new folder, or delete it first")
    with whole_folder(folder) as unfinished:
        _write(task, unfinished, str(folder), metrics, license)
    return folder


def push_to_hub(
    task: Task | str | Path,
    repo_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    license: str = "apache-2.0",
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Upload a task to the Hugging Face Hub, as :func:`save_pretrained` writes it; a card that is there stays.

    Args:
        task: as for :func:`save_pretrained`.
        repo_id: ``owner/name``; made if it is not there.
        metrics: as for :func:`save_pretrained`.
        license: as for :func:`save_pretrained`.
        private: whether a new repository is only for its owner.
        token: of the Hub; by default the one that ``hf auth login`` stored.
        commit_message: of the upload.

    Returns:
        The address of the commit.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if the task cannot be built again from its arguments, or the Hub refuses.
    """
    if not re.fullmatch(_REPOSITORY, repo_id):
        raise InputError(f"{repo_id!r} is no name of a repository; give OWNER/NAME")
    with TemporaryDirectory() as temporary:
        folder = _write(task, Path(temporary), repo_id, metrics, license)
        api = HfApi(token=token, library_name="larkit", library_version=version("larkit"))
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, CARD):
                (folder / CARD).unlink()
            info = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
        except Exception as error:  # of the Hub's client and of its HTTP library, which share no base
            raise InputError(
                f"could not push to {repo_id!r}: {error}; check the name and the network, and log in: hf auth login"
            ) from error
    return str(info)


def from_pretrained(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Task:
    """A task as it was saved, in eval mode, with the same outputs.

    Args:
        source: a folder that :func:`save_pretrained` wrote, or a Hub repository ``owner/name``.
        revision: branch, tag or commit of the repository.
        token: of the Hub, for private repositories; by default the one that ``hf auth login`` stored.

    Returns:
        The task; the network's input is normalised by its ``normalisation``, its classes are ``class_names``.

    Raises:
        MissingError: if a file is not there.
        InputError: if the files hold no LarKit task, or the weights do not fit it.
    """
    config = _read_config(_file(source, CONFIG, revision, token))
    weights = _file(source, WEIGHTS, revision, token)
    task = build_task(config, str(source))
    try:
        task.load_state_dict(load_file(weights), assign=True)  # assign keeps the file's dtypes
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise InputError(f"{WEIGHTS} of {source} does not fit its {CONFIG}: {_start(error)}") from error
    task.on_load_checkpoint(config.get("data") or {})
    return task.eval()


def _write(
    task: Task | str | Path, folder: Path, source: str, metrics: Mapping[str, float] | None, license: str
) -> Path:
    run = read_run(task)
    if isinstance(task, str | Path):
        rebuilt = build_task({"class_path": run.class_path, "hyperparameters": run.hyperparameters}, str(task))
        try:
            rebuilt.load_state_dict(run.state)
        except RuntimeError as error:
            raise InputError(f"{task} does not fit its own hyperparameters: {_start(error)}") from error
        rebuilt.on_load_checkpoint(run.kept)
        task = rebuilt
    else:
        _check_rebuilds(_config(task, {}, None), task.state_dict())
    measured = {
        k: float(v) for k, v in {**run.metrics, **(metrics or {})}.items() if math.isfinite(v)
    }  # JSON has no NaN
    config = _config(task, measured, run.data_module)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in task.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(task, config, source, license), encoding="utf-8")
    return folder


def _config(task: Task, metrics: dict[str, float], data_module: dict[str, Any] | None) -> dict[str, Any]:
    """What ``config.json`` holds, of values that JSON has."""
    kept: dict[str, Any] = {}
    task.on_save_checkpoint(kept)
    config = {
        "library_name": "larkit",
        "class_path": class_path_of(type(task)),
        "hyperparameters": hyperparameters_of(task),
        "data": kept,
        "data_module": data_module,
        "metrics": metrics,
        "versions": {package: version(package) for package in ("larkit", "torch", "timm", "lightning")},
    }
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the task's arguments cannot be written as JSON: {error}; give numbers, text, lists"
        ) from error
    return plain


def _check_rebuilds(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Refuse to write what could not be read."""
    again = {name: tensor.shape for name, tensor in build_task(config, "the task").state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in state.items()}
    differing = sorted(name for name in again.keys() | shapes.keys() if again.get(name) != shapes.get(name))
    if differing:
        raise InputError(
            f"the task was changed after it was built: {', '.join(differing[:4])} are not what its arguments give; "
            "save it before the change, or put the change into its arguments"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    has = config if isinstance(config, dict) else {}
    if not isinstance(has.get("class_path"), str) or not isinstance(has.get("hyperparameters"), dict):
        advice = "it is a backbone: timm.create_model('hf-hub:...' or 'local-dir:...')" if "architecture" in has else ""
        raise InputError(
            f"{path} has no class_path and hyperparameters of a LarKit task; {advice or 'save it with save_pretrained'}"
        )
    return has


def _file(source: str | Path, name: str, revision: str | None, token: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise MissingError(f"{folder} has no {name}; give a folder that save_pretrained wrote")
        return folder / name
    if not re.fullmatch(_REPOSITORY, str(source)):
        raise MissingError(f"there is no folder {source}; give one, or a Hub repository 'owner/name'")
    try:
        return hub_file(str(source), name, revision=revision, token=token)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the Hub's own errors derive from these
        raise MissingError(
            f"there is no folder {source}, and {name} could not be got from the Hugging Face Hub: {error}; check the "
            "name and the network"
        ) from error


def _start(error: Exception, limit: int = 400) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."
