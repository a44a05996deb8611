"""A user's own boxes: COCO, Pascal VOC and YOLO files through the command, and what is refused before a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mm_files import CONFIGS, SIDE, edit_truth, tiny, write_config, write_scenes
from PIL import Image

from core.cli import main
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from vision.openmmlab.boxes import LabeledBoxes
from vision.openmmlab.detector import Detector
from vision.openmmlab.own_data import fitting_size

DET = CONFIGS.parents[1] / "configs" / "det.yaml"
CONFIG = "gfl_unireplknet_a_own_data.py"
IDS = {1: 7, 2: 13, 3: 90}
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SHORT = ["--trainer.max_epochs", "1", "--data.min_epoch_steps", "2", "--data.batch_size", "4"]
SMALL = [*QUIET, *SHORT, "--data.num_workers", "0", "--model.backbone", "test_unireplknet"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten scenes whose category ids have gaps, and a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    scenes = write_scenes(tmp_path / "photos", 10)

    def change(content: Any) -> None:
        for category in content["categories"]:
            category["id"] = IDS[category["id"]]
        for note in content["annotations"]:
            note["category_id"] = IDS[note["category_id"]]

    edit_truth(scenes, change)
    return scenes


def _fit(photos: Path, *words: str) -> None:
    main(["fit", "-c", str(DET), "--data.coco", str(photos / "coco.json"), *SMALL, *words])


def _data(photos: Path, **options: Any) -> LabeledBoxes:
    options = {"coco": str(photos / "coco.json"), "images": str(photos / "images"), "num_workers": 0} | options
    data = LabeledBoxes(CONFIG, **options)
    data.setup("fit")
    return data


def _boxes(dataset: Any) -> list[tuple[str, list[list[float]], list[int]]]:
    """Name of the image, boxes (x1, y1, x2, y2) and labels of each sample."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [
        (
            Path(info["img_path"]).name,
            [o["bbox"] for o in info["instances"]],
            [o["bbox_label"] for o in info["instances"]],
        )
        for info in infos
    ]


