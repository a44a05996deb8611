"""The own-data recipes on public sets, beside peers of like cost that train for the same time on the same split.

    python benchmarks/real_data.py groceries fsdd --folder FOLDER
    python benchmarks/real_data.py --folder FOLDER --seeds 1 --minutes 5

FOLDER holds the public files of the sets, see ``SETS``. Nothing is tuned to a set: the recipe is the shipped
configuration as it is, and a peer is the same command with another ``--model.backbone``. LarKit trains for the epochs
of the configuration, or for as many as fit into ``--minutes``; a peer trains for as many epochs as take the same time.
The checkpoint is chosen on the validation split, and the test split is read once.

Results are kept in benchmarks/results/real_data.json, one entry for each set, model and seed. A run that is found there
is not repeated. The table has mean and range over the seeds, and the published figures of others, marked as such.
"""

import argparse
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from machine import keep, machine
from PIL import Image

from core.training.lightning_cli import LarKitCLI

RESULTS = Path(__file__).parent / "results" / "real_data.json"
MAP_PEERS = ("convnext_atto", "mobilenetv3_small_100")
DENSE_PEERS = ("convnext_atto", "resnet18")


@dataclass(frozen=True)
class RealSet:
    """A public data set.

    Attributes:
        config: the shipped configuration.
        prepare: function from the folder of public files and an empty folder to the options of the command; it lays
            the files out as a user would.
        metric: metric on the test split.
        peers: names of timm models.
        published: figures of others for the same metric and split, with their source.
    """

    config: str
    prepare: Callable[[Path, Path], list[str]]
    metric: str
    peers: tuple[str, ...] = ()
    published: dict[str, float] = field(default_factory=dict)


def groceries(public: Path, folder: Path) -> list[str]:
    """Photos of groceries (MIT): images/groceries64.npz with arrays x, y, classes and split."""
    with np.load(public / "images" / "groceries64.npz", allow_pickle=True) as file:
        arrays = {name: file[name] for name in ("x", "y", "classes", "split")}
    for i, (pixels, label, split) in enumerate(zip(arrays["x"], arrays["y"], arrays["split"], strict=True)):
        place = folder / str(split) / str(arrays["classes"][label])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(place / f"{i}.png")
    return ["--data.root", str(folder), "--data.size", "64"]


def spoken_digits(public: Path, folder: Path, *, is_test: Callable[[str, int], bool]) -> list[str]:
    """Recordings of the Free Spoken Digit Dataset (CC BY-SA 4.0): fsdd/<digit>_<speaker>_<number>.wav."""
    for file in sorted((public / "fsdd").glob("*.wav")):
        digit, speaker, number = file.stem.split("_")
        place = folder / ("test" if is_test(speaker, int(number)) else "train") / digit
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / file.name)
    return ["--data.root", str(folder)]


def official_split(public: Path, folder: Path) -> list[str]:
    """Recordings 0 to 4 of each speaker and digit are for testing."""
    return spoken_digits(public, folder, is_test=lambda speaker, number: number < 5)


def unheard_speaker(public: Path, folder: Path) -> list[str]:
    """All recordings of one speaker are for testing."""
    return spoken_digits(public, folder, is_test=lambda speaker, number: speaker == "theo")


def furniture(public: Path, folder: Path) -> list[str]:
    """Clouds of Sweet Home 3D's models (CC0, CC BY 3.0): shapes/sweethome3d_1024.npz; a quarter is for testing."""
    with np.load(public / "shapes" / "sweethome3d_1024.npz") as file:
        points, labels, classes = file["x"], file["y"], file["classes"]
    is_test = np.zeros(len(labels), bool)
    generator = np.random.default_rng(0)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 4]] = True
    for i, label in enumerate(labels):
        place = folder / ("test" if is_test[i] else "train") / str(classes[label])
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{i}.npy", points[i].astype(np.float32))
    return ["--data.root", str(folder)]


def blood_cells(public: Path, folder: Path) -> list[str]:
    """Photos of blood cells (BCCD, MIT) with the published split: bccd/JPEGImages, Annotations and ImageSets."""
    root = public / "bccd"
    options = ["--data.images", str(root / "JPEGImages")]
    for split, option in (("train", "coco"), ("val", "val_coco"), ("test", "test_coco")):
        names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        file = folder / f"{split}.json"
        file.write_text(json.dumps(_coco(root / "Annotations", names)), encoding="utf-8")
        options += [f"--data.{option}", str(file)]
    return options


def _coco(annotations: Path, names: list[str]) -> dict[str, Any]:
    """The content of a COCO file, from the XML files of some images."""
    classes = ("RBC", "WBC", "Platelets")
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        images.append({"id": i, "file_name": f"{name}.jpg"})
        for item in ElementTree.parse(annotations / f"{name}.xml").iter("object"):
            corners = (float(str(item.findtext(f"bndbox/{key}"))) for key in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = corners
            label = classes.index(str(item.findtext("name"))) + 1
            box = [left, top, right - left, bottom - top]
            notes.append({"id": len(notes), "image_id": i, "category_id": label, "bbox": box})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "annotations": notes, "categories": categories}


def streets(public: Path, folder: Path) -> list[str]:
    """Street scenes (CamVid at 240 x 180, CC BY-NC) with the usual split: camvid240/<split>/images and masks."""
    classes = "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"
    options = ["--data.classes", f"[{classes}]", "--data.ignore", "[11]"]
    for split, prefix in (("train", ""), ("val", "val_"), ("test", "test_")):
        for kind in ("images", "masks"):
            options += [f"--data.{prefix}{kind}", str(public / "camvid240" / split / kind)]
    return options


