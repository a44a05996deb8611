"""What detectors and segmentors write of each image, and under which names."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from mm_files import META, SIDE, config_of, data_of, edit_truth
from PIL import Image
from pycocotools.coco import COCO

from core.training import PredictionWriter
from vision.openmmlab.data import output_names
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

KINDS = pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])


def test_predictions_of_a_detector_are_coco_results(scenes: Path, tmp_path: Path) -> None:
    path = config_of("mask_rcnn", scenes)
    options = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 5}
    trainer = Trainer(logger=False, callbacks=[PredictionWriter()], default_root_dir=tmp_path, accelerator="cpu")
    trainer.predict(
        Detector(path, options=options), datamodule=data_of(path, predict_path=str(scenes / "images" / "1.png"))
    )
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert len(results) == 5
    assert COCO(str(scenes / "coco.json")).loadRes([r | {"image_id": 1} for r in results]).getAnnIds()
    for found in results:
        x, y, width, height = found["bbox"]
        assert min(x, y, width, height) >= 0
        assert max(x + width, y + height) <= SIDE
        assert found["segmentation"]["size"] == [SIDE, SIDE]
        assert found["category_id"] in (1, 2, 3)


def test_predictions_have_the_ids_of_the_annotation_file(scenes: Path, tmp_path: Path) -> None:
    """Ids with gaps, as COCO's are; a checkpoint keeps them for images without annotations."""
    ids = {1: 7, 2: 13, 3: 90}

    def change(content: Any) -> None:
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
        for note in content["annotations"]:
            note["category_id"] = ids[note["category_id"]]

    edit_truth(scenes, change)
    path = config_of("mask_rcnn", scenes)
    options = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 20}
    task = Detector(path, options=options)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **shown)

    def predicted(task: Detector, **options: Any) -> set[tuple[str, int]]:
        trainer.predict(task, datamodule=data_of(path, **options))
        return {(r["category"], r["category_id"]) for r in json.loads((tmp_path / "predictions.json").read_text())}

    pairs = set(zip(META["classes"], ids.values(), strict=True))
    found = predicted(task)
    assert len(found) > 1
    assert found <= pairs
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    again = Detector.load_from_checkpoint(tmp_path / "kept.ckpt")
    assert predicted(again, predict_path=str(scenes / "images" / "1.png")) <= pairs


@KINDS
def test_images_of_one_name_keep_their_own_predictions(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    path, photos = config_of(name, scenes), tmp_path / "photos"
    sizes = {"a/x.png": (64, 64), "a/x.jpg": (64, 80), "b/x.png": (64, 96)}
    for place, size in sizes.items():
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 90, 90)).save(photos / place)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **shown)
    batches: Any = trainer.predict(kind(path), datamodule=data_of(path, predict_path=str(photos)))
    rows = [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]
    assert len({row["overlay"] for row in rows}) == len(rows) == 3
    for row in rows:
        width, height = sizes[Path(row["file"]).relative_to(photos).as_posix()]
        overlay = Image.open(row["overlay"])
        assert overlay.width / overlay.height == pytest.approx(width / height, abs=0.01)
        if kind is Segmenter:
            assert Image.open(row["labels"]).size == (width, height)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/p/x.png", "/p/y.png"], ["x", "y"]),
        (["/p/a/x.png", "/p/b/x.png"], ["a/x", "b/x"]),
        (["/p/x.png", "/p/x.jpg", "/p/x.png.jpg"], ["x.png", "x.jpg", "x.png.jpg"]),
        (["/p/x.png", "/p/q/../x.png"], ["x", "x"]),
        (["/p/1.5.png", "/p/1.6.png"], ["1.5", "1.6"]),
    ],
)
def test_names_of_predictions(files: list[str], names: list[str]) -> None:
    assert list(output_names(files).values()) == names
