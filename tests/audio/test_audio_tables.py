"""Tables of recordings: labels, paths, weights, and each way in which a table can be wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sounds import SMALL, write_tone

from audio import AudioTable
from core.data.sampler import EpochSampler
from core.errors import InputError, MissingError

KNOWN: dict[str, Any] = {**SMALL, "mean": -5.0, "std": 3.0, "batch_size": 3}
LABELS = 'index,mid,display_name\n1,/m/b,Bird song\n0,/m/a,"Bark, loud"\n2,/m/c,Cat\n'


def _write(folder: Path, name: str, rows: list[tuple[str, str]]) -> str:
    data = [{"wav": wav, "labels": labels} for wav, labels in rows]
    (folder / name).write_text(json.dumps({"data": data}), encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Six recordings and the tables train, val and several (labels), with the classes."""
    for i in range(6):
        write_tone(tmp_path / "sounds" / f"{i}.wav", 200.0 * (i + 1), 2_680)
    (tmp_path / "labels.csv").write_text(LABELS, encoding="utf-8")
    _write(tmp_path, "train.json", [(f"sounds/{i}.wav", f"/m/{'abc'[i % 3]}") for i in range(4)])
    _write(tmp_path, "val.json", [(str(tmp_path / "sounds" / "4.wav"), "/m/c"), ("sounds/5.wav", " /m/a ")])
    _write(tmp_path, "several.json", [("sounds/0.wav", "/m/a,/m/c"), ("sounds/1.wav", ""), ("sounds/2.wav", "/m/b")])
    return tmp_path


def _table(place: Path, train: str = "train.json", val: str = "val.json", **options: Any) -> Any:
    options = {key: str(place / value) if key.endswith(("csv", "json")) else value for key, value in options.items()}
    return AudioTable(str(place / train), str(place / val), str(place / "labels.csv"), **KNOWN | options)


def _set_up(data: Any) -> Any:
    data.prepare_data()
    data.setup("fit")
    return data


def test_one_label_each(place: Path) -> None:
    data = _set_up(_table(place))
    assert data.classes == ["Bark, loud", "Bird song", "Cat"]
    assert [label for _, label in data.train_set.samples] == [0, 1, 2, 0]
    assert [label for _, label in data.val_set.samples] == [2, 0]
    assert [path.name for path, _ in data.test_set.samples] == ["4.wav", "5.wav"]
    waves, y = next(iter(data.val_dataloader()))
    assert len(waves) == 2
    assert y.tolist() == [2, 0]
    assert data.train_weights is None


def test_paths_are_relative_to_the_table_or_absolute(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    relative = Path(os.path.relpath(place))
    data = _set_up(_table(relative, test_json="train.json"))
    assert [path.is_absolute() for path, _ in data.val_set.samples] == [True, False]
    assert all(path.is_file() for path, _ in data.train_set.samples + data.val_set.samples)
    assert data.test_set.samples == data.train_set.samples


def test_several_labels_become_zeros_and_ones(place: Path) -> None:
    data = _set_up(_table(place, "several.json", "several.json", multi_label=True))
    _, y = next(iter(data.val_dataloader()))
    assert data.spec().multi_label
    assert y.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "several", "message"),
    [
        ("/m/zz", False, r"the labels '/m/zz'; expected one of those in .*labels\.csv, which has no '/m/zz'"),
        ("/m/a,/m/zz", True, r"the labels '/m/a,/m/zz'; expected any of those in .*, which has no '/m/zz'"),
        ("/m/a,/m/b", False, r"the labels '/m/a,/m/b'; expected one of those .*; or type --data\.multi_label true"),
        ("", False, r"the labels ''; expected one of"),
    ],
)
def test_labels_that_do_not_fit(labels: str, several: bool, message: str, place: Path) -> None:
    _write(place, "odd.json", [("sounds/0.wav", "/m/a"), ("sounds/1.wav", labels)])
    with pytest.raises(InputError, match=rf"odd\.json has {message}"):
        _table(place, val="odd.json", multi_label=several).spec()


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2", "[]", '{"rows": []}', '{"data": [{"wav": "a.wav"}]}', '{"data": [["a.wav", "/m/a"]]}', '{"data": 3}'],
)
def test_table_in_another_layout(content: str, place: Path) -> None:
    (place / "odd.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        InputError, match=r"odd\.json is not \{'data': \[\{'wav': \.\.\., 'labels': \.\.\.\}, \.\.\.\]\}"
    ):
        _table(place, train="odd.json").spec()


