"""Recordings that are longer than a map: random parts in training, whole in evaluation, and the width of a map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_sounds import PITCHES, RATE, SAMPLES, SMALL, sound_runs, write_sound_config, write_tone
from training.small_runs import command, metric, saved, table

from audio import AudioFolder
from audio.files import read_wave

KNOWN: dict[str, Any] = {**SMALL, "mean": -5.0, "std": 3.0}


@pytest.fixture(scope="module")
def long_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three to four maps: 6 for training and 4 for validation and test of each class."""
    root = tmp_path_factory.mktemp("long")
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for name, frequency in PITCHES.items():
            for i in range(count):
                write_tone(root / split / name / f"{i}.wav", frequency, 3 * SAMPLES + 700 * i, seed=i)
    return root


# Parts


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_part_lies_where_it_should(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    file = tmp_path / f"ramp.{suffix}"
    soundfile.write(file, ramp, 16_000)
    for place in (0.0, 0.25, 1.0):
        part = read_wave(file, 16_000, longest=4_000, place=place)
        needed = 4_000 + 160  # the margin that a resampler would need
        start = int(place * (16_000 - needed))
        assert len(part) == 4_000
        np.testing.assert_allclose(part, ramp[start : start + 4_000], atol=0.02)


def test_part_at_another_rate(tmp_path: Path) -> None:
    file = tmp_path / "tone.wav"
    soundfile.write(file, np.sin(np.arange(44_100) * 0.05).astype(np.float32), 44_100)
    assert len(read_wave(file, RATE, longest=SAMPLES, place=0.7)) == SAMPLES
    assert len(read_wave(file, RATE, longest=50_000, place=0.7)) == RATE  # a shorter one is whole


def test_cut_off_file_is_named_wherever_the_part_lies(tmp_path: Path) -> None:
    file = tmp_path / "cut.wav"
    soundfile.write(file, np.zeros(16_000, np.float32) + 0.1, 16_000, subtype="PCM_16")
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(Exception, match=r"cut\.wav is cut off"):
        read_wave(file, 16_000, longest=4_000, place=1.0)


def test_training_hears_other_parts_in_every_epoch_and_evaluation_hears_all(long_tones: Path) -> None:
    data: Any = AudioFolder(str(long_tones), **KNOWN)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([waves for (waves, _), _ in loader]))
    assert epochs[0].shape[1] == SAMPLES
    assert not torch.equal(epochs[0].sort(dim=0).values, epochs[1].sort(dim=0).values)
    assert torch.equal(epochs[0], epochs[2])

    for loader in (data.val_dataloader(), data.test_dataloader()):
        waves, _ = next(iter(loader))
        assert [len(wave) for wave in waves[:4]] == [3 * SAMPLES + 700 * i for i in range(4)]


def test_test_and_predict_give_the_same_answers(long_tones: Path, tmp_path: Path) -> None:
    """The accuracy of a test is that of the predictions for the same files."""
    out = tmp_path / "out"
    config = write_sound_config(tmp_path / "sound.yaml", long_tones)
    command("fit", config, out, "--trainer.max_epochs", "1")
    command("test", config, out, "--ckpt_path", "last")
    command("predict", config, out, "--ckpt_path", "last", "--data.predict_path", str(long_tones / "test"))
    fit, test, predict = sound_runs(out)
    assert fit != test
    rows = table(predict / "predictions.csv")
    right = [row["class"] == Path(row["file"]).parent.name for row in rows]
    assert sum(right) / len(right) == pytest.approx(metric(test, "test_acc")[-1], abs=1e-6)


# The width of a map


def test_width_is_chosen_by_the_lengths(long_tones: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = AudioFolder(str(long_tones), **KNOWN | {"target_length": None})
    with caplog.at_level("INFO"):
        spec = data.spec()
    # nine of ten last up to 3 windows and 3500 samples; 80 samples a frame, a multiple of 32 frames
    length = 3 * SAMPLES + 700 * 5
    frames = 1 + (length - data._feature_map.window) // data._feature_map.shift
    assert spec.target_length == 32 * -(-frames // 32)
    assert f"--data.target_length {spec.target_length}" in caplog.text
    data.setup("fit")
    (waves, _), _ = next(iter(data.train_dataloader()))
    assert waves.shape[1] == max(3 * SAMPLES + 700 * i for i in range(6))


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, 64), (30.0, 512)])
def test_width_has_limits(seconds: float, expected: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            write_tone(tmp_path / name / f"{i}.wav", 300.0, int(seconds * RATE), seed=i)
    assert AudioFolder(str(tmp_path), **KNOWN | {"target_length": None}).spec().target_length == expected


def test_recordings_longer_than_a_given_width_are_said(long_tones: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = AudioFolder(str(long_tones), **KNOWN)
    with caplog.at_level("INFO"):
        data.spec()
        data.setup("fit")
    assert caplog.text.count("are longer than a map of") == 1
    assert "A longer map: --data.target_length" in caplog.text


def test_chosen_width_travels_with_the_checkpoint(long_tones: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = write_sound_config(tmp_path / "sound.yaml", long_tones, target_length=None)
    command("fit", config, out, "--trainer.max_epochs", "1")
    chosen = saved(sound_runs(out)[0], "last")["hyper_parameters"]["spec"]["target_length"]
    assert chosen > 64

    short = tmp_path / "short"
    for name, frequency in PITCHES.items():
        for split in ("train", "val"):
            write_tone(short / split / name / "0.wav", frequency, 4_000)
    for verb in ("validate", "test"):
        command(verb, config, out, "--ckpt_path", "last", "--data.root", str(short))
    command("predict", config, out, "--ckpt_path", "last", "--data.predict_path", str(short))
    command("fit", config, out, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert saved(sound_runs(out)[0], "last")["epoch"] == 1
