"""``lightning tune``: a short search of settings by runs of ``fit``, and the best of them as a configuration file."""

import gc
import math
import re
import shlex
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import jsonargparse
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from core.analysis.report import print_table
from core.backbones import UniRepLKNet
from core.errors import InputError
from core.io.atomic import atomic_write
from core.training.folds import SeveralFolds
from core.training.lightning_cli import LarKitCLI
from core.training.run_folder import from_here, run_folder
from core.training.watch import LearningWatch

if TYPE_CHECKING:
    import optuna

__all__ = ["run_tune"]

_DESCRIPTION = """\
Search the learning rate, the layer scale of UniRepLKNet, the strength of augmentation and the input size within a given
time. Each trial is a short run of fit; the first one has the settings of the configuration, the others are proposed by
Optuna, which also ends trials that fall behind. The best settings are written to tuned.yaml, a second -c for fit. All
options of fit can be given; settings that are typed are not searched.
"""

_TRIALS = 8
"""Number of complete trials for which there should be time; the length of a trial follows from it."""

_FEWEST_EPOCHS = 3
"""A trial has at least this many epochs, unless the configuration has fewer."""

_RANDOM_TRIALS = 5
"""Number of trials before Optuna's sampler begins to follow what it has seen."""

_RATE_FACTOR = 10.0
"""Learning rates are searched from a tenth to ten times that of the configuration."""

_LAYER_SCALES = (1e-6, 0.1, 1.0)
"""Initial values of the layer scale: the published one, and two from which random weights learn faster."""

_SIZE_FACTORS = (0.75, 1.5)
"""Input sizes to try, relative to that of the configuration; they are rounded to multiples of the backbone's stride."""

_STRIDE = 32

_STRONGEST = 2.0
"""Augmentation is searched from none, 0, over that of the configuration, 1, to twice its strength."""

_AUGMENTATION = {
    "data": ("scale", "auto_augment"),
    "model": ("erasing", "mixup", "mixup_alpha", "cutmix_alpha", "frequency_mask", "time_mask", "noise", "roll"),
}
"""Options of data modules and tasks that say how strong an augmentation is."""

_SMALLEST_CROP = 0.08
"""Smallest share of an image that a crop covers, as in the papers' recipes."""

_NAMES = {"lr": "lr", "layer_scale": "layer scale", "augmentation": "augmentation", "size": "size"}
"""What the settings of a trial are called in what is printed."""


def run_tune(words: Sequence[str], run: Callable[[list[str], type[LarKitCLI]], Any]) -> None:
    """Run ``lightning tune``: search within the given time, print a table, and write ``tuned.yaml``.

    Args:
        words: words of the command line, of which the first is ``tune``.
        run: function that runs words with a class of the command line, and returns the finished command.

    Raises:
        InputError: if an option cannot be used, if Optuna is missing, or if the time is too short for a trial.
    """
    minutes, trials, fit_words = _parse(words)
    if find_spec("optuna") is None:
        raise InputError("tune needs optuna; type: pip install optuna, or in LarKit's folder: pip install -e '.[tune]'")

    search = _Search(fit_words, 60 * minutes, trials, run)
    search.measure()
    search.search()


# The words of the command line


def _parse(words: Sequence[str]) -> tuple[float, int, list[str]]:
    """Return the minutes, the largest number of trials, and the words that remain for ``fit``.

    Raises:
        InputError: if a number is out of range, or an option of ``fit`` makes no sense in a search.
    """
    parser = ArgumentParser(
        prog="lightning tune",
        usage="lightning tune -c FILE [-c FILE ...] [--minutes 20] [--trials 30] [--key value ...]",
        description=_DESCRIPTION,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="time for the whole search (default: 20)")
    parser.add_argument("--trials", type=int, default=30, help="largest number of trials (default: 30)")
    try:
        given, fit_words = parser.parse_known_args(list(words[1:]))
    except ArgumentError as error:
        raise InputError(f"{error}. Type: lightning tune --help") from error

    if not 0 < given.minutes < math.inf:
        raise InputError(f"--minutes {given.minutes:g}; expected a number of minutes above 0")
    if given.trials < 1:
        raise InputError(f"--trials {given.trials}; expected 1 or more")

    typed = _typed(fit_words)
    if "--ckpt_path" in typed:
        raise InputError("tune trains each trial from the start; leave out --ckpt_path")
    if "--trainer.max_time" in typed:
        raise InputError("tune sets the time of each trial itself; give --minutes instead of --trainer.max_time")
    return given.minutes, given.trials, fit_words


