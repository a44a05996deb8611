"""The page that a run leaves: its numbers, its intervals, its texts, and where it goes."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multilabel_average_precision,
)
from training.report_page import Page, report_of, rows_of
from training.small_runs import CLASSES, PLAIN, command, picture, runs, saved, write_config, write_photos

from core.data.module import DataModule, positions_in_batch
from core.data.samples import SampleDataset, collate_found, sample_name
from core.training.callbacks import RunReport
from core.training.report import (
    Card,
    Cards,
    Figures,
    Picture,
    Preformatted,
    Section,
    Table,
    Text,
    as_png,
    interval,
    number,
    render_page,
    table_sections,
    write_page,
)
from core.training.report_classification import (
    average_precisions,
    label_results,
    label_sections,
    several_results,
    several_sections,
)
from core.training.results import SampleResults, bootstrap_intervals
from vision.augment import eval_transform


def _page(sections: list[Section]) -> Page:
    return Page(render_page("title", "subtitle", sections))


def _predictions(samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities that are right more often than not, and labels; the last class has no sample."""
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(classes - 1, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), label] += 1.2
    return logits.softmax(dim=1), label


def _label_page(probability: Tensor, label: Tensor, names: list[str], **logged: float) -> Page:
    results = {name: values.numpy() for name, values in label_results(probability, label).items()}
    results["position"] = np.arange(len(label))
    return _page(label_sections(results, names, logged, lambda position: (f"file {position}", None)))


def test_results_of_a_classifier_are_those_of_torchmetrics() -> None:
    probability, label = _predictions(300, 12)
    names = [f"class {i}" for i in range(12)]
    page = _label_page(probability, label, names, val_loss=1.25, val_acc=0.5)
    rows = rows_of(page, "Results")

    def score(function: Any, **options: Any) -> str:
        return number(float(function(probability, label, 12, **options)))

    assert rows["accuracy"][0] == score(multiclass_accuracy, average="micro")
    assert rows["accuracy of the first five"][0] == score(multiclass_accuracy, average="micro", top_k=5)
    recall = multiclass_recall(probability, label, 12, average="none")[:11]
    f1 = multiclass_f1_score(probability, label, 12, average="none")[:11]
    assert rows["mean recall of the classes"][0] == number(float(recall.mean()))
    assert rows["mean F1 of the classes"][0] == number(float(f1.mean()))
    error = multiclass_calibration_error(probability, label, 12, n_bins=15, norm="l1")
    assert rows["calibration error"][0] == number(float(error))
    assert rows["val_loss"][0] == "1.250"
    assert "val_acc" not in rows  # it is the accuracy


def test_classes_are_listed_from_the_worst_with_their_figures() -> None:
    probability, label = _predictions(300, 5)
    page = _label_page(probability, label, list("abcde"))
    rows = rows_of(page, "Classes")
    values = [
        multiclass_precision(probability, label, 5, average="none"),
        multiclass_recall(probability, label, 5, average="none"),
        multiclass_f1_score(probability, label, 5, average="none"),
    ]
    support = torch.bincount(label, minlength=5)
    for k, name in enumerate("abcd"):
        assert rows[name] == [*(number(float(v[k])) for v in values), str(int(support[k]))]
    assert rows["e"] == ["0.000", "", "0.000", "0"]  # predicted, and never true
    order = [float(row[2]) for row in rows.values()]
    assert order == sorted(order)
    assert "1 of 5 classes have no sample here" in " ".join(page.sections["Classes"]["texts"])


