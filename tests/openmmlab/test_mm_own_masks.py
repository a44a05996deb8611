"""A user's own masks: folders of photos and masks through the command, and what is refused before a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mm_files import CONFIGS, META, SIDE, write_scenes
from PIL import Image
from torch.testing import assert_close

from core.cli import main
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from vision.openmmlab.losses import PixelCrossEntropy
from vision.openmmlab.masks import LabeledMasks
from vision.openmmlab.segmenter import Segmenter

SEG = CONFIGS.parents[1] / "configs" / "seg.yaml"
CONFIG = "upernet_unireplknet_a_own_data.py"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SHORT = ["--trainer.max_epochs", "1", "--data.min_epoch_steps", "2", "--data.batch_size", "4"]
SMALL = [*QUIET, *SHORT, "--data.num_workers", "0", "--model.backbone", "test_unireplknet"]
VALUES = {0: 0, 1: 100, 2: 200, 255: 255}
"""Values of the classes in the files."""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six scenes with ``labels/``, and a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    return write_scenes(tmp_path / "photos", 6)


def _change(photos: Path, change: Any, only: str = "*") -> None:
    """Replace the pixels of masks."""
    for file in (photos / "labels").glob(f"{only}.png"):
        Image.fromarray(change(np.array(Image.open(file)))).save(file)


def _spread(labels: np.ndarray) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for label, value in VALUES.items():
        table[label] = value
    return table[labels]


def _fit(photos: Path, *words: str) -> None:
    folders = ["--data.masks", str(photos / "labels"), "--data.images", str(photos / "images")]
    main(["fit", "-c", str(SEG), *folders, *SMALL, *words])


def _data(photos: Path, **options: Any) -> LabeledMasks:
    options = {"masks": str(photos / "labels"), "images": str(photos / "images"), "num_workers": 0} | options
    data = LabeledMasks(CONFIG, **options)
    data.setup("fit")
    return data


def test_the_command_learns_and_writes_masks_with_the_values_of_the_files(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _change(photos, _spread)
    with caplog.at_level("INFO"):
        _fit(photos, "--data.classes", "{0: red, 100: green, 200: blue}")
    assert "1 of 6 images are held out for validation" in caplog.text
    assert "classes from --data.classes (red " in caplog.text
    assert "val_miou" in capsys.readouterr().out
    (run,) = tmp_path.glob("lightning_logs/Segmenter/*")
    spec = TaskCheckpoint.read(run / "checkpoints" / "best.ckpt").spec
    assert (spec["classes"], spec["values"]) == (["red", "green", "blue"], [0, 100, 200])

    main(["export", "--ckpt_path", str(run), "--trainer.accelerator", "cpu"])
    assert list(tmp_path.glob("exports/Segmenter/*.onnx"))

    (photos / "labels" / "0.png").unlink()  # the checkpoint is enough
    main(["predict", "--ckpt_path", str(run), "--data.predict_path", str(photos / "images"), *QUIET])
    found = sorted(tmp_path.glob("lightning_logs/Segmenter/*/labels/*.png"))
    assert len(found) == 6
    written = np.array(Image.open(found[1]))
    assert written.shape == (SIDE, SIDE)
    assert set(np.unique(written)) <= {0, 100, 200}

    rows = Segmenter.load_from_checkpoint(run / "checkpoints" / "best.ckpt").predict(photos / "images" / "1.png")
    assert (rows[0]["labels"] == written).all()
    assert set(rows[0]["classes"]) <= {"red", "green", "blue"}


def test_folders_of_validation_and_test_are_used(photos: Path, tmp_path: Path) -> None:
    more = {}
    for split, count in (("val", 3), ("test", 2)):
        folder = write_scenes(tmp_path / split, count)
        more |= {f"{split}_masks": str(folder / "labels"), f"{split}_images": str(folder / "images")}
    data = _data(photos, classes=list(META["classes"]), **more)
    data.setup("test")
    sets: list[Any] = [data.train_set, data.val_set, data.test_set]
    assert [len(part) for part in sets] == [6, 3, 2]


def test_labels_are_numbers_of_classes_and_all_else_is_ignored(photos: Path) -> None:
    _change(photos, _spread)
    data = _data(photos, classes={0: "red", 200: "blue"}, ignore=[100])
    train_set: Any = data.train_set
    step = next(step for step in train_set.pipeline.transforms if type(step).__name__ == "LoadMaskAnnotations")
    for index in range(len(train_set)):
        info = train_set.get_data_info(index)
        raw = np.array(Image.open(info["seg_map_path"]))
        labels = step.transform(info)["gt_seg_map"]
        assert (labels[raw == 200] == 1).all()
        assert (labels[raw == 0] == 0).all()
        assert (labels[(raw == 100) | (raw == 255)] == 255).all()


def test_names_come_from_a_text_file(photos: Path) -> None:
    (photos / "labels" / "classes.txt").write_text("sky\nroad\ntree\n", encoding="utf-8")
    assert _data(photos).spec().classes == ("sky", "road", "tree")
    assert _data(photos, classes=["a", "b", "c"]).spec().classes == ("a", "b", "c")


def test_without_names_the_values_are_classes_in_the_colors_of_the_palette(photos: Path) -> None:
    for file in (photos / "labels").glob("*.png"):
        image = Image.open(file)
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        image.save(file)
    spec = _data(photos).spec()
    assert spec.classes == ("0", "1", "2")
    assert spec.palette == ((0, 255, 7), (1, 254, 7), (2, 253, 7))


def test_rare_classes_weigh_more(photos: Path) -> None:
    names = list(META["classes"])
    assert _data(photos, classes=names).spec().class_weights == ()
    data = _data(photos, classes=names, balance=0.5)
    weights = np.array(data.spec().class_weights)
    counts = np.zeros(3)
    for file in (photos / "labels").glob("*.png"):
        counts += np.bincount(np.array(Image.open(file)).ravel(), minlength=256)[:3]
    assert weights[0] / weights[1] == pytest.approx((counts[1] / counts[0]) ** 0.5, rel=1e-3)
    assert (weights * counts).sum() == pytest.approx(counts.sum(), rel=1e-3)
    task = Segmenter(CONFIG, spec=data.spec(), backbone="test_unireplknet")
    assert task.model.get_submodule("decode_head").loss_decode.class_weight == weights.tolist()


def test_pixels_to_ignore_count_for_nothing_in_the_weighted_loss() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 4, 5, dtype=torch.long)
    labels[0, 0] = 2
    labels[1] = 255
    loss = PixelCrossEntropy([1.0, 1.0, 3.0])(logits, labels)
    chances = logits.softmax(1)
    expected = (-3 * chances[0, 2, 0].log().sum() - chances[0, 0, 1:].log().sum()) / 20
    assert_close(loss, expected)
    assert PixelCrossEntropy()(logits, torch.full_like(labels, 255)) == 0


def _missing(photos: Path) -> None:
    (photos / "labels" / "3.png").unlink()


def _cut(photos: Path) -> None:
    _change(photos, lambda labels: labels[:50], only="3")


def _color(photos: Path) -> None:
    _change(photos, lambda labels: np.stack([labels] * 3, axis=2), only="3")


def _large(photos: Path) -> None:
    _change(photos, lambda labels: labels.astype(np.uint16) + 300, only="3")


def _unknown(photos: Path) -> None:
    _change(photos, lambda labels: np.where(labels == 1, 11, labels).astype(np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"1 of 6 images in .* have no mask of the same name in .*: 3\.png"),
        (_cut, r"masks in .* have another size than their images: .*3\.png \(64 x 50 instead of 64 x 64\)"),
        (_color, r"3\.png is a color picture \(RGB\)"),
        (_large, r"3\.png holds values from 300 to 555; expected 0 to 255"),
        (_unknown, r"hold the values 11 \(.* % of the pixels\), .*0 red, 1 green, 2 blue.*--data\.ignore '\[11\]'"),
    ],
)
def test_what_is_refused_before_a_run(damage: Any, message: str, photos: Path, tmp_path: Path) -> None:
    damage(photos)
    with pytest.raises(SystemExit, match=message):
        _fit(photos, "--data.classes", "[red, green, blue]")
    assert not list(tmp_path.glob("lightning_logs/*/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": None}, r"add --data\.masks FOLDER"),
        ({"masks": "none"}, r"there is no folder none"),
        ({"images": None}, r"--data\.masks needs the images too; add --data\.images"),
        ({"classes": ["a", "a", "b"]}, r"the names a, a, b for the values 0, 1, 2"),
        ({"classes": {0: "a", 300: "b"}}, r"for the values 0, 300; expected a name of its own for each value"),
        ({"classes": ["all"], "ignore": [1, 2]}, r"the masks have one class, all"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, photos: Path) -> None:
    with pytest.raises(InputError, match=message):
        _data(photos, **options)


def test_any_timm_model_is_a_backbone(photos: Path) -> None:
    _fit(photos, "--model.backbone", "test_convnext")
    main(["validate", "--ckpt_path", "best", *QUIET])
