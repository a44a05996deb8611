"""Weights and checkpoints of small nets, and what the analyses leave, read again."""

import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vision import ImageClassifier


def saved_net(name: str) -> nn.Module:
    """A net in eval mode whose weights lie in NAME.pth in the current folder."""
    model: nn.Module = timm.create_model(name).eval()
    torch.save(model.state_dict(), f"{name}.pth")
    return model


def saved_task(file: str, **backbone_args: Any) -> ImageClassifier:
    """A task with 1000 classes in eval mode, and its checkpoint."""
    task = ImageClassifier(backbone="test_unireplknet", backbone_args=backbone_args, num_classes=1000)
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, file)
    return task.eval()


def table_rows(printed: str) -> dict[str, list[str]]:
    """The cells of a printed table by the first one of the row."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if "  " in line]
    return {row[0]: row[1:] for row in rows}


def read(path: str) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content
