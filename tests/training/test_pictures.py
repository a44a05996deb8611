"""The pictures that a run leaves: readable sizes, something drawn, errors in red."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from core.training.callbacks import LearningCurves, RunRecord
from core.training.plots import Examples, confusion_figure, draw_figure, image_sheet, rendered

RED = to_rgb("crimson")


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["learning_curves", "confusion_matrix", "examples"])
def test_pictures_of_a_run_have_a_readable_size_and_content(name: str, trained: dict[str, Path]) -> None:
    pixels = _pixels(trained["folder"] / f"{name}.png")
    assert min(pixels.shape[:2]) >= 200
    assert max(pixels.shape[:2]) <= 2500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("classes", [2, 10, 30, 200])
def test_confusion_matrix_of_any_number_of_classes(classes: int) -> None:
    counts = torch.eye(classes, dtype=torch.int64) * 4
    counts[0, 1] = 4
    figure = confusion_figure(counts, [f"class {i}" for i in range(classes)])
    axes = figure.axes[0]
    accuracy = classes / (classes + 1)
    assert axes.get_title() == f"{4 * classes + 4} samples, accuracy {accuracy:.3f}"
    shown = np.asarray(axes.images[0].get_array())
    assert shown[0].tolist()[:2] == [0.5, 0.5]
    assert shown[1, 1] == 1
    height, width, _ = rendered(figure).shape
    assert 400 <= height == width <= 1800
    texts = sorted(text.get_text() for text in axes.texts)
    assert texts == (["4"] * (classes + 1) if classes <= 20 else [])


def test_confusion_matrix_names_rows_and_columns_and_takes_empty_classes() -> None:
    figure = confusion_figure(torch.tensor([[3, 0], [0, 0]]), ["cat", "dog"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert np.isfinite(np.asarray(axes.images[0].get_array())).all()
    assert "accuracy 1.000" in axes.get_title()
    assert "accuracy 0.000" in confusion_figure(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"]).axes[0].get_title()


@pytest.mark.parametrize("names", [["a", "b"], ["great spotted woodpecker", "european robin bird"]])
def test_title_of_the_confusion_matrix_ends_before_the_color_bar(names: list[str]) -> None:
    figure = confusion_figure(torch.tensor([[300, 0], [100, 200]]), names)
    rendered(figure)
    title = figure.axes[0].title.get_window_extent()
    bar = figure.axes[1].get_window_extent()
    assert title.x1 < bar.x0


def test_labels_of_the_confusion_matrix_end_at_their_column() -> None:
    names = ["a name of a class", "another long name", "the last of them"]
    figure = confusion_figure(torch.eye(3, dtype=torch.int64), names)
    rendered(figure)
    (axes, *_) = figure.axes
    columns = [axes.transData.transform((i, 0))[0] for i in range(3)]
    step = columns[1] - columns[0]
    for column, label in zip(columns, axes.get_xticklabels(), strict=True):
        assert abs(label.get_window_extent().x1 - column) < step / 3


def test_dollar_signs_in_names_are_drawn_as_such() -> None:
    names = ["price $x^$", "$_$ and $", "plain"]
    figure = confusion_figure(torch.eye(3, dtype=torch.int64), names)
    rendered(figure)  # mathtext would refuse '$x^$'
    rendered(image_sheet(torch.rand(3, 3, 8, 8), names))
    escaped = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [text.replace(r"\$", "$") for text in escaped] == names
    assert escaped[0].count("$") == escaped[0].count(r"\$")


def test_names_that_are_not_utf8_are_drawn() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    figure = confusion_figure(torch.eye(2, dtype=torch.int64), [name, "b"])
    rendered(figure)
    rendered(image_sheet(torch.rand(1, 3, 8, 8), [f"{name} 0.50"]))
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"caf\xe9"


@pytest.mark.parametrize("length", [10, 15, 20, 60])
def test_titles_of_a_sheet_do_not_overlap(length: int) -> None:
    predicted = "MW" * (length // 2)
    true = "wm" * (length // 2)
    titles = [f"{predicted} 0.93 ({true})", f"{predicted} 1.00", f"{true} 0.51 ({predicted})", "b 0.50"] * 4
    figure = image_sheet(torch.rand(16, 3, 8, 8), titles, [True] * 16)
    rendered(figure)
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert all(text.get_text().startswith(("MW", "wm", "b")) for text in axes.texts)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 9, 32])
def test_sheet_has_a_place_for_every_image(count: int, channels: int) -> None:
    figure = image_sheet(torch.rand(count, channels, 8, 8), [f"t{i}" for i in range(count)])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [f"t{i}" for i in range(count)]
    assert {np.asarray(image.get_array()).ndim for image in axes.images} == {3 if channels == 3 else 2}

    places = [image.get_extent() for image in axes.images]
    for i, (left, right, bottom, top) in enumerate(places):
        assert right - left == pytest.approx(1.42)  # inches, as high as wide
        assert bottom - top == pytest.approx(1.44)
        assert left // 1.5 == i % 8
        assert top // 1.75 == i // 8
        assert axes.texts[i].get_position()[1] < top

    height, width, _ = rendered(figure).shape
    assert width == pytest.approx(180 * min(count, 8), abs=2)
    assert height == pytest.approx(210 * -(-count // 8), abs=2)


def test_images_of_a_sheet_are_shown_as_they_are() -> None:
    shades = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    pixels = rendered(image_sheet(shades, ["black", "gray", "white"]))
    middles = [pixels[120, 90 + 180 * i].tolist() for i in range(3)]
    assert middles == [[0, 0, 0], [128, 128, 128], [255, 255, 255]]


def test_wrong_titles_are_red() -> None:
    figure = image_sheet(torch.zeros(3, 3, 8, 8), ["cat", "dog", "cow"], [False, True, False])
    assert [to_rgb(text.get_color()) == RED for text in figure.axes[0].texts] == [False, True, False]
    pixels = rendered(figure).astype(int)
    reddish = (pixels[..., 0] - pixels[..., 1]) > 100
    third = pixels.shape[1] // 3
    assert [bool(reddish[:, i * third : (i + 1) * third].any()) for i in range(3)] == [False, True, False]


class _Logger:
    """A logger with a folder that keeps the pictures it is given, as TensorBoard does."""

    def __init__(self, folder: Path) -> None:
        self.log_dir, self.experiment, self.figures = str(folder), self, list[str]()

    def add_image(self, name: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert pixels.shape[2] == 3
        assert dataformats == "HWC"
        self.figures.append(f"{name} {step}")


class _Trainer:
    is_global_zero = True
    sanity_checking = False
    global_step = 5
    current_epoch = 0

    def __init__(self, *loggers: Any) -> None:
        self.loggers = list(loggers)
        self.callback_metrics = dict[str, Any]()


def test_figure_goes_to_the_folder_and_to_the_loggers(tmp_path: Path) -> None:
    logger = _Logger(tmp_path / "run")
    trainer: Any = _Trainer(logger)
    for count in (1, 2):  # the second picture replaces the first
        draw = partial(confusion_figure, count * torch.eye(2, dtype=torch.int64), ["a", "b"])
        assert draw_figure(trainer, "picture", draw) == tmp_path / "run" / "picture.png"
        assert np.array_equal(_pixels(tmp_path / "run" / "picture.png"), rendered(draw()))
        trainer.global_step += 1
    assert logger.figures == ["picture 5", "picture 6"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["picture.png"]


class _Wandb:
    """A logger without a folder, with the methods of Lightning's WandbLogger."""

    def __init__(self) -> None:
        self.experiment = object()
        self.images: list[tuple[str, tuple[int, ...], int | None]] = []
        self.settings: dict[str, Any] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        (pixels,) = images
        self.images.append((key, pixels.shape[2:], step))

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.settings |= params


