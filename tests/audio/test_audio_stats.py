"""Mean and standard deviation of the maps: measured on the training recordings, once, and stored with the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning import Trainer
from small_sounds import PITCHES, RATE, SAMPLES, SMALL, sound_runs, write_sound_config, write_tone, write_tones
from torch import nn

from audio import AudioClassifier, AudioFolder, AudioSpec, LogMel
from audio.files import audio_files, read_wave
from core.errors import InputError, MissingError

SHORT = ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
MAPS: dict[str, Any] = {"sample_rate": RATE, "num_mels": 32, "target_length": 32}
QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1},
}


def _by_numpy(files: list[Path]) -> dict[str, Any]:
    """Return the statistics of the maps before normalization, computed one recording after the other."""
    maps = LogMel(**MAPS)
    waves = [read_wave(file, RATE) for file in files]
    values = np.stack([maps.filter_bank(wave[None]).double().numpy() for wave in waves])
    return {"mean": pytest.approx(values.mean(), abs=1e-4), "std": pytest.approx(values.std(), abs=1e-4)}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each measurement."""
    calls: list[int] = []
    measure = AudioFolder.measure

    def noted(self: AudioFolder) -> dict[str, float]:
        calls.append(1)
        return measure(self)

    monkeypatch.setattr(AudioFolder, "measure", noted)
    return calls


def _tiny(**options: Any) -> AudioClassifier:
    return AudioClassifier("test_unireplknet", 3, **options)


def test_measured_values_are_in_the_specification_the_maps_and_the_checkpoint(tmp_path: Path) -> None:
    from training.small_runs import command, saved

    root = write_tones(tmp_path / "tones", train=3, val=1)
    write_tone(root / "train" / "low" / "long.wav", 300.0, 9_000)
    config = write_sound_config(tmp_path / "tones.yaml", root, batch_size=4)
    before = sorted(path for path in root.rglob("*") if path.is_file())
    expected = _by_numpy(audio_files(root / "train"))
    spec = AudioFolder(str(root), **SMALL, batch_size=4).spec()
    assert {"mean": spec.mean, "std": spec.std} == expected

    command("fit", config, tmp_path / "out", *SHORT)
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before  # nothing is written beside the data
    (run,) = sound_runs(tmp_path / "out")
    checkpoint = saved(run)
    assert checkpoint["hyper_parameters"]["spec"] == spec.to_dict()
    assert float(checkpoint["state_dict"]["feature_map.mean"]) == pytest.approx(spec.mean)
    assert float(checkpoint["state_dict"]["feature_map.std"]) == pytest.approx(spec.std)

    waves = torch.stack([read_wave(file, RATE)[:2_400] for file in audio_files(root / "train")])
    normalized = spec.feature_map()(waves)[..., :20]
    assert float(normalized.std()) == pytest.approx(0.5, abs=0.25)


def test_numbers_that_are_given_are_used_and_nothing_is_measured(tmp_path: Path, counted: list[int]) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    data = AudioFolder(str(root), **SMALL, mean=-4.0, std=2.5)
    assert (data.spec().mean, data.spec().std) == (-4.0, 2.5)
    assert not counted


def test_measured_once(tmp_path: Path, counted: list[int]) -> None:
    data = AudioFolder(str(write_tones(tmp_path, train=2, val=1)), **SMALL)
    assert data.settings().mean is None
    assert data.spec() == data.spec()
    task = _tiny()
    Trainer(**QUIET).fit(task, data)
    assert counted == [1]
    assert task.spec == data.spec()
    assert float(task.feature_map.mean) == pytest.approx(data.spec().mean)


def test_task_without_statistics_takes_those_of_its_training_data(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    data = AudioFolder(str(root), **SMALL)
    task = _tiny(spec=AudioSpec(classes=tuple(sorted(PITCHES)), **MAPS))
    Trainer(**QUIET).fit(task, data)
    expected = AudioFolder(str(root), **SMALL).spec()
    assert task.spec == expected
    assert float(task.feature_map.std) == pytest.approx(expected.std)


def test_a_run_that_continues_does_not_measure_again(tmp_path: Path, counted: list[int]) -> None:
    root = write_tones(tmp_path / "tones", train=2, val=1)
    first = _tiny(spec=AudioFolder(str(root), **SMALL).spec())
    counted.clear()
    write_tone(root / "train" / "low" / "new.wav", 305.0)
    Trainer(**QUIET).fit(first, AudioFolder(str(root), **SMALL))
    assert not counted


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_measures_nothing(verb: str, tmp_path: Path, counted: list[int]) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    task = _tiny(spec=AudioSpec(classes=tuple(sorted(PITCHES)), mean=-5.0, std=3.0, **MAPS))
    getattr(Trainer(**QUIET), verb)(task, AudioFolder(str(root), **SMALL))
    assert not counted
    assert (task.spec.mean, task.spec.std) == (-5.0, 3.0)
    assert (float(task.feature_map.mean), float(task.feature_map.std)) == (-5.0, 3.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_rate": 16_000}, "sample_rate=8000, and the data have sample_rate=16000"),
        ({"num_mels": 16}, r"num_mels=32, and the data have num_mels=16; leave --data\.num_mels out, or type"),
        ({"target_length": 40}, "target_length=32, and the data have target_length=40"),
        ({"mean": -4.0, "std": 3.0}, r"mean=-5\.0, and the data have mean=-4\.0; leave --data\.mean out"),
        ({"mean": -5.0, "std": 2.0}, r"std=3\.0, and the data have std=2\.0"),
    ],
    ids=str,
)
def test_data_for_other_maps_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    task = _tiny(spec=AudioSpec(classes=tuple(sorted(PITCHES)), mean=-5.0, std=3.0, **MAPS))
    with pytest.raises(InputError, match=f"the model was trained with {said}"):
        Trainer(**QUIET).validate(task, AudioFolder(str(root), **SMALL | options), verbose=False)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"num_workers": 1}], ids=str)
