"""Small data in the layout that a configuration's data module reads, and the options that put them in its place."""

import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import soundfile
import torchvision
from training.small_runs import write_photos

from timeseries.demo import make_world
from video.demo import MOVES

Options = dict[str, str]


def _digits(folder: Path) -> Options:
    return {"data.size": "32"}


def _photos(folder: Path) -> Options:
    root = write_photos(folder / "photos", train=4, val=2)
    return {"data.root": str(root), "data.size": "32"}


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes bytes as the texts of Python 2, which have an instruction of their own."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, bytes):
            self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        else:
            super().save(value, save_persistent_id)


def python2_pickle(content: Any) -> bytes:
    """A pickle as Python 2 with the numpy of its time wrote it."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(root: Path, kind: Any, *, each: int, labels: int) -> Path:
    """The files of the Python archive of a torchvision CIFAR class, smaller: ``each`` images, of so many labels."""
    root.mkdir(parents=True)
    name = "fine_label" if kind.base_folder == "cifar-100-python" else "label"
    generator = np.random.default_rng(0)
    for file, _ in (*kind.train_list, *kind.test_list):
        pixels = generator.integers(0, 256, (each, 3 * 32 * 32), np.uint8)
        content = {b"data": pixels, f"{name}s".encode(): [i % labels for i in range(each)], b"batch_label": b"one of"}
        (root / file).write_bytes(python2_pickle(content))
    names = {f"{name}_names".encode(): [f"class {i}".encode() for i in range(labels)]}
    (root / kind.meta["filename"]).write_bytes(python2_pickle(names))
    return root


def _cifar10(folder: Path) -> Options:
    root = write_cifar(folder / "cifar", torchvision.datasets.CIFAR10, each=10, labels=10)
    return {"data.root": str(root), "data.check_md5": "false"}


def _scenes(folder: Path) -> Options:
    from vision.openmmlab.demo import draw_scenes

    draw_scenes(folder / "data" / "digit_scenes", {"train": 16, "val": 2, "test": 2})
    return {}


def _sound(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(len(str(file))).standard_normal(8_000) / 10, 16_000)
    return file


def _sound_folders(folder: Path) -> Options:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b", "c"):
            for i in range(count):
                _sound(folder / "sounds" / split / name / f"{i}.wav")
    return {"data.root": str(folder / "sounds")}


def _words(folder: Path) -> Options:
    root = folder / "words"
    files = [_sound(root / word / f"{i}.wav") for word in ("yes", "no") for i in range(8)]
    named = [f"{file.parent.name}/{file.name}" for file in files]
    (root / "validation_list.txt").write_text("\n".join(named[:2]))
    (root / "testing_list.txt").write_text("\n".join(named[2:4]))
    return {"data.root": str(root)}


def _spoken_words(folder: Path) -> Options:
    return {**_words(folder), "data.words": "['yes','no']"}


def _table(folder: Path) -> Options:
    entries = [{"wav": str(_sound(folder / f"{i}.wav")), "labels": "/m/a,/m/b" if i % 2 else "/m/b"} for i in range(8)]
    (folder / "table.json").write_text(json.dumps({"data": entries}))
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/a,a\n1,/m/b,b\n")
    (folder / "weights.csv").write_text("1\n" * 8)
    files = {"train_json": "table.json", "val_json": "table.json", "labels_csv": "labels.csv"}
    return {f"data.{key}": str(folder / name) for key, name in (files | {"weights_csv": "weights.csv"}).items()}


def _esc50(folder: Path) -> Options:
    (folder / "meta").mkdir()
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category"])
        for i in range(20):
            _sound(folder / "audio" / f"{i}.wav")
            writer.writerow([f"{i}.wav", i % 5 + 1, i % 2, ("dog", "rain")[i % 2]])
    return {"data.root": str(folder)}


POINT_SIZES: Options = {
    **{"data.load_points": "64", "data.num_points": "40", "model.neighbors": "4", "model.dim": "8"},
    **{"model.obj_size": "42", "model.img_size": "42", "model.num_views": "2"},
}
"""Clouds and views of the published pipeline, only small."""


def _clouds(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 64, 6)).astype(np.float32)


def _shape_folders(folder: Path) -> Options:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            (folder / "shapes" / split / name).mkdir(parents=True)
            for i, cloud in enumerate(_clouds(count)):
                np.save(folder / "shapes" / split / name / f"{i}.npy", cloud)
    return {**POINT_SIZES, "data.root": str(folder / "shapes")}


def _modelnet40(folder: Path) -> Options:
    for split, count in (("train", 10), ("test", 4)):
        with (folder / f"modelnet40_{split}_8192pts_fps.dat").open("wb") as file:
            pickle.dump((list(_clouds(count)), [np.array([i % 2]) for i in range(count)]), file)
    return {**POINT_SIZES, "data.root": str(folder)}


def _scanobjectnn(folder: Path) -> Options:
    for split, count in (("training", 10), ("test", 4)):
        with h5py.File(folder / f"{split}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            file["data"], file["label"] = _clouds(count)[..., :3], np.arange(count) % 2
    return {**POINT_SIZES, "data.root": str(folder), "model.obj_size": "36"}


def _digit_clouds(folder: Path) -> Options:
    return POINT_SIZES


def _video(file: Path) -> Path:
    """Three frames of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(str(file)))
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for _ in range(3):
            pixels = generator.integers(0, 256, (32, 40, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


def _video_folders(folder: Path) -> Options:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            for i in range(count):
                _video(folder / "videos" / split / name / f"{i}.mp4")
    return {"data.root": str(folder / "videos"), "data.num_frames": "4", "data.size": "32"}


def _video_list(folder: Path) -> Options:
    for split in ("train", "val"):
        files = [_video(folder / f"{split}{i}.mp4") for i in range(8)]
        (folder / f"{split}.csv").write_text("".join(f"{file.name} {i % 3}\n" for i, file in enumerate(files)))
    return {"data.root": str(folder), "data.num_frames": "4", "data.size": "32"}


def _moves(folder: Path) -> Options:
    for split, count in (("train", 2), ("val", 1)):
        for name in MOVES:
            for i in range(count):
                _video(folder / "moves" / split / name / f"{i}.mp4")
    return {"data.root": str(folder / "moves")}


def _series(folder: Path) -> Options:
    times = np.datetime64("2020-01-01") + np.arange(400) * np.timedelta64(1, "h")
    values = np.random.default_rng(0).standard_normal((400, 2)).round(3).tolist()
    lines = ["date,a,b", *[f"{str(t).replace('T', ' ')},{a},{b}" for t, (a, b) in zip(times, values, strict=True)]]
    (folder / "series.csv").write_text("\n".join(lines) + "\n")
    lengths = {"data.seq_len": "16", "data.pred_len": "16"}
    return {"data.path": str(folder / "series.csv"), "data.split": "[0.7,0.1,0.2]", **lengths}


def _world(folder: Path) -> Options:
    make_world(folder / "world", regions=2, nodes=2, stations=2, hours=800)
    sizes = {"tree": "[2,2]", "stations": "2", "d_ff": "8", "n_heads": "8"}
    architecture = {f"model.architecture.{name}": value for name, value in sizes.items()}
    return {"data.root": str(folder / "world"), **architecture}


def _published_world(folder: Path) -> Options:
    return {**_world(folder), "model.architecture.d_model": "32"}


def _members(folder: Path) -> Options:
    words = {"words": ["yes", "no"], "num_mels": 40, "frame_shift": 15.0, "target_length": 64, "mean": -5.1, "std": 3.6}
    root, videos = (next(iter(_small(folder).values())) for _small in (_words, _moves))
    args: dict[str, tuple[str, dict[str, Any]]] = {
        "image": ("vision.Digits", {}),
        "sound": ("audio.SpokenWords", {"root": root, **words}),
        "cloud": ("pointcloud.DigitClouds", {"load_points": 64, "num_points": 40}),
        "video": ("video.CameraMoves", {"root": videos, "size": 16}),
        "weather": ("timeseries.NewYorkWeather", {}),
    }
    members = {name: {"class_path": kind, "init_args": init_args} for name, (kind, init_args) in args.items()}
    return {"data.members": json.dumps(members), "data.batch_size": "10", "data.epoch_steps": "2"}


SETS: dict[str, Callable[[Path], Options]] = {
    "vision.CIFAR10": _cifar10,
    "vision.Digits": _digits,
    "vision.ImageFolder": _photos,
    "vision.openmmlab.boxes.LabeledBoxes": _scenes,
    "vision.openmmlab.demo.DigitScenes": _scenes,
    "vision.openmmlab.masks.LabeledMasks": _scenes,
    "audio.AudioFolder": _sound_folders,
    "audio.AudioTable": _table,
    "audio.ESC50": _esc50,
    "audio.SpeechCommands": _words,
    "audio.SpokenWords": _spoken_words,
    "multimodal.JointDataModule": _members,
    "pointcloud.DigitClouds": _digit_clouds,
    "pointcloud.ModelNet40": _modelnet40,
    "pointcloud.PointFolder": _shape_folders,
    "pointcloud.ScanObjectNN": _scanobjectnn,
    "video.CameraMoves": _moves,
    "video.VideoFolder": _video_folders,
    "video.VideoList": _video_list,
    "timeseries.CSVSeries": _series,
    "timeseries.GlobalWeather": _published_world,
    "timeseries.MadeUpWorld": _world,
    "timeseries.NewYorkWeather": lambda folder: {},
}
"""Data module and what writes data for it into an empty folder."""


def small_data(section: dict[str, Any], folder: Path) -> Options:
    """Write what a configuration's data section reads; the options that name it."""
    kind = section["class_path"]
    assert kind in SETS, f"write small data for {kind} in {Path(__file__).name}"
    return SETS[kind](folder)
