"""Runs with all augmentation that are interrupted and resumed, and runs over broken recordings."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from small_sounds import sound_runs, write_sound_config, write_tones
from torch.testing import assert_close
from training.small_runs import Interrupt, command, interrupted_and_resumed, metric, saved, table

from core.data.sampler import EpochSampler

pytestmark = pytest.mark.usefixtures("no_sound_pictures")

KNOWN: dict[str, Any] = {"mean": -2.5, "std": 3.2}
RANDOM: dict[str, Any] = {"mixup": 0.7, "frequency_mask": 8, "time_mask": 8, "noise": 0.1, "roll": 5}
WORDS = ["--model.backbone_args", "{layer_scale_init_value: 0.5, drop_path_rate: 0.3}", "--trainer.max_epochs", "3"]


def _resumed(config: Path, out: Path, stop: Interrupt, *words: str) -> Path:
    interrupted_and_resumed(config, out, stop, *words)
    (run,) = sound_runs(out)
    return run


def _same(run: Path, expected: Path) -> None:
    got, wanted = saved(run), saved(expected)
    assert got["epoch"] == 2
    assert got["global_step"] == 9
    for part in ("epoch", "global_step", "lr_schedulers", "state_dict", "optimizer_states"):
        assert_close(got[part], wanted[part], rtol=0, atol=0)
    for name in ("train_loss", "val_loss", "val_mAP"):
        assert metric(run, name) == metric(expected, name)


@pytest.fixture(scope="module")
def straight(tones: Path, no_sound_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight_sounds")
    command("fit", write_sound_config(out / "tones.yaml", tones, model=RANDOM, **KNOWN), out, *WORDS)
    return sound_runs(out)[0]


@pytest.mark.parametrize(("epoch", "after_a_batch"), [(1, False), (2, False), (1, True)])
def test_resumed_run_equals_an_uninterrupted_one(
    epoch: int, after_a_batch: bool, tones: Path, straight: Path, tmp_path: Path
) -> None:
    config = write_sound_config(tmp_path / "tones.yaml", tones, model=RANDOM, **KNOWN)
    _same(_resumed(config, tmp_path, Interrupt(epoch, after_a_batch=after_a_batch), *WORDS), straight)


def test_with_data_loading_processes(tones: Path, straight: Path, tmp_path: Path) -> None:
    """Workers only decode, so the random numbers are those of a run without workers."""
    config = write_sound_config(tmp_path / "tones.yaml", tones, model=RANDOM, **KNOWN, num_workers=2)
    _same(_resumed(config, tmp_path, Interrupt(1), *WORDS), straight)


@pytest.mark.parametrize("off", ["nothing", "mixup", "frequency_mask", "time_mask", "noise", "roll"])
def test_every_part_of_the_augmentation_reaches_the_training(
    off: str, tones: Path, straight: Path, tmp_path: Path
) -> None:
    less = RANDOM | ({off: 0} if off in RANDOM else {})
    config = write_sound_config(tmp_path / "tones.yaml", tones, model=less, **KNOWN)
    command("fit", config, tmp_path, *WORDS, "--trainer.limit_val_batches", "0")
    losses, augmented = (metric(run, "train_loss") for run in (sound_runs(tmp_path)[0], straight))
    assert (losses == augmented) == (off == "nothing")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A set with one truncated recording in training and one in validation."""
    root = write_tones(tmp_path / "damaged", train=4, val=2)
    for split in ("train", "val"):
        file = root / split / "mid" / "0.wav"
        file.write_bytes(file.read_bytes()[:2_000])
    return root


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_recording_stops_the_run_with_its_name(
    split: str, workers: int, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (damaged / {"train": "val", "val": "train"}[split] / "mid" / "0.wav").unlink()
    config = write_sound_config(tmp_path / "c.yaml", damaged, **KNOWN, num_workers=workers)
    with pytest.raises(SystemExit) as stopped:
        command("fit", config, tmp_path / "out")
    message = str(stopped.value.code)
    assert message.startswith(f"lightning: error: {damaged / split / 'mid' / '0.wav'} is cut off after 0.12 s")
    assert message.endswith("or type --data.skip_broken true")
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message + capsys.readouterr().err


def test_broken_recordings_are_skipped_on_request(damaged: Path, tmp_path: Path) -> None:
    config = write_sound_config(tmp_path / "c.yaml", damaged, model=RANDOM, **KNOWN, skip_broken=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command("fit", config, tmp_path / "out", "--trainer.max_epochs", "1")
        command("predict", config, tmp_path / "out", "--ckpt_path", "last")
    skipped = {str(w.message).split(" is ")[0] for w in caught if "skipped" in str(w.message)}
    assert skipped == {f"skipped: {damaged / split / 'mid' / '0.wav'}" for split in ("train", "val")}
    fit, predicted = sound_runs(tmp_path / "out")
    assert len(metric(fit, "val_acc")) == 1
    broken = [Path(row["file"]) for row in table(predicted / "predictions.csv") if row["error"]]
    assert broken == [damaged / "val" / "mid" / "0.wav"]


def test_batches_of_broken_recordings_are_skipped_on_request(damaged: Path, tmp_path: Path) -> None:
    """The last of three batches in training, the first of two in validation, and the last, one file, in prediction."""
    config = write_sound_config(tmp_path / "c.yaml", damaged, **KNOWN, skip_broken=True, batch_size=4)
    some = write_tones(tmp_path / "some", test=2) / "test"
    files = sorted(some.rglob("*.*"))
    files[-1].unlink()
    files[-2].write_bytes(b"junk")
    train, val = (sorted((damaged / split).rglob("*.*")) for split in ("train", "val"))
    for file in [train[i] for i in list(EpochSampler(train))[8:]] + val[:4]:  # type: ignore[arg-type]
        file.write_bytes(b"junk")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command("fit", config, tmp_path / "out", "--trainer.max_epochs", "1")
        command("test", config, tmp_path / "out", "--ckpt_path", "last")
        command("predict", config, tmp_path / "out", "--ckpt_path", "last", "--data.predict_path", str(some))
        for file in files[:-1]:
            file.write_bytes(b"junk")
        with pytest.raises(SystemExit, match=r"^lightning: error: none of the 5 samples can be read; the first: "):
            command("predict", config, tmp_path / "out", "--ckpt_path", "last", "--data.predict_path", str(some))
    fit, tested, predicted = sound_runs(tmp_path / "out")[:3]
    assert len(metric(fit, "val_acc")) == 1
    assert saved(fit)["global_step"] == 3
    assert len(metric(tested, "test_acc")) == 1
    rows = table(predicted / "predictions.csv")
    assert [(row["file"], bool(row["error"])) for row in rows] == [
        (str(file), i == 4) for i, file in enumerate(files[:5])
    ]


@pytest.mark.parametrize(
    "precision",
    [
        "bf16-mixed",
        *[pytest.param(name) for name in ("bf16-true", "64-true")],
    ],
)
def test_precision_of_the_model(precision: str, tones: Path, tmp_path: Path) -> None:
    config = write_sound_config(tmp_path / "tones.yaml", tones, model=RANDOM, **KNOWN)
    command("fit", config, tmp_path, "--trainer.precision", precision, "--trainer.max_epochs", "1")
    assert len(metric(sound_runs(tmp_path)[0], "val_loss")) == 1
