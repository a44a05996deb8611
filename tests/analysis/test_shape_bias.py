"""Shape bias on small cue-conflict sets with classifiers whose decisions are known."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from core.analysis import ShapeBias, shape_bias
from core.analysis.shape_bias import CATEGORIES, category_probabilities, conflict_images, shape_bias_figure
from core.errors import MissingError

NAMES = list(CATEGORIES)
SIZES = [1, 4, 2, 49, 5, 7, 3, 6, 4, 3, 109, 2, 2, 1, 1, 8]
EXCLUDED_DOGS = {192, 204, 227, 242, 251, 258, 260, 264}


class Sees(nn.Module):
    """Classifier that is sure of the class that the red and green of an image spell out: 256 red + green."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.classes, self.sure = classes, nn.Parameter(torch.tensor(30.0))

    def forward(self, x: Tensor) -> Tensor:
        red, green, _ = x.mean(dim=(2, 3)).round().long().unbind(dim=1)
        return self.sure * nn.functional.one_hot(256 * red + green, self.classes).float()


def _to_map(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def _write(folder: Path, seen: dict[str, str | int]) -> Path:
    """Images named so, each showing the last class of a category, or a class number."""
    for name, category in seen.items():
        number = CATEGORIES[category][-1] if isinstance(category, str) else category
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (number // 256, number % 256, 0)).save(path)
    return folder


@pytest.fixture
def conflicts(tmp_path: Path) -> Path:
    """Nine conflicts of three shapes, below folders of their shapes as in the public set, and two agreements."""
    cats = {"cat1-dog1": "cat", "cat1-truck3": "cat", "cat2-dog7": "dog", "cat10-elephant2": "bird"}
    knives = {"knife1-cat2": "cat", "knife3-oven1": "oven", "knife3-oven2": "oven"}
    clocks = {"clock2-bear1": 0, "clock2-boat2": "boat", "clock2-clock1": "clock", "clock3-clock1": "bear"}
    found = {"cat": cats, "knife": knives, "deeper/clock": clocks}
    for folder, images in found.items():
        _write(tmp_path / folder, images)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_decisions_are_counted_by_category(conflicts: Path, batch_size: int) -> None:
    result = shape_bias(Sees().eval(), conflicts, _to_map, batch_size=batch_size)
    assert {k: v for k, v in result.shape.items() if v} == {"cat": 2}
    assert {k: v for k, v in result.texture.items() if v} == {"cat": 1, "knife": 3, "clock": 1}
    assert {k: v for k, v in result.other.items() if v} == {"cat": 1, "clock": 1}
    assert result.overall == 2 / 7
    shares = {"cat": 2 / 3, "knife": 0.0, "clock": 0.0}
    assert result.by_category == {name: shares.get(name) for name in NAMES}


def test_shape_and_texture_of_each_file_without_agreements(conflicts: Path) -> None:
    found = conflict_images(conflicts)
    assert len(found) == 9
    assert found[0] == (conflicts / "cat" / "cat1-dog1.png", "cat", "dog")
    assert found[-1] == (conflicts / "knife" / "knife3-oven2.png", "knife", "oven")
    assert all(shape != texture for _, shape, texture in found)
    assert conflict_images(str(conflicts)) == found


def test_classifier_by_shape_or_by_texture_alone(tmp_path: Path) -> None:
    pairs = list(itertools.permutations(NAMES, 2))
    by_shape = _write(tmp_path / "a", {f"{shape}1-{texture}2": shape for shape, texture in pairs})
    by_texture = _write(tmp_path / "b", {f"{shape}1-{texture}2": texture for shape, texture in pairs})
    seen, read = (shape_bias(Sees().eval(), folder, _to_map) for folder in (by_shape, by_texture))
    assert (seen.overall, read.overall) == (1, 0)
    assert seen.shape == read.texture == dict.fromkeys(NAMES, 15)
    assert sum(seen.other.values()) == sum(read.other.values()) == 0


def test_no_decision_for_either_has_no_share(tmp_path: Path) -> None:
    folder = _write(tmp_path, {"cat1-dog1": "oven", "cat2-dog1": "bear", "bird1-car1": "bird"})
    result = shape_bias(Sees().eval(), folder, _to_map)
    assert (result.by_category["cat"], result.by_category["bird"], result.overall) == (None, 1.0, 1.0)
    empty = shape_bias(Sees().eval(), _write(tmp_path / "more", {"cat1-dog1": "oven"}), _to_map)
    assert empty.overall is None
    assert set(empty.by_category.values()) == {None}


@pytest.mark.parametrize(("options", "mode"), [({}, "RGB"), ({"mode": "RGB"}, "RGB"), ({"mode": "L"}, "L")])
def test_images_reach_the_transform_in_the_mode_asked_for(options: Any, mode: str, tmp_path: Path) -> None:
    Image.new("LA", (6, 5), (77, 255)).save(tmp_path / "cat1-dog1.png")
    seen = []

    def transform(image: Image.Image) -> Tensor:
        seen.append((image.mode, image.size))
        return torch.zeros(3, 4, 4)

    shape_bias(Sees().eval(), tmp_path, transform, **options)
    assert seen == [(mode, (6, 5))]


def test_categories_are_those_of_the_public_toolbox() -> None:
    assert sorted(NAMES) == NAMES
    assert [len(classes) for classes in CATEGORIES.values()] == SIZES
    every = [number for classes in CATEGORIES.values() for number in classes]
    assert len(set(every)) == len(every) == 207
    assert all(list(classes) == sorted(classes) for classes in CATEGORIES.values())
    assert set(range(152, 269)) - set(CATEGORIES["dog"]) == EXCLUDED_DOGS
    birds = CATEGORIES["bird"]
    assert (birds[:9], birds[-12:]) == ((8, 10, 11, 12, 13, 14, 15, 16, 18), (133, *range(135, 146)))
    assert {9, 17, 21, 84, 97, 134, 146} & set(birds) == set()  # ostrich, jay, kite, peacock, drake, crane, albatross


@pytest.mark.parametrize(
    ("number", "category"),
    [
        *[(404, "airplane"), (294, "bear"), (671, "bicycle"), (8, "bird"), (100, "bird"), (625, "boat")],
        *[(907, "bottle"), (817, "car"), (281, "cat"), (286, "cat"), (559, "chair"), (892, "clock"), (152, "dog")],
        *[(268, "dog"), (386, "elephant"), (508, "keyboard"), (878, "keyboard"), (499, "knife"), (766, "oven")],
        (867, "truck"),
    ],
)
def test_category_of_some_classes(number: int, category: str) -> None:
    assert [name for name, classes in CATEGORIES.items() if number in classes] == [category]


def _logits(probabilities: dict[int, float]) -> Tensor:
    """Logits of one image with these probabilities, and the rest spread over class 0."""
    p = torch.full((1, 1000), 1e-9)
    for number, probability in probabilities.items():
        p[0, number] = probability
    p[0, 0] = 1 - p.sum()
    return p.log()


def test_a_category_has_the_mean_of_its_classes_and_not_their_sum() -> None:
    dogs = dict.fromkeys(CATEGORIES["dog"], 0.005)  # 0.545 together
    p = category_probabilities(_logits(dogs | {499: 0.1}))
    assert NAMES[int(p.argmax())] == "knife"
    assert float(p[0, NAMES.index("dog")]) == pytest.approx(0.005, rel=1e-4)
    assert float(p[0, NAMES.index("knife")]) == pytest.approx(0.1, rel=1e-4)


def test_category_probabilities_equal_their_definition() -> None:
    logits = 3 * torch.randn(4, 1000)
    p = category_probabilities(logits)
    for row, image in enumerate(logits.double()):
        e = (image - image.max()).exp()
        means = [sum(float(e[number]) for number in classes) / len(classes) for classes in CATEGORIES.values()]
        assert_close(p[row], torch.tensor(means, dtype=torch.float64) / e.sum())


@pytest.mark.parametrize(
    "name", ["cat1dog1", "cat-dog", "Cat1-dog1", "cat1-dog1-x", "cat1-zebra1", "unicorn1-dog1", "cat1_dog1"]
)
def test_names_without_shape_and_texture_are_refused(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {"bear1-bird1": "bear", name: "cat"})
    message = f"{name}.png is not named after a shape and a texture; expected names such as cat3-knife1.png with two of"
    with pytest.raises(ValueError, match=f"{re.escape(message)} airplane, bear, .*, truck$"):
        shape_bias(Sees().eval(), tmp_path, _to_map)


def test_only_agreements_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, {"cat1-cat2": "cat", "dog1-dog3": "dog"})
    message = f"in all 2 images of {folder} shape and texture agree; give images in which they differ"
    with pytest.raises(ValueError, match=re.escape(message)):
        shape_bias(Sees().eval(), folder, _to_map)


def test_unreadable_file_is_named(conflicts: Path) -> None:
    (conflicts / "dog1-cat1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"dog1-cat1\.png cannot be decoded as an image: .*; replace it"):
        shape_bias(Sees().eval(), conflicts, _to_map)


@pytest.mark.parametrize(
    ("folder", "message"), [("", "holds no images; expected files ending in"), ("nowhere", "is neither a file nor a")]
)
def test_no_images_are_refused(folder: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=message):
        shape_bias(Sees().eval(), tmp_path / folder, _to_map)


@pytest.mark.parametrize("classes", [21841, 999])
def test_other_classes_are_refused(conflicts: Path, classes: int) -> None:
    with pytest.raises(ValueError, match=rf"the model gives \(9, {classes}\); shape bias needs the 1000 classes of"):
        shape_bias(Sees(classes).eval(), conflicts, _to_map)


def test_maps_instead_of_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the model gives \(2, 1000, 3, 3\); shape bias needs the 1000 classes"):
        category_probabilities(torch.zeros(2, 1000, 3, 3))


def test_training_mode_is_refused(conflicts: Path) -> None:
    with pytest.raises(ValueError, match=r"decisions are those of eval mode; call model\.eval\(\) first"):
        shape_bias(Sees(), conflicts, _to_map)


def _result(**counts: dict[str, int]) -> ShapeBias:
    zeros: dict[str, Any] = {kind: dict.fromkeys(NAMES, 0) | counts.get(kind, {}) for kind in ("shape", "texture")}
    return ShapeBias(**zeros)


def test_figure_has_a_bar_for_each_category_and_model() -> None:
    results = {"net": _result(shape={"cat": 3, "dog": 1}, texture={"cat": 1, "dog": 3}), "other": _result()}
    figure = shape_bias_figure(results)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    first, second = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert {name: width for name, width in zip(NAMES, first, strict=True) if width} == {"cat": 0.75, "dog": 0.25}
    assert second == [0.0] * 16
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["net: 0.500 overall", "other: none overall"]
    assert [text.get_text() for text in axes.texts] == ["no images"] * (14 + 16)
    assert len(axes.get_lines()) == 1


def test_figure_draws_dollar_signs() -> None:
    figure = shape_bias_figure({"net=$x^$.pth": _result()})
    figure.canvas.draw()  # matplotlib would refuse the formula '$x^$'
    assert figure.legends[0].get_texts()[0].get_text().replace(r"\$", "$") == "net=$x^$.pth: none overall"
