"""A task's class and arguments, to and from files; only classes that an installed modality exports are built."""

import warnings
from importlib.metadata import entry_points
from typing import Any

from core.backbones.staged import StagedNet
from core.errors import InputError
from core.training.task import Task

__all__ = ["build_task", "class_path_of", "hyperparameters_of"]

_FROM_FILES = ("pretrained", "weights")  # arguments that would load other weights first
_SOURCES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}  # the same of timm
_FORMS = ("inference_mode", "small_kernel_merged")


def hyperparameters_of(task: Task) -> dict[str, Any]:
    """The arguments that give a task of the same form, without those that load weights.

    Raises:
        InputError: if the backbone was given as a module.
    """
    args = {key: value for key, value in dict(task.hparams).items() if not key.startswith("_")}
    if not isinstance(args.get("backbone"), str):
        raise InputError(
            f"{type(task).__name__} was not made with the name of a backbone, so that no file can say how to build it; "
            "give backbone='unireplknet_...' and backbone_args"
        )
    args |= {"pretrained": False, "weights": None}
    net = next((module for module in task.modules() if isinstance(module, StagedNet)), None)
    forms = {form: True for form in _FORMS if getattr(net, "_model_args", {}).get(form)}
    return args | {"backbone_args": {**(args.get("backbone_args") or {}), **forms}}


def build_task(config: dict[str, Any], where: str) -> Task:
    """A task with random weights from a file that may come from anybody.

    Args:
        config: ``class_path`` and ``hyperparameters``.
        where: name of the file in messages.

    Raises:
        InputError: if the class is none of the installed modalities', or does not take the arguments.
    """
    args = {key: value for key, value in config["hyperparameters"].items() if not key.startswith("_")}
    args |= {key: None if key == "weights" else False for key in _FROM_FILES if key in args}
    if refused := _SOURCES & set(args.get("backbone_args") or {}):
        raise InputError(f"backbone_args of {where} name other weights ({', '.join(sorted(refused))}); leave them out")
    task_class = _found_class(config["class_path"])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*frozen backbone has random weights.*")  # they are loaded next
            return task_class(**args)
    except InputError as error:
        raise InputError(f"{config['class_path']} of {where} cannot be built: {error}") from error
    except (TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{config['class_path']} does not take the hyperparameters of {where}: {error}") from error


def class_path_of(task_class: type[Task]) -> str:
    """The name by which :func:`build_task` finds a class: its modality and its own.

    Raises:
        InputError: if no modality exports it.
    """
    package = next((p for p in _modalities() if f"{task_class.__module__}.".startswith(f"{p}.")), None)
    class_path = f"{package}.{task_class.__name__}"
    if package is None or _found_class(class_path) is not task_class:
        raise InputError(
            f"{task_class.__module__}.{task_class.__name__} is offered by no modality, so that nobody could load it; "
            "name its package as an entry point of the group larkit.modalities, and export the class there"
        )
    return class_path


def _found_class(class_path: str) -> type[Task]:
    """A task that an installed modality exports; nothing else is imported because a file names it."""
    modalities = _modalities()
    package = next((name for name in modalities if class_path.startswith(f"{name}.")), None)
    if package is None:
        raise InputError(
            f"class_path is {class_path!r}; only tasks of {', '.join(sorted(modalities))} are built, since a file must "
            "not choose what code runs"
        )
    found = getattr(modalities[package].load(), class_path.rpartition(".")[2], None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"class_path is {class_path!r}; {package} has no such task")
    return found


def _modalities() -> dict[str, Any]:
    return {entry.value: entry for entry in entry_points(group="larkit.modalities")}
