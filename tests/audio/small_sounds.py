"""Small sets of tones in class folders, their configuration and short runs, shared by the audio tests."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from numpy.typing import NDArray

PITCHES = {"high": 3_000.0, "low": 300.0, "mid": 1_000.0}
"""Frequency of the tones of each class, in Hz."""
RATE = 8_000
SMALL: dict[str, Any] = {"sample_rate": RATE, "num_mels": 32, "target_length": 32, "num_workers": 0}
"""Data settings for maps of 32 x 32, which show 0.335 s of sound."""
UNCHANGED: dict[str, Any] = {"mixup": 0.0, "frequency_mask": 0, "time_mask": 0, "noise": 0.0, "roll": 0}
"""Model settings without any augmentation."""
SAMPLES = 2_680
"""Number of samples that a map of 32 frames shows."""


def tone(frequency: float, samples: int = SAMPLES, rate: int = RATE, *, seed: int = 0) -> NDArray[np.float32]:
    """Return a sine with a random phase over faint noise."""
    generator = np.random.default_rng(seed)
    phase = 2 * np.pi * (frequency * np.arange(samples) / rate + generator.random())
    return (0.4 * np.sin(phase) + 0.02 * generator.standard_normal(samples)).astype(np.float32)


def write_tone(file: Path, frequency: float, samples: int = SAMPLES, rate: int = RATE, *, seed: int = 0) -> Path:
    """Write a tone in the format of the suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(frequency, samples, rate, seed=seed), rate)
    return file


def write_tones(root: Path, classes: dict[str, float] = PITCHES, **splits: int) -> Path:
    """Write ``root/<split>/<class>/<n>.wav`` and ``.flac``, with as many tones of each class as ``splits`` says."""
    for part, (split, count) in enumerate(splits.items()):
        for label, (name, frequency) in enumerate(classes.items()):
            for i in range(count):
                seed = 1_000 * part + 100 * label + i
                file = root / split / name / f"{i}.{'flac' if i % 2 else 'wav'}"
                write_tone(file, frequency, SAMPLES - 100 * (i % 3), seed=seed)
    return root


def write_sound_config(
    path: Path,
    root: Path | None = None,
    *,
    kind: str = "AudioFolder",
    model: dict[str, Any] | None = None,
    **data: Any,
) -> Path:
    """Write a configuration for class folders: a tiny network, small maps, and further settings of model and data."""
    init = SMALL | {"batch_size": 6} | ({"root": str(root)} if root else {}) | data
    tiny = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}, "lr": 0.02}
    content = {
        "model": {"class_path": "AudioClassifier", "init_args": tiny | (model or {})},
        "data": {"class_path": kind, "init_args": init},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def sound_runs(out: Path) -> list[Path]:
    """Return the run folders below ``out``, oldest first."""
    return sorted((out / "lightning_logs" / "AudioClassifier").glob("version_*"))