def test_batches_do_not_change_what_is_measured(options: dict[str, int], tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=3, val=1)
    assert AudioFolder(str(root), **SMALL | options).measure() == _by_numpy(audio_files(root / "train"))


def test_measuring_leaves_the_random_numbers_of_a_run_as_they_are(tmp_path: Path) -> None:
    data = AudioFolder(str(write_tones(tmp_path, train=2, val=1)), **SMALL)
    before = torch.get_rng_state()
    data.measure()
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_large_set_a_sample_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("audio.data._MEASURED", 5)
    root = write_tones(tmp_path, train=4, val=1)
    chosen: list[Path] = []
    monkeypatch.setattr("audio.data.read_wave", lambda path, *args, **kw: chosen.append(path) or read_wave(path, *args))
    measured = AudioFolder(str(root), **SMALL).measure()
    assert len(set(chosen)) == len(chosen) == 5
    assert measured == _by_numpy(chosen)
    assert "Measuring mean and std on 5 of 12 recordings" in capsys.readouterr().err
    first = chosen.copy()
    chosen.clear()
    assert AudioFolder(str(root), **SMALL).measure() == measured
    assert chosen == first


def test_broken_recording_stops_the_measurement_or_is_left_out(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=3, val=1)
    (root / "train" / "low" / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"low/0\.wav cannot be decoded.*skip_broken true"):
        AudioFolder(str(root), **SMALL).measure()
    with pytest.warns(UserWarning, match=r"skipped: .*low/0\.wav"):
        measured = AudioFolder(str(root), **SMALL, skip_broken=True).measure()
    (root / "train" / "low" / "0.wav").unlink()
    assert measured["mean"] == pytest.approx(AudioFolder(str(root), **SMALL).measure()["mean"], abs=1e-6)


def test_measuring_needs_recordings_that_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"^there is no folder .*/nowhere/train; expected"):
        AudioFolder(str(tmp_path / "nowhere"), **SMALL).measure()
    root = write_tones(tmp_path, train=2, val=1)
    for file in (root / "train").rglob("*.*"):
        file.write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="no recording can be used"):
        AudioFolder(str(root), **SMALL, skip_broken=True).measure()


def test_silent_recordings_have_no_statistics(tmp_path: Path) -> None:
    root = write_tones(tmp_path, {"one": 0.0, "two": 0.0}, train=2, val=1)
    for file in root.rglob("*.*"):
        soundfile.write(file, np.zeros(SAMPLES), RATE)
    with pytest.raises(InputError, match="maps of all training recordings are the same; check the recordings"):
        AudioFolder(str(root), **SMALL).measure()


def test_one_process_of_several_shows_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tones(tmp_path, train=2, val=1)
    for rank, shown in ((0, True), (1, False)):
        monkeypatch.setattr("audio.data.rank_zero_only.rank", rank)
        AudioFolder(str(root), **SMALL).measure()
        assert ("Measuring" in capsys.readouterr().err) == shown


def test_statistics_of_the_data_stay_when_weights_of_another_model_are_loaded(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "tones", train=2, val=1)
    other = _tiny(spec=AudioSpec(classes=tuple(sorted(PITCHES)), mean=-5.0, std=3.0, **MAPS))
    trainer = Trainer(**QUIET)
    trainer.strategy.connect(other)
    trainer.save_checkpoint(tmp_path / "other.ckpt", weights_only=True)
    data = AudioFolder(str(root), **SMALL)
    task = _tiny(spec=data.spec(), weights=str(tmp_path / "other.ckpt"))
    assert float(task.feature_map.mean) == pytest.approx(data.spec().mean)
    assert task.spec == data.spec()
    for own, theirs in zip(task.backbone.parameters(), other.backbone.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert isinstance(task.backbone, nn.Module)
