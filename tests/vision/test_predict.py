"""Predictions of files, and damaged images, through the command."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from training.small_runs import CLASSES, command, metric, picture, runs, table, write_config, write_photos

from core.cli import main
from vision import ImageClassifier


def _best(trained: dict[str, Path]) -> list[str]:
    return ["--ckpt_path", str(trained["folder"] / "checkpoints" / "best.ckpt")]


def _rows(out: Path) -> list[dict[str, str]]:
    return table(runs(out)[-1] / "predictions.csv")


def test_predictions_of_a_folder(trained: dict[str, Path], tmp_path: Path) -> None:
    some = write_photos(tmp_path / "some", test=3) / "test"
    (some / "readme.txt").write_text("no image")
    command("predict", trained["config"], tmp_path, *_best(trained), "--data.predict_path", str(some))
    rows = _rows(tmp_path)
    top = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(rows[0]) == ["file", *top, "error"]
    assert {row["error"] for row in rows} == {""}
    assert [row["file"] for row in rows] == sorted(str(p) for p in some.rglob("*") if p.suffix in (".jpg", ".png"))
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert sum(row["class"] == Path(row["file"]).parent.name for row in rows) >= 7
    with Image.open(runs(tmp_path)[0] / "examples.png") as sheet:
        assert sheet.size == (1440, 420)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("words", [["--data.predict_path", "{}"], ["--data.predict_path={}"]])
def test_prediction_of_one_file(words: list[str], trained: dict[str, Path], tmp_path: Path) -> None:
    picture(1, 3, (101, 57)).save(tmp_path / "any name, with comma.png")
    file = str(tmp_path / "any name, with comma.png")
    command("predict", trained["config"], tmp_path, *_best(trained), *[word.format(file) for word in words])
    (row,) = _rows(tmp_path)
    assert row["file"] == file
    assert row["class"] in CLASSES


def test_class_names_come_from_the_checkpoint_without_the_training_data(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    file = trained["photos"] / "val" / "sea" / "0.png"
    config = write_config(tmp_path / "c.yaml", tmp_path / "gone")
    words = ["--data.root", "null", "--data.predict_path", str(file)]
    command("predict", config, tmp_path, *_best(trained), *words)
    assert [row["class"] for row in _rows(tmp_path)] == ["sea"]


def test_without_a_path_the_test_split_is_predicted(trained: dict[str, Path], tmp_path: Path) -> None:
    command("predict", trained["config"], tmp_path, *_best(trained))
    rows = _rows(tmp_path)
    assert [row["file"] for row in rows] == sorted(str(p) for p in (trained["photos"] / "test").rglob("*.*"))
    right = sum(row["class"] == Path(row["file"]).parent.name for row in rows) / len(rows)
    command("test", trained["config"], tmp_path / "tested", *_best(trained))
    assert metric(runs(tmp_path / "tested")[0], "test_acc") == pytest.approx([right])


def test_predictions_may_go_elsewhere(trained: dict[str, Path], tmp_path: Path) -> None:
    words = ["--predict.output", str(tmp_path / "deep" / "here.csv")]
    command("predict", trained["config"], tmp_path, *_best(trained), *words)
    assert len(table(tmp_path / "deep" / "here.csv")) == 6


@pytest.mark.parametrize(("kind", "text"), [("missing", "neither a file nor a folder"), ("empty", "holds no images")])
def test_nothing_to_predict(kind: str, text: str, trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--data.predict_path", str(tmp_path / kind)]
    with pytest.raises(SystemExit, match=rf"^lightning: error: .*/{kind} (is )?{text}"):
        command("predict", trained["config"], tmp_path / "out", *_best(trained), *words)
    assert not runs(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--data.root", "{}/nowhere"], "there is no folder"),
        (["--data.root", "{}/hollow"], "has 0 class folders"),
        (["--data.root", "{}/bare"], "zebra holds no images"),
    ],
)
def test_bad_folders_are_refused_before_a_run_folder_is_made(words: list[str], what: str, tmp_path: Path) -> None:
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    write_photos(tmp_path / "bare", train=1)
    (tmp_path / "bare" / "train" / "zebra").mkdir()
    config = write_config(tmp_path / "c.yaml", tmp_path)
    with pytest.raises(SystemExit, match=f"^lightning: error: .*{what}"):
        command("fit", config, tmp_path / "out", *[word.format(tmp_path) for word in words])
    assert not runs(tmp_path / "out")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A set with one truncated JPEG in training and one in validation."""
    root = write_photos(tmp_path / "damaged", train=4, val=2)
    for file in (root / "train" / "leaf" / "1.jpg", root / "val" / "leaf" / "1.jpg"):
        file.write_bytes(file.read_bytes()[:400])
    return root


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_file_stops_the_run_with_its_name(
    split: str, workers: str, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"train": "val", "val": "train"}[split]
    shutil.copy(damaged / other / "leaf" / "0.png", damaged / other / "leaf" / "1.jpg")
    config = write_config(tmp_path / "c.yaml", damaged, auto_augment=None)
    with pytest.raises(SystemExit) as stopped:
        command("fit", config, tmp_path / "out", "--data.num_workers", workers)
    message = str(stopped.value.code)
    assert message.startswith(f"lightning: error: {damaged / split / 'leaf' / '1.jpg'} cannot be decoded as an image")
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message + capsys.readouterr().err


