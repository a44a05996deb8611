"""Everything that LarKit says of NVIDIA GPUs, measured with one command of at most ten minutes.

    python benchmarks/gpu.py

Runs the scripts named in COMMANDS one after the other, each with what is left of its share of the time, and writes
their results where they do, in benchmarks/results. The networks run with LARKIT_TRITON=1, against the official order
compiled in channels_last. Scripts that did not finish in time are listed at the end, and the exit status is 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
_NETWORKS = ["networks.py", "--models", "unireplknet_t", "--dtypes", "bfloat16", "--device", "cuda", "--batch", "64"]
_WAYS = ["official order", "official order, channels_last, compiled", "LarKit", "LarKit, compiled"]
COMMANDS: dict[float, list[str]] = {  # by the share of the whole time at which a command has to end
    0.4: ["depthwise_gpu.py", "--quick", "--minutes", "3"],
    0.7: [*_NETWORKS, "--mode", "inference", "--ways", *_WAYS],
    1.0: [*_NETWORKS, "--mode", "train", "--ways", *_WAYS],
}


def run(command: list[str], seconds: float) -> bool:
    """Whether a script of this folder ended well within so many seconds."""
    print(f"\n$ python benchmarks/{shlex.join(command)}", flush=True)
    whole = [sys.executable, str(FOLDER / command[0]), *command[1:]]
    try:
        return subprocess.run(whole, timeout=seconds, env=os.environ | {"LARKIT_TRITON": "1"}).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    """Run all and list what did not finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu.py needs an NVIDIA GPU, and there is none here; benchmarks/README.md lists what runs on a CPU")
    start, missing = time.monotonic(), []
    for share, command in COMMANDS.items():
        if not run(command, start + 60 * options.minutes * share - time.monotonic()):
            missing.append(shlex.join(command))
    if missing:
        sys.exit("not finished; run these alone, or all with more --minutes:\n" + "\n".join(missing))


if __name__ == "__main__":
    main()
