"""Run the ablations whose names begin with a prefix, one after the other, and print them as one table.

    python benchmarks/ablations.py mobilenetv2
    python benchmarks/ablations.py extra --epochs 3 --seeds 2
    python benchmarks/ablations.py kernels --trainer.precision bf16-mixed --data.batch_size 32

Each is ``lightning fit -c vision/configs/ablation.yaml -c vision/configs/ablations/NAME.yaml`` in a process of its own,
and ``lightning test`` on its best checkpoint. Options that this script does not know go to both.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "vision" / "configs"


def run(verb: str, config: Path, folder: Path, *words: str) -> None:
    """One verb of the command on one ablation, quietly; its output is shown if it fails."""
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    files = ["-c", str(CONFIGS / "ablation.yaml"), "-c", str(config)]
    line = [sys.executable, "-m", "core.cli", verb, *files, "--trainer.default_root_dir", str(folder), *quiet, *words]
    done = subprocess.run(line, cwd=CONFIGS.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")


def accuracy(folder: Path, column: str) -> float:
    """The largest value of a column in the metrics of the newest run."""
    newest = max(folder.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime)
    with newest.open(encoding="utf-8") as file:
        return max(float(row[column]) for row in csv.DictReader(file) if row.get(column))


def measure(config: Path, epochs: int | None, seed: int, options: list[str]) -> tuple[float, float, float]:
    """Validation accuracy, test accuracy and seconds of training of one ablation."""
    with tempfile.TemporaryDirectory() as name:
        folder, words = Path(name), [*options, "--seed_everything", str(seed)]
        start = time.perf_counter()
        run("fit", config, folder, *words, *(["--trainer.max_epochs", str(epochs)] if epochs else []))
        seconds = time.perf_counter() - start
        best = accuracy(folder, "val_acc")
        run("test", config, folder, *options, "--ckpt_path", "best")
        return best, accuracy(folder, "test_acc"), seconds


def main() -> None:
    """Parse the command line and print a row for each ablation and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="options of 'lightning fit' such as --trainer.precision or --data.batch_size are passed on",
        allow_abbrev=False,
    )
    parser.add_argument("prefix", help="as in vision/configs/ablations/PREFIX*.yaml")
    parser.add_argument("--epochs", type=int, help="instead of the configuration's")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, ...")
    args, options = parser.parse_known_args()
    configs = sorted((CONFIGS / "ablations").glob(f"{args.prefix}*.yaml"))
    if not configs:
        names = ", ".join(sorted({file.stem.split("_")[0] for file in (CONFIGS / "ablations").glob("*.yaml")}))
        sys.exit(f"no ablation begins with {args.prefix!r}; there are {names}")
    print(f"{'ablation':32s}  seed    val   test  seconds")
    for config in configs:
        for seed in range(args.seeds):
            val, test, seconds = measure(config, args.epochs, seed, options)
            print(f"{config.stem:32s}  {seed:4d}  {val:.3f}  {test:.3f}  {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
