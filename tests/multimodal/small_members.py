"""A joint model of two tiny members, photos and a series, with its data and its configuration."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multimodal import JointTask

TASKS: dict[str, dict[str, Any]] = {
    "image": {"class_path": "vision.ImageClassifier", "init_args": {"num_classes": 3}},
    "series": {
        "class_path": "timeseries.ForecastTask",
        "init_args": {"channels": 2, "seq_len": 16, "pred_len": 8, "period": 8},
    },
}
RAW = {"image": (2, 3, 32, 32), "series": (2, 16, 2)}
"""Shapes of small raw batches."""


def joint(members: dict[str, dict[str, Any]] = TASKS, **options: Any) -> JointTask:
    """A joint task without data, whose layer scale lets every block take part."""
    args = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}}
    return JointTask(members=members, **(args | options))


def raw_batch(name: str) -> Tensor:
    """Raw samples of a member, the same each time."""
    return torch.rand(RAW[name], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give every tensor values of its own, so that no norm, bias or branch is trivial."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]


def write_joint_config(path: Path, photos: Path, **options: Any) -> Path:
    """A configuration for class folders and a CSV file; ``options`` are those of the task."""
    steps = np.arange(120)
    values = np.stack([np.sin(2 * np.pi * steps / 8), np.cos(2 * np.pi * steps / 8) + 3], axis=1)
    lines = [f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{a:.4f},{b:.4f}" for i, (a, b) in enumerate(values)]
    path.parent.mkdir(parents=True, exist_ok=True)
    series = path.parent / "series.csv"
    series.write_text("date,a,b\n" + "\n".join(lines) + "\n", encoding="utf-8")

    content = {
        "model": {
            "class_path": "multimodal.JointTask",
            "init_args": {
                "backbone": "test_unireplknet",
                "backbone_args": {"layer_scale_init_value": 0.5, "drop_path_rate": 0.1},
                "lr": 0.01,
                "members": {
                    "image": {"class_path": "vision.ImageClassifier"},
                    "series": {"class_path": "timeseries.ForecastTask"},
                },
                **options,
            },
        },
        "data": {
            "class_path": "multimodal.JointDataModule",
            "init_args": {
                "batch_size": 12,
                "epoch_steps": 3,
                "members": {
                    "image": {"class_path": "vision.ImageFolder", "init_args": {"root": str(photos), "size": 32}},
                    "series": {
                        "class_path": "timeseries.CSVSeries",
                        "init_args": {"path": str(series), "seq_len": 16, "pred_len": 8, "period": 8},
                    },
                },
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def joint_runs(out: Path) -> list[Path]:
    """The run folders below ``out``, oldest first."""
    return sorted((out / "lightning_logs" / "JointTask").glob("version_*"))
