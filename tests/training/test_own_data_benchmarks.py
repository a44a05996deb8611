"""The benchmarks of the own-data recipes: public files become folders, runs are kept and not repeated."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "real_data.py"))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A few samples in the format of each public set."""
    folder = tmp_path / "public"
    for name in ("images", "fsdd", "shapes"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    labels = np.arange(12) % 2
    np.savez(
        folder / "images" / "groceries64.npz",
        x=generator.integers(0, 255, (12, 3, 64, 64), dtype=np.uint8),
        y=labels,
        classes=np.array(["Apple", "Pear"], dtype=object),
        split=np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 4, dtype=object),
    )
    np.savez(
        folder / "shapes" / "sweethome3d_1024.npz",
        x=generator.normal(size=(12, 64, 3)).astype(np.float16),
        y=labels,
        classes=np.array(["bed", "chair"]),
    )
    for digit in (0, 1):
        for speaker in ("theo", "lucas"):
            for number in (0, 7):
                wave = generator.normal(0, 0.1, 4_000)
                soundfile.write(folder / "fsdd" / f"{digit}_{speaker}_{number}.wav", wave, 8_000)
    return folder


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("groceries", 6, 4), ("fsdd", 4, 4), ("fsdd_speaker", 4, 4), ("sweethome3d", 10, 2)],
)
def test_public_files_become_folders(
    name: str, train: int, test: int, real_data: dict[str, Any], public: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    options = real_data["SETS"][name].prepare(public, folder)
    assert options[:2] == ["--data.root", str(folder)]
    counts = [sum(path.is_file() for path in (folder / split).rglob("*")) for split in ("train", "test")]
    assert counts == [train, test]
    if name == "fsdd_speaker":
        assert {path.stem.split("_")[1] for path in (folder / "test").rglob("*.wav")} == {"theo"}


def test_boxes_and_masks_are_named_by_options(real_data: dict[str, Any], public: Path, tmp_path: Path) -> None:
    voc = public / "bccd"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    corners = "<xmin>3</xmin><ymin>4</ymin><xmax>13</xmax><ymax>24</ymax>"
    for split in ("train", "val", "test"):
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
        item = f"<object><name>WBC</name><bndbox>{corners}</bndbox></object>"
        (voc / "Annotations" / f"{split}.xml").write_text(f"<annotation>{item}</annotation>")
    options = real_data["SETS"]["bccd"].prepare(public, tmp_path)
    assert options[2:4] == ["--data.coco", str(tmp_path / "train.json")]
    content = json.loads((tmp_path / "train.json").read_text())
    assert content["images"] == [{"id": 0, "file_name": "train.jpg"}]
    assert content["annotations"] == [{"id": 0, "image_id": 0, "category_id": 2, "bbox": [3, 4, 10, 20]}]

    options = real_data["SETS"]["camvid"].prepare(public, tmp_path)
    assert options[:4] == [
        "--data.classes",
        "[sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist]",
        "--data.ignore",
        "[11]",
    ]
    assert ["--data.test_masks", str(public / "camvid240" / "test" / "masks")] == options[-2:]


def test_runs_are_kept_and_the_table_has_mean_and_range(
    real_data: dict[str, Any], public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def train(config: str, options: list[str], metric: str, seed: int) -> dict[str, Any]:
        calls.append(options)
        return {"metric": 0.5 + 0.1 * seed, "seconds": 10.0 * len(calls), "epochs": 3}

    scope = real_data["measure"].__globals__
    monkeypatch.setitem(scope, "train", train)
    monkeypatch.setitem(scope, "RESULTS", tmp_path / "results.json")
    entries = real_data["measure"]("groceries", public, seeds=2, minutes=1)
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(entries) == 6
    assert sum("--model.backbone" in words for words in calls) == 8  # two peers: two seeds, and two runs for the time

    calls.clear()
    assert real_data["measure"]("groceries", public, seeds=2, minutes=1) == entries
    assert not calls
    assert "| LarKit | 0.550 (0.500 to 0.600) | 2 | 3 |" in real_data["table"]("groceries", entries)
    assert "| iTransformer, published | 0.297 |" in real_data["table"]("etth2", entries)


def test_command_is_timed_against_a_bare_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(BENCHMARKS.parent)
    monkeypatch.setattr(sys, "argv", ["command.py", "series", "--rounds", "1", "--steps", "2"])
    scope = runpy.run_path(str(BENCHMARKS / "command.py"))
    monkeypatch.setitem(scope["main"].__globals__, "RESULTS", tmp_path / "command.json")
    scope["main"]()
    [entry] = json.loads((tmp_path / "command.json").read_text())
    assert entry["kind"] == "series"
    assert entry["ratio"] > 0
    assert "| series |" in capsys.readouterr().out
