"""Log-mel maps a second: batches as LarKit computes them against the published order of calls, recording by recording.

    python benchmarks/audio_maps.py
    python benchmarks/audio_maps.py --root data/spoken_words --clips 640 --batch 32

Both start from the same wav files and end with the same normalized maps; they take turns. Then one epoch of
audio/configs/cls.yaml is trained, and the share of its time that waited for data is printed.
"""

import argparse
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning
import soundfile
import torch
import torchaudio
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from audio import AudioClassifier, LogMel, SpokenWords
from audio.demo import speak_words
from audio.feature_map import pad_waves
from audio.files import read_wave

MEAN, STD, FRAMES = -6.845978, 5.5654526, 128


def one_by_one(files: list[Path]) -> Tensor:
    """The published calls for each recording: read, subtract the mean, filter bank, pad or cut, normalize."""
    maps = []
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        wave = torch.from_numpy(samples.T)
        mel = fbank(
            wave - wave.mean(),
            htk_compat=True,
            sample_frequency=rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        mel = torch.nn.functional.pad(mel, (0, 0, 0, max(0, FRAMES - len(mel))))[:FRAMES]
        maps.append(((mel - MEAN) / (2 * STD)).T[None])
    return torch.stack(maps)


def in_batches(files: list[Path], batch: int) -> Tensor:
    """LarKit's: read each, then the maps of the whole batch at once."""
    maps = LogMel(target_length=FRAMES, mean=MEAN, std=STD)
    parts = [files[first : first + batch] for first in range(0, len(files), batch)]
    return torch.cat([maps(*pad_waves([read_wave(file, 16_000) for file in part])) for part in parts])


def seconds(work: Callable[[], Tensor]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Silent(SimpleProfiler):
    def describe(self) -> None:
        """Print nothing: one of its numbers is asked for."""


def waiting_share(root: Path) -> float:
    """Share of a training epoch, from its first batch on, that waited for the next batch."""
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    profiler = _Silent()
    data = SpokenWords(str(root), num_mels=64, frame_shift=15.0, target_length=64, mean=-5.7, std=3.6, batch_size=50)
    args = {"depths": [1, 1, 3, 1], "layer_scale_init_value": 0.1}
    task = AudioClassifier("unireplknet_a", spec=data.spec(), backbone_args=args, lr=2e-3)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=1, limit_val_batches=0, profiler=profiler, accelerator="cpu", **quiet).fit(task, data)
    times = profiler.recorded_durations
    waiting = sum(sum(values) for name, values in times.items() if name.endswith("train_dataloader_next"))
    return waiting / sum(times["run_training_epoch"])


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", module="lightning")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path("data/spoken_words"))
    parser.add_argument("--clips", type=int, default=3640)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not args.root.exists():
        speak_words(args.root)
    files = sorted(args.root.rglob("*.wav"))[: args.clips]
    difference = (one_by_one(files[:64]) - in_batches(files[:64], args.batch)).abs().max().item()
    pairs = [
        (seconds(lambda: one_by_one(files)), seconds(lambda: in_batches(files, args.batch))) for _ in range(args.rounds)
    ]
    single, batched = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}, torchaudio {torchaudio.__version__}, {len(files)} clips of 1 s")
    print(f"one by one: {len(files) / single:.0f} maps/s; batches of {args.batch}: {len(files) / batched:.0f} maps/s")
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"largest difference of the normalized maps: {difference:.1e}")
    print(f"share of a training epoch that waited for data: {waiting_share(args.root):.1%}")


if __name__ == "__main__":
    main()