def test_baseline_is_the_best_constant_answer() -> None:
    probability, label = _predictions(300, 5)
    page = _label_page(probability, label, list("abcde"))
    head, *_ = page.sections["Results"]["tables"][0]
    counts = torch.bincount(label, minlength=5)
    assert head[-1] == f"always {'abcde'[int(counts.argmax())]}"
    constant = torch.full_like(label, int(counts.argmax()))
    rows = rows_of(page, "Results")
    assert rows["accuracy"][-1] == number(float((constant == label).float().mean()))
    assert rows["mean recall of the classes"][-1] == "0.250"
    f1 = multiclass_f1_score(constant, label, 5, average="none")[:4]
    assert rows["mean F1 of the classes"][-1] == number(float(f1.mean()))


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(200) < 0.7
    ((low, high),) = bootstrap_intervals(200, lambda drawn: right[drawn].mean())
    plain = [generator.choice(right, size=200).mean() for _ in range(4000)]
    expected = np.quantile(plain, [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.012)
    # and that of the normal approximation
    deviation = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 200)
    assert [low, high] == pytest.approx([right.mean() - deviation, right.mean() + deviation], abs=0.012)
    again = bootstrap_intervals(200, lambda drawn: right[drawn].mean())
    assert again.tolist() == [[low, high]]


def test_interval_of_neighbors_that_are_alike_is_wider_in_blocks() -> None:
    alike = np.repeat(np.random.default_rng(0).normal(size=50), 20)  # 1,000 values, of which 50 are independent
    single = bootstrap_intervals(1000, lambda drawn: alike[drawn].mean())
    blocks = bootstrap_intervals(1000, lambda drawn: alike[drawn].mean(), block=20)
    width, wider = np.diff(single).item(), np.diff(blocks).item()
    assert wider == pytest.approx(2 * 1.96 * alike.std() / np.sqrt(50), rel=0.25)
    assert wider > 3 * width
    few = bootstrap_intervals(39, lambda drawn: [alike[drawn].mean(), 0.0], block=20)
    assert np.isnan(few).all()
    assert few.shape == (2, 2)


def test_confusions_and_mistakes_name_classes_and_files() -> None:
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.9, 0.08, 0.02], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.8, 0.1, 0.1]])
    label = torch.tensor([0, 1, 1, 1, 1])
    page = _label_page(probability, label, CLASSES)
    head, *rows = page.sections["Confusion"]["tables"][0]
    assert head[:2] == ["true", "predicted"]
    assert rows == [["leaf", "brick", "2", "50.0%"], ["leaf", "sea", "1", "25.0%"]]
    assert len(page.sections["Confusion"]["pictures"]) == 1

    texts = page.sections["Worst mistakes"]["texts"]
    assert [text for text in texts if text.startswith("file")] == ["file 1", "file 4", "file 2"]
    assert texts[1:3] == ["brick 0.90", "true: leaf 0.08"]
    assert "3 of 3 wrong answers" in texts[0]


def test_perfect_answers_are_reported_without_false_certainty() -> None:
    page = _label_page(torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4), CLASSES)
    assert rows_of(page, "Results")["accuracy"][:2] == ["1.000", "1.000 to 1.000"]
    assert "up to 25.0% may still be wrong" in " ".join(page.sections["Results"]["texts"])
    assert page.sections["Worst mistakes"]["texts"] == ["There is no mistake."]
    assert page.sections["Confusion"]["texts"] == ["No sample was taken for another class."]
    one = _label_page(torch.eye(3)[:1], torch.tensor([0]), CLASSES)
    assert "95 % interval" not in one.sections["Results"]["tables"][0][0]


