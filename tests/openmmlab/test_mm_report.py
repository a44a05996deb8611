"""The reports of detectors and segmentors: their classes, intervals and images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mm_files import META, config_of
from torchmetrics.detection import MeanAveragePrecision
from training.report_page import Page, report_of, rows_of
from training.small_runs import QUIET, metric

from core.cli import main
from core.training.report import Section, number, render_page
from vision.openmmlab.detector import Detector
from vision.openmmlab.report import class_precisions, detection_section, pixel_counts, segmentation_sections
from vision.openmmlab.segmenter import MeanIoU, PixelAccuracy, Segmenter


def _page(*sections: Section) -> Page:
    return Page(render_page("title", "subtitle", sections))


def _objects(generator: torch.Generator, moved: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """True boxes of classes 0 and 2, and found ones of classes 0 to 2 near them."""
    corners = 60 * torch.rand(6, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20], dim=1)
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    found = boxes + moved * torch.randn(6, 4, generator=generator)
    predicted = labels.clone()
    predicted[5] = 1
    scores = torch.rand(6, generator=generator)
    return {"boxes": found, "labels": predicted, "scores": scores}, {"boxes": boxes, "labels": labels}


def test_average_precision_of_each_class_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = MeanAveragePrecision(backend="pycocotools", extended_summary=True)
    by_class = MeanAveragePrecision(backend="pycocotools", class_metrics=True)
    for _ in range(5):
        found, true = _objects(generator, moved=2.5)
        whole.update([found], [true])
        by_class.update([found], [true])
    values, expected = whole.compute(), by_class.compute()
    assert values["classes"].tolist() == [0, 1, 2]
    precisions = class_precisions(values["precision"], values["classes"], 4)
    assert 0.2 < precisions[0, 0] < 0.9
    assert precisions[0, [0, 2]] == pytest.approx(expected["map_per_class"][[0, 2]].numpy(), abs=1e-6)
    assert np.isnan(precisions[:, [1, 3]]).all()  # no object is of these classes
    assert np.nanmean(precisions, axis=1) == pytest.approx([float(values["map"]), float(values["map_50"])], abs=1e-6)

    objects, found_objects = np.array([[3, 0, 2, 0], [1, 0, 1, 0]]), np.array([[2, 1, 2, 0], [0, 0, 1, 0]])
    page = _page(detection_section({"bbox": precisions}, ["a", "<b>", "c", "d"], objects, found_objects, 0.3))
    rows = rows_of(page, "Classes")
    assert rows["a"] == [number(precisions[0, 0]), number(precisions[1, 0]), "4", "2"]
    assert rows["<b>"] == ["", "", "0", "1"]
    assert "d" not in rows


def _label_maps() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predicted and true label maps of four classes, the last of which does not occur; 9 is ignored."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(12):
        true = torch.randint(3, (1, 8, 10), generator=generator)
        predicted = torch.where(torch.rand(true.shape, generator=generator) < 0.6, true, (true + 1) % 3)
        true[:, 0] = 9
        pairs.append((predicted, true))
    return pairs


def test_results_of_a_segmentor_are_those_of_its_metrics() -> None:
    pairs = _label_maps()
    iou, accuracy = (kind(num_classes=4, ignore_index=9) for kind in (MeanIoU, PixelAccuracy))
    for pair in pairs:
        iou.update(*pair)
        accuracy.update(*pair)
    counts = np.stack([pixel_counts(*pair, 4, 9).numpy() for pair in pairs])
    names = ["road", "sky", "car", "bus"]
    sections = segmentation_sections(counts, names, {"val_miou": 0.1, "val_acc": 0.2, "val_x": 3.0}, lambda i: f"f{i}")
    page = _page(*sections)
    rows = rows_of(page, "Results")
    assert rows["mean IoU"][0] == number(float(iou.compute()))
    assert rows["pixel accuracy"][0] == number(float(accuracy.compute()))
    assert list(rows) == ["mean IoU", "pixel accuracy", "val_x"]

    # the interval of the pixel accuracy, by resampling the images in plain steps
    shares = np.array([float((p == t)[t != 9].float().mean()) for p, t in pairs])  # all have as many pixels
    generator = np.random.default_rng(5)
    plain = np.quantile([generator.choice(shares, 12).mean() for _ in range(3000)], [0.025, 0.975])
    ends = [float(end) for end in rows["pixel accuracy"][1].split(" to ")]
    assert ends == pytest.approx(plain, abs=0.01)

    # always the most frequent class
    true = torch.cat([t for _, t in pairs])
    most = int(torch.bincount(true[true != 9]).argmax())
    constant = PixelAccuracy(num_classes=4, ignore_index=9)
    constant_iou = MeanIoU(num_classes=4, ignore_index=9)
    constant.update(torch.full_like(true, most), true)
    constant_iou.update(torch.full_like(true, most), true)
    assert page.sections["Results"]["tables"][0][0][-1] == f"always {names[most]}"
    assert rows["pixel accuracy"][-1] == number(float(constant.compute()))
    assert rows["mean IoU"][-1] == number(float(constant_iou.compute()))

    worst = page.sections["Worst images"]["tables"][0][1:]
    assert worst[0] == [f"f{shares.argmin()}", number(shares.min())]
    assert len(worst) == 10
    assert set(rows_of(page, "Classes")) == {"road", "sky", "car"}


@pytest.mark.parametrize(("name", "kind"), [("mask_rcnn", Detector), ("upernet_unireplknet_t", Segmenter)])
def test_run_leaves_a_report(name: str, kind: Any, scenes: Path, tmp_path: Path) -> None:
    path = config_of(name, scenes)
    words = ["--model", f"{kind.__module__}.{kind.__name__}", "--model.config", path, "--trainer.max_epochs", "1"]
    words += ["--data", "vision.openmmlab.data.OpenMMLabData", "--data.config", path, "--data.num_workers", "0"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu", *QUIET]
    main(["fit", *words])
    (run,) = (tmp_path / "lightning_logs" / kind.__name__).glob("version_*")
    page = report_of(run)
    results, classes = rows_of(page, "Results"), rows_of(page, "Classes")
    if kind is Segmenter:
        assert results["mean IoU"][0] == number(metric(run, "val_miou")[0])
        files = [row[0] for row in page.sections["Worst images"]["tables"][0][1:]]
        assert sorted(Path(file).name for file in files) == [f"{i}.png" for i in range(4)]
    else:
        assert results["val_bbox_map"][0] == number(metric(run, "val_bbox_map")[0])
        assert sum(int(row[-2]) for row in classes.values()) > 0
    assert set(classes) <= set(META["classes"])
    assert len(page.sections["Examples"]["pictures"]) == 1
    assert (run / "report.html").stat().st_size < 3e6
