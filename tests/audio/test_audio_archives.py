"""Speech Commands and ESC-50 as their archives unpack: splits, labels, and layouts that are refused."""

from pathlib import Path
from typing import Any

import pytest
from small_sounds import SMALL, write_tone

from audio import ESC50, SpeechCommands
from audio.sets import WORDS
from core.errors import InputError, MissingError

KNOWN: dict[str, Any] = {**SMALL, "mean": -5.0, "std": 3.0}


def _set_up(data: Any) -> Any:
    data.prepare_data()
    data.setup("fit")
    return data


def _names(dataset: Any) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path, _ in dataset.samples}


def _speech_commands(root: Path, words: tuple[str, ...] = ("bird", "yes", "backward")) -> Path:
    """Four recordings of each word by four speakers; the third is for validation, the last for testing."""
    for word in words:
        for speaker in range(4):
            write_tone(root / word / f"s{speaker}_nohash_0.wav", 500.0, 8_000)
    write_tone(root / "_background_noise_" / "white.wav", 500.0, 8_000)
    for file, speaker in (("validation_list.txt", 2), ("testing_list.txt", 3)):
        (root / file).write_text("".join(f"{word}/s{speaker}_nohash_0.wav\n" for word in words), encoding="utf-8-sig")
    return root


def test_published_labels_of_the_words() -> None:
    assert len(WORDS) == len(set(WORDS)) == 35
    assert [WORDS.index(word) for word in ("backward", "zero", "six", "marvin", "one")] == [0, 4, 15, 27, 34]


def test_lists_split_speech_commands(tmp_path: Path) -> None:
    data = _set_up(SpeechCommands(str(_speech_commands(tmp_path)), **KNOWN))
    assert data.classes == list(WORDS)
    train, val, test = (data.train_set.samples, data.val_set.samples, data.test_set.samples)
    assert _names(data.train_set) == {f"{w}/s{s}_nohash_0.wav" for w in ("bird", "yes", "backward") for s in (0, 1)}
    assert [path.name[:2] for path, _ in val + test] == ["s2"] * 3 + ["s3"] * 3
    assert [label for _, label in val] == [32, 28, 0]  # in the order of the list
    assert sorted(label for _, label in train) == [0, 0, 28, 28, 32, 32]
    assert [name for _, name in data.predict_set.samples] == [str(path) for path, _ in test]


@pytest.mark.parametrize("name", ["validation_list.txt", "testing_list.txt"])
def test_missing_list_and_a_list_that_names_an_absent_file(name: str, tmp_path: Path) -> None:
    root = _speech_commands(tmp_path)
    with (root / name).open("a", encoding="utf-8") as file:
        file.write("bird/gone_nohash_0.wav\n")
    with pytest.raises(MissingError, match=rf"{name} names bird/gone_nohash_0\.wav, which is not there; unpack"):
        SpeechCommands(str(root), **KNOWN).spec()
    (root / name).unlink()
    with pytest.raises(MissingError, match=rf"there is no {root / name}; unpack the whole archive"):
        SpeechCommands(str(root), **KNOWN).spec()


def test_folder_that_is_no_word_and_no_folder(tmp_path: Path) -> None:
    root = _speech_commands(tmp_path / "words", ("bird", "zebra"))
    with pytest.raises(InputError, match="classes that training lacks: zebra"):
        SpeechCommands(str(root), **KNOWN).spec()
    with pytest.raises(MissingError, match=r"there is no folder .*/nowhere; expected .*/nowhere/<class>/\*\.wav"):
        SpeechCommands(str(tmp_path / "nowhere"), **KNOWN).spec()


def test_list_that_names_a_file_twice(tmp_path: Path) -> None:
    root = _speech_commands(tmp_path)
    with (root / "testing_list.txt").open("a", encoding="utf-8") as file:
        file.write("bird/s3_nohash_0.wav\n")
    with pytest.raises(InputError, match=r"testing_list\.txt names bird/s3_nohash_0\.wav"):
        SpeechCommands(str(root), **KNOWN).spec()


@pytest.fixture(scope="module")
def esc50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of each of three classes in each fold; the labels are not in the order of the class names."""
    root = tmp_path_factory.mktemp("esc50")
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, name in ((2, "rain"), (0, "dog"), (1, "cow")):
            for take in "AB":
                file = f"{fold}-{target}-{take}.wav"
                write_tone(root / "audio" / file, 200.0 + 100 * target, 800)
                lines.append(f"{file},{fold},{target},{name},False,1,{take}")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def _folds(dataset: Any) -> set[int]:
    return {int(path.name[0]) for path, _ in dataset.samples}


@pytest.mark.parametrize(("fold", "val_fold", "val"), [(1, None, 2), (5, None, 1), (3, 1, 1), (2, 2, 2)])
def test_folds(fold: int, val_fold: int | None, val: int, esc50: Path) -> None:
    data = _set_up(ESC50(str(esc50), fold=fold, val_fold=val_fold, **KNOWN))
    assert data.classes == ["dog", "cow", "rain"]
    assert _folds(data.test_set) == _folds(data.predict_set) == {fold}
    assert _folds(data.val_set) == {val}
    assert _folds(data.train_set) == {1, 2, 3, 4, 5} - {fold, val}
    assert len(data.train_set) == 6 * len(_folds(data.train_set))
    assert {(path.name[2], label) for path, label in data.train_set.samples} == {("0", 0), ("1", 1), ("2", 2)}
    assert data.train_set[0][0].shape == (800,)


@pytest.mark.parametrize(
    ("fold", "val_fold"),
    [
        *[(0, None), (6, None), (1, 6), (1, -1)],
        pytest.param(1, 0),
    ],
)
def test_no_such_fold(fold: int, val_fold: int | None) -> None:
    with pytest.raises(InputError, match=rf"fold={fold}, val_fold={val_fold}; ESC-50 has the folds 1 to 5"):
        ESC50("anywhere", fold=fold, val_fold=val_fold)


def test_table_of_folds_that_is_missing_or_another(tmp_path: Path) -> None:
    data = ESC50(str(tmp_path), **KNOWN)
    with pytest.raises(MissingError, match=r"no .*/meta/esc50\.csv; expected a CSV file with the columns filename"):
        data.spec()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("file,fold\na.wav,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"has the columns file, fold; expected filename, fold, target, categ"):
        data.spec()


@pytest.mark.parametrize("row", ["a.wav,one,0,dog", "a.wav,1,,dog"])
def test_fold_or_target_that_is_no_number(row: str, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(f"filename,fold,target,category\n{row}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"esc50\.csv"):
        ESC50(str(tmp_path), **KNOWN).spec()