def test_the_command_learns_and_predicts_boxes_of_a_coco_file(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _fit(photos, "--data.images", str(photos / "images"))
    assert "of 10 images are held out for validation" in caplog.text
    assert "resized into 64 x 64 pixels" in caplog.text
    assert "val_bbox_map_50" in capsys.readouterr().out
    (run,) = tmp_path.glob("lightning_logs/Detector/*")
    spec = TaskCheckpoint.read(run / "checkpoints" / "best.ckpt").spec
    assert (spec["classes"], spec["category_ids"]) == (["red", "green", "blue"], [7, 13, 90])
    assert (run / "examples.png").exists()

    (photos / "coco.json").unlink()  # the checkpoint is enough
    words = ["--ckpt_path", str(run), "--data.predict_path", str(photos / "images"), *QUIET]
    main(["predict", *words])
    (written,) = tmp_path.glob("lightning_logs/Detector/*/predictions.json")
    results = json.loads(written.read_text())
    pairs = {(result["category"], result["category_id"]) for result in results}
    assert pairs
    assert pairs <= {("red", 7), ("green", 13), ("blue", 90)}
    assert all(0 <= result["bbox"][0] <= SIDE for result in results)

    rows = Detector.load_from_checkpoint(run / "checkpoints" / "best.ckpt").predict(photos / "images" / "1.png")
    assert set(rows[0]["classes"]) <= {"red", "green", "blue"}
    own = [result for result in results if result["file_name"].endswith("1.png")]
    assert rows[0]["scores"] == pytest.approx([result["score"] for result in own], abs=1e-5)


def test_files_of_validation_and_test_are_used(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With other ids for the same names: predictions of the test images have those of the test file."""
    for split, count in (("val", 3), ("test", 2)):
        write_scenes(tmp_path / split, count)
    more = ["--data.images", str(photos / "images")]
    for split in ("val", "test"):
        more += [f"--data.{split}_coco", str(tmp_path / split / "coco.json")]
        more += [f"--data.{split}_images", str(tmp_path / split / "images")]
    with caplog.at_level("INFO"):
        _fit(photos, *more)
    assert "held out" not in caplog.text
    assert "10 training images" in caplog.text

    _fit(photos, *more, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    (run,) = tmp_path.glob("lightning_logs/Detector/*")
    assert TaskCheckpoint.read(run / "checkpoints" / "last.ckpt").hyperparameters["backbone"] == "test_unireplknet"

    main(["predict", "--ckpt_path", "best", *QUIET])
    (written,) = tmp_path.glob("lightning_logs/Detector/*/predictions.json")
    results = json.loads(written.read_text())
    assert {Path(result["file_name"]).parents[1].name for result in results} == {"test"}
    assert {result["category_id"] for result in results} <= {1, 2, 3}


def test_held_out_images_are_the_same_each_time_and_hold_every_class(photos: Path) -> None:
    first, second = (_data(photos, val_share=0.4) for _ in range(2))
    assert _boxes(first.val_set) == _boxes(second.val_set)
    train, val = ({name for name, _, _ in _boxes(part)} for part in (first.train_set, first.val_set))
    assert not train & val
    assert len(train | val) == 10
    assert {label for _, _, labels in _boxes(first.val_set) for label in labels} == {0, 1, 2}


def test_boxes_outside_or_without_area_are_counted_and_left_out(photos: Path) -> None:
    def change(content: Any) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 9]
        content["annotations"][1]["bbox"] = [200, 200, 9, 9]
        content["annotations"][2]["bbox"] = [50, 50, 40, 10]

    edit_truth(photos, change)
    with pytest.warns(UserWarning, match="2 of 15 boxes are outside their image") as warned:
        data = _data(photos)
    assert any("1 of 15 boxes reach beyond their image" in str(warning.message) for warning in warned)
    found = [box for part in (data.train_set, data.val_set) for _, boxes, _ in _boxes(part) for box in boxes]
    assert len(found) == 13
    assert [50, 50, SIDE, 60] in found


def test_categories_without_a_box_are_left_out(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_truth(photos, lambda content: content["categories"].append({"id": 0, "name": "things"}))
    with caplog.at_level("INFO"):
        assert _data(photos).spec().classes == ("red", "green", "blue")
    assert "categories without a box are left out: things" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(images=[]), r"lists no images"),
        (lambda c: c.update(annotations=[]), r"has no boxes"),
        (
            lambda c: [i.update(file_name=f"x{i['id']}.jpg") for i in c["images"]],
            r"of the 10 images .*, none in .*it holds",
        ),
        (lambda c: c["images"][3].update(file_name="no.png"), r"of the 10 images .*, 1 are not in .*: no\.png"),
        (lambda c: c["images"][3].pop("file_name"), r"lists an image without file_name"),
        (lambda c: c["images"][3].update(id=0), r"two images with the id 0"),
        (
            lambda c: c["images"][3].update(width=640),
            r"another size .*3\.png \(64 x 64 instead of 640 x 64\)",
        ),
        (lambda c: c["annotations"][3].update(id=1), r"several annotations with the id 1"),
        (lambda c: c["annotations"][3].update(bbox=None), r"annotation 4 has no bbox"),
        (lambda c: c["annotations"][3].update(category_id=4), r"annotation 4 has category_id 4"),
        (lambda c: [n.update(bbox=[0.1, 0.1, 0.5, 0.5]) for n in c["annotations"]], r"15 of 15 boxes .*not relative"),
        (lambda c: c["categories"].append({"id": 5, "name": "red"}), r"several categories with the name 'red'"),
    ],
)
def test_what_is_refused_before_a_run(change: Any, message: str, photos: Path, tmp_path: Path) -> None:
    edit_truth(photos, change)
    with pytest.raises(SystemExit, match=message):
        _fit(photos, "--data.images", str(photos / "images"))
    assert not list(tmp_path.glob("lightning_logs/*/*"))


def test_classes_of_other_names_in_the_validation_file(photos: Path, tmp_path: Path) -> None:
    val = write_scenes(tmp_path / "val", 3)
    edit_truth(val, lambda content: content["categories"][2].update(name="violet"))
    more = {"val_coco": str(val / "coco.json"), "val_images": str(val / "images")}
    with pytest.raises(InputError, match=r"has boxes of violet, .*its classes are red, green, blue"):
        _data(photos, **more)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coco": None}, r"add --data\.coco FILE\.json"),
        ({"coco": "none.json"}, r"there is no none\.json"),
        ({"images": "none"}, r"there is no folder none"),
        ({"voc": "xml"}, r"--data\.coco, --data\.voc are all given"),
        ({"val_share": 1.5}, r"val_share=1\.5"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, photos: Path) -> None:
    with pytest.raises(InputError, match=message):
        _data(photos, **options)


def _as_voc(photos: Path, folder: Path) -> None:
    content = json.loads((photos / "coco.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    folder.mkdir()
    for image in content["images"]:
        objects = ""
        for note in content["annotations"]:
            if note["image_id"] == image["id"]:
                x, y, w, h = note["bbox"]
                corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = names[note["category_id"]]
                objects += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        file = folder / f"{image['id']}.xml"
        file.write_text(f"<annotation><filename>{image['file_name']}</filename>{objects}</annotation>")


def _as_yolo(photos: Path, folder: Path) -> None:
    content = json.loads((photos / "coco.json").read_text())
    labels = {category["id"]: i for i, category in enumerate(content["categories"])}
    folder.mkdir()
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    for image in content["images"]:
        lines = []
        for note in content["annotations"]:
            if note["image_id"] == image["id"]:
                x, y, w, h = (value / SIDE for value in note["bbox"])
                lines.append(f"{labels[note['category_id']]} {x + w / 2} {y + h / 2} {w} {h}")
        (folder / f"{image['id']}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize(("kind", "write"), [("voc", _as_voc), ("yolo", _as_yolo)])
def test_other_formats_give_the_same_boxes(kind: str, write: Any, photos: Path, tmp_path: Path) -> None:
    write(photos, tmp_path / "notes")
    expected = _data(photos)
    found = _data(photos, coco=None, **{kind: str(tmp_path / "notes")})
    names = expected.spec().classes
    assert set(found.spec().classes) == set(names)
    all_found, all_expected = (sorted(_boxes(d.train_set) + _boxes(d.val_set)) for d in (found, expected))
    for (image, boxes, labels), (image_too, boxes_too, labels_too) in zip(all_found, all_expected, strict=True):
        assert image == image_too
        assert np.allclose(boxes, boxes_too)
        assert [found.spec().classes[i] for i in labels] == [names[i] for i in labels_too]


@pytest.mark.parametrize(
    ("kind", "file", "text", "message"),
    [
        ("voc", "0.xml", "<annotation>", r"0\.xml cannot be read as Pascal VOC's XML"),
        ("yolo", "0.txt", "0 0.5 0.5", r"0\.txt, line 1: '0 0\.5 0\.5'; expected class, center x"),
        ("yolo", "0.txt", "7 0.5 0.5 0.1 0.1", r"0\.txt, line 1: .*has classes 0 to 2"),
        ("yolo", "other.txt", "", r"holds no \.txt file with the name of an image"),
    ],
)
def test_other_formats_that_cannot_be_read(
    kind: str, file: str, text: str, message: str, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / file).write_text(text)
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(InputError, match=message):
        _data(photos, coco=None, **{kind: str(folder)})


@pytest.mark.parametrize(
    ("sizes", "longer", "expected"),
    [
        ([(640, 480)] * 3, 320, (320, 256)),
        ([(480, 640)] * 3, 320, (256, 320)),
        ([(480, 640), (640, 480)], 320, (320, 320)),
        ([(96, 96)], 96, (96, 96)),
        ([(1920, 200)], 100, (128, 32)),
    ],
)
def test_size_has_the_shape_of_the_images(sizes: Any, longer: int, expected: tuple[int, int]) -> None:
    assert fitting_size(sizes, longer) == expected


def test_small_boxes_ask_for_larger_images(tmp_path: Path) -> None:
    sizes = {}
    for side in (150, 20):
        scenes = write_scenes(tmp_path / str(side), 4, (800, 600))
        edit_truth(scenes, lambda c: [note.update(bbox=[9, 9, side, side]) for note in c["annotations"]])  # noqa: B023
        sizes[side] = _data(scenes).spec().size
    assert sizes == {150: (256, 192), 20: (640, 480)}
    assert _data(scenes, size=640).spec().size == (640, 480)


def test_images_are_seen_in_the_size_of_the_training(photos: Path, tmp_path: Path) -> None:
    """A checkpoint of another size than the data would choose: the model decides."""
    _fit(photos, "--data.images", str(photos / "images"), "--data.size", "96")
    (run,) = tmp_path.glob("lightning_logs/Detector/*")
    task = Detector.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    assert task.spec.size == (96, 96)
    (sample,) = task(_pixels(photos / "images" / "0.png"))
    assert sample.img_shape == (96, 96)
    main(["test", "--ckpt_path", str(run), "--data.size", "64", *QUIET])


def _pixels(file: Path) -> Any:
    """(1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]


def test_another_config_learns_the_classes_of_the_files(photos: Path, tmp_path: Path) -> None:
    """The heads for boxes and masks get two classes; sizes stay those of its own pipelines."""

    def without_blue(content: Any) -> None:
        content["categories"] = content["categories"][:2]
        content["annotations"] = [note for note in content["annotations"] if note["category_id"] != 90]

    path = write_config(tiny("mask_rcnn", root=photos), tmp_path / "mine.py")
    edit_truth(photos, without_blue)
    _fit(photos, "--data.images", str(photos / "images"), "--model.config", path)
    (run,) = tmp_path.glob("lightning_logs/Detector/*")
    task = Detector.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    heads = [task.model.get_submodule(f"roi_head.{name}_head") for name in ("bbox", "mask")]
    assert [head.num_classes for head in heads] == [2, 2]
    assert (task.class_names, task.spec.size) == (["red", "green"], None)
    with pytest.raises(SystemExit, match=r"--data\.size is for the configs of det\.yaml and seg\.yaml"):
        _fit(photos, "--data.images", str(photos / "images"), "--model.config", path, "--data.size", "64")


def test_any_timm_model_is_a_backbone(photos: Path) -> None:
    _fit(photos, "--data.images", str(photos / "images"), "--model.backbone", "test_convnext")
    main(["validate", "--ckpt_path", "best", *QUIET])


def test_published_weights_are_those_of_the_backbone(tmp_path: Path) -> None:
    net = timm.create_model("test_unireplknet")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    options = {
        "model.backbone.variant": "test_unireplknet",
        "model.backbone.init_cfg.checkpoint": str(tmp_path / "w.pth"),
        "model.neck.in_channels": [16, 24, 32],
    }
    task = Detector(CONFIG, options=options, pretrained=True)
    assert (task.lr, task.layer_decay) == (2e-4, 0.8)
    assert task.hparams["lr"] == 2e-4
    own = task.backbone.state_dict()
    for name, value in net.state_dict().items():
        assert not name.startswith("stages") or torch.equal(own[name], value)
    assert any(name.startswith("stages") for name in own)

    with pytest.raises(InputError, match="no published weights are known for the backbone test_unireplknet"):
        Detector(CONFIG, backbone="test_unireplknet", pretrained=True)


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(InputError, match="there is no model 'no_net'"):
        Detector(CONFIG, backbone="no_net")
    with pytest.raises(InputError, match=r"backbone_args need --model\.backbone NAME"):
        Detector(CONFIG, backbone_args={"depths": [1, 1, 1, 1]})
