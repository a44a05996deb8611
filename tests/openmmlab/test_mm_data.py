"""Data sets of the mm packages: wrapped, broken, in the wrong order, drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from mm_files import META, SIDE, config_of, data_of, edit_truth, tiny, write_config
from PIL import Image
from pycocotools.coco import COCO

import vision.openmmlab.demo
from core.errors import InputError, MissingError
from vision.openmmlab.demo import PHOTOS, DigitScenes, draw_scenes
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter


def _wrapped(dataset: Any, kind: str) -> dict[str, Any]:
    if kind == "ConcatDataset":
        return {"type": kind, "datasets": [dataset, dataset]}
    if kind == "MultiImageMixDataset":
        *first, pack = dataset["pipeline"]
        return {"type": kind, "dataset": {**dataset, "pipeline": first}, "pipeline": [pack]}
    options = {"RepeatDataset": {"times": 2}, "ClassBalancedDataset": {"oversample_thr": 0.1}}
    return {"type": kind, "dataset": dataset, **options[kind]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("mask_rcnn", f"{k}Dataset") for k in ("Repeat", "Concat", "ClassBalanced", "MultiImageMix")),
        *(("upernet_unireplknet_t", f"{k}Dataset") for k in ("Repeat", "Concat", "MultiImageMix")),
    ],
)
def test_wrapped_data_sets(name: str, kind: str, scenes: Path) -> None:
    """They are read, and what they hold is checked as it is without the wrapper."""
    config = tiny(name, root=scenes)
    for split in ("train", "val") if kind in ("RepeatDataset", "ConcatDataset") else ("train",):
        config[f"{split}_dataloader"].dataset = _wrapped(config[f"{split}_dataloader"].dataset, kind)
    path = write_config(config, scenes / "config.py")
    data = data_of(path)
    data.setup("fit")
    assert len(data.train_set) == (8 if kind in ("RepeatDataset", "ConcatDataset") else 4)  # type: ignore[arg-type]
    assert data.classes == META["classes"]
    assert next(iter(data.train_dataloader()))["inputs"][0].shape == (3, SIDE, SIDE)
    if name == "mask_rcnn":
        assert data.spec().category_ids == (1, 2, 3)
        edit_truth(scenes, lambda c: c["annotations"][0].update(bbox=[50, 6, 20, 16]))
        message = "is not inside its image"
    else:
        (scenes / "labels" / "2.png").unlink()
        message = "has no label map"
    with pytest.raises(InputError if name == "mask_rcnn" else MissingError, match=message):
        data_of(path).setup("fit")


@pytest.mark.parametrize("kind", ["RepeatDataset", "ConcatDataset"])
def test_prediction_with_a_wrapped_test_set(kind: str, scenes: Path) -> None:
    config = tiny("mask_rcnn", root=scenes)
    config.test_dataloader.dataset = _wrapped(config.test_dataloader.dataset, kind)
    path = write_config(config, scenes / "config.py")
    data = data_of(path, predict_path=str(scenes / "images"))
    data.setup("predict")
    assert data.classes == META["classes"]
    batch, names = next(iter(data.predict_dataloader()))
    assert batch["inputs"][1].shape == (3, SIDE, SIDE)
    assert names[1] == str(scenes / "images" / "1.png")
    steps = config.test_dataloader.dataset
    inner = steps["datasets"][-1] if kind == "ConcatDataset" else steps["dataset"]
    inner["pipeline"] = [inner["pipeline"][i] for i in (0, 2, 1, 3)]
    with pytest.raises(InputError, match="loads annotations before Resize"):
        data_of(write_config(config, scenes / "config.py")).setup("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=77), r"annotation 1 belongs to image 77, which the annotation"),
        (
            lambda c: c["images"][1].update(file_name="no.png"),
            r"coco\.json names the image .*no\.png, which is not there",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[50, 6, 20, 16]),
            r"box \[50, 6, 20, 16\] .* is not inside its image",
        ),
        (lambda c: c["annotations"][0].update(bbox=[5, 6, 0, 16]), r"box \[5, 6, 0, 16\]"),
    ],
)
def test_broken_annotations_are_named_before_a_run(change: Any, message: str, scenes: Path) -> None:
    path = config_of("mask_rcnn", scenes)
    edit_truth(scenes, change)
    with pytest.raises(InputError, match=message):
        data_of(path).setup("fit")


def test_missing_files_are_named(scenes: Path) -> None:
    seg = write_config(tiny("upernet_unireplknet_t", root=scenes), scenes / "seg.py")
    (scenes / "labels" / "2.png").unlink()
    with pytest.raises(MissingError, match=r"image .*2\.png has no label map .*labels/2\.png"):
        data_of(seg).setup("fit")
    det = config_of("mask_rcnn", scenes)
    (scenes / "coco.json").unlink()
    with pytest.raises(MissingError, match=r"train data of .* are missing: .*coco\.json.*set their path"):
        data_of(det).setup("fit")
    with pytest.raises(MissingError, match=r"nowhere is neither a file nor a folder"):
        Trainer(logger=False, accelerator="cpu").predict(Detector(det), datamodule=data_of(det, predict_path="nowhere"))


def test_unlisted_value_in_a_label_map(scenes: Path) -> None:
    path = config_of("upernet_unireplknet_t", scenes)
    labels = np.array(Image.open(scenes / "labels" / "0.png"))
    labels[5, 5] = 9
    Image.fromarray(labels).save(scenes / "labels" / "0.png")
    data, task = data_of(path), Segmenter(path)
    data.setup("validate")
    with pytest.raises(
        InputError, match=r"label map of .*0\.png holds 9; the model has classes 0 to 2, and 255 is ignored"
    ):
        task.check_truth(next(iter(data.val_dataloader()))["data_samples"])


def test_more_classes_in_the_data_than_in_the_model(scenes: Path) -> None:
    path = config_of("mask_rcnn", scenes)
    options = {"model.roi_head.bbox_head.num_classes": 1, "model.roi_head.mask_head.num_classes": 1}
    data, task = data_of(path), Detector(path, options=options)
    data.setup("validate")
    batches = list(data.val_dataloader())
    wrong = [batch for batch in batches if any(s.gt_instances.labels.max() > 0 for s in batch["data_samples"])]
    with pytest.raises(InputError, match=r"has a box of class [12], but the model has classes 0 to 0; set the"):
        task.check_truth(wrong[0]["data_samples"])


@pytest.mark.parametrize(
    ("load", "resize"),
    [
        ("LoadAnnotations", {"type": "Resize", "scale": (SIDE, SIDE)}),
        ("mmdet.LoadAnnotations", {"type": "mmdet.Resize", "scale": (SIDE, SIDE)}),
        ("LoadAnnotations", {"type": "FixScaleResize", "scale": (SIDE, SIDE), "keep_ratio": True}),
        ("LoadAnnotations", {"type": "RandomResize", "scale": (SIDE, SIDE), "ratio_range": (1.0, 1.0)}),
    ],
)
def test_annotations_that_would_be_scaled_are_refused(load: str, resize: dict[str, Any], scenes: Path) -> None:
    config = tiny("mask_rcnn", root=scenes)
    first, own_resize, labels, pack = config.val_dataloader.dataset.pipeline
    labels["type"] = load
    orders = {"wrong": [first, labels, resize, pack], "between": [first, own_resize, labels, resize, pack]}
    for name, steps in orders.items():
        config.val_dataloader.dataset.pipeline = steps
        message = f"loads annotations before {resize['type'].removeprefix('mmdet.')},"
        with pytest.raises(InputError, match=message):
            data_of(write_config(config, scenes / f"{name}.py")).setup("validate")
    config.val_dataloader.dataset.pipeline = [first, resize, labels, pack]
    config.test_dataloader.dataset.pipeline = [first, resize, labels, pack]
    path = write_config(config, scenes / "right.py")
    data_of(path).setup("validate")
    data = data_of(path, predict_path=str(scenes / "images"))
    data.setup("predict")
    batch, _ = next(iter(data.predict_dataloader()))
    assert batch["inputs"][0].shape == (3, SIDE, SIDE)  # without annotations


def test_drawn_scenes_are_consistent(tmp_path: Path) -> None:
    draw_scenes(tmp_path / "digits", {"train": 3, "val": 2})
    coco = COCO(str(tmp_path / "digits" / "annotations" / "train.json"))
    for image in coco.dataset["images"]:
        labels = np.array(Image.open(tmp_path / "digits" / "labels" / "train" / image["file_name"]))
        from_masks = np.zeros_like(labels)
        for note in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(note).astype(bool)
            rows, columns = np.nonzero(mask)
            x, y, width, height = note["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert note["area"] == mask.sum() > 0
            from_masks[mask] = note["category_id"]
        assert (labels == from_masks).all()
        assert labels.max() > 0
    again = tmp_path / "again"
    draw_scenes(again, {"train": 3, "val": 2})
    assert (again / "images/train/0001.png").read_bytes() == (tmp_path / "digits/images/train/0001.png").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_scenes_of_a_split_lie_on_its_own_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for photos in PHOTOS.values() for name in photos]
    assert len(set(names)) == len(names) == 6
    shades = {name: 20 * (i + 1) for i, name in enumerate(names)}
    monkeypatch.setattr(vision.openmmlab.demo, "_photo", lambda name: np.full((96, 96, 3), shades[name], np.uint8))
    draw_scenes(tmp_path / "digits", {"train": 6, "val": 2, "test": 4})
    for split, photos in PHOTOS.items():
        files = (tmp_path / "digits" / "images" / split).iterdir()
        corners = [np.asarray(Image.open(file))[0, 0].tolist() for file in files]
        grounds = [[int(0.7 * shades[name])] * 3 for name in photos]
        assert all(corner in grounds for corner in corners)
        assert all(ground in corners for ground in grounds)


@pytest.mark.parametrize("config", ["mask_rcnn_unireplknet_a_digit_scenes.py", "upernet_unireplknet_a_digit_scenes.py"])
def test_scenes_are_read_where_they_were_written(config: str, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    draw_scenes(root, {"train": 3, "val": 2, "test": 2})
    data = DigitScenes(config, root=str(root), options={"train_dataloader.batch_size": 7}, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    found = [len(data._filled(part, "any")) for part in (data.train_set, data.val_set)]  # type: ignore[arg-type]
    assert found == [3, 2]
    assert data.options is not None
    assert data.options["train_dataloader.batch_size"] == 7


def test_digits_of_a_scene_are_as_the_page_says(tmp_path: Path) -> None:
    """One to five digits, each visible for the most part, of at most 56 pixels, in light colors over a darker photo."""
    draw_scenes(tmp_path / "digits", {"train": 40})
    coco = COCO(str(tmp_path / "digits" / "annotations" / "train.json"))
    counts = []
    sides = []
    for image in coco.dataset["images"]:
        pixels = np.array(Image.open(tmp_path / "digits" / "images" / "train" / image["file_name"]))
        assert pixels.shape == (96, 96, 3)
        notes = coco.loadAnns(coco.getAnnIds(image["id"]))
        counts.append(len(notes))
        sides += [max(note["bbox"][2:]) for note in notes]
        masks = np.array([coco.annToMask(note) for note in notes])
        assert masks.sum(axis=0).max() == 1
        assert pixels[masks.any(axis=0)].max(axis=1).mean() > pixels[~masks.any(axis=0)].max(axis=1).mean()
        assert pixels[~masks.any(axis=0)].min() < 0.7 * 255
    assert (min(counts), max(counts)) <= (2, 5)
    assert min(counts) >= 1
    assert max(counts) >= 4
    assert 15 < min(sides) < 32 < 38 < max(sides) <= 56
    assert sorted(path.name for path in (tmp_path / "digits" / "labels" / "train").iterdir()) == [
        f"{i:04d}.png" for i in range(40)
    ]