def test_average_precision_of_each_class_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(80, 4, generator=generator).round(decimals=1)  # many are equal
    labels = torch.rand(80, 4, generator=generator) < probability * 0.6
    labels[:, 3] = False
    expected = multilabel_average_precision(probability, labels.long(), 4, average="none")
    results = {name: values.numpy() for name, values in several_results(probability, labels.float()).items()}
    results["position"] = np.arange(80)
    page = _page(several_sections(results, list("abcd"), {"val_mAP": 0.1, "val_auc": 0.75}, lambda p: (f"f{p}", None)))
    rows = rows_of(page, "Classes")
    for k, name in enumerate("abc"):
        assert rows[name][0] == number(float(expected[k]))
        assert rows[name][-1] == str(int(labels[:, k].sum()))
    assert "d" not in rows  # without a label, there is nothing to find

    figures = rows_of(page, "Results")
    assert figures["mean average precision"][0] == number(float(expected[:3].mean()))
    assert figures["mean average precision"][-1] == number(float(labels[:, :3].float().mean()))
    assert figures["val_auc"][0] == "0.750"
    assert "val_mAP" not in figures

    # a sample that is drawn twice counts as two samples
    drawn = np.r_[np.arange(40), np.arange(40)]
    weighted = average_precisions(results["probabilities"], results["labels"])(np.bincount(drawn, minlength=80))
    doubled = multilabel_average_precision(probability[drawn], labels[drawn].long(), 4, average="none")
    assert weighted[:3] == pytest.approx(doubled[:3].numpy(), abs=1e-6)
    low, high = (float(end) for end in figures["mean average precision"][1].split(" to "))
    assert low < float(expected[:3].mean()) < high


