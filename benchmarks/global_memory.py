"""One training step of the papers' global configuration: 3,850 stations, 48 hours to 24; its time and peak memory.

    python benchmarks/global_memory.py

The model and optimizer of timeseries/configs/recipes/global_temp.yaml, random weights and values, one sample (350
maps of 192 x 192), float32, activation checkpointing. Without a GPU it takes some minutes.
"""

import argparse
import platform
import resource
import time
from pathlib import Path

import torch
import yaml

from timeseries import GlobalForecastTask

RECIPE = Path(__file__).parents[1] / "timeseries/configs/recipes/global_temp.yaml"


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    torch.manual_seed(0)
    task = GlobalForecastTask(**yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["model"]["init_args"])
    task.net.set_stations(torch.randn(3850, 3))
    optimizer = torch.optim.Adam(task.parameters(), lr=task.lr)
    history = 100 + 50 * torch.randn(1, 48, 3850)
    marks = torch.rand(1, 48, 4) - 0.5
    marks_ahead = torch.rand(1, 48, 4) - 0.5
    target = 100 + 50 * torch.randn(1, 24, 3850)

    start = time.perf_counter()
    loss = task.loss(task(history, marks, marks_ahead), target)
    forward = time.perf_counter() - start
    loss.backward()
    optimizer.step()
    total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = sum(parameter.numel() for parameter in task.parameters())
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}; {count / 1e6:.2f} M parameters, loss {loss.item():.0f}")
    print(f"forward {forward:.0f} s, whole step {total:.0f} s, peak resident memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
