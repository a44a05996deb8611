"""Images with several labels: tables, targets, losses, mixing, metrics, checkpoints, pictures and predictions."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.functional.classification import multilabel_average_precision
from training.small_runs import PLAIN, command, metric, runs, saved, table, write_config

from core.data.samples import divide_in_folds, hold_out, labels_of
from core.errors import InputError, MissingError
from core.training.callbacks import RunCheckpoint, best_mode
from vision import ImageClassifier, ImageFolder, ImageSpec

CLASSES = ("blue", "cross", "green", "red")
SPEC = ImageSpec(classes=CLASSES, multi_label=True, mean=(0.0,) * 3, std=(1.0,) * 3)
SMALL: dict[str, Any] = {"size": 32, "num_workers": 0, "crop": "squash", **PLAIN}


def _picture(labels: list[str], number: int) -> Image.Image:
    """Noise with a square in each color, and a cross."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
    for channel, name in enumerate(("red", "green", "blue")):
        if name in labels:
            y, x = rng.integers(0, 20, 2)
            pixels[y : y + 12, x : x + 12, channel] = 230
    if "cross" in labels:
        pixels[16, :] = pixels[:, 16] = 255
    return Image.fromarray(pixels)


def _write(folder: Path, count: int = 24) -> Path:
    """Images in ``folder/images`` and ``labels.csv`` with their labels; the last third is for validation."""
    rng = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        labels = [name for name in CLASSES if rng.random() < 0.4]
        _picture(labels, i).save(folder / "images" / f"{i}.png")
        rows.append((f"{i}.png", ";".join(labels) or ";", "train" if i < 2 * count // 3 else "val"))
    return _table(folder / "labels.csv", rows)


def _table(path: Path, rows: list[Any], header: tuple[str, ...] = ("file", "labels", "split")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of images and their table, which are only read."""
    return _write(tmp_path_factory.mktemp("labeled")).parent


def _data(folder: Path, **options: Any) -> ImageFolder:
    options = {"labels_csv": str(folder / "labels.csv"), "multi_label": True} | SMALL | options
    return ImageFolder(str(folder / "images"), **options)


# Tables


def test_targets_are_those_of_the_table(labeled: Path) -> None:
    data = _data(labeled, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert data.spec() == ImageSpec(classes=CLASSES, multi_label=True, size=32, crop="squash")
    assert data.settings().multi_label
    assert (len(data.read_splits().train), len(data.read_splits().val)) == (16, 8)
    assert data.read_splits().test == data.read_splits().val

    pixels, target = next(iter(data.val_dataloader()))
    rows = table(labeled / "labels.csv")[16:20]
    expected = [[float(name in row["labels"].split(";")) for name in CLASSES] for row in rows]
    assert target.tolist() == expected
    assert target.dtype == torch.float32
    image = np.array(Image.open(labeled / "images" / rows[0]["file"]))
    assert_close(pixels[0].permute(1, 2, 0), torch.from_numpy(image))


def test_files_are_relative_to_the_table_without_a_root(tmp_path: Path) -> None:
    _picture([], 0).save(tmp_path / "a.png")
    _picture([], 1).save(tmp_path / "b.png")
    rows = [("a.png", "cat", "train"), (str(tmp_path / "b.png"), "dog", "test")]
    with pytest.raises(InputError, match="has the labels cat; expected at least two"):
        ImageFolder(labels_csv=str(_table(tmp_path / "one.csv", rows)), **SMALL).read_splits()
    rows[0] = ("a.png", "cat;dog", "train")
    path = _table(tmp_path / "labels.csv", [*rows, ("../b.png", "cat", "val")])
    with pytest.raises(MissingError, match=r"there is no .*b\.png, which .*labels\.csv names; files are relative to"):
        ImageFolder(labels_csv=str(path), multi_label=True, **SMALL).read_splits()
    splits = ImageFolder(
        labels_csv=str(_table(path, [*rows, ("./b.png", "cat", "val")])), multi_label=True, **SMALL
    ).read_splits()
    assert [[source for source, _ in part] for part in (splits.train, splits.test)] == [
        [tmp_path / "a.png"],
        [tmp_path / "b.png"],
    ]


def test_one_label_each_in_a_table(labeled: Path, tmp_path: Path) -> None:
    """With a byte-order mark, a trailing separator that the header lacks, and spaces."""
    text = "\ufefffile,labels\n" + "".join(f"{i}.png, {'cat' if i % 3 else 'dog'} ,\n" for i in range(12))
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    data = ImageFolder(str(labeled / "images"), labels_csv=str(tmp_path / "labels.csv"), val_share=0.25, **SMALL)
    splits = data.read_splits()
    assert splits.classes == ["cat", "dog"]
    assert [label for _, label in splits.val] == [1, 0, 0] or sorted(label for _, label in splits.val) == [0, 0, 1]
    assert {source.name for source, _ in [*splits.train, *splits.val]} == {f"{i}.png" for i in range(12)}
    assert not data.spec().multi_label


@pytest.mark.parametrize(
    ("rows", "several", "message"),
    [
        ([("0.png", "a;b"), ("1.png", "")], True, r"labels\.csv, row 3 \(1\.png\) has no label; .*if none .* ';'"),
        ([("0.png", "a"), ("1.png", " ")], False, r"row 3 \(1\.png\) has no label; write one$"),
        ([("0.png", "a"), ("1.png", "b")], True, r"has no ';' between labels, as in 'a', .*leave the option out"),
        ([("0.png", "a,b"), ("1.png", "b")], True, r"has no ';' between labels, as in 'a,b'"),
        ([("0.png", "a;b"), ("1.png", "b")], False, r"'a;b'; expected one label, or type --data\.multi_label true"),
        ([("0.png", "a"), ("0.png", "b")], True, r"row 3 \(0\.png\) names a file again; give each file one row"),
        ([("0.png", "a;b"), ("1.png", "c;a")], True, r"class 'b' has one file, too few to hold one out"),
        ([("0.png", "a;b"), ("no.png", "b;a")], True, r"there is no .*no\.png, which .*labels\.csv names"),
        ([("0.png", "a;b"), (".", "b;a")], True, r"labels\.csv names .*images, which holds 24 samples"),
        ([], True, r"labels\.csv has no rows; expected a row for each file"),
    ],
)
def test_rows_that_cannot_be_used(labeled: Path, tmp_path: Path, rows: Any, several: bool, message: str) -> None:
    _table(tmp_path / "labels.csv", rows, ("file", "labels"))
    data = ImageFolder(str(labeled / "images"), labels_csv=str(tmp_path / "labels.csv"), multi_label=several, **SMALL)
    with pytest.raises(InputError, match=message):
        data.read_splits()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,labels,split\n0.png,a;b,train\n1.png,a;c,val\n", r"gives 1\.png the label 'c', which no training file"),
        ("file,labels,split\n0.png,a;b,train\n1.png,a,dev\n", r"has the split 'dev'; expected train or val or test"),
        ("file;labels\n0.png;a\n", r"has the columns file;labels; expected file, labels"),
        ("", r"has the columns none; expected file, labels"),
        ('file,labels\n0.png,"' + "a" * 200_000 + '"\n', r"cannot be read as CSV: field larger than"),
    ],
)
def test_tables_that_cannot_be_used(labeled: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        _data(labeled, labels_csv=str(tmp_path / "labels.csv")).read_splits()


def test_options_that_do_not_fit(labeled: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class folders give each file one label; type --data\.labels_csv FILE"):
        ImageFolder(str(photos), multi_label=True)
    with pytest.raises(MissingError, match=r"there is no .*none\.csv; give a CSV file with the columns file, labels"):
        ImageFolder(labels_csv=str(tmp_path / "none.csv")).prepare_data()
    with pytest.raises(InputError, match=r"--data\.folds 3 divides the training files, and the val files of"):
        _data(labeled, folds=3).read_splits()
    rows = [("0.png", "a;b", "test"), ("1.png", "b", "test")]
    data = _data(labeled, labels_csv=str(_table(tmp_path / "labels.csv", rows)))
    assert len(data.read_splits().test) == 2  # evaluation needs no training files
    with pytest.raises(MissingError, match=r"has no file whose split is 'train'"):
        data.setup("fit")


def _random_targets(count: int) -> list[Tensor]:
    rates = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.02])
    return list((torch.rand(count, 5) < rates).float())


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_about_the_share_of_each_class_is_held_out(share: float) -> None:
    targets = _random_targets(300)
    kept, held_out = hold_out(targets, share)
    assert sorted(kept + held_out) == list(range(300))
    assert hold_out(targets, share) == (kept, held_out)
    assert len(held_out) == pytest.approx(300 * share, abs=4)
    total, out = (torch.stack(part).sum(dim=0) for part in (targets, [targets[i] for i in held_out]))
    assert_close(out, total * share, atol=2.5, rtol=0.1)


def test_each_class_is_kept_and_held_out() -> None:
    for seed in range(200):
        torch.manual_seed(seed)
        targets = list((torch.rand(6, 4) < 0.4).float())
        kept, held_out = hold_out(targets, 0.2)
        assert sorted(kept + held_out) == list(range(6))
        occurring = set(torch.stack(targets).any(dim=0).nonzero()[:, 0].tolist())
        assert {label for i in kept for label in labels_of(targets[i])} == occurring


def test_a_class_of_one_sample_is_kept() -> None:
    targets = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 1, 0, 0]]).float()  # the last two classes are rare
    kept, held_out = hold_out(list(targets), 0.2)
    assert 0 in kept
    assert sorted(kept + held_out) == [0, 1, 2]


def test_folds_divide_each_class() -> None:
    targets = _random_targets(200)
    folds = divide_in_folds(targets, 4)
    assert sorted(i for fold in folds for i in fold) == list(range(200))
    counts = torch.stack([torch.stack([targets[i] for i in fold]).sum(dim=0) for fold in folds])
    assert (counts.amax(dim=0) - counts.amin(dim=0)).max() <= 3
    assert max(map(len, folds)) - min(map(len, folds)) <= 3


def test_balance_draws_by_the_rarest_label(labeled: Path) -> None:
    data = _data(labeled, balance=0.5)
    data.setup("fit")
    targets = [target for _, target in data.read_splits().train]
    counts = Counter[Any](label for target in targets for label in labels_of(target) or [None])
    expected = [min(counts[label] for label in labels_of(target) or [None]) ** -0.5 for target in targets]
    assert data.train_weights == expected
    assert len(set(expected)) > 2


# Learning


class _Given(nn.Module):
    """A backbone that returns the first pixels as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * self.weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_timm(smoothing: float) -> None:
    logits, target = torch.randn(6, 4), (torch.rand(6, 4) < 0.5).float()
    task = ImageClassifier(_Given(), spec=SPEC, label_smoothing=smoothing)
    assert_close(task.loss(logits, target), BinaryCrossEntropy(smoothing, smooth_dense=True)(logits, target))
    assert_close(task.evaluation_loss(logits, target), BinaryCrossEntropy(0.0)(logits, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_of_one_label_is_that_of_timm(smoothing: float) -> None:
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    task = ImageClassifier(_Given(), 4, criterion="bce", label_smoothing=smoothing)
    assert_close(task.loss(logits, labels), BinaryCrossEntropy(smoothing)(logits, labels))
    assert_close(task.probabilities(logits), logits.sigmoid())


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("several", [True, False])
def test_mixed_batches_have_the_loss_of_timm(kind: str, several: bool) -> None:
    """The targets are smoothed by timm's mixing, and here by the loss."""
    spec = ImageSpec(classes=CLASSES, multi_label=several)
    task = ImageClassifier(_Given(), spec=spec, label_smoothing=0.1, **{kind: 1.0})
    theirs = Mixup(**{"mixup_alpha": 0.0, kind: 1.0}, label_smoothing=0.1, num_classes=4, multi_label=several)
    maps, logits = torch.rand(6, 3, 8, 8), torch.randn(6, 4)
    target = (torch.rand(6, 4) < 0.5).float() if several else torch.randint(4, (6,))

    np.random.seed(3)
    mixed, own = task.augment_map(maps.clone(), target)
    np.random.seed(3)
    expected, smoothed = theirs(maps.clone(), target)
    assert torch.equal(mixed, expected)
    assert not torch.equal(mixed, maps)
    loss = BinaryCrossEntropy(0.0)(logits, smoothed) if several else nn.CrossEntropyLoss()(logits, smoothed)
    assert_close(task.loss(logits, own), loss)


class _Logits(torch.utils.data.Dataset[Any]):
    """Pixels that the backbone reads as logits, and targets."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.logits = logits
        self.targets = targets

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = torch.zeros(3, 2, 2)
        pixels.view(-1)[:4] = self.logits[index]
        return pixels, self.targets[index]


@pytest.mark.parametrize("knows", [True, False])
def test_map_is_that_of_torchmetrics(labeled: Path, knows: bool) -> None:
    targets = (torch.rand(40, 4) < 0.4).float()
    logits = targets * 2 + torch.randn(40, 4)
    data = _data(labeled, batch_size=7, mean=[0.0] * 3, std=[1.0] * 3)
    data.setup = lambda stage=None: None  # type: ignore[method-assign]
    data.val_set = _Logits(logits, targets)
    task = ImageClassifier(_Given(), spec=SPEC) if knows else ImageClassifier(_Given(), 4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (found,) = trainer.validate(task, data, verbose=False)
    probabilities = logits.sigmoid() if knows else (logits / 0.2).sigmoid()
    expected = multilabel_average_precision(probabilities, targets.long(), num_labels=4)
    assert found["val_mAP"] == pytest.approx(float(expected), abs=1e-6)
    assert set(found) == {"val_loss", "val_mAP", "val_auc", "val_dprime"}
    assert task.spec.multi_label
    assert task.chosen() == ("val_mAP", "max")


def test_model_of_one_label_refuses_several(labeled: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    task = ImageClassifier(_Given(), spec=ImageSpec(classes=CLASSES, size=32))
    with pytest.raises(InputError, match=r"with one label for each sample, and the data have several labels; type"):
        trainer.validate(task, _data(labeled), verbose=False)
    with pytest.raises(InputError, match=r"several labels \(multi_label\), which needs criterion='bce', not 'ce'"):
        ImageClassifier(_Given(), spec=SPEC, criterion="ce")


def test_examples_of_several_labels() -> None:
    task = ImageClassifier(_Given(), spec=SPEC)
    task.batch_count = lambda split: 1  # type: ignore[method-assign]
    logits = torch.tensor([[2.0, 1, -1, -1], [-1, -2, 3, -1], [-2, -1, -3, -2], [-2, -3, -4, 2]])
    target = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    task.keep_examples("val", torch.zeros(4, 3, 4, 4), logits, target)
    marked = {title.split()[0]: wrong for _, title, wrong in task.examples.kept}
    assert marked == {"blue": False, "green": True, "cross": False, "red": True}


@pytest.mark.parametrize(
    ("name", "mode"), [("val_loss", "min"), ("val_mse", "min"), ("val_acc", "max"), ("val_mAP", "max")]
)
def test_mode_follows_the_metric(name: str, mode: str) -> None:
    assert best_mode(name) == mode
    assert RunCheckpoint(monitor=name).mode == mode


def test_command_learns_several_labels(tmp_path: Path) -> None:
    """The checkpoint is the epoch with the best mAP, and predictions have the column of audio."""
    _write(tmp_path, 60)
    config = write_config(
        tmp_path / "labels.yaml",
        tmp_path / "images",
        labels_csv=str(tmp_path / "labels.csv"),
        multi_label=True,
        batch_size=20,
        balance=0.5,
        **PLAIN,
    )
    words = ["--trainer.max_epochs", "8", "--model.mixup_alpha", "0.1", "--data.min_epoch_steps", "6"]
    command("fit", config, tmp_path, *words)
    (run,) = runs(tmp_path)
    values = metric(run, "val_mAP")
    best = saved(run, "best")
    assert best["epoch"] == int(np.argmax(values))
    assert best["metrics"]["val_mAP"] == pytest.approx(max(values), abs=1e-6)
    assert max(values) > 0.7
    assert (run / "examples.png").is_file()
    assert not (run / "confusion_matrix.png").exists()

    task = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    found = task.predict(tmp_path / "images")
    command("predict", config, tmp_path, "--ckpt_path", str(run), "--data.predict_path", str(tmp_path / "images"))
    written = table(runs(tmp_path)[1] / "predictions.csv")
    names = [name for name in written[0] if not name.startswith(("class_", "probability_"))]
    assert names == ["file", "class", "probability", "labels", "error"]
    assert [row["labels"] for row in written] == [row["labels"] for row in found]

    truth = {row["file"]: set(row["labels"].strip(";").split(";")) - {""} for row in table(tmp_path / "labels.csv")}
    hits = [truth[Path(row["file"]).name] == set(row["labels"].split(";")) - {""} for row in written]
    assert sum(hits) / len(hits) > 0.25  # chance is 0.1
