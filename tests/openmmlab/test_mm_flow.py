"""Pixels go into a detector or a segmentor and answers come out, from the task alone or from its checkpoint."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from mm_files import CONFIGS, META, SIDE, data_of, tiny, write_config, write_scenes
from PIL import Image
from torch.testing import assert_close

from core.cli import main
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from core.training import PredictionWriter
from core.training.hub import from_pretrained
from vision.openmmlab.config_files import packaged_config
from vision.openmmlab.data import DetectionSpec, OpenMMLabData, SegmentationSpec, to_bgr
from vision.openmmlab.demo import draw_scenes
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

KINDS = pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])
WORDS = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def _task(name: str, kind: Any, scenes: Path) -> Any:
    """A task with a few objects of low scores, whose test pipeline enlarges the images."""
    config = tiny(name, root=scenes)
    if kind is Detector:
        config.model.test_cfg.rcnn.score_thr = 0.0
        config.model.test_cfg.rcnn.max_per_img = 5
    config.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    return kind(write_config(config, scenes / "config.py")).eval()


def _pixels(file: Path) -> torch.Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def _answer(sample: Any) -> dict[str, torch.Tensor]:
    part = sample.pred_instances if "pred_instances" in sample else sample.pred_sem_seg
    return {name: value.float() for name, value in part.items()}


@KINDS
def test_pixels_give_what_the_file_gives(name: str, kind: Any, scenes: Path) -> None:
    task = _task(name, kind, scenes)
    files = [scenes / "images" / f"{i}.png" for i in range(2)]
    data = data_of(task.config_name, predict_path=str(scenes / "images"))
    data.setup("predict")
    raw, _ = next(iter(data.predict_dataloader()))
    pixels = torch.stack([_pixels(file) for file in files])

    with torch.no_grad():
        from_files = task(raw)
        from_bytes = task(pixels)
        from_floats = task(pixels / 255)
    for expected, *found in zip(from_files, from_bytes, from_floats, strict=True):
        assert expected.img_shape == (96, 96)
        for sample in found:
            assert_close(_answer(sample), _answer(expected), rtol=0, atol=1e-5)
    if kind is Segmenter:
        assert from_bytes[0].pred_sem_seg.data.shape == (1, SIDE, SIDE)
    else:
        assert from_bytes[0].pred_instances.masks.shape == (5, SIDE, SIDE)
        assert float(from_bytes[0].pred_instances.bboxes.max()) <= SIDE


@KINDS
def test_answers_are_those_of_the_command(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    """One image alone, two in a batch, a file or its pixels: the same boxes and label maps."""
    task = _task(name, kind, scenes)
    folder = scenes / "images"
    data = data_of(task.config_name, predict_path=str(folder))
    Trainer(logger=False, callbacks=[PredictionWriter()], default_root_dir=tmp_path, **QUIET).predict(task, data)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))

    alone = task.eval().predict(folder / "1.png")
    array = task.predict(np.array(Image.open(folder / "1.png")))
    rows = task.predict(folder, batch_size=2)
    assert [row["file"] for row in rows] == [row["file"] for row in written]
    assert [row["file"] for row in alone + array] == [str(folder / "1.png"), "array 0"]
    for row in (*alone, *array, rows[1]):
        if kind is Segmenter:
            assert (row["labels"] == np.array(Image.open(written[1]["labels"]))).all()
            assert set(row["classes"]) == {META["classes"][label] for label in np.unique(row["labels"])}
            assert row["shares"] == sorted(row["shares"], reverse=True)
            assert row["shares"][0] == (row["labels"] == META["classes"].index(row["classes"][0])).mean()
            assert sum(row["shares"]) == pytest.approx(1)
            continue
        results = json.loads((tmp_path / "predictions.json").read_text())
        results = [result for result in results if result["file_name"] == written[1]["file"]]
        assert len(results) == len(row["boxes"]) == int(written[1]["objects"]) == 5
        assert row["classes"] == [result["category"] for result in results]
        assert row["scores"] == pytest.approx([result["score"] for result in results], abs=1e-5)
        assert row["masks"].shape == (5, SIDE, SIDE)
        for (x1, y1, x2, y2), result in zip(row["boxes"], results, strict=True):
            assert [x1, y1, x2 - x1, y2 - y1] == pytest.approx(result["bbox"], abs=1e-5)


@KINDS
def test_lists_of_files_folders_and_arrays(name: str, kind: Any, scenes: Path) -> None:
    task = _task(name, kind, scenes).train()
    first = scenes / "images" / "0.png"
    rows = task.predict([str(first), np.array(Image.open(first)), scenes / "images"], batch_size=3)
    assert [Path(row["file"]).name for row in rows] == ["0.png", "array 1", "0.png", "1.png", "2.png", "3.png"]
    assert rows[0]["classes"] == rows[1]["classes"] == rows[2]["classes"]
    assert task.training
    assert not list(scenes.parent.glob("overlays"))


@KINDS
def test_a_checkpoint_is_enough(name: str, kind: Any, tmp_path: Path) -> None:
    """Class names, colors and ids come from the checkpoint; the training data are gone."""
    scenes = write_scenes(tmp_path / "scenes")
    task = _task(name, kind, scenes)
    trainer = Trainer(logger=False, default_root_dir=tmp_path, max_epochs=1, limit_val_batches=0, **QUIET)
    trainer.fit(task, datamodule=data_of(task.config_name))
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    photo = tmp_path / "photo.png"
    (scenes / "images" / "1.png").rename(photo)
    for gone in ("images", "labels"):
        (scenes / gone).rename(tmp_path / gone)
    (scenes / "coco.json").unlink()

    stored = TaskCheckpoint.read(tmp_path / "kept.ckpt")
    assert stored.spec["classes"] == list(META["classes"])
    assert stored.spec["palette"] == [list(color) for color in META["palette"]]
    assert stored.spec.get("category_ids") == ([1, 2, 3] if kind is Detector else None)

    again = kind.load_from_checkpoint(tmp_path / "kept.ckpt")
    expected: dict[str, Any] = {"classes": META["classes"], "palette": tuple(META["palette"])}
    if kind is Detector:
        assert again.spec == DetectionSpec(**expected, category_ids=(1, 2, 3))
    else:
        assert again.spec == SegmentationSpec(**expected)
    assert again.predict(photo)[0]["classes"] == task.eval().predict(photo)[0]["classes"]

    data = data_of(task.config_name, predict_path=str(photo))
    rows = Trainer(logger=False, default_root_dir=tmp_path, **QUIET).predict(again, datamodule=data)
    assert rows[0]["file"] == [str(photo)]  # type: ignore[index,call-overload]


@pytest.mark.parametrize(("name", "kind"), [("det", "detector.Detector"), ("seg", "segmenter.Segmenter")])
def test_the_command_needs_the_checkpoint_alone(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # enough scenes for each digit to be in the training split
    draw_scenes(tmp_path / "data" / "digit_scenes", {"train": 24, "val": 2, "test": 2})
    photo = tmp_path / "photo.png"
    shutil.copy(tmp_path / "data" / "digit_scenes" / "images" / "test" / "0001.png", photo)
    small = ["--trainer.limit_train_batches", "2", "--data.batch_size", "2", "--trainer.accelerator", "cpu", *WORDS]
    main(["fit", "-c", str(CONFIGS.parents[1] / "configs" / f"{name}.yaml"), *small, "--trainer.max_epochs", "1"])
    (run,) = (tmp_path / "lightning_logs").glob("*/version_0")
    kept = run / "checkpoints" / "last.ckpt"
    stored = TaskCheckpoint.read(kept)
    assert (
        stored.class_path
        == {"det": "vision.openmmlab.detector.Detector", "seg": "vision.openmmlab.segmenter.Segmenter"}[name]
    )

    shutil.rmtree(tmp_path / "data")
    main(["predict", "--ckpt_path", str(kept), "--data.predict_path", str(photo), *WORDS])
    (written,) = (tmp_path / "lightning_logs").glob("*/version_1/predictions.csv")
    with written.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == str(photo)
    assert Path(row["overlay"]).is_file()
    assert not (tmp_path / "data").exists()
    (answer,) = from_pretrained(run).predict(photo)
    assert len(answer["boxes"]) == int(row["objects"]) if name == "det" else answer["labels"].shape == (96, 96)

    evil = tmp_path / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n")
    content = torch.load(kept, weights_only=True)
    for changes in ({"config": str(evil)}, {"options": {"model.neck": {"type": "os.mkdir", "path": "marker"}}}):
        config = yaml.safe_load(content["config"])
        config["model"]["init_args"].update(changes)
        hyper_parameters = {**content["hyper_parameters"], **changes}
        torch.save({**content, "config": yaml.safe_dump(config), "hyper_parameters": hyper_parameters}, "evil.ckpt")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["predict", "--ckpt_path", "evil.ckpt", "--data.predict_path", str(photo), *WORDS])
        assert "which" in str(stopped.value.code)
        assert f"--model.{next(iter(changes))} " in str(stopped.value.code)
        assert not (tmp_path / "marker").exists()


def test_spec_of_the_data(scenes: Path) -> None:
    """The config says the names; only the ids of COCO are in a file, of which the categories alone are read."""
    path = write_config(tiny("mask_rcnn", root=scenes), scenes / "det.py")
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    spec = DetectionSpec(classes=META["classes"], palette=colors, category_ids=(1, 2, 3))
    assert data_of(path).settings() == DetectionSpec(classes=META["classes"], palette=colors)
    assert data_of(path).spec() == spec
    data = data_of(path)
    data.setup("fit")
    assert data.spec() == spec
    assert DetectionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    (scenes / "coco.json").unlink()
    assert data_of(path).spec() == DetectionSpec(classes=META["classes"], palette=colors)

    path = write_config(tiny("upernet_unireplknet_t", root=scenes), scenes / "seg.py")
    spec = SegmentationSpec(classes=META["classes"], palette=colors)
    assert data_of(path).settings() == data_of(path).spec() == spec


def test_classes_of_a_published_data_set_need_no_files() -> None:
    spec = OpenMMLabData("upernet_unireplknet_t_in1k_160k_ade20k_512.py").settings()
    assert (len(spec.classes), spec.classes[0]) == (150, "wall")
    spec = OpenMMLabData("cascade_mask_rcnn_unireplknet_t_in1k_3x_coco.py").settings()
    assert (len(spec.classes), spec.classes[0]) == (80, "person")


@KINDS
def test_data_with_another_number_of_classes_are_refused(name: str, kind: Any, scenes: Path) -> None:
    config = tiny(name, root=scenes)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.metainfo = {"classes": ("red", "green"), "palette": META["palette"][:2]}
    path = write_config(config, scenes / "config.py")
    message = r"heads of the model have 3 classes and the data 2 \(red, green\); .*--model.options"
    with pytest.raises(InputError, match=message):
        Trainer(logger=False, max_epochs=1, **QUIET).fit(kind(path), datamodule=data_of(path))
    with pytest.raises(InputError, match=message):
        kind(path, spec=data_of(path).spec())


OWNERS = pytest.mark.parametrize("owner", [Detector, Segmenter, OpenMMLabData])


@OWNERS
def test_checkpoints_may_name_packaged_configs_alone(owner: Any, tmp_path: Path) -> None:
    assert owner.runs_files == ("config", "options")
    assert owner.trusts_file("config", "mask_rcnn_unireplknet_a_digit_scenes.py")
    (tmp_path / "evil.py").touch()
    names = [str(tmp_path / "evil.py"), "../task.py", "../../../tests/conftest.py", "no.py", "", "_base_"]
    assert not [name for name in names if owner.trusts_file("config", name)]
    assert packaged_config("_base_/fcos.py") is not None


@OWNERS
@pytest.mark.parametrize(
    ("options", "harmless"),
    [
        ({}, True),
        ({"model.backbone.depths": [1, 1, 1, 1], "model.backbone.with_cp": True}, True),
        ({"model.roi_head.bbox_head.num_classes": 3, "test_dataloader.dataset.data_root": "data/x"}, True),
        ({"model.neck": {"type": "os.system", "command": "touch x"}}, False),
        ({"model.neck.type": "os.system"}, False),
        ({"model.neck": {"num_outs": 3}}, False),
        ({"model.decode_head.loss_decode": [{"type": "os.system"}]}, False),
        ({"model.neck.init_cfg.checkpoint": "evil.pth"}, False),
        ({"train_dataloader.dataset.proposal_file": "evil.pkl"}, False),
        ({"custom_imports.imports": ["evil"]}, False),
        ({"default_scope": "evil"}, False),
        ("model", False),
    ],
)
def test_checkpoints_may_name_harmless_options_alone(owner: Any, options: Any, harmless: bool) -> None:
    """MMEngine calls what a 'type' names, wherever it lies."""
    assert owner.trusts_file("options", options) is harmless


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); expected \(height, width, 3\)"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.full((8, 8, 3), 255.0), r"float64 pixels from 255 to 255; expected uint8, or float in \[0, 1\]"),
        (np.full((8, 8, 3), -0.5), r"from -0\.5 to -0\.5"),
        (np.zeros((8, 8, 3), np.int64), r"int64 pixels"),
    ],
)
def test_other_pixels_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_bgr(pixels)


def test_pixels_are_turned_to_blue_first() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    for pixels in (red, red / 255, (red / 255).astype(np.float32)):
        assert to_bgr(pixels).dtype == np.uint8
        assert to_bgr(pixels)[0, 0].tolist() == [0, 0, 200]


def test_arrays_need_a_pipeline_that_loads_images(scenes: Path) -> None:
    config = tiny("upernet_unireplknet_t", root=scenes)
    config.test_dataloader.dataset.pipeline[0] = {"type": "LoadBiomedicalImageFromFile"}
    task = Segmenter(write_config(config, scenes / "config.py"))
    with pytest.raises(InputError, match=r"does not begin with LoadImageFromFile, so it takes no arrays"):
        task(torch.zeros(1, 3, SIDE, SIDE))
