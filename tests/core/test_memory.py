"""Options with which one sample would fill the memory of the machine are refused before anything is read."""

from collections.abc import Callable
from typing import Any

import pytest

from audio import AudioFolder
from core.data import memory
from core.errors import InputError
from pointcloud import PointCloudClassifier, PointFolder
from video import VideoFolder
from vision import ImageFolder


def _classifier(**options: Any) -> PointCloudClassifier:
    return PointCloudClassifier("test_resnet", 3, **options)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ImageFolder, {"size": 60_000}, r"size=60000: one sample would take 40\.2 GiB, and .* 16\.0 GiB of memory"),
        (VideoFolder, {"num_frames": 100_000}, "num_frames=100000, size=224, .*: one sample would take"),
        (VideoFolder, {"test_views": 1_000, "test_crops": 1_000}, r"test_views=1000, test_crops=1000: one sample"),
        (VideoFolder, {"repeats": 10_000_000}, "repeats=10000000, .*: one sample would take"),
        (AudioFolder, {"target_length": 10**9}, "target_length=1000000000: one sample would take"),
        (AudioFolder, {"num_mels": 10**8}, "num_mels=100000000, .*: one sample would take"),
        (AudioFolder, {"frame_length": 1e9}, "frame_length=1000000000.0, .*: one sample would take"),
        (PointFolder, {"load_points": 10**9}, "load_points=1000000000: one sample would take"),
        (_classifier, {"obj_size": 30_002, "fusion": False}, "obj_size=30002, .*: one sample would take"),
        (_classifier, {"dim": 4 * 10**7}, "dim=40000000: one sample would take"),
    ],
)
def test_sample_that_would_fill_the_memory(
    make: Callable[..., Any], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 16 * 2**30)
    with pytest.raises(InputError, match=message):
        make(**options)


def test_limit_is_an_eighth_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 800)
    memory.check_sample_memory(100, "size=5")
    with pytest.raises(InputError, match=r"^size=5: one sample would take .* a sample may take an eighth"):
        memory.check_sample_memory(101, "size=5")
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    memory.check_sample_memory(10**20, "size=5")


def test_memory_of_this_machine() -> None:
    found = memory.machine_memory()
    assert found is None or found > 2**28
