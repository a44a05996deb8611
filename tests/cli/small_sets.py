"""Small data in the layout that a configuration's data module reads, and the options that put them in its place."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from training.small_runs import write_photos

Options = dict[str, str]


def _digits(folder: Path) -> Options:
    return {"data.size": "32"}


def _photos(folder: Path) -> Options:
    root = write_photos(folder / "photos", train=4, val=2)
    return {"data.root": str(root), "model.num_classes": "3", "data.size": "32"}


def _sound(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(len(str(file))).standard_normal(8_000) / 10, 16_000)
    return file


def _sound_folders(folder: Path) -> Options:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b", "c"):
            for i in range(count):
                _sound(folder / "sounds" / split / name / f"{i}.wav")
    statistics = {"data.mean": "-8", "data.std": "4"}
    return {"data.root": str(folder / "sounds"), "model.num_classes": "3", **statistics}


def _words(folder: Path) -> Options:
    root = folder / "words"
    files = [_sound(root / word / f"{i}.wav") for word in ("yes", "no") for i in range(8)]
    named = [f"{file.parent.name}/{file.name}" for file in files]
    (root / "validation_list.txt").write_text("\n".join(named[:2]))
    (root / "testing_list.txt").write_text("\n".join(named[2:4]))
    return {"data.root": str(root)}


def _table(folder: Path) -> Options:
    entries = [{"wav": str(_sound(folder / f"{i}.wav")), "labels": "/m/a,/m/b" if i % 2 else "/m/b"} for i in range(8)]
    (folder / "table.json").write_text(json.dumps({"data": entries}))
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/a,a\n1,/m/b,b\n")
    (folder / "weights.csv").write_text("1\n" * 8)
    files = {"train_json": "table.json", "val_json": "table.json", "labels_csv": "labels.csv"}
    options = {f"data.{key}": str(folder / name) for key, name in (files | {"weights_csv": "weights.csv"}).items()}
    return {**options, "model.num_classes": "2"}


def _esc50(folder: Path) -> Options:
    (folder / "meta").mkdir()
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category"])
        for i in range(20):
            _sound(folder / "audio" / f"{i}.wav")
            writer.writerow([f"{i}.wav", i % 5 + 1, i % 2, ("dog", "rain")[i % 2]])
    return {"data.root": str(folder), "model.num_classes": "2"}


SETS: dict[str, Callable[[Path], Options]] = {
    "vision.Digits": _digits,
    "vision.ImageFolder": _photos,
    "audio.AudioFolder": _sound_folders,
    "audio.AudioTable": _table,
    "audio.ESC50": _esc50,
    "audio.SpeechCommands": _words,
    "audio.SpokenWords": _words,
}
"""Data module and what writes data for it into an empty folder."""


def small_data(section: dict[str, Any], folder: Path) -> Options:
    """Write what a configuration's data section reads; the options that name it."""
    kind = section["class_path"]
    assert kind in SETS, f"write small data for {kind} in {Path(__file__).name}"
    return SETS[kind](folder)
