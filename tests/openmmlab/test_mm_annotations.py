"""Annotations that MMDetection and MMSegmentation would read wrongly or leave out: read by name, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from mm_files import CONFIGS, META, SIDE, config_of, data_of, edit_truth, tiny, write_config
from PIL import Image

from core.cli import main
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from vision.openmmlab.data import OpenMMLabData
from vision.openmmlab.demo import DigitScenes
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def _names(dataset: Any) -> list[list[str]]:
    """The class names of the objects of each image."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [[dataset.metainfo["classes"][o["bbox_label"]] for o in info["instances"]] for info in infos]


TRUTH = [["red"], ["green", "blue"], ["blue"], ["red", "green"]]


def _reversed(content: Any) -> None:
    content["categories"].reverse()


def _renumbered(content: Any) -> None:
    """The ids in another order than the classes."""
    ids = {1: 30, 2: 10, 3: 20}
    content["categories"] = [{"id": ids[c["id"]], "name": c["name"]} for c in content["categories"]][::-1]
    for note in content["annotations"]:
        note["category_id"] = ids[note["category_id"]]


def _two_files(scenes: Path, config: Any = None) -> str:
    """A config whose training and validation data have annotation files of their own."""
    config = config or tiny("mask_rcnn", root=scenes)
    shutil.copy(scenes / "coco.json", scenes / "val.json")
    config.val_dataloader.dataset.ann_file = "val.json"
    return write_config(config, scenes / "config.py")


@pytest.mark.parametrize("change", [_reversed, _renumbered])
@pytest.mark.parametrize("files", ["train", "val", "both"])
def test_labels_follow_the_names(change: Any, files: str, scenes: Path) -> None:
    path = _two_files(scenes)
    if files in ("train", "both"):
        edit_truth(scenes, change)
    if files in ("val", "both"):
        content = json.loads((scenes / "val.json").read_text())
        change(content)
        (scenes / "val.json").write_text(json.dumps(content))

    data = data_of(path)
    ids = (30, 10, 20) if change is _renumbered and files != "train" else (1, 2, 3)
    assert data.spec().category_ids == ids  # type: ignore[attr-defined]
    data.setup("fit")
    assert data.spec().category_ids == ids  # type: ignore[attr-defined]
    assert _names(data.train_set) == _names(data.val_set) == TRUTH


@pytest.mark.parametrize("wrapper", ["RepeatDataset", "ConcatDataset"])
def test_labels_follow_the_names_inside_wrappers(wrapper: str, scenes: Path) -> None:
    config = tiny("mask_rcnn", root=scenes)
    inner = config.train_dataloader.dataset
    held = {"dataset": inner, "times": 1} if wrapper == "RepeatDataset" else {"datasets": [inner, inner]}
    config.train_dataloader.dataset = {"type": wrapper, **held}
    edit_truth(scenes, _renumbered)
    data = data_of(write_config(config, scenes / "config.py"))
    data.setup("fit")
    part = getattr(data.train_set, "dataset", None) or data.train_set.datasets[1]  # type: ignore[union-attr]
    assert _names(part) == TRUTH


def test_labels_follow_the_names_in_published_formats(scenes: Path) -> None:
    """Cityscapes and others derive from CocoDataset."""
    config = tiny("mask_rcnn", root=scenes)
    config.train_dataloader.dataset.type = "CityscapesDataset"
    edit_truth(scenes, _renumbered)
    path = write_config(config, scenes / "config.py")
    data = data_of(path)
    data.setup("fit")
    assert _names(data.train_set) == TRUTH
    edit_truth(scenes, lambda c: c["annotations"][2].pop("segmentation"))
    with pytest.raises(InputError, match=r"annotation 3 has no segmentation"):
        data_of(path).setup("fit")


def test_predictions_have_the_ids_of_the_file_that_is_read(scenes: Path, tmp_path: Path) -> None:
    """A test file may number its categories in another way than the file that the model was validated on."""
    config = tiny("mask_rcnn", root=scenes)
    config.model.test_cfg.rcnn.score_thr = 0.0
    config.test_dataloader.dataset.ann_file = "test.json"
    shutil.copy(scenes / "coco.json", scenes / "test.json")
    path = write_config(config, scenes / "config.py")
    content = json.loads((scenes / "coco.json").read_text())
    _renumbered(content)
    (scenes / "test.json").write_text(json.dumps(content))
    task = Detector(path, spec=data_of(path).spec())
    assert task.spec.category_ids == (1, 2, 3)

    Trainer(logger=False, default_root_dir=tmp_path, **QUIET).predict(task, datamodule=data_of(path))
    found = json.loads((tmp_path / "predictions.json").read_text())
    pairs = {(result["category"], result["category_id"]) for result in found}
    assert pairs
    assert pairs <= {("red", 30), ("green", 10), ("blue", 20)}