def series(name: str, split: str) -> Callable[[Path, Path], list[str]]:
    """A CSV file of the field, 96 steps ahead from 96, in order and with the published split."""

    def prepare(public: Path, folder: Path) -> list[str]:
        return ["--data.path", str(public / name), "--data.split", split, "--data.in_order", "true"]

    return prepare


SETS = {
    "groceries": RealSet("vision/configs/folder.yaml", groceries, "test_acc", MAP_PEERS),
    "fsdd": RealSet("audio/configs/folder.yaml", official_split, "test_acc", MAP_PEERS),
    "fsdd_speaker": RealSet("audio/configs/folder.yaml", unheard_speaker, "test_acc", MAP_PEERS),
    "sweethome3d": RealSet("pointcloud/configs/folder.yaml", furniture, "test_acc", MAP_PEERS),
    "bccd": RealSet("vision/configs/det.yaml", blood_cells, "test_bbox_map_50", DENSE_PEERS),
    "camvid": RealSet("vision/configs/seg.yaml", streets, "test_miou", DENSE_PEERS),
    "etth1": RealSet(
        "timeseries/configs/csv.yaml",
        series("ett/ETTh1.csv", "[8640, 2880, 2880]"),
        "test_mse",
        published={"DLinear (iTransformer, table 10)": 0.386, "iTransformer": 0.386, "PatchTST": 0.414},
    ),
    "etth2": RealSet(
        "timeseries/configs/csv.yaml",
        series("ett/ETTh2.csv", "[8640, 2880, 2880]"),
        "test_mse",
        published={"DLinear (iTransformer, table 10)": 0.333, "iTransformer": 0.297, "PatchTST": 0.302},
    ),
    "exchange_rate": RealSet(
        "timeseries/configs/csv.yaml",
        series("series/exchange_rate.csv", "[0.7, 0.1, 0.2]"),
        "test_mse",
        published={"DLinear (iTransformer, table 10)": 0.088, "iTransformer": 0.086, "PatchTST": 0.088},
    ),
}


def train(config: str, options: list[str], metric: str, seed: int) -> dict[str, Any]:
    """Fit and test in a folder of their own.

    Returns:
        The test metric, the seconds of the fit, and its epochs.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "-c", config, *options, "--seed_everything", str(seed), "--trainer.default_root_dir", folder]
        start = perf_counter()
        command = LarKitCLI.run_verb([*words, "--trainer.enable_progress_bar", "false"])
        seconds = perf_counter() - start
        measured = command.trainer.test(command.model, command.datamodule, ckpt_path="best", verbose=False)[0]
        return {"metric": measured[metric], "seconds": seconds, "epochs": command.trainer.current_epoch}


def seconds_of_an_epoch(config: str, options: list[str], metric: str) -> float:
    """Time of an epoch with its validation, as the difference of a run of two epochs and a run of one."""
    one = train(config, [*options, "--trainer.max_epochs", "1"], metric, 0)["seconds"]
    two = train(config, [*options, "--trainer.max_epochs", "2"], metric, 0)["seconds"]
    return float(max(two - one, 0.1))


def measure(name: str, public: Path, *, seeds: int, minutes: float) -> list[dict[str, Any]]:
    """Train LarKit and the peers on one set with every seed, and keep what they reach."""
    chosen = SETS[name]
    with tempfile.TemporaryDirectory() as folder:
        options = chosen.prepare(public, Path(folder))
        budget = minutes * 60
        longest = yaml.safe_load(Path(chosen.config).read_text(encoding="utf-8"))["trainer"]["max_epochs"]
        entries: list[dict[str, Any]] = []
        for model in ("LarKit", *chosen.peers):
            backbone = [] if model == "LarKit" else ["--model.backbone", model]
            limit: list[str] = []
            for seed in range(seeds):
                known = _found(name, model, seed)
                if known is None:
                    if not limit and (chosen.peers or model != "LarKit"):
                        epoch = seconds_of_an_epoch(chosen.config, options + backbone, chosen.metric)
                        epochs = max(1, math.floor(budget / epoch))
                        limit = ["--trainer.max_epochs", str(min(epochs, longest) if model == "LarKit" else epochs)]
                    known = train(chosen.config, options + backbone + limit, chosen.metric, seed)
                    known |= {"set": name, "model": model, "seed": seed, **machine()}
                    keep([known], RESULTS, ("set", "model", "seed"))
                entries.append(known)
            if model == "LarKit":
                budget = statistics.mean(entry["seconds"] for entry in entries)
    return entries


def _found(name: str, model: str, seed: int) -> dict[str, Any] | None:
    entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    wanted = (name, model, seed, machine()["cpu"])
    return next((e for e in entries if (e["set"], e["model"], e["seed"], e["cpu"]) == wanted), None)


def table(name: str, entries: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds of each model, and the published figures."""
    lines = [
        f"{name}, {SETS[name].metric}:",
        "",
        "| model | mean (range) | seeds | epochs | seconds |",
        "|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(entry["model"] for entry in entries):
        own = [entry for entry in entries if entry["model"] == model]
        values = [entry["metric"] for entry in own]
        lines.append(
            f"| {model} | {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) | {len(own)} | "
            f"{own[0]['epochs']} | {statistics.mean(entry['seconds'] for entry in own):.0f} |"
        )
    lines += [f"| {other}, published | {value:.3f} | | | |" for other, value in SETS[name].published.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure the sets that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; by default all")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=15.0, help="longest training of one run")
    given = parser.parse_args()
    unknown = sorted(set(given.sets) - set(SETS))
    if unknown:
        parser.error(f"unknown sets {', '.join(unknown)}; expected some of {', '.join(SETS)}")
    for name in given.sets or SETS:
        print(table(name, measure(name, given.folder, seeds=given.seeds, minutes=given.minutes)), flush=True)


if __name__ == "__main__":
    main()
