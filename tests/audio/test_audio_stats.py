"""Mean and standard deviation of the maps: measured, stored, used, asked for; and windows of long recordings."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sounds import RATE, SAMPLES, SMALL, sound_runs, write_sound_config, write_tone, write_tones
from torch.testing import assert_close
from training.small_runs import add_callbacks, command

from audio import ESC50, AudioFolder, AudioTable, LogMel, SpeechCommands
from audio.files import audio_files, cut_windows, read_wave
from core.errors import InputError, MissingError

SETTINGS = "8000 Hz, 32 mels, 32 frames, 25 ms every 10 ms"
NO_PICTURES = ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]


def _by_numpy(folder: Path, maps: LogMel) -> tuple[float, float]:
    """Over the un-normalised maps of all recordings below a folder, one after the other."""
    waves = [read_wave(file, maps.sample_rate) for file in audio_files(folder)]
    longest = maps.samples(maps.target_length)
    values = np.stack([maps.filter_bank(wave[None, :longest]).double().numpy() for wave in waves])
    return float(values.mean()), float(values.std())


def _stored(root: Path) -> dict[str, dict[str, float]]:
    content: dict[str, dict[str, float]] = json.loads((root / "log_mel_stats.json").read_text(encoding="utf-8"))
    return content


def test_measured_values_are_stored_beside_the_data_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tones(tmp_path / "tones", train=3, val=1)
    write_tone(root / "train" / "low" / "long.wav", 300.0, 9_000)
    config = write_sound_config(tmp_path / "tones.yaml", root, batch_size=4)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    command("stats", config, tmp_path / "out")
    mean, std = _by_numpy(root / "train", LogMel(sample_rate=RATE, num_mels=32, target_length=32))
    assert _stored(root) == {SETTINGS: {"mean": pytest.approx(mean, abs=1e-4), "std": pytest.approx(std, abs=1e-4)}}
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert after == sorted([*before, root / "log_mel_stats.json"])
    trainers = add_callbacks(monkeypatch)
    command("fit", config, tmp_path / "out", *NO_PICTURES)
    data: Any = trainers[0].datamodule
    assert (data.maps.mean, data.maps.std) == tuple(_stored(root)[SETTINGS].values())
    x, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert float(x.std()) == pytest.approx(0.5, abs=0.15)


def test_statistics_that_are_missing_or_of_other_settings(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "tones", train=2, val=1)
    config = write_sound_config(tmp_path / "tones.yaml", root)
    message = rf"^lightning: error: no mean and std are known for maps of {SETTINGS}: {root}/log_mel_stats\.json does"
    with pytest.raises(SystemExit, match=message + r".*lightning stats -c FILE, or set --data\.mean and --data\.std$"):
        command("fit", config, tmp_path / "out")
    assert not sound_runs(tmp_path / "out")
    assert not (root / "log_mel_stats.json").exists()
    command("stats", config, tmp_path / "out")
    words = ["--data.num_mels", "16", "--data.frame_shift", "12.5"]
    with pytest.raises(SystemExit, match=r"for maps of 8000 Hz, 16 mels, 32 frames, 25 ms every 12\.5 ms"):
        command("fit", config, tmp_path / "out", *words)
    command("stats", config, tmp_path / "out", *words)
    assert set(_stored(root)) == {SETTINGS, "8000 Hz, 16 mels, 32 frames, 25 ms every 12.5 ms"}
    command("fit", config, tmp_path / "out", *words, *NO_PICTURES)
    assert len(sound_runs(tmp_path / "out")) == 1


def test_each_shape_of_map_has_statistics_of_its_own(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=1, val=1)
    other = {"mean": -7.0, "std": 1.5}
    content = {SETTINGS.replace("32 mels", "16 mels"): other, SETTINGS: {"mean": -4.0, "std": 2.5}}
    for stored in (content, dict(reversed(content.items()))):
        (root / "log_mel_stats.json").write_text(json.dumps(stored), encoding="utf-8")
        for mels, expected in ((32, (-4.0, 2.5)), (16, (-7.0, 1.5))):
            data = AudioFolder(str(root), **SMALL | {"num_mels": mels})
            data.prepare_data()
            assert (data.maps.mean, data.maps.std) == expected


def test_given_numbers_need_no_file_and_go_before_it(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    data = AudioFolder(str(root), **SMALL, mean=-4.0, std=2.5)
    data.prepare_data()
    assert (data.maps.mean, data.maps.std) == (-4.0, 2.5)
    data.measure()
    data.setup("fit")
    assert (data.maps.mean, data.maps.std) == (-4.0, 2.5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"num_workers": 1}], ids=str)
def test_batches_do_not_change_what_is_measured(options: dict[str, int], tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=3, val=1)
    measured = AudioFolder(str(root), **SMALL | options).measure()
    mean, std = _by_numpy(root / "train", LogMel(sample_rate=RATE, num_mels=32, target_length=32))
    assert measured == {"mean": pytest.approx(mean, abs=1e-4), "std": pytest.approx(std, abs=1e-4)}


def test_broken_recording_stops_the_measurement_or_is_left_out(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=3, val=1)
    (root / "train" / "low" / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"low/0\.wav cannot be decoded.*skip_broken true"):
        AudioFolder(str(root), **SMALL).measure()
    assert not (root / "log_mel_stats.json").exists()
    with pytest.warns(UserWarning, match=r"skipped: .*low/0\.wav"):
        measured = AudioFolder(str(root), **SMALL, skip_broken=True).measure()
    (root / "train" / "low" / "0.wav").unlink()
    assert measured["mean"] == pytest.approx(AudioFolder(str(root), **SMALL).measure()["mean"], abs=1e-6)


def test_measuring_needs_the_data(tmp_path: Path) -> None:
    config = write_sound_config(tmp_path / "tones.yaml", tmp_path / "nowhere")
    with pytest.raises(SystemExit, match=r"^lightning: error: there is no folder .*/nowhere/train; expected"):
        command("stats", config, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "3", json.dumps({SETTINGS: {"mean": 1.0}})])
def test_damaged_statistics_are_named(content: str, tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    (root / "log_mel_stats.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"log_mel_stats\.json.*lightning stats"):
        AudioFolder(str(root), **SMALL).prepare_data()


def test_silent_recordings_have_no_statistics(tmp_path: Path) -> None:
    root = write_tones(tmp_path, {"one": 0.0, "two": 0.0}, train=2, val=1)
    for file in root.rglob("*.*"):
        soundfile.write(file, np.zeros(SAMPLES), RATE)
    with pytest.raises(InputError, match="all training maps are the same; check the recordings"):
        AudioFolder(str(root), **SMALL).measure()
    assert not (root / "log_mel_stats.json").exists()


def test_where_statistics_are_kept(tmp_path: Path) -> None:
    assert AudioFolder(str(tmp_path)).stats_file() == tmp_path / "log_mel_stats.json"
    assert SpeechCommands(str(tmp_path)).stats_file() == tmp_path / "log_mel_stats.json"
    assert ESC50(str(tmp_path)).stats_file() == tmp_path / "log_mel_stats.json"
    table = AudioTable(str(tmp_path / "a" / "t.json"), "v.json", "l.csv")
    assert table.stats_file() == tmp_path / "a" / "log_mel_stats.json"
    with pytest.raises(MissingError, match=r"no folder to keep statistics in; type --data\.mean and --data\.std"):
        AudioFolder().stats_file()


LENGTHS, OVERLAPS = st.integers(1, 40_000), st.floats(0, 0.95)


@settings(max_examples=80)
@given(LENGTHS, OVERLAPS)
def test_windows_cover_a_recording(length: int, overlap: float) -> None:
    data = AudioFolder(**SMALL, overlap=overlap)
    wave = torch.arange(length)
    windows = data.windows(wave)
    assert torch.equal(torch.cat(windows).unique(), wave)
    assert int(windows[0][0]) == 0
    assert int(windows[-1][-1]) == length - 1
    if length <= SAMPLES:
        assert len(windows) == 1
        return
    starts = [int(window[0]) for window in windows]
    steps = np.diff(starts)
    assert {len(window) for window in windows} == {SAMPLES}
    assert all(
        torch.equal(window, wave[start : start + SAMPLES]) for window, start in zip(windows, starts, strict=True)
    )
    assert set(steps[:-1]) <= {round(SAMPLES * (1 - overlap))}
    assert 0 < steps[-1] <= round(SAMPLES * (1 - overlap))


@pytest.mark.parametrize(("length", "starts"), [(2_680, [0]), (2_681, [0, 1]), (5_360, [0, 1_340, 2_680])])
def test_windows_of_half_overlap(length: int, starts: list[int]) -> None:
    assert [int(window[0]) for window in AudioFolder(**SMALL).windows(torch.arange(length))] == starts


def test_windows_that_share_nearly_everything_are_a_sample_apart() -> None:
    assert [window.tolist() for window in cut_windows(torch.arange(5), 3, 0.95)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_batch_of_recordings_becomes_one_of_windows(tmp_path: Path) -> None:
    for name, samples in (("a", 7_000), ("b", 1_000), ("c", 2_680)):
        write_tone(tmp_path / f"{name}.wav", 300.0, samples)
    data = AudioFolder(**SMALL, mean=0.0, std=1.0, predict_path=str(tmp_path))
    data.setup("predict")
    ((waves, lengths), (names, counts)) = next(iter(data.predict_dataloader()))
    assert names == [str(tmp_path / f"{name}.wav") for name in "abc"]
    assert counts.tolist() == [5, 1, 1]
    assert lengths.tolist() == [2_680] * 5 + [1_000, 2_680]
    whole = read_wave(tmp_path / "a.wav", RATE)
    assert_close(waves[:5], torch.stack([whole[s : s + 2_680] for s in (0, 1_340, 2_680, 4_020, 4_320)]))


def test_prediction_goes_with_processes_that_do_not_fork(tmp_path: Path) -> None:
    """As on macOS, where what a data-loading process needs is pickled."""
    data: Any = AudioFolder(**SMALL, mean=0.0, std=1.0, predict_path=str(write_tone(tmp_path / "a.wav", 300.0)))
    data.setup("predict")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, loops=(number for number in range(3)))
    loader = data.predict_dataloader()
    pickle.dumps((loader.dataset, loader.collate_fn))
