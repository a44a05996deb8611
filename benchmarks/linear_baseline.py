"""A linear model on the same maps and splits as a configuration of the built-in data, for comparison.

    python benchmarks/linear_baseline.py
    python benchmarks/linear_baseline.py audio/configs/cls.yaml
    python benchmarks/linear_baseline.py video/configs/cls.yaml      (the middle frame of each clip alone)

Fits multinomial logistic regression (scikit-learn) on the maps without augmentation, with the strength of
regularization chosen on the validation split. Prints both accuracies; nothing is written.
"""

from typing import Any

import numpy as np
import torch
from configurations import data_of
from sklearn.linear_model import LogisticRegression

from audio import AudioClassifier, SpokenWords
from core.data.labeled import SampleDataModule
from core.data.samples import Samples
from video import CameraMoves, VideoClassifier
from vision import Digits, ImageClassifier

SETS: dict[str, Any] = {
    "vision.Digits": Digits,
    "audio.SpokenWords": SpokenWords,
    "video.CameraMoves": CameraMoves,
}

TASKS: dict[type[SampleDataModule], Any] = {
    Digits: ImageClassifier,
    SpokenWords: AudioClassifier,
    CameraMoves: VideoClassifier,
}


@torch.no_grad()
def arrays(task: Any, data: SampleDataModule, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """All maps of a split as rows, and their labels."""
    maps: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for raw, y in data.ordered_loader(data.dataset(samples, "val")):  # a linear model gains nothing from crops
        if isinstance(data, CameraMoves):
            middle = raw[:, raw.shape[1] // 2]
            rows = middle.float() / 255
        else:
            rows = task.to_maps(raw)
        maps.append(rows.flatten(1).numpy())
        labels.append(y.numpy())
    return np.concatenate(maps), np.concatenate(labels)


def main() -> None:
    """Fit and print."""
    data = data_of(str(__doc__), "vision/configs/cls.yaml", SETS)
    task = TASKS[type(data)]("test_unireplknet", spec=data.spec()).eval()
    splits = data.read_splits()
    data.setup("fit")
    train, val, test = (arrays(task, data, samples) for samples in (splits.train, splits.val, splits.test))

    models = [LogisticRegression(C=c, max_iter=300).fit(*train) for c in (1e-4, 1e-3, 1e-2, 1e-1)]
    best = max(models, key=lambda model: model.score(*val))
    print(f"logistic regression, C={best.C:g}: val_acc {best.score(*val):.3f}, test_acc {best.score(*test):.3f}")


if __name__ == "__main__":
    main()
