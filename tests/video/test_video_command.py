"""Training, evaluation, prediction and export of videos with the command, and arguments that it refuses."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from small_clips import (
    PLAIN,
    SMALL,
    colored,
    numbered,
    video_runs,
    write_colors,
    write_list,
    write_sound,
    write_video,
    write_video_config,
)
from torch.testing import assert_close
from training.small_runs import add_callbacks, command, metric, saved, table

from core.training.hub import from_pretrained
from video import VideoClassifier, VideoDataModule
from video.decoding import VideoFile


def _best(trained: dict[str, Path]) -> list[str]:
    return ["--ckpt_path", str(trained["folder"] / "checkpoints" / "best.ckpt")]


def _trained(trained: dict[str, Path]) -> VideoClassifier:
    file = trained["folder"] / "checkpoints" / "best.ckpt"
    return VideoClassifier.load_from_checkpoint(file, map_location="cpu").eval()


def test_run_learns_the_colors_and_leaves_its_pictures(trained_videos: dict[str, Path]) -> None:
    run = trained_videos["folder"]
    assert max(metric(run, "val_acc")) == 1.0
    assert metric(run, "train_loss")[-1] < 0.6 * metric(run, "train_loss")[0]
    for name in ("confusion_matrix.png", "examples.png", "learning_curves.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    spec = saved(run, "best")["hyper_parameters"]["spec"]
    assert spec["classes"] == ["blue", "green", "red"]
    assert spec["num_frames"] == 4
    assert spec["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_all_verbs_follow_each_other(trained_videos: dict[str, Path], tmp_path: Path) -> None:
    out, config = tmp_path / "out", trained_videos["config"]
    shutil.copytree(trained_videos["out"], out)
    for verb in ("validate", "test"):
        views = ["--data.test_views", "2", "--data.test_crops", "3"] if verb == "test" else []
        command(verb, config, out, "--ckpt_path", "best", *views)
        assert (video_runs(out)[-1] / "examples.png").is_file()
    assert metric(video_runs(out)[-1], "test_acc") == [1.0]
    file = write_video(tmp_path / "any name.mkv", colored((220, 50, 40), 5, 33))
    command("predict", config, out, "--ckpt_path", "best", "--data.predict_path", str(file), "--data.test_views", "3")
    (row,) = table(video_runs(out)[-1] / "predictions.csv")
    assert (row["file"], row["class"]) == (str(file), "red")
    command("export", config, out, "--ckpt_path", "best", "--output", str(out / "files"))
    session = onnxruntime.InferenceSession(out / "files" / "test_unireplknet.onnx", providers=["CPUExecutionProvider"])
    model = _trained(trained_videos)
    x = torch.rand(3, 4, 3, 32, 32)
    (name,) = (node.name for node in session.get_inputs())
    with torch.no_grad():
        found = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        assert_close(found, model(x), rtol=1e-4, atol=1e-4)


def test_export_of_what_reads_the_map(trained_videos: dict[str, Path], tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "files"), "--from", "map"]
    command("export", trained_videos["config"], tmp_path, *_best(trained_videos), *output)
    file = tmp_path / "files" / "test_unireplknet.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model = _trained(trained_videos)
    x = torch.rand(3, 4, 3, 32, 32)
    (name,) = (node.name for node in session.get_inputs())
    with torch.no_grad():
        found = torch.from_numpy(session.run(None, {name: model.feature_map(x).numpy()})[0])
        assert_close(found, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("views", [1, 3])
def test_the_task_alone_predicts_like_the_command(views: int, trained_videos: dict[str, Path], tmp_path: Path) -> None:
    """By the command, by a trainer, by ``task.predict``, and by ``task(frames)``, with each way to load a task."""
    file = write_video(tmp_path / "a.mp4", colored((130, 125, 40), 3, 40))
    config = write_video_config(tmp_path / "c.yaml", trained_videos["videos"], test_views=views, test_crops=views)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1")
    run = video_runs(tmp_path)[0]
    command("predict", config, tmp_path, "--ckpt_path", "best", "--data.predict_path", str(file))
    (row,) = table(video_runs(tmp_path)[-1] / "predictions.csv")

    data = VideoDataModule(predict_path=str(file), **SMALL, **PLAIN, test_views=views, test_crops=views)
    data.setup("predict")
    frames, _ = data.predict_set[0]  # type: ignore[index]
    with VideoFile(file) as video:
        array = video.read(np.arange(40))

    checkpoint = run / "checkpoints" / "best.ckpt"
    VideoClassifier.load_from_checkpoint(checkpoint).save_pretrained(tmp_path / "shared")
    for task in (VideoClassifier.load_from_checkpoint(checkpoint), from_pretrained(str(tmp_path / "shared"))):
        assert isinstance(task, VideoClassifier)
        (by_file,) = task.predict(str(file))
        (by_array,) = task.predict(array)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        (by_trainer,) = trainer.predict(task, datamodule=data) or []
        with torch.no_grad():
            probabilities = task.eval().probabilities(task(frames[None]))[0]
        for name, probability in (
            (row["class"], float(row["probability"])),
            (by_file["class"], by_file["probability"]),
            (by_array["class"], by_array["probability"]),
            (by_trainer["class"][0], by_trainer["probability"][0]),
        ):
            assert name == task.class_names[int(probabilities.argmax())]
            assert probability == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert by_file["file"] == str(file)
        folder = task.predict(trained_videos["videos"] / "test")
        assert [r["file"] for r in folder] == sorted(map(str, (trained_videos["videos"] / "test").rglob("*.mp4")))


def test_predictions_of_a_folder(trained_videos: dict[str, Path], tmp_path: Path) -> None:
    some = write_colors(tmp_path / "some", test=2) / "test"
    (some / "notes.txt").write_text("no video")
    command("predict", trained_videos["config"], tmp_path, *_best(trained_videos), "--data.predict_path", str(some))
    rows = table(video_runs(tmp_path)[0] / "predictions.csv")
    assert [row["file"] for row in rows] == sorted(str(p) for p in some.rglob("*.mp4"))
    assert all(row["class"] == Path(row["file"]).parent.name for row in rows)


def test_class_names_come_from_the_checkpoint_without_the_training_data(
    trained_videos: dict[str, Path], tmp_path: Path
) -> None:
    file = trained_videos["videos"] / "val" / "green" / "0.mp4"
    config = write_video_config(tmp_path / "c.yaml", None)
    command("predict", config, tmp_path, *_best(trained_videos), "--data.predict_path", str(file))
    assert [row["class"] for row in table(video_runs(tmp_path)[0] / "predictions.csv")] == ["green"]


class _Interrupt(Callback):
    """Ctrl-C at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    root = write_colors(tmp_path / "videos", train=4, val=1)
    config = write_video_config(tmp_path / "c.yaml", root, hflip=0.5, scale=[0.4, 1.0], repeats=2)
    words = ["--model.mixup_alpha", "0.2", "--model.erasing", "0.5", "--trainer.max_epochs", "3"]
    command("fit", config, tmp_path / "whole", *words)
    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, _Interrupt())
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            command("fit", config, tmp_path / "parts", *words)
    command("fit", config, tmp_path / "parts", *words, "--ckpt_path", "last")
    whole, parts = (saved(video_runs(tmp_path / name)[-1]) for name in ("whole", "parts"))
    for part in ("epoch", "global_step", "state_dict", "optimizer_states"):
        assert_close(parts[part], whole[part], rtol=0, atol=0)


