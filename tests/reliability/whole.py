"""Whether what a command left is whole: every file is read to its end, and nothing half-written has a proper name."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from PIL import Image
from safetensors.torch import load_file

from core.io.untrusted import read_torch_file


def _picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _table(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n"), "the last line has no end"
    rows = list(csv.reader(text.splitlines()))
    assert len({len(row) for row in rows}) == 1, "rows of different length"


READERS: dict[str, Callable[[Path], object]] = {
    ".ckpt": read_torch_file,
    ".csv": _table,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".onnx": lambda path: onnx.load(str(path)),
    ".png": _picture,
    ".pt2": lambda path: torch.export.load(path),
    ".safetensors": load_file,
}


def damaged_files(folder: Path, *, logs: bool = True) -> list[str]:
    """Files below a folder that cannot be read; hidden ones are nobody's results.

    Args:
        folder: where a command wrote.
        logs: also ``metrics.csv``, to which a run adds lines: ``kill -9`` may cut the last, and resuming mends it.
    """
    wrong = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") or part.endswith(".part") for part in path.relative_to(folder).parts)
        read = READERS.get(path.suffix)
        if read is None or hidden or not path.is_file() or (path.name == "metrics.csv" and not logs):
            continue
        try:
            read(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(folder)}: {error}")
    return wrong


def checkpoints(folder: Path) -> dict[Path, int]:
    """The checkpoints below a folder and the epochs that they hold; each is read whole."""
    return {
        path: read_torch_file(path)["epoch"] for path in sorted(folder.glob("lightning_logs/*/*/checkpoints/*.ckpt"))
    }


def last_epochs(folder: Path) -> dict[str, int]:
    """The epoch of each run's last checkpoint, by the run's folder."""
    found = checkpoints(folder).items()
    return {path.parent.parent.name: epoch for path, epoch in found if path.name == "last.ckpt"}