def test_mistakes_of_several_labels_say_what_is_missed_and_what_is_not_there() -> None:
    probability = torch.tensor([[0.9, 0.1], [0.4, 0.05], [0.2, 0.8]])
    labels = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    results = {name: values.numpy() for name, values in several_results(probability, labels).items()}
    results["position"] = np.arange(3)
    page = _page(several_sections(results, ["rain", "wind"], {}, lambda position: (f"file {position}", None)))
    assert page.sections["Worst mistakes"]["texts"][1:] == [
        *["missed: wind 0.05", "true: wind", "file 1"],
        *["not there: rain 0.90", "true: none", "file 0"],
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (0.0, "0.000"), (0.0012345, "0.00123"), (123456.0, "1.23e+05"), (None, "")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_intervals_that_are_not_known_are_empty() -> None:
    assert interval((0.25, 0.5)) == "0.250 to 0.500"
    assert interval(None) == interval((float("nan"), 1.0)) == ""
    plain = Figures({"val_loss": 1.0}, baselines={"last": {"val_loss": 2.0}}).table()
    assert plain.head == ["", "model", "last"]
    assert plain.rows == [["val_loss", "1.000", "2.000"]]


def test_page_escapes_every_text_and_needs_no_network_and_no_script() -> None:
    bad = "<script>alert('$x$')</script> & \"q\""
    image = Picture(as_png(np.zeros((4, 6, 3), dtype=np.uint8)), bad)
    many = [[bad, str(i)] for i in range(40)]
    blocks = [
        Text(bad),
        Table([bad, "n"], [[bad, bad]], note=bad),
        Table([bad, "n"], many, title=bad),
        image,
        Cards([Card(bad, [bad], image)]),
        Preformatted(bad, bad),
        Preformatted(bad),
    ]
    html = render_page(bad, bad, [Section(bad, lambda: blocks), Section("empty", lambda: [])])
    page = Page(html)
    assert "script" not in page.tags
    assert {address[:1] for address in page.addresses} == {"#", "d"}
    assert all(address.startswith(("#s", "data:image/png;base64,")) for address in page.addresses)
    assert "http" not in html
    assert list(page.sections) == [bad]
    assert page.sections[bad]["tables"][0] == [[bad, "n"], [bad, bad]]
    assert len(page.sections[bad]["tables"][1]) == 41
    assert page.tags.count("details") == 2
    assert page.sections[bad]["texts"].count(bad) == 7
    assert page.sections[bad]["pictures"][0].shape == (4, 6, 3)


def test_names_that_are_not_utf8_are_written() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert "caf\\xe9" in render_page("t", "s", [Section(name, lambda: [Text(name)])]).encode().decode()


def test_tables_of_the_run_folder_are_shown(tmp_path: Path) -> None:
    (tmp_path / "errors.csv").write_text("channel,kind,windows,mae,mape\n<b>,x,120,0.123456,\nload,7,1200,12345.6,\n")
    trainer: Any = SimpleNamespace(loggers=[SimpleNamespace(log_dir=str(tmp_path))])
    page = _page(table_sections(trainer, {"errors": "Errors", "missing": "Missing"}))
    assert list(page.sections) == ["Errors"]
    assert page.sections["Errors"]["tables"] == [
        [["channel", "kind", "windows", "mae"], ["<b>", "x", "120", "0.1235"], ["load", "7", "1200", "1.235e+04"]]
    ]


# Which sample is which


class _Broken(SampleDataset):
    """Samples of which some cannot be read."""

    def __getitem__(self, index: int) -> Any:
        source, target = self.samples[index]
        return None if "broken" in source else (torch.tensor([float(index)]), target)


def _data(names: list[str], **options: Any) -> DataModule:
    data = DataModule(num_workers=options.pop("num_workers", 0), batch_size=2)
    data.val_set = _Broken([(name, i) for i, name in enumerate(names)])
    data.collate = lambda samples: collate_found(samples, "sample")
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_keep_their_names_behind_broken_ones(workers: int) -> None:
    names = ["a", "broken 1", "broken 2", "broken 3", "c", "d", "broken 4", "e"]
    loader = _data(names, num_workers=workers).val_dataloader()
    for _ in range(2):
        seen = []
        for number_, (raw, target) in enumerate(loader):
            positions = positions_in_batch(loader, number_)
            assert positions == raw[:, 0].int().tolist() == target.tolist()
            seen += [sample_name(cast(Any, loader.dataset).dataset, position) for position in positions]
        assert seen == ["a", "c", "d", "e"]
    assert positions_in_batch([loader], 0) is None  # it was taken
    assert positions_in_batch(object(), 0) is None


def test_results_are_put_into_the_order_of_the_split() -> None:
    results = SampleResults()
    results.add([4, 1], {"x": torch.tensor([40, 10])})
    results.add([0], {"x": torch.tensor([0])})
    gathered = results.gather(1)
    assert gathered["position"].tolist() == [0, 1, 4]
    assert gathered["x"].tolist() == [0, 10, 40]
    results.clear()
    assert results.gather(1) == {}


# Runs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose names no page may take for its own text."""
    root = tmp_path_factory.mktemp("report")
    names = ["<script>alert(1)", "$x$ {{ 7 * 7 }}", "sea & sand"]
    write_photos(root / "photos", classes=names, train=4, val=3)
    for label, name in enumerate(names):
        picture(label + 1, 50 + label).save(root / "photos" / "val" / name / "<b>$y$.png")  # of another class
    return write_config(root / "photos.yaml", root / "photos", **PLAIN)


@pytest.fixture(scope="module")
def fitted(config: Path) -> Path:
    out = config.parent / "fit"
    command("fit", config, out, "--trainer.max_epochs", "5")
    return runs(out)[0]


def test_fit_leaves_a_report_on_the_best_validation(fitted: Path, config: Path) -> None:
    page = report_of(fitted)
    assert list(page.sections) == [
        *["Results", "Classes", "Confusion", "Worst mistakes", "Calibration", "Learning curves", "Run"],
        *["Configuration", "Commands"],
    ]
    best = saved(fitted, "best")
    assert rows_of(page, "Results")["accuracy"][0] == number(best["metrics"]["val_acc"])
    assert rows_of(page, "Results")["val_loss"][0] == number(best["metrics"]["val_loss"])
    html = (fitted / "report.html").read_text(encoding="utf-8")
    assert f"Epoch {best['epoch']}, the best one by val_acc" in html
    assert len(html) < 3e6
    assert "script" not in page.tags
    assert "{{ 7 * 7 }}" in html

    configuration = page.sections["Configuration"]["texts"]
    assert configuration[-1] == (fitted / "config.yaml").read_text(encoding="utf-8").strip()
    (commands,) = page.sections["Commands"]["texts"]
    assert [line.split()[:2] for line in commands.splitlines()] == [
        *[["lightning", "test"], ["lightning", "predict"], ["lightning", "export"]]
    ]


def test_mistakes_of_a_run_have_their_files_and_pictures(fitted: Path, config: Path) -> None:
    section = report_of(fitted).sections["Worst mistakes"]
    named = [Path(text) for text in section["texts"] if text.endswith((".png", ".jpg"))]
    assert len(named) == len(section["pictures"]) >= 3
    assert "<b>$y$.png" in {file.name for file in named}

    transform = eval_transform(32, crop="auto")
    for file, shown in zip(named, section["pictures"], strict=True):
        pixels = transform(Image.open(file).convert("RGB")).float()
        expected = pixels / 255 if pixels.max() > 1 else pixels
        assert np.abs(expected.permute(1, 2, 0).numpy() * 255 - shown).max() <= 1


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_leaves_a_report_with_the_same_results(verb: str, fitted: Path, config: Path) -> None:
    out = config.parent / verb
    command(verb, config, out, "--ckpt_path", str(fitted))
    page, trained = report_of(runs(out)[0]), report_of(fitted)
    assert page.sections["Classes"]["tables"] == trained.sections["Classes"]["tables"]
    assert rows_of(page, "Results")["accuracy"] == rows_of(trained, "Results")["accuracy"]
    assert "Learning curves" not in page.sections
    assert str(fitted) in page.sections["Commands"]["texts"][0]


def test_resumed_run_says_that_the_best_epoch_was_measured_before(fitted: Path, config: Path, tmp_path: Path) -> None:
    epoch = saved(fitted, "best")["epoch"]
    out = tmp_path / "out"
    command("fit", config, out, "--trainer.max_epochs", "2", "--model.lr", "1e-9", "--model.min_lr", "1e-12")
    (run,) = runs(out)
    assert "Epoch 0, the best one by val_acc" in (run / "report.html").read_text(encoding="utf-8"), epoch
    words = ["--model.lr", "1e-9", "--model.min_lr", "1e-12", "--ckpt_path", "last"]
    command("fit", config, out, "--trainer.max_epochs", "3", *words)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Epoch 2, the last one. The best checkpoint was measured before the run was resumed" in html
    assert f"lightning validate --ckpt_path {run}" in html


def test_runs_without_validation_or_folder(config: Path, tmp_path: Path) -> None:
    command("fit", config, tmp_path / "a", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    html = (runs(tmp_path / "a")[0] / "report.html").read_text(encoding="utf-8")
    assert "The run has no validation." in html
    assert "Results" not in Page(html).sections
    command("fit", config, tmp_path / "b", "--trainer.fast_dev_run", "true")
    assert not list((tmp_path / "b").rglob("report.html"))


class _Wandb:
    """A logger with the methods of Lightning's WandbLogger."""

    def __init__(self) -> None:
        self.experiment = self
        self.kept: dict[str, Any] = {}

    def log_image(self, **_: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.kept |= values


class _MLflow:
    """A logger with the client and the run of Lightning's MLFlowLogger."""

    run_id = "a1"

    def __init__(self) -> None:
        self.experiment = self
        self.kept: dict[str, Any] = {}

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "a1"
        self.kept[artifact_file] = text


@pytest.mark.parametrize(("kind", "name"), [(_Wandb, "report"), (_MLflow, "report.html")])
def test_loggers_that_take_pages_get_the_report(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Html=lambda text: text))
    logger = kind()
    trainer: Any = SimpleNamespace(loggers=[logger])
    assert write_page(trainer, "<p>page</p>") is None
    assert logger.kept == {name: "<p>page</p>"}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=False, checkpoint_callbacks=[])
    RunReport().on_fit_end(trainer, cast(Any, None))