def _rename(content: Any) -> None:
    content["categories"][1]["name"] = "gren"


def _lacking(content: Any) -> None:
    content["categories"] = content["categories"][:2]
    content["annotations"] = [note for note in content["annotations"] if note["category_id"] < 3]


@pytest.mark.parametrize("file", ["coco.json", "val.json"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, r"has no category green \(perhaps gren for green\); its categories are red, gren, blue"),
        (_lacking, r"has no category blue; its categories are red, green, and the classes of the config red, green,"),
        (lambda c: c.pop("categories"), r"has category_id 1; expected .*: $"),
        (lambda c: c["annotations"][0].update(category_id=9), r"annotation 1 has category_id 9; expected .*: 1, 2, 3"),
        (lambda c: c["annotations"][0].update(category_id="1"), r"annotation 1 has category_id '1'; expected .*whole"),
        (lambda c: c["annotations"][0].update(category_id=True), r"annotation 1 has category_id True"),
        (lambda c: c["annotations"][0].pop("category_id"), r"annotation 1 has no category_id"),
        (lambda c: c["categories"][0].update(id="1"), r"category \{'id': '1', 'name': 'red'\} has no whole number"),
        (lambda c: c["categories"][0].update(id=2), r"several categories with the id 2"),
        (lambda c: c["categories"].append({"id": 4, "name": "red"}), r"several categories with the name 'red'"),
        (lambda c: c["annotations"][0].update(bbox=[5, 6, 7]), r"annotation 1 has bbox \[5, 6, 7\]; expected \[x, y"),
        (lambda c: c["annotations"][0].update(bbox="5 6 7 8"), r"annotation 1 has bbox 5 6 7 8"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotation 1 has no bbox"),
        (lambda c: c["images"][1].pop("width"), r"'file_name': '1.png', .* has no width"),
        (lambda c: c["images"][1].update(id=0), r"two images with the id 0: 0\.png and 1\.png"),
    ],
)
def test_what_does_not_match_is_refused_with_the_file(file: str, change: Any, message: str, scenes: Path) -> None:
    path = _two_files(scenes)
    content = json.loads((scenes / file).read_text())
    change(content)
    (scenes / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{file}.*{message}"):
        data_of(path).setup("fit")


def test_a_typo_is_named_before_anything_is_read(scenes: Path) -> None:
    """The command asks for the specification before it builds the model or a run folder."""
    edit_truth(scenes, _rename)
    with pytest.raises(InputError, match=r"coco\.json has no category green"):
        data_of(config_of("mask_rcnn", scenes)).spec()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("red", r"classes='red', which is a string; expected a tuple, .*classes=\('red',\)"),
        (("red", "green", "red"), r"names the class red twice"),
    ],
)
@pytest.mark.parametrize("name", ["mask_rcnn", "upernet_unireplknet_t"])
def test_class_names_that_are_no_list(name: str, classes: Any, message: str, scenes: Path) -> None:
    config = tiny(name, root=scenes)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.metainfo = {"classes": classes}
    with pytest.raises(InputError, match=message):
        data_of(write_config(config, scenes / "config.py")).settings()


def test_objects_that_are_left_out_are_named(scenes: Path) -> None:
    """Some of the categories of a file may be chosen, and a warning says what that leaves out."""
    config = tiny("mask_rcnn", root=scenes)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.metainfo = {"classes": ("blue", "red")}
    edit_truth(scenes, lambda c: c["annotations"][0].update(bbox=[0.1, 0.1, 0.3, 0.25]))
    data = data_of(write_config(config, scenes / "config.py"))
    left_out = r"coco\.json: objects of categories that are not among the classes .* left out: green \(2\)"
    thin = r"1 boxes thinner than one pixel are left out, .* not relative to the size of the image"
    with pytest.warns(UserWarning, match=left_out), pytest.warns(UserWarning, match=thin):
        data.setup("validate")
    assert _names(data.val_set) == [[], ["blue"], ["blue"], ["red"]]


@pytest.mark.parametrize("area", [None, 0, "absent"])
def test_objects_without_an_area(area: Any, scenes: Path) -> None:
    def change(content: Any) -> None:
        for note in content["annotations"]:
            note["area"] = area
            if area == "absent":
                del note["area"]

    edit_truth(scenes, change)
    data = data_of(config_of("mask_rcnn", scenes))
    data.setup("fit")
    assert _names(data.train_set) == TRUTH