def _refused(match: str, verb: str, config: Path, out: Path, *words: str) -> None:
    with pytest.raises(SystemExit, match=match):
        command(verb, config, out, *words)
    assert not video_runs(out)


def test_test_stops_at_a_video_that_cannot_be_read(trained_videos: dict[str, Path], tmp_path: Path) -> None:
    root = write_colors(tmp_path / "videos", train=2, val=2, test=2)
    config, out = write_video_config(tmp_path / "c.yaml", root), tmp_path / "out"
    file = root / "test" / "green" / "1.mp4"
    for write, message in (
        (lambda: file.write_bytes(b""), "is empty; replace it"),
        (lambda: write_sound(file), "has sound and no pictures; give a video"),
        (lambda: write_video(file, numbered(1)), r"has too few frames \(1\); a clip needs at least two"),
    ):
        write()
        _refused(rf"^lightning: error: .*green/1\.mp4 {message}", "test", config, out, *_best(trained_videos))


def test_training_leaves_out_a_broken_video_on_request(tmp_path: Path) -> None:
    root = write_colors(tmp_path / "videos", train=3, val=1)
    (root / "train" / "red" / "1.mp4").write_bytes(b"damaged")
    config = write_video_config(tmp_path / "c.yaml", root)
    words = ["--trainer.max_epochs", "1"]
    with pytest.raises(SystemExit, match=r"red/1\.mp4 cannot be decoded .*, or type --data\.skip_broken true"):
        command("fit", config, tmp_path / "out", *words)
    with pytest.warns(UserWarning, match=r"skipped: .*red/1\.mp4 cannot be decoded"):
        command("fit", config, tmp_path / "out", *words, "--data.skip_broken", "true")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--data.num_frames", "7"],
            r"7 frames fill no rectangle but a single row; give --data\.num_frames 6 or 8, or",
        ),
        (["--model.rows", "3"], r"4 frames fill no rectangle of 3 rows; give --model\.rows one of 1, 2, 4"),
        (["--model.num_classes", "5"], r"the model has 5 classes and the data 3"),
        (["--model.backbone_args.in_chans", "1"], r"the backbone takes 1 channels and the maps have 3"),
        (["--model.layout", "rows"], "layout"),
    ],
)
def test_settings_that_do_not_fit(
    words: list[str], message: str, trained_videos: dict[str, Path], tmp_path: Path
) -> None:
    _refused(message, "fit", trained_videos["config"], tmp_path / "out", *words)


def test_wrong_list_leaves_no_run_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(4))
    for name in ("train", "val"):
        write_list(tmp_path, name, ["a.mp4 0", "a.mp4 1", "a.mp4 2", "a.mp4"])
    config = write_video_config(tmp_path / "c.yaml", tmp_path, kind="VideoList")
    _refused(
        r"^lightning: error: .*train\.csv, line 4: got 'a\.mp4'; expected 'path label'", "fit", config, tmp_path / "o"
    )
    write_list(tmp_path, "train", ["a.mp4 0", "a.mp4 1", "a.mp4 2"])
    write_list(tmp_path, "val", ["a.mp4 9"])
    _refused(r"val\.csv, line 1: label 9 is outside 0\.\.2", "fit", config, tmp_path / "o")
