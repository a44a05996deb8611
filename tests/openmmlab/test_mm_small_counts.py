"""One class, one image, one object, or none at all: metrics, pictures and predictions are made all the same."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from mm_files import META, SIDE, data_of, edit_truth, tiny, write_config
from PIL import Image

from core.errors import InputError
from core.training import PredictionWriter
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SPLITS = ("train", "val", "test")


def _with_classes(config: Any, count: int) -> None:
    """The first classes alone, in the data and in all heads."""
    for split in SPLITS:
        config[f"{split}_dataloader"].dataset.metainfo = {name: values[:count] for name, values in META.items()}
    heads = [config.model.get(name) for name in ("decode_head", "auxiliary_head")]
    if "roi_head" in config.model:
        heads = [config.model.roi_head.bbox_head, config.model.roi_head.mask_head]
    for head in heads:
        head.num_classes = count


def _run(task: Any, tmp_path: Path) -> dict[str, float]:
    """Fit, test and predict; returns what validation measured."""
    data = data_of(task.config_name)
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[PredictionWriter()], **QUIET)
    trainer.fit(task, datamodule=data)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(task, datamodule=data, verbose=False)
    trainer.predict(task, datamodule=data)

    (file,) = tmp_path.rglob("predictions.csv")
    with file.open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert all(Path(row["overlay"]).is_file() for row in rows)
    assert next(tmp_path.rglob("examples.png")).is_file()
    assert [row["classes"] for row in task.predict([row["file"] for row in rows])]
    return measured


def test_one_class_one_image_one_object(scenes: Path, tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["categories"] = content["categories"][:1]
        content["annotations"] = content["annotations"][:1]

    edit_truth(scenes, change)
    config = tiny("mask_rcnn", root=scenes)
    config.model.test_cfg.rcnn.score_thr = 0.0
    _with_classes(config, 1)
    for split in ("val", "test"):
        config[f"{split}_dataloader"].dataset.indices = 1
    measured = _run(Detector(write_config(config, scenes / "config.py")), tmp_path)
    assert 0 <= measured["val_bbox_map"] <= 1
    assert 0 <= measured["val_segm_map"] <= 1


def test_no_objects_and_none_found(scenes: Path, tmp_path: Path) -> None:
    edit_truth(scenes, lambda content: content["annotations"].clear())
    config = tiny("mask_rcnn", root=scenes)
    config.model.test_cfg.rcnn.score_thr = 1.1
    with pytest.warns(UserWarning, match="The val data have no objects; their mean average precision is given as -1"):
        measured = _run(Detector(write_config(config, scenes / "config.py")), tmp_path)
    assert measured["val_bbox_map"] == measured["val_segm_map"] == -1


def test_two_classes_in_one_channel(scenes: Path, tmp_path: Path) -> None:
    """MMSegmentation's way for two classes gives its label maps as floats."""
    for file in (scenes / "labels").iterdir():
        labels = np.array(Image.open(file))
        labels[labels == 2] = 1
        Image.fromarray(labels).save(file)
    config = tiny("upernet_unireplknet_t", root=scenes)
    _with_classes(config, 2)
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.update(out_channels=1, loss_decode={"type": "CrossEntropyLoss", "use_sigmoid": True})
    task = Segmenter(write_config(config, scenes / "config.py"))
    measured = _run(task, tmp_path)
    assert 0 <= measured["val_miou"] <= measured["val_acc"] <= 1
    (row,) = task.predict(scenes / "images" / "0.png")
    assert row["labels"].dtype == np.int64
    assert row["labels"].shape == (SIDE, SIDE)


def test_no_labeled_pixel(scenes: Path, tmp_path: Path) -> None:
    """There is nothing to measure, and no figure says otherwise."""
    for file in (scenes / "labels").iterdir():
        Image.new("L", (SIDE, SIDE), 255).save(file)
    path = write_config(tiny("upernet_unireplknet_t", root=scenes), scenes / "config.py")
    measured = _run(Segmenter(path), tmp_path)
    assert math.isnan(measured["val_miou"])
    assert math.isnan(measured["val_acc"])


def test_a_segmentor_of_one_class_is_refused(scenes: Path) -> None:
    config = tiny("upernet_unireplknet_t", root=scenes)
    _with_classes(config, 1)
    with pytest.raises(InputError, match=r"heads of the model have one class, .*'background', 'object'.*num_classes=2"):
        Segmenter(write_config(config, scenes / "config.py"))
