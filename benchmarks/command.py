"""Training samples a second through the command, against a bare loop of the same steps, in one run.

    python benchmarks/command.py photos
    python benchmarks/command.py photos sounds clouds clips series --rounds 3

Each kind writes a small set of files and trains the shipped own-data configuration on it. The bare loop takes the same
steps (feature map, backbone, loss, gradients, optimizer) on one batch that is already in memory. Both take turns. The
time of the command is that of its training epochs after the first one, with reading of files, validation, pictures and
checkpoints. Written to benchmarks/results/command.json.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np
import pandas as pd
import soundfile
import torch
from lightning import Callback
from machine import keep, machine
from PIL import Image

from core.cli import keep_freed_memory
from core.training.lightning_cli import LarKitCLI

RESULTS = Path(__file__).parent / "results" / "command.json"
EPOCHS = 3


def photos(folder: Path) -> list[str]:
    """150 JPEG files of 640 x 480 in three classes."""
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(50):
            pixels = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((640, 480)).save(folder / str(label) / f"{i}.jpg")
    return ["-c", "vision/configs/folder.yaml", "--data.root", str(folder)]


def sounds(folder: Path) -> list[str]:
    """90 recordings of 3 seconds in three classes."""
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(30):
            wave = np.random.default_rng(i).normal(0, 0.1, 48_000)
            soundfile.write(folder / str(label) / f"{i}.wav", wave, 16_000)
    return ["-c", "audio/configs/folder.yaml", "--data.root", str(folder)]


def clouds(folder: Path) -> list[str]:
    """90 clouds of 2,048 points in three classes."""
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(30):
            np.save(folder / str(label) / f"{i}.npy", np.random.default_rng(i).normal(size=(2_048, 3)).astype("f4"))
    return ["-c", "pointcloud/configs/folder.yaml", "--data.root", str(folder)]


def clips(folder: Path) -> list[str]:
    """24 videos of 48 frames of 160 x 120 in three classes."""
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(8):
            with av.open(str(folder / str(label) / f"{i}.mp4"), "w") as file:
                stream = file.add_stream("mpeg4", rate=25)
                stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
                for frame in np.random.default_rng(i).integers(0, 255, (48, 120, 160, 3), dtype=np.uint8):
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                file.mux(stream.encode())
    return ["-c", "video/configs/folder.yaml", "--data.root", str(folder)]


def series(folder: Path) -> list[str]:
    """7,000 hours of four channels."""
    season = np.sin(np.arange(7_000) / 24 * 2 * np.pi)
    noise = np.random.default_rng(0).normal(size=(7_000, 4))
    table = pd.DataFrame(season[:, None] + noise, columns=list("abcd"))
    table.insert(0, "date", pd.date_range("2020-01-01", periods=7_000, freq="h"))
    table.to_csv(folder / "series.csv", index=False)
    return ["-c", "timeseries/configs/csv.yaml", "--data.path", str(folder / "series.csv")]


KINDS: dict[str, Callable[[Path], list[str]]] = {
    "photos": photos,
    "sounds": sounds,
    "clouds": clouds,
    "clips": clips,
    "series": series,
}


class _Clock(Callback):
    """Notes the time at the end of each epoch, and keeps the first batch."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.batch: Any = None
        self.samples = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.batch is None:
            self.batch = batch
        if not self.ends:
            self.samples += pl_module.batch_length(pl_module.unpack(batch)[0])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append(perf_counter())


class _TimedCommand(LarKitCLI):
    """The command with a clock among its callbacks."""

    clock: _Clock

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Any:
        return super()._instantiate_trainer(config, [*callbacks, self.clock])


def through_the_command(words: list[str], steps: int) -> tuple[float, Any, Any]:
    """Return the samples a second of the epochs after the first one, the task, and one batch."""
    clock = _TimedCommand.clock = _Clock()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        options = ["--trainer.default_root_dir", out, "--trainer.max_epochs", str(EPOCHS)]
        options += ["--trainer.limit_train_batches", str(steps), "--trainer.accelerator", "cpu"]
        command = _TimedCommand.run_verb(["fit", *words, *options, "--trainer.enable_progress_bar", "false"])
    seconds = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)
    return clock.samples / seconds, command.model, clock.batch


def bare_loop(task: Any, batch: Any, steps: int) -> float:
    """Return the samples a second of plain training steps on one batch."""
    raw, target = task.unpack(batch)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    task.train()
    start = perf_counter()
    for _ in range(steps):
        loss = task.training_loss(raw, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(steps * task.batch_length(raw) / (perf_counter() - start))


def measure(kind: str, rounds: int, steps: int) -> dict[str, Any]:
    """Measure one kind of data: both ways in turn, and the ratio of their medians."""
    command: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        words = KINDS[kind](Path(folder))
        for _ in range(rounds):
            speed, task, batch = through_the_command(words, steps)
            command.append(speed)
            bare.append(bare_loop(task, batch, steps))
    ratio = statistics.median(command) / statistics.median(bare)
    return {"kind": kind, "command": command, "bare": bare, "ratio": ratio, "steps": steps, **machine()}


def main() -> None:
    """Measure the kinds that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="training steps of an epoch")
    given = parser.parse_args()
    unknown = sorted(set(given.kinds) - set(KINDS))
    if unknown:
        parser.error(f"unknown kinds {', '.join(unknown)}; expected some of {', '.join(KINDS)}")

    keep_freed_memory()  # as the command does
    print("| data | command, samples/s | bare loop, samples/s | ratio |\n|---|---|---|---|")
    for kind in given.kinds or KINDS:
        entry = measure(kind, given.rounds, given.steps)
        keep([entry], RESULTS, ("kind",))
        speeds = [f"{statistics.median(entry[way]):.1f}" for way in ("command", "bare")]
        print(f"| {kind} | {speeds[0]} | {speeds[1]} | {entry['ratio']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
