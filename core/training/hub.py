"""Share tasks on the Hugging Face Hub, or in folders of the same layout: weights, configuration and a model card.

Nothing in such a folder is executed: the weights are safetensors, the configuration is JSON, and the class is looked up
among those that the installed modalities export. To share a backbone alone, use ``timm.models.push_to_hf_hub``.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, ModelHubMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.data.module import attached_data_module
from core.errors import InputError, MissingError, listed
from core.io.atomic import atomic_folder
from core.io.checkpoint import TaskCheckpoint, is_of_split
from core.io.downloads import hub_file

if TYPE_CHECKING:
    from core.training.task import Task

__all__ = [
    "TaskHubMixin",
    "build_task",
    "from_pretrained",
    "modality_class",
    "push_to_hub",
    "run_push",
    "save_pretrained",
    "task_class",
]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_WEIGHTS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
"""Arguments of a backbone that would load other weights than those of the file."""

_FORMS = ("inference_mode", "small_kernel_merged")
"""Arguments of a backbone that build it in a folded form."""

_PROGRAM = """\
from core.training.hub import from_pretrained

task = from_pretrained({source!r})
for row in task.predict("FILE"):
    print(row)
"""

Base = TypeVar("Base")


# Save, push and load


class TaskHubMixin(ModelHubMixin, library_name="larkit"):
    """Gives tasks the methods of huggingface_hub's mixin. The functions of this module also take checkpoints.

    In all methods, ``config`` is the content of ``config.json``, by default what the task and its trainer know, and
    ``model_card_kwargs`` are arguments of :meth:`generate_model_card`.
    """

    def save_pretrained(  # type: ignore[override]  # pushing is another method here
        self,
        save_directory: str | Path,
        *,
        config: dict[str, Any] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Write the task into a new folder, atomically; see the function :func:`save_pretrained`."""
        folder = Path(save_directory)
        if folder.resolve() == Path.cwd():
            raise InputError(f"{folder} is the folder you are in; give a new one below it")
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not empty; give a new folder, or delete it first")

        config = config or _describe(cast("Task", self))
        card = {"config": config, "source": str(folder)} | (model_card_kwargs or {})
        with atomic_folder(folder) as unfinished:
            super().save_pretrained(unfinished, config=config, model_card_kwargs=card)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights; huggingface_hub's mixin calls this method and writes the other files itself."""
        state_dict = cast("Task", self).state_dict()
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
        save_file(tensors, save_directory / WEIGHTS, metadata={"format": "pt"})

    def push_to_hub(  # type: ignore[override]  # further options go through
        self,
        repo_id: str,
        *,
        config: dict[str, Any] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Upload the task; see the function :func:`push_to_hub`. Further options are those of huggingface_hub."""
        if not _REPOSITORY.fullmatch(repo_id):
            raise InputError(f"{repo_id!r} is not the name of a repository; give OWNER/NAME")
        config = config or _describe(cast("Task", self))
        card = {"config": config, "source": repo_id} | (model_card_kwargs or {})
        try:
            # Keep a model card that somebody may have edited.
            if HfApi(token=options.get("token")).file_exists(repo_id, CARD):
                options["ignore_patterns"] = CARD
            return str(super().push_to_hub(repo_id, config=config, model_card_kwargs=card, **options))
        except InputError:
            raise
        except Exception as error:  # the Hub's client and its HTTP library share no base class
            raise InputError(
                f"could not push to {repo_id!r}: {error}; check the name and the network, and log in: hf auth login"
            ) from error

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the configuration gives all arguments
        cls, source: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Load a task of this class; see the function :func:`from_pretrained`."""
        task = from_pretrained(source, revision=revision, token=token)
        if not isinstance(task, cls):
            raise InputError(f"{source} holds a {type(task).__name__}, not a {cls.__name__}")
        return task

    def generate_model_card(self, *, config: dict[str, Any], source: str, license: str = "apache-2.0") -> ModelCard:
        """Return the model card: a program that loads the task, metrics, class names, and facts about the data.

        Args:
            config: content of ``config.json``.
            source: repository or folder from which :func:`from_pretrained` will load the task.
            license: the Hub's identifier of the license of the weights.
        """
        task = cast("Task", self)
        name = source.rstrip("/").rpartition("/")[2]
        backbone = config["hyperparameters"]["backbone"]
        results = _card_results(task, config)
        header = ModelCardData(
            license=license,
            library_name="larkit",
            pipeline_tag=task.pipeline_tag,
            tags=["larkit", "lightning", "large-kernel", backbone],
            model_name=name if results else None,
            eval_results=results or None,
        )
        program = _PROGRAM.format(source=source)
        parts = [
            f"---\n{header.to_yaml()}\n---\n\n# {name}",
            f"`{config['class_path']}` with the backbone `{backbone}`, trained with LarKit.",
            f"```python\n{program}```",
            *_card_facts(config),
        ]
        return ModelCard("\n\n".join(parts) + "\n")


def save_pretrained(
    task: "Task | str | Path",
    folder: str | Path,
    *,
    metrics: Mapping[str, float] | None = None,
    license: str = "apache-2.0",
) -> Path:
    """Write a task into a folder: ``model.safetensors``, ``config.json`` and the model card ``README.md``.

    ``config.json`` holds the class of the task; its arguments, including what it knows about its data; the numbers
    among the settings of the data module (text is left out, since it could be a private path); the metrics; and the
    versions of the libraries.

    Args:
        task: a task whose backbone was built by name, in training or inference form, a checkpoint of ``lightning fit``,
            or the folder of a run.
        folder: folder that does not exist or is empty.
        metrics: metrics in addition to those of the run or the trainer, as in ``{"test_acc": 0.98}``.
        license: the Hub's identifier of the license of the weights.

    Returns:
        The path of the folder.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if the folder holds files, or the task cannot be rebuilt from its arguments.
    """
    task, config = _task_and_config(task, metrics)
    task.save_pretrained(folder, config=config, model_card_kwargs={"license": license})
    return Path(folder)


def push_to_hub(
    task: "Task | str | Path",
    repo_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    license: str = "apache-2.0",
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Upload a task to the Hugging Face Hub, as :func:`save_pretrained` writes it. An existing model card is kept.

    Args:
        task: task, checkpoint or run folder, see :func:`save_pretrained`.
        repo_id: repository ``owner/name``, which is created if it does not exist.
        metrics: additional metrics, see :func:`save_pretrained`.
        license: the Hub's identifier of the license of the weights.
        private: whether a new repository is visible to its owner only.
        token: token of the Hub; by default the one that ``hf auth login`` stored.
        commit_message: message of the commit on the Hub.

    Returns:
        The URL of the commit.

    Raises:
        MissingError: if there is no such checkpoint.
        InputError: if the task cannot be rebuilt from its arguments, or the upload fails.
    """
    task, config = _task_and_config(task, metrics)
    return task.push_to_hub(
        repo_id,
        config=config,
        model_card_kwargs={"license": license},
        private=private,
        token=token,
        commit_message=commit_message,
    )


def from_pretrained(source: str | Path, *, revision: str | None = None, token: str | None = None) -> "Task":
    """Load a task as it was saved, in eval mode, with the same outputs.

    Args:
        source: a Hub repository ``owner/name``, a folder that :func:`save_pretrained` wrote, a checkpoint of
            ``lightning fit``, or the folder of a run.
        revision: branch, tag or commit of the repository.
        token: token of the Hub for private repositories; by default the one that ``hf auth login`` stored.

    Raises:
        MissingError: if a file is missing.
        InputError: if the files are not those of a LarKit task, or the weights do not fit it.
    """
    path = Path(source)
    if path.is_file() or (path / "checkpoints").is_dir():
        return build_task(TaskCheckpoint.read(path))

    config = _read_config(_get_file(source, CONFIG, revision, token))
    weights = _get_file(source, WEIGHTS, revision, token)
    task = _build(config["class_path"], config["hyperparameters"], str(source))
    try:
        # Tensors that safetensors maps from the file are not aligned for the fastest kernels, but copies are.
        tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
        task.load_state_dict(tensors, assign=True)  # with assign=True, tensors keep the dtypes of the file
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise InputError(f"{WEIGHTS} of {source} does not fit its {CONFIG}: {_shorten(error)}") from error
    return task.eval()


def build_task(checkpoint: TaskCheckpoint) -> "Task":
    """Build the task of an untrusted checkpoint with its weights, in eval mode.

    Raises:
        InputError: if no installed modality exports its class, or the checkpoint does not fit its own hyperparameters.
    """
    if not checkpoint.class_path:
        raise InputError(
            f"{checkpoint.path} does not say which task it holds, as checkpoints of lightning fit do; load it with "
            "load_from_checkpoint of its class, and give the task instead"
        )
    task = _build(checkpoint.class_path, checkpoint.hyperparameters, str(checkpoint.path))
    try:
        task.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise InputError(f"{checkpoint.path} does not fit its own hyperparameters: {_shorten(error)}") from error
    return task.eval()


# The classes of tasks: a file may choose only among those that modalities export


def task_class(class_path: str) -> "type[Task]":
    """Find a task that an installed modality exports; see :func:`modality_class`."""
    return cast("type[Task]", modality_class(class_path, TaskHubMixin))


def modality_class(class_path: str, base: type[Base]) -> type[Base]:
    """Find a class that an installed modality exports; a file cannot cause the import of anything else.

    Args:
        class_path: import path of the class, such as ``vision.ImageClassifier``.
        base: base class from which the class must derive.

    Raises:
        InputError: if no installed modality exports such a class.
    """
    modalities = _modalities()
    package = next((name for name in modalities if class_path.startswith(f"{name}.")), None)
    if package is None:
        raise InputError(
            f"class_path is {class_path!r}; only classes of {', '.join(modalities)} are built, since a file must not "
            "choose what code runs"
        )

    # The class may be exported by the modality, by a package in it, or by the module that defines it.
    *inner, class_name = class_path.removeprefix(f"{package}.").split(".")
    for depth in range(len(inner) + 1):
        try:
            module = import_module(".".join([package, *inner[:depth]]))
        except ModuleNotFoundError:
            break
        found = getattr(module, class_name, None) if class_name in getattr(module, "__all__", ()) else None
        if isinstance(found, type) and issubclass(found, base):
            return found
    raise InputError(f"class_path is {class_path!r}; {package} exports no such class")


def _modalities() -> list[str]:
    """List the packages of the installed modalities, which declare themselves as entry points."""
    return sorted(entry.value for entry in entry_points(group="larkit.modalities"))


def _class_path_of(task: "Task") -> str:
    """Return an import path of a task's class with which :func:`modality_class` finds it.

    Raises:
        InputError: if no modality exports the class.
    """
    name = type(task).__name__
    module = type(task).__module__
    for package in _modalities():
        for class_path in (f"{package}.{name}", f"{module}.{name}"):
            if not f"{module}.".startswith(f"{package}."):
                continue
            try:
                found = task_class(class_path)
            except InputError:
                continue
            if found is type(task):
                return class_path
    raise InputError(
        f"no modality exports {module}.{name}, so nobody could load it; name its package as an entry point of the "
        "group larkit.modalities, and export the class there"
    )


def _build(class_path: str, hyperparameters: Mapping[str, Any], source: str) -> "Task":
    """Build a task with random weights from the hyperparameters in an untrusted file.

    Raises:
        InputError: if no installed modality exports the class, or it does not take the arguments.
    """
    cls = task_class(class_path)
    args = {name: value for name, value in hyperparameters.items() if not name.startswith("_")}

    # The weights of the file are loaded later. No argument may load other weights or execute code.
    if "pretrained" in args:
        args["pretrained"] = False
    if "weights" in args:
        args["weights"] = None

    refused = _OTHER_WEIGHTS & set(args.get("backbone_args") or {})
    if refused:
        raise InputError(f"backbone_args of {source} name other weights ({', '.join(sorted(refused))}); leave them out")

    for name in cls.runs_files:
        if args.get(name) is not None and not cls.trusts_file(name, args[name]):
            raise InputError(
                f"{source} names {name}={args[name]!r}, which can run code; look into it, and if you trust it build "
                f"{cls.__name__} yourself and load the weights with core.load_weights"
            )

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*frozen backbone has random weights.*")
            return cls(**args)
    except InputError as error:
        raise InputError(f"{class_path} of {source} cannot be built: {error}") from error
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"{class_path} does not take the hyperparameters of {source}: {error}") from error


# The content of config.json and of the model card


def _task_and_config(task: "Task | str | Path", metrics: Mapping[str, float] | None) -> tuple["Task", dict[str, Any]]:
    """Return the task itself or that of a checkpoint, and the content of ``config.json``."""
    if not isinstance(task, str | Path):
        return task, _describe(task, metrics)

    checkpoint = TaskCheckpoint.read(task)
    data = (checkpoint.config or {}).get("data")
    data_module = None
    if isinstance(data, dict):
        settings = data.get("init_args") or {}
        data_module = {"class_path": str(data.get("class_path", "")), "init_args": _without_text(settings)}
    rebuilt = build_task(checkpoint)
    return rebuilt, _describe(rebuilt, {**checkpoint.metrics, **(metrics or {})}, data_module)


def _describe(
    task: "Task", metrics: Mapping[str, float] | None = None, data_module: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Collect the content of ``config.json``.

    Args:
        task: task to describe.
        metrics: metrics in addition to those of its trainer.
        data_module: class path and settings of the data module; by default the class of the trainer's data module.

    Raises:
        InputError: if the task cannot be rebuilt from its arguments.
    """
    measured: dict[str, float] = {}
    if task._trainer is not None:
        values = task.trainer.callback_metrics.items()
        measured = {name: float(value) for name, value in values if is_of_split(name, "val", "test")}

        data = attached_data_module(task.trainer)
        if data is not None and data_module is None:
            data_module = {"class_path": f"{type(data).__module__}.{type(data).__name__}", "init_args": {}}
    measured |= {name: float(value) for name, value in (metrics or {}).items()}

    config = {
        "library_name": "larkit",
        "class_path": _class_path_of(task),
        "hyperparameters": _hyperparameters(task),
        "data_module": data_module,
        "metrics": {name: value for name, value in measured.items() if math.isfinite(value)},  # JSON has no NaN
        "versions": {package: version(package) for package in ("larkit", "torch", "timm", "lightning")},
    }
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the task's arguments cannot be written as JSON: {error}; give numbers, text or lists of these"
        ) from error
    _check_rebuilds(plain, task.state_dict())
    return plain


def _hyperparameters(task: "Task") -> dict[str, Any]:
    """Return the arguments that build a task of the same form, without loading weights.

    Raises:
        InputError: if the backbone was given as a module.
    """
    args = {name: value for name, value in dict(task.hparams).items() if not name.startswith("_")}
    if not isinstance(args.get("backbone"), str):
        raise InputError(
            f"{type(task).__name__} was not built from the name of a backbone, so no file can say how to build it; "
            "give backbone='unireplknet_...' and backbone_args"
        )

    # A backbone that was folded after it was built records its form in ``_model_args``, where timm stores arguments.
    stored: Any = next((module._model_args for module in task.modules() if hasattr(module, "_model_args")), None)
    forms = {form: True for form in _FORMS if (stored or {}).get(form)}
    backbone_args = {**(args.get("backbone_args") or {}), **forms}
    return args | {"pretrained": False, "weights": None, "backbone_args": backbone_args}


def _check_rebuilds(config: dict[str, Any], state_dict: dict[str, Tensor]) -> None:
    """Check that the task can be rebuilt from its configuration, before anything is written.

    Raises:
        InputError: if a task that is built from the configuration has other tensors.
    """
    rebuilt = _build(config["class_path"], config["hyperparameters"], "the task").state_dict()
    expected = {name: tensor.shape for name, tensor in rebuilt.items()}
    found = {name: tensor.shape for name, tensor in state_dict.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise InputError(
            f"the task was changed after it was built: {listed(differing, limit=4)} differ from what its arguments "
            "build; save it before the change, or make the change by its arguments"
        )


def _without_text(value: Any) -> Any:
    """Remove text from settings, since it may be a path, or name a person or a machine."""
    if isinstance(value, dict):
        return {name: _without_text(inner) for name, inner in value.items() if _is_plain(inner)}
    return value


def _is_plain(value: Any) -> bool:
    """Return whether a setting is a number, a dictionary, or a list of these."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | dict)


def _card_results(task: "Task", config: dict[str, Any]) -> list[EvalResult]:
    """List the metric that chose the checkpoint and the same metric on the test split, if they were measured."""
    chosen, _ = task.chosen()
    data = (config["data_module"] or {}).get("class_path", "unnamed data").rpartition(".")[2]
    results = []
    for name in (chosen, chosen.replace("val_", "test_")):
        if name not in config["metrics"]:
            continue
        split, _, metric = name.partition("_")
        result = EvalResult(
            task_type=task.pipeline_tag or "other",
            dataset_type=data.lower(),
            dataset_name=data,
            dataset_split="validation" if split == "val" else split,
            metric_type="accuracy" if metric == "acc" else metric,
            metric_name=name,
            metric_value=float(f"{config['metrics'][name]:.6g}"),  # without the digits that a float32 does not have
        )
        results.append(result)
    return results


def _card_facts(config: dict[str, Any]) -> list[str]:
    """Return the parts of the model card on metrics, class names, data, and versions of libraries."""
    parts = []
    if config["metrics"]:
        rows = [f"| {name} | {value:.6g} |" for name, value in config["metrics"].items()]
        parts.append("\n".join(["| metric | measured |", "|---|---|", *rows]))

    spec = dict(config["hyperparameters"].get("spec") or {})
    classes = spec.pop("classes", None)
    if classes:
        more = ", ..." if len(classes) > 20 else ""
        parts.append(f"{len(classes)} classes: {', '.join(map(str, classes[:20]))}{more}.")

    known = {name: value for name, value in spec.items() if value not in (None, [], ())}
    rows = [f"| {name} | {_shorten(json.dumps(value), limit=100)} |" for name, value in known.items()]
    if rows:
        parts.append("\n".join(["| of the data | value |", "|---|---|", *rows]))

    versions = ", ".join(f"{package} {number}" for package, number in config["versions"].items())
    return [*parts, f"Saved with {versions}."]


# Reading the files


def _read_config(path: Path) -> dict[str, Any]:
    """Read ``config.json``, and check that it describes a task."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        config = {}
    if not isinstance(config.get("class_path"), str) or not isinstance(config.get("hyperparameters"), dict):
        advice = "save it with save_pretrained"
        if "architecture" in config:
            advice = "it is a backbone: timm.create_model('hf-hub:...' or 'local-dir:...')"
        raise InputError(f"{path} has no class_path and hyperparameters of a LarKit task; {advice}")
    return config


def _get_file(source: str | Path, name: str, revision: str | None, token: str | None) -> Path:
    """Return the path of a file in a folder or, after a download, in a Hub repository."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise MissingError(f"{folder} has no {name}; give a folder that save_pretrained wrote")
        return folder / name
    if not _REPOSITORY.fullmatch(str(source)):
        raise MissingError(f"there is no folder {source}; give one, or a Hub repository 'owner/name'")
    try:
        return hub_file(str(source), name, revision=revision, token=token)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the Hub's own errors derive from these
        raise MissingError(
            f"there is no folder {source}, and {name} could not be downloaded from the Hugging Face Hub: {error}; "
            "check the name and the network"
        ) from error


def _shorten(text: object, limit: int = 400) -> str:
    """Return a text in one line, cut to a number of characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


# The command


def run_push(words: Sequence[str]) -> None:
    """Run ``lightning push`` with the words of the command line, of which the first is ``push``.

    Raises:
        InputError: if an option is unknown, or the checkpoint cannot be read or pushed.
    """
    from jsonargparse import ArgumentError, ArgumentParser  # the functions above do not need it

    parser = ArgumentParser(
        prog="lightning push",
        description="Share a checkpoint: weights, config.json, and a model card with the validation metrics.",
        exit_on_error=False,
    )
    parser.add_argument("checkpoint", type=str, help="file that lightning fit wrote, or the folder of a run")
    parser.add_argument("repository", nargs="?", type=str, help="OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--folder", type=str, help="write to this folder instead, to look at it before it is public")
    parser.add_argument("--private", action="store_true", help="make a new repository visible to its owner only")
    parser.add_argument("--license", type=str, default="apache-2.0", help="the Hub's identifier of the license")
    try:
        given = parser.parse_args(list(words[1:]))
    except ArgumentError as error:
        raise InputError(f"{' '.join(str(error).split())}. Type: lightning push --help") from error

    if (given.repository is None) == (given.folder is None):
        raise InputError("give either OWNER/NAME, a repository of the Hugging Face Hub, or --folder FOLDER")
    if given.folder is not None:
        print(f"wrote {save_pretrained(given.checkpoint, given.folder, license=given.license)}")
        return
    address = push_to_hub(given.checkpoint, given.repository, private=given.private, license=given.license)
    print(f"pushed {address}")