def _typed(words: Sequence[str]) -> set[str]:
    """Return the names of the options among the words; ``init_args`` in a name may be left out."""
    return {word.partition("=")[0].replace(".init_args.", ".") for word in words if word.startswith("--")}


def _with_config(words: Sequence[str], file: Path) -> list[str]:
    """Return the words with one more configuration, after the others and before the options that are typed."""
    end = len(words)
    for i, word in enumerate(words):
        if word in ("-c", "--config"):
            end = i + 2
        elif word.startswith("--config="):
            end = i + 1
    return [*words[:end], "-c", from_here(file), *words[end:]]


# One run of fit


class TrialReport(Callback):
    """Reports the metrics of one run after each validation, and ends the run early if it falls behind.

    Args:
        trial: Optuna's trial, which decides whether to go on; None measures a single epoch.

    Attributes:
        monitor: the metric by which trials are compared.
        measured: all metrics of each validation in which ``monitor`` was finite.
        epochs: number of complete epochs.
        training: time of the epochs with their validations, in seconds.
        validation: time of the longest validation, in seconds.
        is_pruned: whether Optuna has ended the run.
    """

    def __init__(self, trial: "optuna.Trial | None" = None) -> None:
        self.trial = trial
        self.monitor = ""
        self.measured: list[dict[str, float]] = []
        self.epochs = 0
        self.training = 0.0
        self.validation = 0.0
        self.is_pruned = False

        self._training_started = 0.0
        self._validation_started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure the time of training."""
        self._training_started = monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the time of training."""
        self.training = monotonic() - self._training_started

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure the time of the validation."""
        self._validation_started = monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics, report the one that counts, and ask whether to go on."""
        if trainer.sanity_checking:
            return

        self.validation = max(self.validation, monotonic() - self._validation_started)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        value = metrics.get(self.monitor, math.nan)
        if not math.isfinite(value):
            return

        self.measured.append(metrics)
        if self.trial is not None:
            self.trial.report(value, step=len(self.measured))
            if self.trial.should_prune():
                self.is_pruned = True
                trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch, unless the time ended it; without a trial, one epoch is enough."""
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return

        self.epochs += 1
        if self.trial is None:
            trainer.should_stop = True


def _trial_command(report: TrialReport, folder: Path | None) -> type[LarKitCLI]:
    """Return the class of a command that runs ``fit`` with a report, and leaves out what only a single run needs.

    Args:
        report: callback for the trainer.
        folder: folder of the run's own folder; None for a new folder of a search in ``lightning_logs/tune``.
    """

    class TrialCommand(LarKitCLI):
        """The command for one trial."""

        def _runs(self) -> Path:
            """Return the folder in which the run gets its own."""
            return folder or super()._runs().parent / "tune"

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
            """Build the trainer with the report, and without warnings that the run may not learn.

            Raises:
                InputError: if the trainer has several processes, of which only one would stop.
            """
            report.monitor = self.settings.checkpoint.monitor
            trainer: Any = super()._instantiate_trainer(config, [*callbacks, report])
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, LearningWatch)]
            if trainer.world_size > 1:
                raise InputError(
                    f"tune trains in one process, and the trainer has {trainer.world_size}; add --trainer.devices 1"
                )
            return trainer

        def after_fit(self) -> None:
            """Print nothing; the search has a table of its own."""

    return TrialCommand


# What is searched


@dataclass(frozen=True)
class _Base:
    """What one epoch of the given configuration has shown.

    Attributes:
        model_class: class path of the task.
        data_class: class path of the data module.
        model_args: arguments of the task.
        data_args: arguments of the data module.
        lr: learning rate, also where the configuration leaves it open.
        has_layer_scale: whether the backbone is a UniRepLKNet with layer scale, built by its name.
        monitor: metric by which trials are compared.
        mode: whether its smallest ('min') or its largest ('max') value is best.
        score: metric of the task, which the table shows as well.
        max_epochs: epochs of the configuration; infinite without a limit.
        epoch_seconds: time of an epoch with its validation, in seconds.
        seed: seed of the runs.
        folder: folder of the search.
    """

    model_class: str
    data_class: str
    model_args: dict[str, Any]
    data_args: dict[str, Any]
    lr: float
    has_layer_scale: bool
    monitor: str
    mode: str
    score: str
    max_epochs: float
    epoch_seconds: float
    seed: int
    folder: Path

    @classmethod
    def of(cls, command: LarKitCLI, epoch_seconds: float) -> "_Base":
        """Collect the facts from a finished command."""
        settings = command.settings
        model: Any = command.model
        trainer: Any = command.trainer
        seed = settings.get("seed_everything")
        model_args = settings.model.as_dict().get("init_args") or {}
        scale = (model_args.get("backbone_args") or {}).get("layer_scale_init_value", _LAYER_SCALES[0])
        is_by_name = "backbone_args" in model_args and isinstance(model_args.get("backbone"), str)
        is_unireplknet = is_by_name and isinstance(model.backbone, UniRepLKNet)
        starts_from_weights = bool(model_args.get("pretrained") or model_args.get("weights"))
        return cls(
            model_class=settings.model.class_path,
            data_class=settings.data.class_path,
            model_args=model_args,
            data_args=settings.data.as_dict().get("init_args") or {},
            lr=model.lr,
            has_layer_scale=is_unireplknet and bool(scale) and not starts_from_weights,
            monitor=settings.checkpoint.monitor,
            mode=settings.checkpoint.mode,
            score=model.chosen()[0],
            max_epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf,
            epoch_seconds=epoch_seconds,
            seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
            folder=run_folder(trainer) or Path(trainer.default_root_dir),
        )

    @property
    def layer_scale(self) -> float:
        """Initial value of the layer scale."""
        value = (self.model_args.get("backbone_args") or {}).get("layer_scale_init_value", _LAYER_SCALES[0])
        return float(value)

    def settings(self, typed: set[str]) -> dict[str, Any]:
        """Return the settings that are searched, with their values in the configuration.

        Args:
            typed: names of the options that the user has typed; these settings stay as they are.
        """
        settings: dict[str, Any] = {}
        if "--model.lr" not in typed:
            settings["lr"] = self.lr

        typed_scale = {"--model.backbone_args", "--model.backbone_args.layer_scale_init_value"} & typed
        if self.has_layer_scale and not typed_scale:
            settings["layer_scale"] = self.layer_scale

        if self.augmentation(typed):
            settings["augmentation"] = 1.0

        if isinstance(self.data_args.get("size"), int) and "--data.size" not in typed:
            settings["size"] = self.data_args["size"]
        return settings

    def augmentation(self, typed: set[str]) -> dict[tuple[str, str], Any]:
        """Return the augmentation of the configuration: values by section, 'data' or 'model', and by name."""
        found = {}
        for section, names in _AUGMENTATION.items():
            args = self.data_args if section == "data" else self.model_args
            for name in names:
                if args.get(name) and f"--{section}.{name}" not in typed:
                    found[section, name] = args[name]
        return found

    def config(self, params: dict[str, Any], typed: set[str]) -> dict[str, Any]:
        """Return a configuration that changes only what is searched.

        Args:
            params: settings by name, as :meth:`settings` returns them.
            typed: names of the options that the user has typed.
        """
        model: dict[str, Any] = {}
        data: dict[str, Any] = {}
        if "lr" in params:
            model["lr"] = params["lr"]
        if "layer_scale" in params:
            # All arguments are written: where a file names another backbone, those of the files before it are dropped.
            scale = {"layer_scale_init_value": params["layer_scale"]}
            model["backbone"] = self.model_args["backbone"]
            model["backbone_args"] = (self.model_args.get("backbone_args") or {}) | scale
        if "size" in params:
            data["size"] = params["size"]

        strength = params.get("augmentation", 1.0)
        for (section, name), value in self.augmentation(typed).items():
            if "augmentation" in params:
                (data if section == "data" else model)[name] = _scaled(name, value, strength)

        config: dict[str, Any] = {}
        if model:
            config["model"] = {"class_path": self.model_class, "init_args": model}
        if data:
            config["data"] = {"class_path": self.data_class, "init_args": data}
        return config


def _scaled(name: str, value: Any, strength: float) -> Any:
    """Return the value of an augmentation option at another strength.

    Args:
        name: name of the option.
        value: its value in the configuration.
        strength: 0 for none, 1 for that of the configuration.
    """
    if name == "scale":
        low, high = value
        return [round(max(min(low, _SMALLEST_CROP), high - (high - low) * strength), 4), high]
    if name == "auto_augment":
        if strength == 0:
            return None
        # The magnitude in timm's names of policies, such as 9 in 'rand-m9-mstd0.5', is an integer of at most 10.
        return re.sub(r"(?<=-m)\d+", lambda match: str(min(10, round(int(match[0]) * strength))), value)
    if name in ("erasing", "mixup"):
        return min(1.0, value * strength)
    return round(value * strength) if isinstance(value, int) else value * strength


def _distributions(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what Optuna's sampler draws from, for each setting that is searched."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "lr":
            found[name] = FloatDistribution(value / _RATE_FACTOR, value * _RATE_FACTOR, log=True)
        elif name == "layer_scale":
            found[name] = CategoricalDistribution(sorted({*_LAYER_SCALES, value}))
        elif name == "augmentation":
            found[name] = FloatDistribution(0.0, _STRONGEST, step=0.5)
        else:
            other = {max(1, round(value * factor / _STRIDE)) * _STRIDE for factor in _SIZE_FACTORS}
            found[name] = CategoricalDistribution(sorted({value, *other}))
    return found


# The search


@dataclass(frozen=True)
class _Result:
    """One trial.

    Attributes:
        number: number of the trial, from 1.
        params: its settings by name.
        metrics: metrics of its best validation; empty if there was none.
        epochs: number of complete epochs.
        seconds: time of the whole trial, in seconds.
        outcome: why it ended before its last epoch; empty if it did not.
    """

    number: int
    params: dict[str, Any]
    metrics: dict[str, float]
    epochs: int
    seconds: float
    outcome: str


class _Search:
    """A search: trials one after another until the time is over.

    Args:
        words: words for ``fit``, without the verb.
        seconds: time for the whole search.
        trials: largest number of trials.
        run: function that runs words with a class of the command line, and returns the finished command.

    Attributes:
        base: what one epoch of the configuration has shown.
        settings: what is searched, with its values in the configuration.
        study: Optuna's record of the trials.
        deadline: end of the search, on the clock of ``monotonic``.
        overhead: time that a run needs beside the time that the trainer limits, in seconds.
        results: the trials so far.
    """

    base: _Base
    settings: dict[str, Any]
    study: "optuna.Study"

    def __init__(
        self, words: list[str], seconds: float, trials: int, run: Callable[[list[str], type[LarKitCLI]], Any]
    ) -> None:
        self.words = words
        self.typed = _typed(words)
        self.seconds = seconds
        self.trials = trials
        self.run = run
        self.deadline = monotonic() + seconds
        self.overhead = 0.0
        self.results: list[_Result] = []

    def measure(self) -> None:
        """Train one epoch of the configuration: its time decides how long a trial is, its settings what is searched.

        Raises:
            InputError: if there is nothing to search or to compare, or no time for a trial.
        """
        rank_zero_info("Measuring one epoch of the configuration")
        report = TrialReport()
        command = self._fit(report, self.words, None)
        if report.epochs == 0:
            raise InputError(f"the first epoch did not end within {_duration(self.seconds)}; give more --minutes")
        if not report.measured:
            raise InputError(
                f"the first epoch has no {report.monitor}, by which trials are compared; tune needs validation data "
                "and a validation after each epoch"
            )

        self.base = _Base.of(command, report.training)
        self.settings = self.base.settings(self.typed)
        if not self.settings:
            raise InputError("every setting that tune searches was typed; leave one out, such as --model.lr")
        if not self._has_time():
            raise InputError(
                f"after one epoch, which takes {_duration(report.training)}, no time is left for a trial; give "
                "more --minutes"
            )

        epochs = self.epochs(self.settings)
        all_epochs = "" if math.isinf(self.base.max_epochs) else f" of {self.base.max_epochs}"
        print(f"\nOne epoch takes {_duration(report.training)}; a trial has {epochs}{all_epochs} epochs")

    def epochs(self, params: dict[str, Any]) -> int:
        """Return the number of epochs of a trial; a larger input takes more time for each."""
        area = (params["size"] / self.base.data_args["size"]) ** 2 if "size" in params else 1.0
        seconds = self.seconds / _TRIALS - self.overhead
        epochs = max(_FEWEST_EPOCHS, int(seconds / (self.base.epoch_seconds * area)))
        return int(min(epochs, self.base.max_epochs))

    def search(self) -> None:
        """Run trials until the time is over, then print the table and write the best settings.

        After Ctrl-C, this is done with the trials so far.

        Raises:
            InputError: if no trial could be measured.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            direction="maximize" if self.base.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=self.base.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=self.epochs(self.settings) // 3),
        )
        self.study.enqueue_trial(self.settings)  # the first trial is the configuration itself
        try:
            while len(self.results) < self.trials and self._has_time():
                self._trial()
        except (KeyboardInterrupt, SystemExit) as stop:
            stop.__notes__ = ["The search ends with the trials so far." if self._best() else "No trial was complete."]
            if self._best():
                self._finish()
            raise
        self._finish()

    def _trial(self) -> None:
        """Run one trial, and tell Optuna its result."""
        from optuna.trial import TrialState

        number = len(self.results) + 1
        trial = self.study.ask(_distributions(self.settings))
        params = dict(trial.params)
        if "lr" in params and number > 1:
            params["lr"] = float(f"{params['lr']:.3g}")
        print(f"\nTrial {number}: {', '.join(f'{_NAMES[name]} {_text(value)}' for name, value in params.items())}")

        file = self.base.folder / f"trial_{number}.yaml"
        self._write(file, params, f"Trial {number} of lightning tune.")
        epochs = self.epochs(params)
        words = [*_with_config(self.words, file), "--trainer.max_epochs", str(epochs), *self._shorter_warmup(epochs)]

        report = TrialReport(trial)
        started = monotonic()
        outcome = ""
        try:
            self._fit(report, [*words, "--trainer.enable_model_summary", "false"], self.base.folder / file.stem)
        except (InputError, jsonargparse.ArgumentError, torch.OutOfMemoryError) as error:
            outcome = "failed"
            print(f"Trial {number} failed: {_reason(error)}")

        if report.is_pruned:
            outcome = "pruned"
        elif not outcome and not report.measured:
            outcome = "not measured"
        elif not outcome and report.epochs < epochs and self.deadline - monotonic() < self.overhead + 1:
            outcome = "out of time"

        choose = max if self.base.mode == "max" else min
        best = choose(report.measured, key=lambda metrics: metrics[self.base.monitor], default={})
        if outcome == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif outcome in ("failed", "not measured"):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, best[self.base.monitor])
        self.results.append(_Result(number, params, best, report.epochs, monotonic() - started, outcome))

    def _fit(self, report: TrialReport, words: list[str], folder: Path | None) -> LarKitCLI:
        """Run ``fit`` without checkpoints, for no longer than the time that is left."""
        left = self.deadline - monotonic() - self.overhead
        limits = ["--trainer.max_time", _clock(left), "--trainer.enable_checkpointing", "false"]
        started = monotonic()
        try:
            command: LarKitCLI = self.run(["fit", *words, *limits], _trial_command(report, folder))
        except SeveralFolds as request:
            raise InputError(
                f"tune compares trials on one of the {request.count} folds; say which: --data.fold 0 to "
                f"{request.count - 1}"
            ) from request
        finally:
            gc.collect()  # trainer and model refer to each other, and would keep the memory of earlier trials

        # A run that the time ends is validated once more.
        beside_training = monotonic() - started - report.training
        self.overhead = max(self.overhead, beside_training + report.validation)
        return command

    def _shorter_warmup(self, epochs: int) -> list[str]:
        """Return words that shorten the warm-up as the trial is shorter than the configuration's training."""
        warmup = self.base.model_args.get("warmup_epochs")
        if not warmup or epochs >= self.base.max_epochs or math.isinf(self.base.max_epochs):
            return []
        return ["--model.warmup_epochs", f"{warmup * epochs / self.base.max_epochs:.4g}"]

    def _has_time(self) -> bool:
        """Return whether an epoch and its validation would end before the deadline."""
        return self.deadline - monotonic() > self.overhead + self.base.epoch_seconds

    # The result

    def _best(self) -> _Result | None:
        """Return the best of the trials that neither failed nor were pruned."""
        complete = [result for result in self.results if result.outcome in ("", "out of time")]
        return self._in_order(complete)[0] if complete else None

    def _in_order(self, results: list[_Result]) -> list[_Result]:
        """Return trials from the best to the worst; those without a metric come last."""
        sign = -1 if self.base.mode == "max" else 1
        return sorted(results, key=lambda result: sign * result.metrics.get(self.base.monitor, sign * math.inf))

    def _finish(self) -> None:
        """Print the table, write ``tuned.yaml``, and print the commands to type next.

        Raises:
            InputError: if no trial could be measured.
        """
        best = self._best()
        print()
        self._print_table()
        if best is None:
            raise InputError("no trial could be measured to its end, so there is nothing to go on with")

        value = f"{self.base.monitor} {best.metrics[self.base.monitor]:.4g}"
        file = self.base.folder / "tuned.yaml"
        self._write(file, best.params, f"Trial {best.number} of lightning tune: {value} after {best.epochs} epochs.")

        print(f"\nBest: trial {best.number}, {value}")
        print(f"Wrote {from_here(file)}")
        print(f"Next:\n  {shlex.join(['lightning', 'fit', *_with_config(self.words, file)])}")
        if "--trainer.default_root_dir" not in self.typed:
            print("  lightning test --ckpt_path best")

    def _print_table(self) -> None:
        """Print a row for each trial, the best first."""
        metrics = list(dict.fromkeys([self.base.monitor, self.base.score]))
        metrics = [name for name in metrics if any(name in result.metrics for result in self.results)]
        rows = []
        for result in self._in_order(self.results):
            settings = [_text(value) for value in result.params.values()]
            measured = [f"{result.metrics[name]:.4g}" if name in result.metrics else "" for name in metrics]
            time = _duration(result.seconds)
            rows.append([str(result.number), *settings, str(result.epochs), *measured, time, result.outcome])
        print_table(["trial", *(_NAMES[name] for name in self.settings), "epochs", *metrics, "time", ""], rows)

    def _write(self, file: Path, params: dict[str, Any], comment: str) -> None:
        """Write settings as a configuration that can be given as a further ``-c``."""
        content = yaml.safe_dump(self.base.config(params, self.typed), sort_keys=False)
        with atomic_write(file) as unfinished:
            unfinished.write_text(f"# {comment}\n{content}", encoding="utf-8")


# Texts


def _text(value: float) -> str:
    """Return a setting as it is printed."""
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    """Return a time for people, such as '0.4 s', '41 s' or '2 min 5 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _clock(seconds: float) -> str:
    """Return a time of at least one second as the trainer's ``max_time`` takes it, DD:HH:MM:SS."""
    minutes, rest = divmod(max(1, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02}:{hours:02}:{minutes:02}:{rest:02}"


def _reason(error: BaseException) -> str:
    """Return the message of the error in the user's input that caused an error, or of the error itself, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    return " ".join(str(cause or error).split())