class _MLflow:
    """A logger without a folder, with the client and the run of Lightning's MLFlowLogger."""

    run_id = "a1"

    def __init__(self) -> None:
        self.experiment = self
        self.images: list[tuple[str | None, tuple[int, ...], int | None]] = []
        self.texts: dict[str, str] = {}

    def log_image(
        self,
        run_id: str,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
    ) -> None:
        assert run_id == "a1"
        self.images.append((key, image.shape[2:], step))

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "a1"
        self.texts[artifact_file] = text


class _MLflowLogger:
    def __init__(self, client: _MLflow) -> None:
        self.experiment = client
        self.run_id = client.run_id


@pytest.mark.parametrize("kind", [_Wandb, _MLflow])
def test_loggers_without_a_folder_get_pictures_and_the_configuration(kind: Any) -> None:
    keeper = kind()
    logger: Any = _MLflowLogger(keeper) if kind is _MLflow else keeper
    trainer: Any = _Trainer(logger)
    assert draw_figure(trainer, "picture", partial(confusion_figure, torch.eye(2), ["a", "b"])) is None
    assert keeper.images == [("picture", (3,), 5)]

    examples = Examples(size=1)
    examples.keep(lambda chosen: torch.zeros(len(chosen), 3, 8, 8), ["a"], [False], 1)
    examples.draw(trainer)
    assert [name for name, _, _ in keeper.images] == ["picture", "examples"]

    text = "model:\n  lr: 0.1\n"
    RunRecord(text).setup(trainer, cast(Any, None), "fit")
    if kind is _MLflow:
        assert keeper.texts == {"config.yaml": text}
    else:
        assert keeper.settings == {"model": {"lr": 0.1}}