def test_truncated_files_are_skipped_on_request(damaged: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", damaged, auto_augment=None, skip_broken=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command("fit", config, tmp_path / "out", "--trainer.max_epochs", "1")
    skipped = {str(w.message).split(" cannot")[0] for w in caught if "skipped" in str(w.message)}
    assert skipped == {f"skipped: {damaged / split / 'leaf' / '1.jpg'}" for split in ("train", "val")}
    assert len(metric(runs(tmp_path / "out")[0], "val_acc")) == 1


def test_skipping_goes_together_with_mixup(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skipped image leaves an odd batch, which mixup cannot pair: all but one of its images are mixed."""
    mix, mixed = ImageClassifier.mix, list[int]()

    def counted(self: Any, mixup: Any, x: Any, y: Any) -> Any:
        mixed.append(len(x))
        return mix(self, mixup, x, y)

    monkeypatch.setattr(ImageClassifier, "mix", counted)
    config = write_config(tmp_path / "c.yaml", damaged, auto_augment=None, skip_broken=True)
    words = ["--model.mixup_alpha", "0.5", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    assert sorted(mixed) == [4, 6]
    assert len(metric(runs(tmp_path)[0], "train_loss")) > 0


@pytest.mark.parametrize("words", [[], ["--data.skip_broken", "true"], ["--data.num_workers", "1"]])
def test_damaged_file_is_a_row_with_its_reason(
    words: list[str], trained: dict[str, Path], damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        command(
            *("predict", trained["config"], tmp_path / "out", *_best(trained), *words),
            *("--data.predict_path", str(damaged / "val"), "--data.batch_size", "1"),
        )
    rows = _rows(tmp_path / "out")
    broken = str(damaged / "val" / "leaf" / "1.jpg")
    assert [row["file"] for row in rows] == sorted(str(p) for p in (damaged / "val").rglob("*.*"))
    for row in rows:
        if row["file"] == broken:
            assert row["error"].startswith(f"{broken} cannot be decoded as an image")
            assert row["class"] == row["probability"] == ""
        else:
            assert row["class"] in CLASSES
            assert row["error"] == ""
    assert caplog.messages[-1] == "1 of 6 files could not be read; the column 'error' says why"


def test_files_none_of_which_can_be_read_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(b"no image")
    words = [*_best(trained), "--data.predict_path", str(tmp_path / "bad")]
    with pytest.raises(SystemExit, match=r"none of the 2 samples can be read; the first: .*a\.png cannot be decoded"):
        command("predict", trained["config"], tmp_path / "out", *words)
    assert not list((tmp_path / "out").rglob("*predictions*"))
