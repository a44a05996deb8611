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
from mm_files import META, SIDE, config_of, data_of, edit_truth, tiny, write_config, write_scenes
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from pycocotools.coco import COCO
from torch.testing import assert_close
from training.small_runs import QUIET, table

from core.cli import main
from core.errors import InputError
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

ROOT = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])


@KINDS
def test_runner_and_lightning_have_one_model(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    """Weights that one way saves fit the other strictly; on the same batch losses and predictions are equal."""
    path = config_of(name, scenes)
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
    data = data_of(path)
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
    path, config = config_of(name, scenes), tiny(name, root=scenes)
    data, task = data_of(path, batch_size=4), kind(path)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    answers = _answers(task, batch)
    task.update_metrics("val", batch, answers, answers)
    ours = {key: float(value) for key, value in task.compute_scores("val").items()}
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


def test_what_is_found_in_a_crowd_is_not_wrong(scenes: Path) -> None:
    """Objects within a crowd's box are neither hits nor misses, as COCO has it."""
    edit_truth(scenes, lambda c: c["annotations"][1].update(iscrowd=1))
    path = config_of("mask_rcnn", scenes)
    data, task = data_of(path, batch_size=2), Detector(path)
    data.setup("validate")
    samples = next(iter(data.val_dataloader()))["data_samples"]
    for sample in samples:
        truth, crowd = sample.gt_instances, sample.ignored_instances
        left, right = crowd.bboxes.tensor.clone(), crowd.bboxes.tensor.clone()
        left[:, 2] -= 10  # of 20
        right[:, 0] += 10
        masks = [torch.from_numpy(part.masks.masks).bool() for part in (truth, crowd, crowd)]
        masks[1][:, :, 14:], masks[2][:, :, :14] = False, False
        found = InstanceData(bboxes=torch.cat([truth.bboxes.tensor, left, right]), masks=torch.cat(masks))
        found.labels = torch.cat([truth.labels, crowd.labels, crowd.labels])
        found.scores = torch.linspace(0.6, 0.9, len(found.labels))
        sample.pred_instances = found
    assert [len(sample.pred_instances) for sample in samples] == [1, 3]
    task.update_metrics("val", {}, samples, samples)
    found = task.compute_scores("val")
    assert float(found["bbox_map"]) == float(found["segm_map"]) == pytest.approx(1)


@KINDS
def test_scaled_images_are_measured_in_pixels_of_the_file(name: str, kind: Any, tmp_path: Path) -> None:
    """Truth is in the size of the file, and so are predictions, whatever size the model sees."""
    scenes = write_scenes(tmp_path / "wide", size=(96, SIDE))
    path = config_of(name, scenes)
    data, task = data_of(path), kind(path).eval()
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
    path = config_of(name, scenes)
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
    assert stored["hyper_parameters"]["spec"]["classes"] == list(META["classes"])
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
    data, task = data_of(file), Segmenter(file)
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
        assert task.to_export((batch,), "map").inputs[0].shape == (1, 3, SIDE, SIDE)


def _compare_onnx(file: Path, task: Segmenter) -> None:
    task.eval()
    x = torch.randn(3, 3, SIDE, SIDE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        logits = task.model(x, mode="tensor")
        expected = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), expected, rtol=1e-4, atol=1e-4)


def test_the_package_is_not_needed_for_vision_and_named_where_it_is() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmseg'));"
        "import vision; from core.cli import main; main(['fit', '-c', 'vision/configs/det.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "pip install -e '.[openmmlab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoint_with_other_classes(scenes: Path, tmp_path: Path) -> None:
    path = config_of("upernet_unireplknet_t", scenes)
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
    data, task = data_of(path), Segmenter(path)
    assert task.num_classes == 3
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", max_epochs=1, **shown).fit(
        task, datamodule=data
    )
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        exported = task.eval().to_export((batch,), "map")
        labels = exported.module(*exported.inputs).argmax(dim=1)
        assert_close(labels, task(batch)[0].pred_sem_seg.data)


def test_configs_of_the_other_package_are_refused(scenes: Path) -> None:
    with pytest.raises(InputError, match=r"is for mmdet; Segmenter takes configs of mmseg"):
        Segmenter(config_of("mask_rcnn", scenes))
