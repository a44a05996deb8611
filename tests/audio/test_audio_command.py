"""Training, evaluation, prediction and export of recordings through the command."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import soundfile
import torch
from PIL import Image
from small_sounds import RATE, SAMPLES, UNCHANGED, sound_runs, write_sound_config, write_tone, write_tones
from torch.testing import assert_close
from training.small_runs import command, metric, saved, table

from audio import AudioClassifier, AudioFolder
from audio.files import read_wave


def _best(trained: dict[str, Path]) -> list[str]:
    return ["--ckpt_path", str(trained["folder"] / "checkpoints" / "best.ckpt")]


def _model(run: Path, name: str = "best") -> AudioClassifier:
    return AudioClassifier.load_from_checkpoint(run / "checkpoints" / f"{name}.ckpt", map_location="cpu").eval()


def _rows(out: Path) -> list[dict[str, str]]:
    return table(sound_runs(out)[-1] / "predictions.csv")


def test_run_learns_the_tones_and_leaves_its_pictures(trained_sounds: dict[str, Path]) -> None:
    run = trained_sounds["folder"]
    assert max(metric(run, "val_acc")) == 1.0
    losses = metric(run, "train_loss")
    assert losses[-1] < 0.6 * losses[0]
    for name in ("confusion_matrix.png", "examples.png", "learning_curves.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    assert saved(run, "best")["hyper_parameters"]["spec"]["classes"] == ["high", "low", "mid"]
    assert all(len(metric(run, f"val_{name}")) == 4 for name in ("mAP", "auc", "dprime", "loss"))


def test_all_verbs_follow_each_other(trained_sounds: dict[str, Path], tmp_path: Path) -> None:
    out, config = tmp_path / "out", trained_sounds["config"]
    shutil.copytree(trained_sounds["out"], out)
    write_tone(tmp_path / "long.wav", 300.0, 3 * SAMPLES)
    for verb in ("validate", "test"):
        command(verb, config, out, "--ckpt_path", "best")
        for name in ("confusion_matrix.png", "examples.png"):
            assert (sound_runs(out)[-1] / name).is_file()
    command("predict", config, out, "--ckpt_path", "best", "--data.predict_path", str(tmp_path / "long.wav"))
    assert [row["class"] for row in _rows(out)] == ["low"]
    command("export", config, out, "--ckpt_path", "best", "--output", str(out / "files"))
    fit, validated, tested, _ = sound_runs(out)
    assert metric(validated, "val_acc") == [max(metric(fit, "val_acc"))]
    assert set(table(tested / "metrics.csv")[0]) >= {f"test_{n}" for n in ("acc", "mAP", "auc", "dprime", "loss")}
    session = onnxruntime.InferenceSession(out / "files" / "test_unireplknet.onnx", providers=["CPUExecutionProvider"])
    wave, lengths = torch.randn(7, SAMPLES), torch.tensor([SAMPLES, 2_000, 900, 200, SAMPLES, SAMPLES, 1_000])
    with torch.no_grad():
        expected = _model(trained_sounds["folder"])(wave, lengths)
    names = [node.name for node in session.get_inputs()]
    found = session.run(None, dict(zip(names, (wave.numpy(), lengths.numpy()), strict=True)))
    assert_close(torch.from_numpy(found[0]), expected, rtol=1e-4, atol=1e-4)


def test_accuracy_and_loss_equal_a_count_by_hand(trained_sounds: dict[str, Path], tmp_path: Path) -> None:
    root = write_tones(tmp_path / "tones", train=1, val=5)
    for wrong in (root / "val" / "high").glob("*.flac"):  # some that the model takes for another class
        wrong.rename(root / "val" / "mid" / f"wrong_{wrong.name}")
    config = write_sound_config(tmp_path / "tones.yaml", root, batch_size=4)
    command("validate", config, tmp_path, *_best(trained_sounds))
    data, model = AudioFolder(str(root)), _model(trained_sounds["folder"])
    right, losses = list[bool](), list[float]()
    for path, label in data.splits().val:
        with torch.no_grad():
            logits = model(read_wave(path, RATE)[None])[0]
        right.append(int(logits.argmax()) == label)
        target = torch.eye(3)[label]
        losses.append(float(-(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).mean()))
    (run,) = sound_runs(tmp_path)
    assert 0.5 < sum(right) / 15 < 1
    assert metric(run, "val_acc") == pytest.approx([sum(right) / 15])
    assert metric(run, "val_loss") == pytest.approx([sum(losses) / 15], rel=1e-3)


def test_predictions_of_a_folder(trained_sounds: dict[str, Path], tmp_path: Path) -> None:
    some = write_tones(tmp_path / "some", test=3) / "test"
    (some / "readme.txt").write_text("no recording")
    command("predict", trained_sounds["config"], tmp_path, *_best(trained_sounds), "--data.predict_path", str(some))
    rows = _rows(tmp_path)
    top = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(rows[0]) == ["file", *top, "error"]
    assert [row["file"] for row in rows] == sorted(str(p) for p in some.rglob("*") if p.suffix in (".wav", ".flac"))
    assert all(row["class"] == Path(row["file"]).parent.name for row in rows)
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    with Image.open(sound_runs(tmp_path)[0] / "examples.png") as sheet:
        assert sheet.size == (1440, 420)
    assert not list(tmp_path.rglob("*.part"))


def test_probability_of_a_long_recording_is_the_mean_over_its_windows(
    trained_sounds: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "any name, with comma.wav"
    first, second = (read_wave(write_tone(tmp_path / f"{f}.wav", f, 4_000), RATE) for f in (300.0, 1_000.0))
    wave = torch.cat([first, second])
    soundfile.write(file, wave.numpy(), RATE, subtype="FLOAT")
    words = ["--data.predict_path", str(file), "--data.overlap", "0.25", "--data.batch_size", "1"]
    command("predict", trained_sounds["config"], tmp_path, *_best(trained_sounds), *words)
    starts = [0, 2_010, 4_020, 8_000 - SAMPLES]
    windows = torch.stack([wave[start : start + SAMPLES] for start in starts])
    with torch.no_grad():
        mean = _model(trained_sounds["folder"])(windows).sigmoid().mean(dim=0)
    (row,) = _rows(tmp_path)
    assert row["file"] == str(file)
    assert row["class"] == ["high", "low", "mid"][int(mean.argmax())]
    assert float(row["probability"]) == pytest.approx(float(mean.max() / mean.sum()), abs=1e-4)


def test_classes_and_statistics_come_from_the_checkpoint_without_the_training_data(
    trained_sounds: dict[str, Path], tmp_path: Path
) -> None:
    file = write_tone(tmp_path / "question.wav", 1_000.0)
    words = [*_best(trained_sounds), "--data.root", "null", "--data.predict_path", str(file)]
    command("predict", write_sound_config(tmp_path / "c.yaml"), tmp_path, *words)
    (row,) = _rows(tmp_path)
    assert row["class"] == "mid"
    (expected,) = _model(trained_sounds["folder"]).predict(file)
    assert float(row["probability"]) == pytest.approx(expected["probability"], abs=1e-5)


def test_without_a_path_the_test_split_is_predicted(trained_sounds: dict[str, Path], tmp_path: Path) -> None:
    command("predict", trained_sounds["config"], tmp_path, *_best(trained_sounds))
    files = sorted(str(p) for p in (trained_sounds["tones"] / "test").rglob("*.*"))
    assert [row["file"] for row in _rows(tmp_path)] == files


@pytest.mark.parametrize(("kind", "text"), [("missing", "is neither a file nor a folder"), ("empty", "holds no rec")])
def test_nothing_to_predict(kind: str, text: str, trained_sounds: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = [*_best(trained_sounds), "--data.predict_path", str(tmp_path / kind)]
    with pytest.raises(SystemExit, match=rf"^lightning: error: .*/{kind} {text}"):
        command("predict", trained_sounds["config"], tmp_path / "out", *words)
    assert not sound_runs(tmp_path / "out")


def _several(folder: Path) -> Path:
    """A configuration for a table where a recording has one label or two."""
    pitches, rows = {"/m/l": 300.0, "/m/h": 3_000.0}, []
    for i in range(12):
        labels = [["/m/l"], ["/m/h"], ["/m/l", "/m/h"]][i % 3]
        waves = [read_wave(write_tone(folder / "part.wav", pitches[name], seed=i), RATE) for name in labels]
        soundfile.write(folder / f"{i}.wav", torch.stack(waves).mean(dim=0).numpy(), RATE)
        rows.append({"wav": f"{i}.wav", "labels": ",".join(labels)})
    (folder / "part.wav").unlink()
    (folder / "all.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/l,low\n1,/m/h,high\n", encoding="utf-8")
    tables = {"train_json": str(folder / "all.json"), "val_json": str(folder / "all.json"), "multi_label": True}
    data = {**tables, "labels_csv": str(folder / "labels.csv"), "mean": -2.5, "std": 3.2}
    return write_sound_config(folder / "c.yaml", kind="AudioTable", model=UNCHANGED, **data, batch_size=4)


def test_several_labels_need_no_further_setting(tmp_path: Path) -> None:
    command("fit", _several(tmp_path), tmp_path / "out", "--trainer.max_epochs", "1")
    assert (sound_runs(tmp_path / "out")[0] / "checkpoints" / "best.ckpt").is_file()


def test_several_labels_from_training_to_prediction(tmp_path: Path) -> None:
    config = _several(tmp_path)
    command("fit", config, tmp_path / "out")
    (run,) = sound_runs(tmp_path / "out")
    assert len(metric(run, "val_mAP")) == 2
    assert "val_acc" not in table(run / "metrics.csv")[0]
    assert (run / "examples.png").is_file()
    assert not (run / "confusion_matrix.png").exists()
    command("predict", config, tmp_path / "out", "--ckpt_path", "last")
    waves = torch.stack([read_wave(tmp_path / f"{i}.wav", RATE) for i in range(12)])
    with torch.no_grad():
        probabilities = _model(run, "last")(waves).sigmoid()
    rows = _rows(tmp_path / "out")
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2", "labels", "error"]
    for row, p in zip(rows, probabilities, strict=True):
        assert row["class"] == ("low", "high")[int(p.argmax())]
        assert float(row["probability"]) == pytest.approx(float(p.max()), abs=1e-4)
        assert row["labels"] == ";".join(n for n, q in zip(("low", "high"), p.tolist(), strict=True) if q > 0.5)
