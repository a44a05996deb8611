"""Class folders: which recordings are in which split with which label, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sounds import PITCHES, SMALL, tone, write_tone, write_tones

from audio import AudioFolder, AudioSpec
from audio.data import Waves
from core.errors import InputError, MissingError

KNOWN: dict[str, Any] = {**SMALL, "mean": -5.0, "std": 3.0}


def _set_up(data: Any, stage: str = "fit") -> Any:
    data.prepare_data()
    data.setup(stage)
    return data


def _names(dataset: Any) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path, _ in dataset.samples}


def test_class_folders(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=3, val=2)
    write_tone(root / "train" / "_noise_" / "0.wav", 50.0)
    write_tone(root / "train" / "low" / "deep" / "x.WAV", 300.0)
    data = _set_up(AudioFolder(str(root), **KNOWN))
    assert data.classes == ["high", "low", "mid"]
    assert Counter(label for _, label in data.train_set.samples) == {0: 3, 1: 4, 2: 3}
    assert [label for _, label in data.val_set.samples] == [0, 0, 1, 1, 2, 2]
    assert data.test_set.samples == data.val_set.samples
    assert [name for _, name in data.predict_set.samples] == [str(path) for path, _ in data.val_set.samples]
    waves, y = next(iter(data.val_dataloader()))
    assert [len(wave) for wave in waves] == [2_680, 2_580] * 3
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    (waves, lengths), _ = next(iter(data.train_dataloader()))
    assert waves.shape == (len(lengths), 2_680)


def test_folder_named_test_and_splits_under_other_names(tmp_path: Path) -> None:
    root = write_tones(tmp_path, learn=2, check=1, test=3)
    data = _set_up(AudioFolder(str(root), train_split="learn", val_split="check", **KNOWN))
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 3, 9]


def test_held_out_share_when_there_is_no_validation_folder(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=10)
    first, second = (_set_up(AudioFolder(str(root), val_share=0.3, **KNOWN)) for _ in range(2))
    assert not _names(first.train_set) & _names(first.val_set)
    assert Counter(label for _, label in first.val_set.samples) == dict.fromkeys(range(3), 3)
    assert first.val_set.samples == second.val_set.samples
    with pytest.raises(InputError, match=r"val_share=1\.0; give a share between 0 and 1"):
        AudioFolder(str(root), val_share=1.0)


def test_training_recordings_are_cut_to_what_a_map_sees(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=1, val=1)
    write_tone(root / "train" / "low" / "long.wav", 300.0, 90_000)
    data = _set_up(AudioFolder(str(root), **KNOWN))
    lengths = {path.name: len(data.train_set[i][0]) for i, (path, _) in enumerate(data.train_set.samples)}
    assert lengths == {"0.wav": 2_680, "long.wav": 2_680}
    assert data.spec().feature_map().frames(2_680) == 32


def test_class_folders_without_splits(tmp_path: Path) -> None:
    for name, frequency in PITCHES.items():
        for i in range(10):
            write_tone(tmp_path / name / f"{i}.wav", frequency, seed=i)
    data = _set_up(AudioFolder(str(tmp_path), **KNOWN))
    assert data.classes == ["high", "low", "mid"]
    assert (len(data.train_set), len(data.val_set)) == (27, 3)
    assert not _names(data.train_set) & _names(data.val_set)


def test_batches_are_raw_and_the_specification_says_what_they_are(tmp_path: Path) -> None:
    data = _set_up(AudioFolder(str(write_tones(tmp_path, train=2, val=1)), **KNOWN))
    raw, y = next(iter(data.train_dataloader()))
    assert isinstance(raw, Waves)
    assert raw.waves.dtype == torch.float32
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    settings = {"sample_rate": 8_000, "num_mels": 32, "target_length": 32, "mean": -5.0, "std": 3.0}
    assert data.spec() == AudioSpec(classes=("high", "low", "mid"), **settings)
    assert data.settings() == AudioSpec(**settings)
    assert AudioSpec.from_dict(data.spec().to_dict()) == data.spec()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], r"there is no folder .*/train; expected .*/<class>/\*\.wav"),
        (["train/only"], "has 1 class folders; expected at least two"),
        (["train/_one", "train/.two"], "has 0 class folders"),
        (["train/bare", "train/empty"], r"bare holds no recordings; expected files ending in \.aif"),
    ],
)
def test_folders_that_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(MissingError, match=message):
        AudioFolder(str(tmp_path), **KNOWN).prepare_data()


def test_no_folder_and_a_class_that_training_lacks(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"type --data\.root FOLDER, with FOLDER/train/<class>/\*\.wav"):
        AudioFolder(**KNOWN).prepare_data()
    root = write_tones(write_tones(tmp_path, train=1), {"zebra": 500.0, "low": 300.0}, val=1)
    with pytest.raises(InputError, match="val has classes that training lacks: zebra"):
        _set_up(AudioFolder(str(root), **KNOWN))


def test_all_recordings_of_a_batch_broken(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=1, val=1)
    for file in (root / "val").rglob("*.wav"):
        file.write_bytes(tone(1.0, 10).tobytes())
    loader = _set_up(AudioFolder(str(root), skip_broken=True, **KNOWN)).val_dataloader()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="no recording can be used"):
        list(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.0}, r"overlap=1\.0; expected a share in \[0, 1\)"),
        ({"overlap": -0.1}, r"overlap=-0\.1"),
        ({"mean": 1.0}, r"mean=1\.0, std=None; give both or neither"),
        ({"std": 1.0}, r"mean=None, std=1\.0"),
        ({"num_mels": 0}, "num_mels=0"),
        ({"batch_size": 0}, "batch_size=0"),
        *[pytest.param({"mean": 0.0, "std": std}, f"std={std}") for std in (0.0, -1.0)],
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AudioFolder("anywhere", **options)