def test_annotations_with_a_byte_order_mark(scenes: Path) -> None:
    text = (scenes / "coco.json").read_text()
    (scenes / "coco.json").write_text(text.replace("green", "gr\u00fcn"), encoding="utf-8-sig")
    config = tiny("mask_rcnn", root=scenes)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.metainfo = {"classes": ("red", "gr\u00fcn", "blue")}
    data = data_of(write_config(config, scenes / "config.py"))
    assert data.spec().category_ids == (1, 2, 3)  # type: ignore[attr-defined]
    data.setup("fit")
    (scenes / "coco.json").write_text("[]")
    with pytest.raises(InputError, match=r"coco\.json holds a list; expected COCO's format"):
        data_of(data.config).setup("fit")


MASKS = [
    (None, r"annotation 2 has no segmentation, and the model learns masks"),
    ("absent", r"annotation 2 has no segmentation"),
    ([], r"annotation 2 has no segmentation"),
    ([[]], r"annotation 2 has segmentation \[\[\]\]; expected polygons"),
    ([[1, 2, 3, 4]], r"annotation 2 has segmentation \[\[1, 2, 3, 4\]\]; expected polygons"),
    ({"size": [SIDE, SIDE]}, r"annotation 2 has segmentation .*; expected RLE with counts"),
    ({"size": [SIDE, 8], "counts": [8 * SIDE]}, r"expected RLE with counts and the size \[64, 64\]"),
]


@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_masks_that_cannot_be_learned(mask: Any, message: str, scenes: Path) -> None:
    def change(content: Any) -> None:
        content["annotations"][1]["segmentation"] = mask
        if mask == "absent":
            del content["annotations"][1]["segmentation"]

    edit_truth(scenes, change)
    with pytest.raises(InputError, match=rf"coco\.json: .*{message}"):
        data_of(config_of("mask_rcnn", scenes)).setup("fit")

    config = tiny("fcos", root=scenes)  # finds boxes alone
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.pipeline[2].with_mask = False
    data = data_of(write_config(config, scenes / "boxes.py"))
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 2


# Label maps


def _seg(scenes: Path, **changes: Any) -> str:
    config = tiny("upernet_unireplknet_t", root=scenes)
    for split, values in changes.items():
        config[f"{split}_dataloader"].dataset.update(values)
    return write_config(config, scenes / "config.py")


def test_label_maps_of_another_size_are_named_before_a_run(scenes: Path) -> None:
    path = _seg(scenes)
    file = scenes / "labels" / "2.png"
    Image.open(file).resize((SIDE, 32)).save(file)
    with pytest.raises(InputError, match=r"labels/2\.png has 64 x 32 pixels and its image .*images/2\.png 64 x 64"):
        data_of(path).setup("fit")


