"""The verb erf: what it prints and writes is what the function gives for images prepared by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from training.small_runs import picture
from verb_files import read, saved_net, saved_task, table_rows

import core.analysis.verbs
from core.analysis import ReceptiveField, effective_receptive_field
from core.analysis.receptive_field import ratio_text
from core.cli import main
from vision import ImageClassifier

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Fields = dict[str, ReceptiveField]


@pytest.fixture(autouse=True)
def photos_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images below the current folder, and a damaged one that is not asked for."""
    monkeypatch.chdir(tmp_path)
    Path("photos/more").mkdir(parents=True)
    for i in range(5):
        picture(i % 3, i, (50 + i, 40)).save(f"photos/{'more/' if i > 2 else ''}{i}.png")
    Path("photos/z.png").write_text("no image")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Fields, str]]:
    """What the figures of receptive fields show, with their titles."""
    draw, calls = core.analysis.verbs.receptive_field_figure, []

    def record(fields: Fields, title: str) -> Any:
        calls.append((fields, title))
        return draw(fields, title)

    monkeypatch.setattr(core.analysis.verbs, "receptive_field_figure", record)
    return calls


def _maps(count: int, size: int, norm: Any = IMAGENET, mode: str = "RGB") -> Tensor:
    """The first images by name, squashed and normalized by hand."""
    files = sorted(Path("photos").rglob("[0-9].png"))[:count]
    images = [Image.open(file).convert(mode).resize((size, size), Image.Resampling.BICUBIC) for file in files]
    pixels = torch.stack([torch.from_numpy(np.array(image)).float() / 255 for image in images])
    pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in norm)
    return (pixels - mean) / std


def test_erf_prints_and_writes_what_the_function_gives(
    drawn: list[tuple[Fields, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    nets = {name: saved_net(name) for name in ("test_replknet", "test_resnet")}
    words = ["--images", "photos", "--size", "64", "--num_images", "5", "--batch_size", "2", "--output", "a/b"]
    main(["erf", "test_replknet=test_replknet.pth", "test_resnet=test_resnet.pth", *words])
    ((fields, title),) = drawn
    printed, content = capsys.readouterr().out, read("a/b/erf.json")
    assert content["size"] == 64
    for (name, net), field in zip(nets.items(), fields.values(), strict=True):
        own = timm.get_pretrained_cfg(name)
        assert own is not None
        expected = effective_receptive_field(net, [_maps(5, 64, (own.mean, own.std))]).contributions
        np.testing.assert_allclose(field.contributions, expected, rtol=1e-3, atol=1e-4 * expected.max())
        ratios = field.area_ratios()
        label, numbers = f"{name}={name}.pth", content["models"][f"{name}={name}.pth"]
        assert numbers["area_ratios"] == {f"{t:.0%}": ratio for t, ratio in ratios.items()}
        assert (numbers["images"], numbers["skipped"]) == (5, 0)
        assert (tuple(numbers["mean"]), tuple(numbers["std"])) == (own.mean, own.std)
        assert table_rows(printed)[label] == [*map(ratio_text, ratios.values()), "5"]
    assert title == "effective receptive field, 5 images of 64 x 64"
    assert "wrote a/b/erf.json and a/b/erf.png" in printed
    with Image.open("a/b/erf.png") as image:
        assert image.size == (960, 600)


def test_erf_names_the_normalization_and_takes_another(drawn: list[tuple[Fields, str]]) -> None:
    net = saved_net("test_replknet")
    words = ["erf", "test_replknet=test_replknet.pth", "--images", "photos/0.png", "--size", "32"]
    main(words)
    main([*words, "--mean", "[0.5, 0.5, 0.5]", "--std", "[0.25, 0.5, 1]"])
    own, given = (fields for fields, _ in drawn)
    assert [*own, *given] == [
        "test_replknet=test_replknet.pth\nmean 0.485 0.456 0.406, std 0.229 0.224 0.225",
        "test_replknet=test_replknet.pth\nmean 0.5 0.5 0.5, std 0.25 0.5 1",
    ]
    norm = ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    expected = effective_receptive_field(net, [_maps(1, 32, norm)]).contributions
    np.testing.assert_allclose(next(iter(given.values())).contributions, expected, rtol=1e-3, atol=1e-4)
    (numbers,) = read("erf/erf.json")["models"].values()
    assert (numbers["mean"], numbers["std"]) == ([0.5, 0.5, 0.5], [0.25, 0.5, 1.0])


def test_erf_says_of_random_weights_that_they_are_random(capsys: pytest.CaptureFixture[str]) -> None:
    saved_net("test_replknet")
    words = ["--images", "photos", "--size", "64", "--num_images", "1", "--pretrained", "false"]
    main(["erf", "test_resnet", "test_replknet=test_replknet.pth", *words])
    assert list(read("erf/erf.json")["models"]) == ["test_resnet (random weights)", "test_replknet=test_replknet.pth"]
    assert "test_resnet (random weights)" in table_rows(capsys.readouterr().out)


def test_erf_of_a_checkpoint_that_fit_wrote(trained: dict[str, Path], drawn: list[tuple[Fields, str]]) -> None:
    path = trained["folder"] / "checkpoints" / "best.ckpt"
    main(["erf", str(path), "--images", "photos", "--size", "64", "--num_images", "2", "--pretrained", "false"])
    task = ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()
    expected = effective_receptive_field(task.backbone, [_maps(2, 64)]).contributions
    ((label, field),) = drawn[0][0].items()
    assert label.splitlines()[0] == str(path)
    np.testing.assert_allclose(field.contributions, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_erf_of_a_model_for_gray_images(drawn: list[tuple[Fields, str]]) -> None:
    task = saved_task("gray.ckpt", in_chans=1)
    main(["erf", "gray.ckpt", "--images", "photos", "--size", "64", "--num_images", "2"])
    gray = ((sum(IMAGENET[0]) / 3,), (sum(IMAGENET[1]) / 3,))
    expected = effective_receptive_field(task.backbone, [_maps(2, 64, gray, "L")]).contributions
    (field,) = drawn[0][0].values()
    np.testing.assert_allclose(field.contributions, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_erf_says_of_an_area_that_no_square_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    saved_net("test_resnet")
    main(["erf", "test_resnet=test_resnet.pth", "--images", "photos", "--size", "2", "--num_images", "1"])
    assert table_rows(capsys.readouterr().out)["test_resnet=test_resnet.pth"] == ["not reached"] * 4 + ["1"]
    (numbers,) = read("erf/erf.json")["models"].values()
    assert set(numbers["area_ratios"].values()) == {None}