def test_nothing_is_drawn_without_a_run_folder_or_by_other_processes(tmp_path: Path) -> None:
    other: Any = _Trainer(_Logger(tmp_path))
    other.is_global_zero = False
    bare: Any = _Trainer()
    for trainer in (bare, other):
        assert draw_figure(trainer, "picture", lambda: pytest.fail("the figure was made")) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("batches", "size"), [(3, 8), (8, 8), (100, 8), (33, 32)])
def test_examples_are_spread_over_all_batches(batches: int, size: int, tmp_path: Path) -> None:
    examples = Examples(size=size)
    trainer: Any = _Trainer()
    for _ in range(2):  # the second evaluation like the first
        for batch in range(batches):
            maps = torch.full((5, 1, 2, 2), float(batch))
            examples.keep(lambda chosen, maps=maps: maps[chosen], [str(batch)] * 5, [False] * 5, batches)
        kept = [int(title) for _, title, _ in examples.kept]
        assert len(kept) == size
        gaps = np.diff([-1, *sorted(set(kept)), batches])
        assert gaps.max() <= max(1, -(-batches // size)) + 1
        assert all(x.untyped_storage().nbytes() <= 5 * 4 * 4 for x, _, _ in examples.kept)  # not the batch's memory
        examples.draw(trainer)  # nowhere, but they are forgotten
        assert not examples.kept


def test_sheet_of_examples_is_not_drawn_in_the_sanity_check(tmp_path: Path) -> None:
    examples = Examples(size=2)
    trainer: Any = _Trainer(_Logger(tmp_path))
    for sanity_checking in (True, False):
        trainer.sanity_checking = sanity_checking
        examples.keep(lambda chosen: torch.rand(4, 3, 8, 8)[chosen], ["a"] * 4, [False] * 4, 1)
        examples.draw(trainer, "sheet")
        assert (tmp_path / "sheet.png").is_file() != sanity_checking
        assert not examples.kept


def test_learning_curves_pair_training_and_validation_and_survive_a_state_dict(tmp_path: Path) -> None:
    trainer: Any = _Trainer(_Logger(tmp_path))
    curves = LearningCurves()
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {"train_loss": torch.tensor(3.0 - epoch), "val_loss": 4.0 - epoch, "val_acc": 0.5}
        curves.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert _pixels(tmp_path / "learning_curves.png").shape[1] == 960
    resumed = LearningCurves()
    resumed.load_state_dict(curves.state_dict())
    resumed.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert resumed.history["val_loss"] == [(0, 4.0), (1, 3.0), (2, 2.0)]
    panels = {axes.get_title(): axes for axes in resumed.figure().axes}
    assert set(panels) == {"acc", "loss"}
    lines = {line.get_label(): list(line.get_ydata()) for line in panels["loss"].lines}
    assert lines == {"train_loss": [3.0, 2.0, 1.0], "val_loss": [4.0, 3.0, 2.0]}
