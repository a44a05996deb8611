"""The synthesized words: their layout, that they are always the same, and what happens without the synthesizer."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from small_sounds import sound_runs, write_sound_config
from training.small_runs import command

import audio.demo
from audio import SpokenWords
from audio.demo import speak_words
from audio.sets import WORDS
from core.errors import InputError

KNOWN: dict[str, Any] = {"mean": -5.7, "std": 3.6, "batch_size": 20, "num_workers": 0}
FEW = ("yes", "marvin")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All words in all voices, which take five seconds."""
    root = tmp_path_factory.mktemp("words") / "deep" / "spoken"
    speak_words(root)
    return root


@pytest.fixture
def two_words() -> Iterator[None]:
    """Only two words are spoken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio.demo, "WORDS", FEW)
        yield


def _contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_that_of_speech_commands(words: Path) -> None:
    assert {path.name for path in words.iterdir()} == {*WORDS, "validation_list.txt", "testing_list.txt"}
    voices = {path.stem for path in (words / "yes").iterdir()}
    assert len(voices) == 104
    assert all({path.name for path in (words / word).iterdir()} == {f"{v}.wav" for v in voices} for word in WORDS)
    assert sorted(path.name for path in words.parent.iterdir()) == ["spoken"]


def test_clips_are_one_second_of_a_word_anywhere_over_faint_noise(words: Path) -> None:
    starts = []
    for file in (words / "yes").iterdir():
        samples, rate = soundfile.read(file)
        assert soundfile.info(file).subtype == "PCM_16"
        assert (samples.shape, rate) == ((16_000,), 16_000)
        levels = np.sqrt((samples.reshape(-1, 160) ** 2).mean(axis=1))  # of every hundredth of a second
        assert 0.0005 < np.median(np.sort(levels)[:10]) < 0.015
        assert levels.max() > 0.02
        starts.append(int((levels > 3 * np.sort(levels)[10]).argmax()))
    assert np.std(starts) > 8
    assert min(starts) < 10


def test_no_clip_is_like_another(words: Path) -> None:
    contents = _contents(words)
    assert len(set(contents.values())) == len(contents) == 35 * 104 + 2


def test_splits_have_voices_of_their_own(words: Path) -> None:
    data: Any = SpokenWords(str(words), **KNOWN)
    data.prepare_data()
    data.setup("fit")
    voices = [{path.stem for path, _ in part.samples} for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in voices] == [70, 17, 17]
    assert len(set.union(*voices)) == 104
    for part in (data.train_set, data.val_set, data.test_set):
        assert len(part) == 35 * len({path.stem for path, _ in part.samples})
        assert all(path.parent.name == WORDS[label] for path, label in part.samples)
    waves, _ = next(iter(data.val_dataloader()))
    assert {len(wave) for wave in waves} == {16_000}
    assert len(waves) == 20


@pytest.mark.usefixtures("two_words")
def test_data_are_made_when_they_are_needed_and_only_once(tmp_path: Path) -> None:
    root = tmp_path / "data" / "spoken"
    SpokenWords(str(root), **KNOWN).prepare_data()
    assert {path.name for path in root.iterdir()} == {*FEW, "validation_list.txt", "testing_list.txt"}
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    SpokenWords(str(root), **KNOWN).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_words_in_the_order_of_their_labels(tmp_path: Path) -> None:
    root = tmp_path / "spoken"
    data = SpokenWords(str(root), words=["tea", "coffee"], **KNOWN)
    data.prepare_data()
    data.setup("fit")
    assert {path.name for path in root.iterdir()} == {"tea", "coffee", "validation_list.txt", "testing_list.txt"}
    assert data.classes == ["tea", "coffee"]
    named = {(path.parent.name, label) for path, label in data.train_set.samples}  # type: ignore[union-attr]
    assert named == {("tea", 0), ("coffee", 1)}
    with pytest.raises(InputError, match=r"was made without milk; give these words another --data.root, or delete"):
        SpokenWords(str(root), words=["tea", "milk"], **KNOWN).prepare_data()


@pytest.mark.parametrize("words", [["tea"], ["tea", "tea"], ["tea", "../tea"], []])
def test_words_that_are_none(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give two or more different ones, which consist of letters"):
        SpokenWords(str(tmp_path / "spoken"), words=words, **KNOWN)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("two_words")
def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        speak_words(tmp_path / name)
    first, second = (_contents(tmp_path / name) for name in ("first", "second"))
    assert len(first) == 2 * 104 + 2
    assert first == second


@pytest.mark.usefixtures("two_words")
def test_folder_appears_only_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = soundfile.write, list[Path]()

    def failing(file: Path, *args: Any, **kwargs: Any) -> None:
        written.append(file)
        if len(written) == 3:
            raise OSError("no space left")
        write(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(audio.demo.soundfile, "write", failing)
        with pytest.raises(OSError, match="no space left"):
            speak_words(tmp_path / "words")
    assert not (tmp_path / "words").exists()
    speak_words(tmp_path / "words")
    assert [path.name for path in tmp_path.iterdir()] == ["words"]


def test_without_the_synthesizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(
        InputError, match=r"spoken by eSpeak NG; type in LarKit's folder: pip install -e '\.\[speech\]'"
    ):
        speak_words(tmp_path / "words")
    config = write_sound_config(tmp_path / "words.yaml", tmp_path / "words", kind="SpokenWords", mean=0.0, std=1.0)
    with pytest.raises(SystemExit, match=r"^lightning: error: the built-in words are spoken by eSpeak NG; type"):
        command("fit", config, tmp_path / "out")
    assert not sound_runs(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "words" in path.name and path.is_dir()] == []


def test_words_that_are_there_need_no_synthesizer(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    SpokenWords(str(words), **KNOWN).prepare_data()


def test_installation_without_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: tmp_path / "gone")
    with pytest.raises(InputError, match=r"eSpeak NG has no voices in .*gone.*; install espeakng-loader again"):
        speak_words(tmp_path / "words")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("import os; os.abort()", "eSpeak NG ended with status -6; install"),
        ("get_data_path = lambda: 'gone'", "has no attribute 'get_library_path'"),
    ],
)
def test_faults_of_the_synthesizer_do_not_end_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    (tmp_path / "espeakng_loader.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=said):
        speak_words(tmp_path / "words")
    assert not (tmp_path / "words").exists()