def test_images_that_are_turned_by_exif_fit_their_label_maps(scenes: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (scenes / "images").iterdir():
        Image.new("RGB", (SIDE, 32)).save(file.with_suffix(".jpg"), exif=exif)
        file.unlink()
    for file in (scenes / "labels").iterdir():
        Image.open(file).resize((32, SIDE)).save(file)
    path = _seg(scenes, **{split: {"img_suffix": ".jpg"} for split in ("train", "val", "test")})
    data = data_of(path)
    data.setup("validate")
    sample = data.val_set[0]  # type: ignore[index]
    assert sample["data_samples"].ori_shape == (SIDE, 32) == tuple(sample["data_samples"].gt_sem_seg.data.shape[1:])


def test_color_pictures_are_no_label_maps(scenes: Path) -> None:
    file = scenes / "labels" / "1.png"
    Image.open(file).convert("RGB").save(file)
    with pytest.raises(InputError, match=r"labels/1\.png is a color picture \(RGB\); expected one channel"):
        data_of(_seg(scenes)).setup("fit")


def test_label_maps_of_16_bits(scenes: Path) -> None:
    """Those whose values fit into 8 bits are read."""
    file = scenes / "labels" / "1.png"
    labels = np.array(Image.open(file))
    Image.fromarray(labels.astype(np.uint16)).save(file)
    data = data_of(_seg(scenes))
    data.setup("fit")
    assert (data.val_set[1]["data_samples"].gt_sem_seg.data[0].numpy() == labels).all()  # type: ignore[index]
    Image.fromarray(labels.astype(np.uint16) + 255).save(file)
    with pytest.raises(InputError, match=r"labels/1\.png holds values from 255 to 510; MMSegmentation reads 0 to 255"):
        data_of(_seg(scenes)).setup("fit")


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ({}, {"reduce_zero_label": True}, r"train and the val data differ in reduce_zero_label: False and True"),
        (
            {},
            {"metainfo": {**META, "classes": ("green", "red", "blue")}},
            r"train and the val data differ in classes: label 0 is red and green, label 1 is green and red",
        ),
    ],
)
def test_splits_whose_labels_mean_different_things(first: Any, other: Any, message: str, scenes: Path) -> None:
    path = _seg(scenes, train=first, val=other)
    for stage in ("fit", "validate"):
        with pytest.raises(InputError, match=message):
            data_of(path).setup(stage)


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        ({}, {}, r"labels/2\.png gives 3; .* 0 to 2, and 255 is ignored\. If .* numbered from 1 .*reduce_zero_label"),
        ({"reduce_zero_label": True}, {"ignore_index": 0}, r"gives 255; .*set ignore_index=255 in the heads"),
        ({"reduce_zero_label": True}, {}, None),
    ],
)
def test_values_of_label_maps_are_looked_at_before_a_run(
    change: Any, heads: Any, message: str | None, scenes: Path, tmp_path: Path
) -> None:
    """Maps that are numbered from 1, where 0 is ignored."""
    for i in range(4):
        file = scenes / "labels" / f"{i}.png"
        labels = np.array(Image.open(file))
        known = labels != 255
        labels[known] += i == 2 or bool(change)
        labels[~known] = 0
        Image.fromarray(labels).save(file)
    path = _seg(scenes, train=change, val=change, test=change)
    options = {f"model.{head}.{k}": v for head in ("decode_head", "auxiliary_head") for k, v in heads.items()}
    trainer = Trainer(logger=False, max_epochs=1, limit_val_batches=1, default_root_dir=tmp_path, **QUIET)
    task = Segmenter(path, options=options)
    if message is None:
        trainer.fit(task, datamodule=data_of(path))
        return
    with pytest.raises(InputError, match=message):
        trainer.fit(task, datamodule=data_of(path))
    assert trainer.global_step == 0


# One config for model and data


@pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])
def test_model_and_data_have_one_config(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    path = config_of(name, scenes)
    other = shutil.copy(path, scenes / "other.py")
    trainer = Trainer(logger=False, max_epochs=1, default_root_dir=tmp_path, **QUIET)
    for verb in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(InputError, match=r"model is that of .*config\.py and the data are those of .*other\.py"):
            verb(kind(path), datamodule=data_of(str(other)))  # type: ignore[operator]
    with pytest.raises(InputError, match=rf"Leave --data\.config out, or type --model\.config {other}"):
        trainer.fit(kind(path), datamodule=OpenMMLabData(str(other)))
    same = scenes / "images" / ".." / "config.py"
    trainer.validate(kind(path), datamodule=data_of(str(same)), verbose=False)


def test_the_command_passes_the_config_of_the_model_to_the_data(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``seg.yaml`` with a config for the model alone trains on the data of that config, not on the digit scenes."""
    monkeypatch.chdir(tmp_path)
    own = config_of("upernet_unireplknet_t", scenes)
    words = ["fit", "-c", str(CONFIGS.parents[1] / "configs" / "seg.yaml"), "--model.config", own]
    words += [
        "--data.batch_size",
        "2",
        "--data.min_epoch_steps",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_epochs",
        "1",
    ]

    main(words)
    (run,) = tmp_path.glob("lightning_logs/Segmenter/*")
    assert TaskCheckpoint.read(run / "checkpoints" / "last.ckpt").spec["classes"] == list(META["classes"])
    assert not (tmp_path / "data").exists()

    other = shutil.copy(own, scenes / "other.py")
    with pytest.raises(SystemExit, match=rf"Leave --data\.config out, or type --model\.config {other}"):
        main([*words, "--data.config", str(other)])


def test_data_without_a_config() -> None:
    with pytest.raises(InputError, match=r"no config; type --model\.config FILE, or --data\.config FILE"):
        DigitScenes().prepare_data()


def test_digit_scenes_read_the_data_of_another_config(scenes: Path, tmp_path: Path) -> None:
    """So that ``det.yaml`` and ``seg.yaml`` take a config of other data as it is."""
    path = config_of("upernet_unireplknet_t", scenes)
    data = DigitScenes(path, root=str(tmp_path / "digits"), num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert data.classes == META["classes"]
    assert not (tmp_path / "digits").exists()
