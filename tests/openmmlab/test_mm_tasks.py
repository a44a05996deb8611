"""Detector and Segmenter: the same model as the mm way, its metrics, what the verbs leave, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from lightning import Trainer
from mm_files import META, SIDE, tiny, write_config, write_scenes
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools.coco import COCO
from torch.testing import assert_close
from training.small_runs import QUIET, table

from core.cli import main
from core.errors import InputError, MissingError
from core.training import PredictionWriter
from vision.openmmlab.data import OpenMMLabData, prediction_names
from vision.openmmlab.detector import Detector
from vision.openmmlab.scenes import DigitScenes, draw_scenes
from vision.openmmlab.segmenter import Segmenter

ROOT = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


def _config(name: str, scenes: Path) -> str:
    return write_config(tiny(name, root=scenes), scenes / "config.py")


def _data(config: str, **options: Any) -> OpenMMLabData:
    return OpenMMLabData(config, num_workers=0, **options)


@KINDS
def test_runner_and_lightning_have_one_model(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    """Weights that one way saves fit the other strictly; on the same batch losses and predictions are equal."""
    path = _config(name, scenes)
    config = tiny(name, root=scenes)
    config.work_dir = str(tmp_path / "work")
    config.default_hooks = {"logger": {"type": "LoggerHook", "interval": 1}}
    config.param_scheduler = []
    config.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 1, "val_interval": 10}
    runner = Runner.from_cfg(config)
    runner.train()
    torch.save({"state_dict": runner.model.state_dict()}, tmp_path / "mm.pth")
    task = kind(path, weights=str(tmp_path / "mm.pth"))
    assert_close(dict(task.model.state_dict()), dict(runner.model.state_dict()), rtol=0, atol=0)
    data = _data(path)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    losses = []
    for model in (runner.model, task.model):
        torch.manual_seed(0)  # proposals are drawn
        with DefaultScope.overwrite_default_scope(task.scope):
            losses.append(model.train()(**model.data_preprocessor(batch, True), mode="loss"))
    assert_close(losses[0], losses[1], rtol=0, atol=0)
    task.eval()
    runner.model.eval()
    with torch.no_grad():
        ours, theirs = task(batch), runner.model.test_step(batch)
    for a, b in zip(ours, theirs, strict=True):
        part = "pred_instances" if kind is Detector else "pred_sem_seg"
        assert_close(dict(a.get(part).items()), dict(b.get(part).items()), rtol=0, atol=0)
    again = Runner.from_cfg(config)
    again.model.load_state_dict({k.removeprefix("model."): v for k, v in task.state_dict().items()}, strict=True)


def _answers(task: Any, batch: Any) -> list[Any]:
    """Data samples with predictions that are partly right: shifted boxes with scores, or a wrong row of pixels."""
    for i, sample in enumerate(batch["data_samples"]):
        if isinstance(task, Segmenter):
            labels = sample.gt_sem_seg.data.clone()
            labels[labels == 255] = 0
            labels[:, 8:20] = i % 3
            sample.pred_sem_seg = PixelData(data=labels)
            continue
        truth = sample.gt_instances
        boxes = getattr(truth.bboxes, "tensor", truth.bboxes).clone()
        masks = torch.from_numpy(truth.masks.masks.copy()).bool()
        boxes[:, 0] += 2.3 * i
        masks[:, : 10 + 4 * i] = False
        scores = torch.linspace(0.9, 0.6, len(boxes)) - 0.1 * i
        labels = (truth.labels + (i == 2)) % 3
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels, masks=masks)
    return list(batch["data_samples"])


@KINDS
def test_metrics_are_those_of_the_mm_evaluators(name: str, kind: Any, scenes: Path) -> None:
    path, config = _config(name, scenes), tiny(name, root=scenes)
    data, task = _data(path, batch_size=4), kind(path)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    answers = _answers(task, batch)
    task.update_metric(task.val_score, answers)
    ours = {key: float(value) for key, value in task.named_values(task.val_score.compute()).items()}
    with DefaultScope.overwrite_default_scope(task.scope):
        metric: Any = METRICS.build(config.val_evaluator)
    metric.dataset_meta = META
    metric.process(batch, [sample.to_dict() for sample in answers])
    theirs = metric.evaluate(len(answers))
    if kind is Segmenter:
        assert 0.3 < ours["miou"] < 0.99
        assert theirs["mIoU"] == pytest.approx(100 * ours["miou"], abs=0.006)  # theirs has two decimals
        assert theirs["aAcc"] == pytest.approx(100 * ours["acc"], abs=0.006)
        return
    for part in ("bbox", "segm"):
        assert 0.1 < ours[f"{part}_map"] < 0.95
        assert theirs[f"coco/{part}_mAP"] == pytest.approx(ours[f"{part}_map"], abs=0.0006)
        assert theirs[f"coco/{part}_mAP_50"] == pytest.approx(ours[f"{part}_map_50"], abs=0.0006)


@KINDS
def test_scaled_images_are_measured_in_pixels_of_the_file(name: str, kind: Any, tmp_path: Path) -> None:
    """Truth is in the size of the file, and so are predictions, whatever size the model sees."""
    scenes = write_scenes(tmp_path / "wide", size=(96, SIDE))
    path = _config(name, scenes)
    data, task = _data(path), kind(path).eval()
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        (first, *_) = task(batch)
    if kind is Segmenter:
        assert first.pred_sem_seg.data.shape == first.gt_sem_seg.data.shape == (1, SIDE, 96)
    else:
        boxes = getattr(first.gt_instances.bboxes, "tensor", first.gt_instances.bboxes)
        assert_close(boxes, torch.tensor([[4.0, 6, 24, 22]]))
        assert first.pred_instances.masks.shape[1:] == (SIDE, 96)


@KINDS
def test_fit_learns_and_leaves_pictures_and_names(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    path = _config(name, scenes)
    words = ["--model", f"{kind.__module__}.{kind.__name__}", "--model.config", path, "--model.lr", "0.003"]
    words += ["--data", "vision.openmmlab.data.OpenMMLabData", "--data.config", path, "--data.num_workers", "0"]
    words += ["--trainer.default_root_dir", str(tmp_path / "out"), "--trainer.accelerator", "cpu", *QUIET]
    main(["fit", *words, "--trainer.max_epochs", "3"])
    (run,) = (tmp_path / "out" / "lightning_logs" / kind.__name__).glob("version_*")
    losses = [float(row["train_loss"]) for row in table(run / "metrics.csv") if row.get("train_loss")]
    assert losses[-1] < losses[0]
    assert (run / "examples.png").is_file()
    assert (run / "learning_curves.png").is_file()
    best = str(run / "checkpoints" / "best.ckpt")
    stored = torch.load(best, weights_only=True)
    assert stored["class_names"] == list(META["classes"])
    main(["predict", *words, "--ckpt_path", best, "--data.predict_path", str(scenes / "images")])
    predicted = run.with_name("version_1")
    rows = table(predicted / "predictions.csv")
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(4)]
    assert all(Image.open(row["overlay"]).size == (384, 384) for row in rows)
    if kind is Segmenter:
        assert all(Image.open(row["labels"]).size == (SIDE, SIDE) for row in rows)
        assert set(np.unique(Image.open(rows[0]["labels"]))) <= {0, 1, 2}
        main(["export", *words, "--ckpt_path", best, "--output", str(tmp_path / "exports")])
        _compare_onnx(tmp_path / "exports" / "config.onnx", Segmenter.load_from_checkpoint(best))
    else:
        results = json.loads((predicted / "predictions.json").read_text())
        assert sum(int(row["objects"]) for row in rows) == len(results)
        assert not results or COCO(str(scenes / "coco.json")).loadRes(results).getAnnIds()


def test_segmentation_of_images_of_different_sizes(tmp_path: Path) -> None:
    """Every verb takes a folder of mixed sizes, and gives each image what it gets alone."""
    scenes = write_scenes(tmp_path / "scenes")
    sizes = [(SIDE, SIDE), (96, SIDE), (SIDE, SIDE), (SIDE, 80)]
    for i, size in enumerate(sizes):
        for folder in ("images", "labels"):
            path = scenes / folder / f"{i}.png"
            Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)
    config = tiny("upernet_unireplknet_t", root=scenes)
    for split in ("val", "test"):
        config[f"{split}_dataloader"].dataset.pipeline[1].keep_ratio = True
    load, resize, labels, pack = config.train_dataloader.dataset.pipeline
    config.train_dataloader.dataset.pipeline = [load, labels, resize, pack]
    file = write_config(config, scenes / "config.py")
    data, task = _data(file), Segmenter(file)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", max_epochs=1, **shown)
    trainer.fit(task, datamodule=data)
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1
    trainer.test(task, datamodule=data)
    (rows, more) = trainer.predict(task, datamodule=data)  # type: ignore[misc,union-attr]
    assert [Image.open(name).size for name in rows["labels"] + more["labels"]] == sizes  # type: ignore[call-overload]
    batch = next(iter(data.test_dataloader()))
    task.eval()
    with torch.no_grad():
        together = [sample.pred_sem_seg.data.clone() for sample in task(batch)]
        for i, labels in enumerate(together):
            (alone,) = task({name: values[i : i + 1] for name, values in batch.items()})
            assert_close(labels, alone.pred_sem_seg.data, rtol=0, atol=0)
        assert task.to_export(batch).images.shape == (1, 3, SIDE, SIDE)


def _compare_onnx(file: Path, task: Segmenter) -> None:
    task.eval()
    x = torch.randn(3, 3, SIDE, SIDE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        logits = task.model(x, mode="tensor")
        expected = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    assert_close(torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), expected, rtol=1e-4, atol=1e-4)


def test_predictions_of_a_detector_are_coco_results(scenes: Path, tmp_path: Path) -> None:
    path = _config("mask_rcnn", scenes)
    options = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 5}
    trainer = Trainer(logger=False, callbacks=[PredictionWriter()], default_root_dir=tmp_path, accelerator="cpu")
    trainer.predict(
        Detector(path, options=options), datamodule=_data(path, predict_path=str(scenes / "images" / "1.png"))
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

    _edit(scenes, change)
    path = _config("mask_rcnn", scenes)
    options = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 20}
    task = Detector(path, options=options)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **shown)

    def predicted(task: Detector, **options: Any) -> set[tuple[str, int]]:
        trainer.predict(task, datamodule=_data(path, **options))
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
    path, photos = _config(name, scenes), tmp_path / "photos"
    sizes = {"a/x.png": (64, 64), "a/x.jpg": (64, 80), "b/x.png": (64, 96)}
    for place, size in sizes.items():
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 90, 90)).save(photos / place)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **shown)
    batches: Any = trainer.predict(kind(path), datamodule=_data(path, predict_path=str(photos)))
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
    assert list(prediction_names(files).values()) == names


def test_the_package_is_not_needed_for_vision_and_named_where_it_is() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmseg'));"
        "import vision; from core.cli import main; main(['fit', '-c', 'vision/configs/det.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "pip install -e '.[openmmlab]'" in done.stderr
    assert "Traceback" not in done.stderr


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
    data = _data(path)
    data.setup("fit")
    assert len(data.train_set) == (8 if kind in ("RepeatDataset", "ConcatDataset") else 4)  # type: ignore[arg-type]
    assert data.classes == META["classes"]
    assert next(iter(data.train_dataloader()))["inputs"][0].shape == (3, SIDE, SIDE)
    if name == "mask_rcnn":
        assert data.category_ids == [1, 2, 3]
        _edit(scenes, lambda c: c["annotations"][0].update(bbox=[50, 6, 20, 16]))
        message = "is not inside its image"
    else:
        (scenes / "labels" / "2.png").unlink()
        message = "has no label map"
    with pytest.raises(InputError if name == "mask_rcnn" else MissingError, match=message):
        _data(path).setup("fit")


@pytest.mark.parametrize("kind", ["RepeatDataset", "ConcatDataset"])
def test_prediction_with_a_wrapped_test_set(kind: str, scenes: Path) -> None:
    config = tiny("mask_rcnn", root=scenes)
    config.test_dataloader.dataset = _wrapped(config.test_dataloader.dataset, kind)
    path = write_config(config, scenes / "config.py")
    data = _data(path, predict_path=str(scenes / "images"))
    data.setup("predict")
    assert data.classes == META["classes"]
    assert next(iter(data.predict_dataloader()))["inputs"][1].shape == (3, SIDE, SIDE)
    steps = config.test_dataloader.dataset
    inner = steps["datasets"][-1] if kind == "ConcatDataset" else steps["dataset"]
    inner["pipeline"] = [inner["pipeline"][i] for i in (0, 2, 1, 3)]
    with pytest.raises(InputError, match="loads annotations before Resize"):
        _data(write_config(config, scenes / "config.py")).setup("test")


def _edit(scenes: Path, change: Any) -> None:
    content = json.loads((scenes / "coco.json").read_text())
    change(content)
    (scenes / "coco.json").write_text(json.dumps(content))


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
    path = _config("mask_rcnn", scenes)
    _edit(scenes, change)
    with pytest.raises(InputError, match=message):
        _data(path).setup("fit")


def test_missing_files_are_named(scenes: Path) -> None:
    seg = write_config(tiny("upernet_unireplknet_t", root=scenes), scenes / "seg.py")
    (scenes / "labels" / "2.png").unlink()
    with pytest.raises(MissingError, match=r"image .*2\.png has no label map .*labels/2\.png"):
        _data(seg).setup("fit")
    det = _config("mask_rcnn", scenes)
    (scenes / "coco.json").unlink()
    with pytest.raises(MissingError, match=r"train data of .* are not there: .*coco\.json.*set their place"):
        _data(det).setup("fit")
    with pytest.raises(MissingError, match=r"nowhere is neither a file nor a folder"):
        Trainer(logger=False, accelerator="cpu").predict(Detector(det), datamodule=_data(det, predict_path="nowhere"))


def test_unlisted_value_in_a_label_map(scenes: Path) -> None:
    path = _config("upernet_unireplknet_t", scenes)
    labels = np.array(Image.open(scenes / "labels" / "0.png"))
    labels[5, 5] = 9
    Image.fromarray(labels).save(scenes / "labels" / "0.png")
    data, task = _data(path), Segmenter(path)
    data.setup("validate")
    with pytest.raises(
        InputError, match=r"label map of .*0\.png holds 9; the model has classes 0 to 2, and 255 is ignored"
    ):
        task.check_batch(next(iter(data.val_dataloader())))


def test_more_classes_in_the_data_than_in_the_model(scenes: Path) -> None:
    path = _config("mask_rcnn", scenes)
    options = {"model.roi_head.bbox_head.num_classes": 1, "model.roi_head.mask_head.num_classes": 1}
    data, task = _data(path), Detector(path, options=options)
    data.setup("validate")
    batches = list(data.val_dataloader())
    wrong = [batch for batch in batches if any(s.gt_instances.labels.max() > 0 for s in batch["data_samples"])]
    with pytest.raises(InputError, match=r"has a box of class [12] and the model classes 0 to 0; set the class count"):
        task.check_batch(wrong[0])


def test_checkpoint_with_other_classes(scenes: Path, tmp_path: Path) -> None:
    path = _config("upernet_unireplknet_t", scenes)
    torch.save({"state_dict": Segmenter(path).model.state_dict()}, tmp_path / "w.pth")
    options = {"model.decode_head.num_classes": 5, "model.auxiliary_head.num_classes": 5}
    with pytest.raises(InputError, match=r"(?s)conv_seg\.weight \(3, .*where the model has \(5, .*other classes"):
        Segmenter(path, options=options, weights=str(tmp_path / "w.pth"))


def test_detectors_without_boxes_are_refused(scenes: Path) -> None:
    config = tiny("mask_rcnn", root=scenes)
    mask_head: dict[str, Any] = {
        "type": "SOLOHead",
        "num_classes": 3,
        "in_channels": 16,
        "feat_channels": 16,
        "stacked_convs": 1,
    }
    mask_head["norm_cfg"] = {"type": "GN", "num_groups": 4}
    mask_head["loss_mask"] = {"type": "DiceLoss", "use_sigmoid": True, "loss_weight": 3.0}
    mask_head["loss_cls"] = {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 1.0}
    backbone, neck = config.model.backbone, config.model.neck
    config.model = {"type": "SOLO", "backbone": backbone, "neck": neck, "mask_head": mask_head}
    path = write_config(config, scenes / "solo.py")
    with pytest.raises(InputError, match=r"SOLO has no head for boxes .* train this one with MMDetection's tools"):
        Detector(path)


def test_a_cascade_of_heads_is_trained_and_exported(scenes: Path, tmp_path: Path) -> None:
    """The classes are those of the last head, which predicts."""
    config = tiny("upernet_unireplknet_t", root=scenes)
    first: dict[str, Any] = {
        "type": "FCNHead",
        "in_channels": 32,
        "in_index": 3,
        "channels": 16,
        "num_convs": 1,
        "num_classes": 3,
    }
    first["norm_cfg"] = {"type": "BN", "requires_grad": True}
    last = {**first, "type": "OCRHead", "ocr_channels": 8}
    last.pop("num_convs")
    config.model.type, config.model.num_stages = "CascadeEncoderDecoder", 2
    config.model.pop("auxiliary_head")
    config.model.decode_head = [first, last]
    path = write_config(config, scenes / "cascade.py")
    data, task = _data(path), Segmenter(path)
    assert task.num_classes == 3
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", max_epochs=1, **shown).fit(
        task, datamodule=data
    )
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        exported = task.eval().to_export(batch)
        labels = exported.module(exported.images).argmax(dim=1)
        assert_close(labels, task(batch)[0].pred_sem_seg.data)


def test_configs_of_the_other_package_are_refused(scenes: Path) -> None:
    with pytest.raises(InputError, match=r"is for mmdet; Segmenter takes configs of mmseg"):
        Segmenter(_config("mask_rcnn", scenes))


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
            _data(write_config(config, scenes / f"{name}.py")).setup("validate")
    config.val_dataloader.dataset.pipeline = [first, resize, labels, pack]
    config.test_dataloader.dataset.pipeline = [first, resize, labels, pack]
    path = write_config(config, scenes / "right.py")
    _data(path).setup("validate")
    data = _data(path, predict_path=str(scenes / "images"))
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))["inputs"][0].shape == (3, SIDE, SIDE)  # without annotations


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
