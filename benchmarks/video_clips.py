"""Clips a second: LarKit's decoding by seeking against decoding every frame with OpenCV, on the same files.

    pip install opencv-python-headless
    python benchmarks/video_clips.py
    python benchmarks/video_clips.py --files kinetics/train --clips 50

Both read 16 frames of a random dense window (every 4th frame) of clips of 10 s, in one thread, and resize and crop
them to 224 x 224 pixels with the same code; they take turns. A third reader decodes what LarKit decodes and drops it,
which gives the limit: no reader of these frames is faster, since they refer to the others.

Without --files the clips are rendered: camera moves over the built-in photos, at 25 frames a second and 340 x 256
pixels. They are encoded in three ways: with x264's defaults (a keyframe every 250 frames and at cuts), with a cut in
the middle, and with a keyframe each second, as cameras and telephones write. Then an epoch of video/configs/cls.yaml
is trained, and the share of its time that waited for data is printed.
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
from video.decoding import VideoFile
from video.demo import PHOTOS, load_photo
from video.files import video_files
from video.sampling import FrameIndices, Sampling

FRAMES = 250
CROP = TestCrops(224)
KINDS = {
    "x264's defaults": ({}, 0),
    "one cut": ({}, 1),
    "keyframe each second": ({"g": "25"}, 0),
}
"""Options of the encoder, and number of cuts."""


def render(file: Path, number: int, options: dict[str, str], cuts: int) -> None:
    """Write ten seconds of a moving and shaking view of a photo, or of two photos."""
    photos = [load_photo(name).resize((900, 700)) for name in PHOTOS["train"]]
    generator = np.random.default_rng(number)
    path = np.cumsum(generator.normal(0, 1.5, (FRAMES, 2)), axis=0) + np.linspace(0, 150, FRAMES)[:, None]

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = 340
        stream.height = 256
        stream.pix_fmt = "yuv420p"
        for i, (x, y) in enumerate(path):
            after_cut = i > FRAMES // 2
            photo = photos[(number + after_cut * cuts) % len(photos)]
            shift = (1, 0, 150 + x, 0, 1, 120 + y)
            view = np.asarray(photo.transform((340, 256), Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR))
            grainy = (view + generator.normal(0, 3, view.shape)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grainy, format="rgb24")))
        container.mux(stream.encode())


def read_by_seeking(file: Path, indices: FrameIndices) -> Tensor:
    """LarKit's way: index, seek, decode what is needed."""
    with VideoFile(file) as video:
        return CROP(torch.from_numpy(video.read(indices)).permute(0, 3, 1, 2))


def read_every_frame(file: Path, indices: FrameIndices) -> Tensor:
    """Read all frames with OpenCV, and keep those of the clip."""
    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = set(indices)
    frames = {}
    number = 0
    while True:
        found, frame = capture.read()
        if not found:
            break
        if number in wanted:
            frames[number] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        number += 1
    capture.release()
    return CROP(torch.from_numpy(np.stack([frames[index] for index in indices])).permute(0, 3, 1, 2))


def decode_only(file: Path, indices: FrameIndices) -> None:
    """Decode what the clip depends on, and nothing else: no index, no colors, no crop."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = round(1 / (stream.average_rate * stream.time_base))
        wanted = {stream.start_time + int(index) * step for index in indices}

        container.seek(min(wanted), stream=stream)
        for packet in container.demux(stream):
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
            wanted -= {frame.pts for frame in packet.decode()}
            if not wanted:
                return
    raise RuntimeError(f"{file} has frames at other times than its frame rate says")


def compare(name: str, files: list[Path], rounds: int) -> None:
    """Time the readers on the same windows of the same files, in turn, and print a line."""
    sampling = Sampling()
    np.random.seed(0)
    times: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        clips = []
        for file in files:
            with VideoFile(file) as video:
                clips.append((file, sampling.random(len(video))))
        times.append(
            (
                seconds(read_every_frame, clips),
                seconds(read_by_seeking, clips),
                seconds(decode_only, clips),
            )
        )

    every_frame = len(files) / statistics.median(a for a, _, _ in times)
    seeking = len(files) / statistics.median(b for _, b, _ in times)
    ratios = sorted(a / b for a, b, _ in times)
    limit = statistics.median(a / c for a, _, c in times)
    difference = (read_every_frame(*clips[0]).float() - read_by_seeking(*clips[0])).abs().max().item()
    print(
        f"{name:22s} every frame {every_frame:6.1f} clips/s, seeking {seeking:6.1f} clips/s, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), limit {limit:.2f}, "
        f"difference {difference:.0f}"
    )


def seconds(read: Callable[[Path, FrameIndices], object], clips: list[tuple[Path, FrameIndices]]) -> float:
    """Time to read some clips."""
    start = time.perf_counter()
    for file, indices in clips:
        read(file, indices)
    return time.perf_counter() - start


def waiting_share(root: Path) -> float:
    """Share of a training epoch, from its second batch on, that waited for the next batch."""
    data = CameraMoves(str(root), size=16, batch_size=32)
    task = VideoClassifier(
        "unireplknet_a",
        spec=data.spec(),
        backbone_args={"depths": [1, 1, 3, 1], "layer_scale_init_value": 0.1},
        layout="strip",
        rows=1,
    )
    profiler = SimpleProfiler()
    trainer = lightning.Trainer(
        max_epochs=1,
        limit_val_batches=0,
        profiler=profiler,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)

    times = profiler.recorded_durations
    waiting = [value for name, values in times.items() if name.endswith("train_dataloader_next") for value in values]
    first = waiting[0]  # starts the workers
    return (sum(waiting) - first) / (sum(times["run_training_epoch"]) - first)


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
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, one thread, PyAV {av.__version__}, "
        f"OpenCV {cv2.__version__}, torch {torch.__version__}"
    )

    if args.files:
        compare(args.files.name, video_files(args.files)[: args.clips], args.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name, (options, cuts) in KINDS.items():
                files = [Path(folder) / f"{name} {i}.mp4" for i in range(args.clips)]
                for i, file in enumerate(files):
                    render(file, i, options, cuts)
                compare(name, files, args.rounds)

    print(f"share of a training epoch of cls.yaml that waited for data: {waiting_share(args.root):.1%}")


if __name__ == "__main__":
    main()
