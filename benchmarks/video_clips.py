"""Clips a second: LarKit's decoding by seeking against decoding every frame with OpenCV, on the same files.

    pip install opencv-python-headless
    python benchmarks/video_clips.py
    python benchmarks/video_clips.py --files kinetics/train --clips 50

Both read 16 frames of a random dense window (every 4th frame) of clips of 10 s, in one thread, and resize and crop
them to 224 x 224 with the same code; they take turns. A third decodes what LarKit decodes and drops it, which gives
the limit: no reader of these frames is faster, since they refer to the others. Without --files the clips are
rendered: camera moves over the built-in photos, at 25 frames a second and 340 x 256 pixels, as x264 encodes them by
itself (a keyframe every 250 frames and at cuts), with a cut in the middle, and with a keyframe each second, as
cameras and telephones write. Then an epoch of video/configs/cls.yaml is trained, and the share of its time that
waited for data is printed.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import lightning
import numpy as np
import torch
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image
from torch import Tensor

from video import CameraMoves, VideoClassifier
from video.augment import TestCrops
from video.camera_moves import PHOTOS, _photo
from video.decoding import VideoFile
from video.files import video_files
from video.sampling import Sampling, Ticks

FRAMES, CROP = 250, TestCrops(224)
KINDS = {"as x264 does": ({}, 0), "one cut": ({}, 1), "keyframe each second": ({"g": "25"}, 0)}
"""Options of the encoder and number of cuts."""


def render(file: Path, number: int, options: dict[str, str], cuts: int) -> None:
    """Ten seconds of a moving and shaking view of a photo, or of two."""
    photos = [_photo(name).resize((900, 700)) for name in PHOTOS["train"]]
    generator = np.random.default_rng(number)
    path = np.cumsum(generator.normal(0, 1.5, (FRAMES, 2)), axis=0) + np.linspace(0, 150, FRAMES)[:, None]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for i, (x, y) in enumerate(path):
            photo = photos[(number + (i > FRAMES // 2) * cuts) % len(photos)]
            shift = (1, 0, 150 + x, 0, 1, 120 + y)
            seen = np.asarray(photo.transform((340, 256), Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR))
            grainy = (seen + generator.normal(0, 3, seen.shape)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grainy, format="rgb24")))
        container.mux(stream.encode())


def seeking(file: Path, ticks: Ticks) -> Tensor:
    """LarKit's: index, seek, decode what is needed."""
    with VideoFile(file) as video:
        return CROP(torch.from_numpy(video.read(ticks)).permute(0, 3, 1, 2))


def needed(file: Path, ticks: Ticks) -> None:
    """Decode what the clip depends on, and nothing else: no index, no colours, no crop."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = round(1 / (stream.average_rate * stream.time_base))
        wanted = {stream.start_time + int(tick) * step for tick in ticks}
        container.seek(min(wanted), stream=stream)
        for packet in container.demux(stream):
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
            wanted -= {frame.pts for frame in packet.decode()}
            if not wanted:
                return
    raise RuntimeError(f"{file} has frames at other times than its frame rate says")


def every_frame(file: Path, ticks: Ticks) -> Tensor:
    """OpenCV's: read all frames, keep those of the clip."""
    capture, wanted, frames, number = (
        cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]),
        set(ticks),
        {},
        0,
    )
    while True:
        found, frame = capture.read()
        if not found:
            break
        if number in wanted:
            frames[number] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        number += 1
    capture.release()
    return CROP(torch.from_numpy(np.stack([frames[tick] for tick in ticks])).permute(0, 3, 1, 2))


def compare(name: str, files: list[Path], rounds: int) -> None:
    """Time both on the same windows of the same files, in turn, and print a line."""
    sampling, times = Sampling(), list[tuple[float, float, float]]()
    np.random.seed(0)
    for _ in range(rounds):
        clips = []
        for file in files:
            with VideoFile(file) as video:
                clips.append((file, sampling.random(len(video))))
        readers = (every_frame, seeking, needed)
        clips_s = (seconds(lambda read=read, chosen=clips: [read(*c) for c in chosen]) for read in readers)
        times.append(tuple(clips_s))
    theirs, ours, _ = (len(files) / statistics.median(column) for column in zip(*times, strict=True))
    ratios, limit = sorted(a / b for a, b, _ in times), statistics.median(a / c for a, _, c in times)
    difference = (every_frame(*clips[0]).float() - seeking(*clips[0])).abs().max().item()
    print(f"{name:22s} every frame {theirs:6.1f} clips/s, seeking {ours:6.1f} clips/s, ", end="")
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), ", end="")
    print(f"limit {limit:.2f}, difference {difference:.0f}")


def seconds(work: Callable[[], object]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def waiting_share(root: Path) -> float:
    """Share of a training epoch, from its second batch on, that waited for the next batch."""
    profiler = SimpleProfiler()
    args = {"depths": [1, 1, 3, 1], "layer_scale_init_value": 0.1}
    task = VideoClassifier("unireplknet_a", num_classes=8, backbone_args=args, layout="strip", rows=1)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=1, limit_val_batches=0, profiler=profiler, accelerator="cpu", **quiet)
    trainer.fit(task, CameraMoves(str(root), size=16, batch_size=32))
    times = profiler.recorded_durations
    waiting = [value for name, values in times.items() if name.endswith("train_dataloader_next") for value in values]
    return sum(waiting[1:]) / (sum(times["run_training_epoch"]) - waiting[0])  # the first starts the workers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=Path, help="a folder of videos of your own")
    parser.add_argument("--root", type=Path, default=Path("data/camera_moves"))
    parser.add_argument("--clips", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread, PyAV {av.__version__}, ", end=""
    )
    print(f"OpenCV {cv2.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (options, cuts) in ({} if args.files else KINDS).items():
            files = [Path(folder) / f"{name} {i}.mp4" for i in range(args.clips)]
            for i, file in enumerate(files):
                render(file, i, options, cuts)
            compare(name, files, args.rounds)
        if args.files:
            compare(args.files.name, video_files(args.files)[: args.clips], args.rounds)
    print(f"share of a training epoch of cls.yaml that waited for data: {waiting_share(args.root):.1%}")


if __name__ == "__main__":
    main()