@pytest.mark.parametrize("header", ["", "index,display_name\n0,Bark\n", "0,/m/a,Bark\n"])
def test_classes_without_the_header(header: str, place: Path) -> None:
    (place / "labels.csv").write_text(header, encoding="utf-8")
    with pytest.raises(InputError, match=r"labels\.csv has the columns .*; expected index, mid, display_name"):
        _table(place).spec()


@pytest.mark.parametrize("row", [b"zero,/m/a,Bark", b",/m/a,Bark", "0,/m/a,Caf\xe9".encode("latin-1")])
def test_classes_with_an_unreadable_row(row: bytes, place: Path) -> None:
    (place / "labels.csv").write_bytes(b"index,mid,display_name\n" + row + b"\n")
    with pytest.raises(InputError, match=r"labels\.csv"):
        _table(place).spec()


@pytest.mark.parametrize("name", ["train.json", "val.json", "labels.csv", "weights.csv"])
def test_missing_table(name: str, place: Path) -> None:
    (place / "weights.csv").write_text("1\n" * 4, encoding="utf-8")
    (place / name).unlink()
    with pytest.raises(MissingError, match=rf"there is no (table )?{place / name}; (give|expected)"):
        _table(place, weights_csv="weights.csv").spec()


def test_tables_that_a_spreadsheet_wrote(place: Path) -> None:
    """With a byte-order mark at the beginning."""
    (place / "weights.csv").write_text("1\n" * 4, encoding="utf-8")
    before = _table(place, weights_csv="weights.csv").splits()
    for name in ("train.json", "val.json", "labels.csv", "weights.csv"):
        file = place / name
        file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")

    table = _table(place, weights_csv="weights.csv")
    assert table.splits() == before
    assert table.train_weights == [1.0] * 4


def test_empty_training_table(place: Path) -> None:
    _write(place, "none.json", [])
    with pytest.raises(MissingError, match="AudioTable has no train samples"):
        _set_up(_table(place, train="none.json")).train_dataloader()


def test_missing_recording_is_named_when_it_is_read(place: Path) -> None:
    _write(place, "odd.json", [("sounds/0.wav", "/m/a"), ("gone/1.wav", "/m/b")])
    loader = _set_up(_table(place, val="odd.json")).val_dataloader()
    with pytest.raises(MissingError, match=rf"there is no recording {place}/gone/1\.wav; correct the list"):
        list(loader)


def test_weights_decide_what_is_drawn(place: Path) -> None:
    (place / "weights.csv").write_text("0\n0.5\n1e-3\n0\n", encoding="utf-8")
    data = _set_up(_table(place, weights_csv="weights.csv", num_workers=0))
    assert data.train_weights == [0.0, 0.5, 0.001, 0.0]
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    drawn = set()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        drawn |= set(loader.sampler)
    assert drawn <= {1, 2}
    assert {y.tolist()[0] for _, y in loader} <= {1, 2}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1\n1\n1\n", "has 3 weights for 4 recordings; give a finite one for each, 0 or more and not all 0"),
        ("1\n" * 5, "has 5 weights for 4 recordings"),
        ("", "has 0 weights for 4 recordings"),
        ("1\n-1\n1\n1\n", "has 4 weights for 4 recordings; give a finite one for each, 0 or more and not all 0"),
        ("0\n" * 4, "has 4 weights for 4 recordings; give a finite one for each, 0 or more and not all 0"),
        ("1\nnan\n1\n1\n", "has 4 weights for 4 recordings; give a finite one for each, 0 or more and not all 0"),
        ("1\none\n1\n1\n", "does not have one number in each line: .*'one'"),
        ("weight\n1\n1\n1\n1\n", "does not have one number in each line: .*'weight'"),
        ("1\ninf\n1\n1\n", "has 4 weights for 4 recordings; give a finite one for each"),
    ],
)
def test_weights_that_do_not_fit(lines: str, message: str, place: Path) -> None:
    (place / "weights.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(InputError, match=rf"weights\.csv {message}"):
        _table(place, weights_csv="weights.csv").spec()
