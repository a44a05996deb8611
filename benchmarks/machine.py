"""What every benchmark says of where it ran, and how it times ways in turn."""

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

__all__ = ["machine", "take_turns"]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and commit."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    said = {
        "cpu": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": (commit or "unknown") + (" with changes" if changed else ""),
    }
    if device.startswith("cuda"):
        said |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        said |= {"cudnn": torch.backends.cudnn.version()}
    return said


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def take_turns(ways: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every way in each round, after one call that is not timed; each round begins with another way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            _wait(device)
            start = perf_counter()
            ways[name]()
            _wait(device)
            times[name].append(perf_counter() - start)
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
