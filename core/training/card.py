"""The model card of a shared task: the Hub's YAML header, what was measured, and a program that loads it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from core.training.task import Task

__all__ = ["model_card"]

_NAMES = {"acc": "accuracy"}  # the Hub's, where they are not ours
_SPLITS = {"val": "validation", "test": "test"}


def model_card(task: Task, config: dict[str, Any], source: str, license: str) -> str:
    """The text of README.md.

    The header's ``model-index`` holds the metric by which the task's best checkpoint is chosen, where it was measured,
    and the same metric of the test split; the table has all metrics.

    Args:
        task: the model.
        config: what ``config.json`` holds.
        source: what :func:`core.training.hub.from_pretrained` is to be given, the Hub's name or a folder.
        license: the Hub's word for the licence of the weights.
    """
    name = source.rstrip("/").rpartition("/")[2]
    backbone = config["hyperparameters"]["backbone"]
    results = _results(task, config)
    header = ModelCardData(
        license=license,
        library_name="larkit",
        pipeline_tag=task.pipeline_tag,
        tags=["larkit", "lightning", "large-kernel", backbone],
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{header.to_yaml()}\n---\n\n# {name}",
        f"`{config['class_path']}` with the backbone `{backbone}`, trained with LarKit.",
        f"```python\n{_program(task, source)}\n```",
        *_described(config),
    ]
    return "\n\n".join(parts) + "\n"


def _results(task: Task, config: dict[str, Any]) -> list[EvalResult]:
    chosen, _ = task.chosen_by(config["hyperparameters"])
    data = (config["data_module"] or {}).get("class_path", "unnamed data").rpartition(".")[2]
    results = []
    for name in (chosen, chosen.replace("val_", "test_")):
        split, _, metric = name.partition("_")
        if name in config["metrics"]:
            result = EvalResult(
                task_type=task.pipeline_tag or "other",
                dataset_type=data.lower(),
                dataset_name=data,
                dataset_split=_SPLITS.get(split, split),
                metric_type=_NAMES.get(metric, metric),
                metric_name=name,
                metric_value=float(f"{config['metrics'][name]:.6g}"),  # it was a float32
            )
            results.append(result)
    return results


def _program(task: Task, source: str) -> str:
    lines = ["from core.training.hub import from_pretrained", "", f"task = from_pretrained({source!r})"]
    shape = task.example_shape()
    if shape is not None:
        lines = ["import torch", *lines, "with torch.no_grad():", f"    output = task(torch.randn{shape})"]
    return "\n".join(lines)


def _described(config: dict[str, Any]) -> list[str]:
    parts = []
    if config["metrics"]:
        rows = [f"| {name} | {value:.6g} |" for name, value in config["metrics"].items()]
        parts.append("\n".join(["| metric | measured |", "|---|---|", *rows]))
    kept = config["data"]
    if kept.get("class_names"):
        names = kept["class_names"]
        parts.append(f"{len(names)} classes: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}.")
    if "mean" in kept:
        parts.append(f"Inputs are normalised by mean {kept['mean']} and std {kept.get('std')}.")
    versions = ", ".join(f"{package} {version}" for package, version in config["versions"].items())
    return [*parts, f"Saved with {versions}."]
