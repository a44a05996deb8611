"""Lightning's command line with run folders, data specifications, and checkpoints that contain all settings."""

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from core.config_files import find_config
from core.data.labeled import SampleDataModule
from core.data.module import DataModule
from core.errors import InputError
from core.export import Source
from core.io.checkpoint import AtomicCheckpointIO, TaskCheckpoint
from core.io.untrusted import check_yaml
from core.stopping import refused_by_trainer
from core.training.callbacks import (
    LearningCurves,
    ModelTable,
    ProgressLine,
    RunCheckpoint,
    RunRecord,
    RunReport,
    SigtermCallback,
    best_mode,
    run_summary,
)
from core.training.folds import SeveralFolds
from core.training.hub import modality_class
from core.training.predictions import PredictionWriter
from core.training.run_folder import find_checkpoint, new_run, only_writer, resume_hint, run_folder
from core.training.task import Task
from core.training.trainer import ExportingTrainer
from core.training.watch import LearningWatch

__all__ = ["LarKitCLI"]

_SHORT = ("--pred_len", "--seq_len")
"""Options of the data module that may be typed without ``data.``."""

_LEFT_OPEN = ("num_classes", "lr", "layer_decay")
"""Arguments of a task whose default, None, stands for a value that the task finds itself and stores."""

_WITHOUT_RUN = ("export", "stats", "backtest")
"""Verbs that make no run folder."""

_NEEDS_WEIGHTS = ("validate", "test", "predict", "export", "backtest")
"""Verbs that make no sense with random weights."""


class LarKitCLI(LightningCLI):
    """Lightning's command line for tasks and data modules, with run folders, checkpoints, export and stats."""

    _needs_model = True  # whether the verb whose options are being added needs a task
    _checkpoint: TaskCheckpoint | None = None  # given with --ckpt_path
    _made_folder: Path | None = None  # the run folder, if this command creates it
    _made_parents: Sequence[Path] = ()  # the folders above it that this command creates, the innermost first
    _last: RunCheckpoint | None = None  # the callback that saves the last checkpoint

    @classmethod
    def run_verb(cls, args: ArgsType) -> "LarKitCLI":
        """Parse ``args``, build task, data module and trainer, and run the verb."""
        no_exit = {"exit_on_error": False}  # errors are raised, and core.cli prints them
        return cls(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=ExportingTrainer,
            trainer_defaults={"callbacks": [LearningCurves(), RunReport()], "log_every_n_steps": 10},
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_kwargs={**no_exit, **dict.fromkeys(cls.subcommands(), no_exit)},
            args=args,
        )

    # The options

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, each with the parameters of its method that are no options of the command."""
        evaluation = {"model", "dataloaders", "datamodule", "ckpt_path", "weights_only", "verbose"}
        return {
            "fit": evaluation | {"train_dataloaders", "val_dataloaders"},
            "validate": evaluation,
            "test": evaluation,
            "predict": evaluation | {"return_predictions"},
            "export": {"model", "datamodule", "ckpt_path", "source"},
            "stats": {"model", "datamodule"},
            "backtest": {"model", "datamodule", "ckpt_path"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose configuration files merge ``backbone_args`` by key."""
        parser = self.parser_class(**kwargs)
        text = "YAML file; a later one changes single values"
        parser.add_argument("-c", "--config", action=_LayeredConfig, help=text)
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser of a verb: its own options first, then data and model, and the trainer's many last."""
        parser = self.init_parser(usage=f"lightning {subcommand} -c FILE [-c FILE ...] [--key value ...]", **kwargs)
        skip: set[str | int] = set(self.subcommands()[subcommand])
        options = parser.add_method_arguments(klass, subcommand, skip=skip, as_group=False)

        if subcommand != "stats":
            use = "the run is resumed" if subcommand == "fit" else "without -c, the configuration of its run is used"
            text = f"checkpoint, folder of a run, or 'best' or 'last' of the newest run; {use}"
            parser.add_argument("--ckpt_path", type=str | None, default=None, help=text)
            options.append("ckpt_path")
        if subcommand == "export":
            text = "input of the file: 'raw' samples or the 'map'; by default raw, if the exporter can follow that way"
            parser.add_argument("--from", type=Source | None, default=None, help=text)

        if subcommand == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predict")

        self._subcommand_method_arguments[subcommand] = options
        self._needs_model = subcommand != "stats"
        self._add_arguments(parser)
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the option for the seed."""
        text = "seed of all random numbers; true draws one, false sets none"
        parser.add_argument("--seed_everything", type=bool | int, default=self.seed_everything_default, help=text)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of data, model, checkpoints and trainer; the task gets the specification of the data."""
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True, required=self._needs_model)
        parser.link_arguments("data", "model.init_args.spec", compute_fn=self.spec_of, apply_on="instantiate")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(self.trainer_class, "trainer")

        defaults = {name: value for name, value in self.trainer_defaults.items() if name != "callbacks"}
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})

    def spec_of(self, data: LightningDataModule) -> dict[str, Any] | None:
        """Return the specification for the task: that of its checkpoint, or else that of the data module."""
        if self._checkpoint is not None and self._checkpoint.spec:
            return self._checkpoint.spec
        if not isinstance(data, DataModule):
            return None

        # Files can be predicted without the data set of the training.
        predicts = self.config.subcommand == "predict"
        if predicts and isinstance(data, SampleDataModule) and data.predict_path is not None:
            return data.settings().to_dict()
        return data.spec().to_dict()

    # The words of the command line

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words of the command line, or a dictionary or namespace of settings."""
        if isinstance(args, Mapping | Namespace):
            self.config = parser.parse_object(args)
        else:
            words = _with_full_names(sys.argv[1:] if args is None else args)
            words = _with_configuration(words)
            self.config = parser.parse_args(words)
            self._leave_out_args_of_another_backbone(words)
        self._check_numbers()
        self._check_frozen()
        self._ask_for_folds()

    def _ask_for_folds(self) -> None:
        """Leave this command for one on each fold, if ``data.folds`` is set and none of the folds is chosen."""
        args = (self.settings.get("data") or Namespace()).get("init_args") or Namespace()
        folds = args.get("folds") or 0
        if self.config.subcommand != "fit" or folds < 2 or args.get("fold") is not None:
            return
        if self.settings.get("ckpt_path"):
            raise InputError(f"--ckpt_path resumes one run; say of which fold: --data.fold 0 to {folds - 1}")
        raise SeveralFolds(folds)

    def _leave_out_args_of_another_backbone(self, words: list[str]) -> None:
        """Leave out the ``backbone_args`` of configuration files if an option names a model of another family."""
        chosen = _value(words, "--model.backbone")
        files = _values(words, "--config") + _values(words, "-c")
        named = [backbone for file in files if (backbone := _backbone_in(file)) is not None]
        if chosen is None or not named or _family(chosen) == _family(named[-1]):
            return

        args = self.settings.model.init_args
        typed = {word.partition("=")[0] for word in words if word.startswith("--model.backbone_args")}
        given = dict(args.get("backbone_args") or {})
        left_out = sorted(name for name in given if f"--model.backbone_args.{name}" not in typed)
        if left_out and "--model.backbone_args" not in typed:
            args.backbone_args = {name: value for name, value in given.items() if name not in left_out} or None
            rank_zero_info(f"backbone_args {', '.join(left_out)} belong to {named[-1]} and are left out for {chosen}")

    def _check_frozen(self) -> None:
        """Refuse to train a head on the features of random weights."""
        model = self.settings.get("model") or Namespace()
        frozen = model.get("init_args", Namespace()).get("freeze")
        if (
            frozen
            and self.config.subcommand == "fit"
            and not self.settings.get("ckpt_path")
            and not self._loads_weights()
        ):
            raise InputError(
                f"--model.freeze {frozen} keeps random weights as they are; add --model.pretrained true, or "
                "--model.weights FILE"
            )

    def _check_numbers(self) -> None:
        """Refuse numbers that Lightning accepts but cannot run with."""
        seed = self.settings.get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything={seed}; expected a number from 0 to {2**32 - 1}, true or false")

        trainer = self.settings.get("trainer") or Namespace()
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            value = trainer.get(name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"--trainer.{name} {value}; expected 1 or more")
        if trainer.get("val_check_interval") == 0:
            raise InputError(
                "--trainer.val_check_interval 0; expected a share of an epoch above 0, or a number of batches. To "
                "leave validation out, type --trainer.limit_val_batches 0"
            )

    @property
    def settings(self) -> Namespace:
        """The settings of the verb."""
        settings: Namespace = self.config[self.config.subcommand]
        return settings

    # The checkpoint

    def _parse_ckpt_path(self) -> None:
        """Find and read the checkpoint, and take the model settings from it.

        Raises:
            InputError: if weights are needed and none are given, if the checkpoint does not fit the configuration, or
                if a run would be resumed with other model settings.
        """
        verb = self.config.subcommand
        if verb == "stats":
            return
        if not self.settings.get("ckpt_path"):
            if verb in _NEEDS_WEIGHTS and not self._loads_weights():
                command = shlex.join(["lightning", *sys.argv[1:]])
                raise InputError(f"{verb} would use random weights. Type: {command} --ckpt_path best")
            return

        path = find_checkpoint(self.settings.ckpt_path, self._runs(), resume=verb == "fit")
        self.settings.ckpt_path = str(path)
        checkpoint = TaskCheckpoint.read(path)
        self._check_class(checkpoint)
        self._check_average(checkpoint)

        differing = self._differing(checkpoint.hyperparameters)
        if differing and verb == "fit":
            raise InputError(
                f"--ckpt_path resumes a run as it was, but {'; '.join(differing)}. Leave that out, or start a new run "
                f"from its weights: --model.weights {path}"
            )
        if differing:
            rank_zero_info(f"The checkpoint decides about the model: {'; '.join(differing)}")

        self._checkpoint = checkpoint
        self._use_hyperparameters(checkpoint.hyperparameters)

    def _loads_weights(self) -> bool:
        """Return whether the task itself loads weights when it is built."""
        args = self.settings.model.get("init_args", Namespace())
        return bool(args.get("weights") or args.get("pretrained"))

    def _check_class(self, checkpoint: TaskCheckpoint) -> None:
        """Check that checkpoint and configuration name the same class: a file must not choose what code runs."""
        given = self.settings.model.class_path
        stored = checkpoint.class_path or given
        modality, _, _ = given.partition(".")
        if not stored.startswith(f"{modality}.") or stored.rpartition(".")[2] != given.rpartition(".")[2]:
            raise InputError(
                f"{checkpoint.path} holds {stored}, but the configuration names {given}; give the configuration "
                "with which it was trained, or none"
            )

        args = self.settings.model.get("init_args", {})
        for name in _imported(given).runs_files:
            value = checkpoint.hyperparameters.get(name)
            if value is not None and value != args.get(name):
                raise InputError(
                    f"{checkpoint.path} names the Python file {value!r}, which would be run, and the configuration "
                    f"{args.get(name)!r}; look into it, and if you trust it add --model.{name} {value}"
                )

    def _check_average(self, checkpoint: TaskCheckpoint) -> None:
        """Check that a run with averaged weights is resumed with the callback that averages them."""
        callbacks = self.settings.trainer.get("callbacks") or []
        has_average = any("EMA" in str(callback.get("class_path")) for callback in callbacks)
        if self.config.subcommand == "fit" and checkpoint.averaged and not has_average:
            raise InputError("the run was trained with an average of its weights; add --trainer.callbacks+ EMA")

    def _differing(self, stored: Mapping[str, Any]) -> list[str]:
        """Return descriptions of the model settings of this command that differ from those of the checkpoint."""
        given = self.settings.model.as_dict().get("init_args", {})
        given, stored = dict(given), dict(stored)
        for name in _imported(self.settings.model.class_path).holds:  # compare the members one by one
            for settings in (given, stored):
                settings |= {f"{name}.{key}": value for key, value in (settings.pop(name, None) or {}).items()}
            stored |= {key: None for key in given if key.startswith(f"{name}.") and key not in stored}
            given |= {key: None for key in stored if key.startswith(f"{name}.") and key not in given}

        differing = []
        for name, value in given.items():
            decided_elsewhere = name in ("pretrained", "weights", "spec")
            left_open = name in _LEFT_OPEN and value is None
            if name in stored and stored[name] != value and not decided_elsewhere and not left_open:
                differing.append(f"{name} is {value!r} here and {stored[name]!r} in the checkpoint")
        return differing

    def _use_hyperparameters(self, stored: Mapping[str, Any]) -> None:
        """Replace the model settings of the command by those of a checkpoint, whose weights are loaded later."""
        args = {name: value for name, value in stored.items() if name != "spec"}
        model = {"class_path": self.settings.model.class_path, "dict_kwargs": args}
        self.config = self.parser.parse_object({self.config.subcommand: {"model": model}}, self.config)
        self.settings.model.init_args.weights = None
        self.settings.model.init_args.pretrained = False

    def _runs(self) -> Path:
        """Return the folder of all runs of this task."""
        root = self.settings.trainer.get("default_root_dir") or Path.cwd()
        return Path(root) / "lightning_logs" / self.settings.model.class_path.rpartition(".")[2]

    # The trainer

    def before_instantiate_classes(self) -> None:
        """Pass arguments of the task to the data module, and let the task choose the metric of the best checkpoint."""
        data = self.settings.data
        model = self.settings.get("model") or Namespace()
        for name in getattr(_imported(data.class_path), "from_task", ()):
            if data.init_args.get(name) is None:
                data.init_args[name] = model.get(f"init_args.{name}")

        if self.config.subcommand == "stats":
            self.settings.model = None  # data are measured without one
        elif self.settings.checkpoint.monitor is None:
            sections = (self.settings.data, self.settings.model)
            args = {name: value for section in sections for name, value in section.get("init_args", {}).items()}
            monitor, mode = _imported(self.settings.model.class_path).chosen_by(args)
            self.settings.checkpoint.monitor = monitor
            self.settings.checkpoint.mode = mode
        elif self.settings.checkpoint.mode == "auto":
            self.settings.checkpoint.mode = best_mode(self.settings.checkpoint.monitor)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, and give the run its own folder with a CSV and a TensorBoard log."""
        from core.training.loggers import run_loggers  # TensorBoard takes a second to import

        has_other_logger = self.settings.trainer.get("logger") not in (None, True)
        if has_other_logger or self.settings.trainer.get("barebones") or self.subcommand in _WITHOUT_RUN:
            return super().instantiate_trainer(**kwargs)

        runs = self._runs()
        self._made_parents = [path for path in (runs, *runs.parents) if not _exists(path)]

        resumed = self._checkpoint if self.subcommand == "fit" else None
        version = new_run(runs, None if resumed is None else resumed.path)
        kwargs["logger"] = run_loggers(runs, version)

        folder = runs / version
        is_new = not folder.exists() or not any(folder.iterdir())
        self._made_folder = folder if is_new else None
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except BaseException:
            self._remove_made_folder()
            raise
        if run_folder(trainer) is None:  # a fast_dev_run writes nothing
            self._remove_made_folder()
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the trainer with the callbacks of this command, and with atomic writes of checkpoints."""
        measures_speed = bool(config.get("barebones"))
        if measures_speed:
            config = config | {"log_every_n_steps": 0}  # Lightning would refuse this command's default
            callbacks = [c for c in callbacks if not isinstance(c, LearningCurves | RunReport)]

        if self.subcommand != "fit" or measures_speed or config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        else:
            # ModelCheckpoint's own save_last would save only when there is a new best checkpoint.
            self._last = RunCheckpoint(filename="last")
            callbacks = [*callbacks, self._last]
        if self.subcommand == "fit" and not measures_speed:
            callbacks = [*callbacks, LearningWatch()]

        if not measures_speed and not config.get("fast_dev_run"):
            parser = self._parser(self.subcommand)
            callbacks = [*callbacks, RunRecord(parser.dump(self.settings, skip_none=False))]
        if not measures_speed:
            config, callbacks = _with_display(config, callbacks)
        callbacks = [*callbacks, SigtermCallback()]

        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except InputError:
            raise
        except (ValueError, TypeError) as error:  # Lightning refuses an option, or two that contradict each other
            reason = " ".join(str(error).split()).removesuffix(".")
            raise InputError(f"the trainer cannot be built: {reason}") from error

        # A plugin or strategy of the user may have a way of its own to write checkpoints.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    # The run

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Return the arguments of the trainer's method.

        ``--from`` is not a name in Python, so it is renamed.
        """
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "export":
            kwargs["source"] = self.settings["from"]
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are written, and a folder may have more than the memory holds
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb. If it ends early, say how to resume, or remove a run folder in which nothing was saved."""
        folder = run_folder(self.trainer) if subcommand == "fit" else None
        started = time.time()
        try:
            with only_writer(folder) if folder is not None and _is_first_process() else nullcontext():
                super()._run_subcommand(subcommand)
        except BaseException as error:
            last = self._last_file(folder)
            has_saved = self._has_saved(folder, last, started)
            is_refused = isinstance(error, InputError) or refused_by_trainer(error)
            if is_refused and not has_saved:
                self._remove_made_folder()
            if subcommand == "fit" and _is_first_process() and (has_saved or not is_refused):
                error.add_note(resume_hint(last, sys.argv[1:], started))
            raise

    def after_fit(self) -> None:
        """Print the result of the run and the commands to type next."""
        is_trial = getattr(self.trainer, "fast_dev_run", False) or self.trainer.barebones
        if self.trainer.is_global_zero and not is_trial:
            print(run_summary(self.trainer))

    def _last_file(self, folder: Path | None) -> Path | None:
        """Return the path of the last checkpoint, even if it is not written yet.

        It is not in the run folder if the user has chosen another logger.
        """
        folder_of_last = self._last.dirpath if self._last is not None else None
        if folder_of_last is not None:
            return Path(folder_of_last) / "last.ckpt"
        return folder / "checkpoints" / "last.ckpt" if folder is not None else None

    @staticmethod
    def _has_saved(folder: Path | None, last: Path | None, started: float) -> bool:
        """Return whether the run has saved a checkpoint.

        Args:
            folder: the run folder, if there is one.
            last: path of the last checkpoint.
            started: start of the run, in seconds since the epoch; an older file belongs to an earlier run.
        """
        if folder is not None and (folder / "checkpoints").exists():
            return True
        return last is not None and last.is_file() and last.stat().st_mtime >= started

    def _remove_made_folder(self) -> None:
        """Delete the run folder and the folders above it, if this command has created them."""
        if self._made_folder and _is_first_process():
            shutil.rmtree(self._made_folder, ignore_errors=True)
            with suppress(OSError):  # a folder is not empty, since another run has begun there
                for parent in self._made_parents:
                    parent.rmdir()


class _LayeredConfig(ActionConfigFile):
    """Option ``-c``, of which a later file changes single values of an earlier one.

    This holds inside ``backbone_args`` as well, unless the later file names another backbone.
    """

    @staticmethod
    def apply_config(parser: LightningArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Read a file and merge it into the settings before it."""
        before = _model_args(cfg)
        ActionConfigFile.apply_config(parser, cfg, dest, value)
        after = _model_args(cfg)

        earlier = before.get("backbone_args")
        later = after.get("backbone_args")
        is_same_backbone = before.get("backbone") == after.get("backbone")
        if is_same_backbone and isinstance(earlier, dict) and isinstance(later, dict):
            cfg["model.init_args.backbone_args"] = {**earlier, **later}


def _model_args(config: Namespace) -> dict[str, Any]:
    """Return the arguments of the task."""
    args = config.get("model.init_args")
    return dict(args.as_dict()) if isinstance(args, Namespace) else {}


def _with_display(config: dict[str, Any], callbacks: list[Callback]) -> tuple[dict[str, Any], list[Callback]]:
    """Add the model table and the progress line of this command, unless the user has chosen others or none.

    Returns:
        The settings of the trainer, and its callbacks.
    """
    own = config.get("callbacks") or []
    chosen = own if isinstance(own, list) else [own]

    if config.get("enable_model_summary") is not False and not any(isinstance(c, ModelSummary) for c in chosen):
        config = config | {"enable_model_summary": False}
        callbacks = [*callbacks, ModelTable()]
    if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in chosen):
        callbacks = [*callbacks, ProgressLine()]
    return config, callbacks


# The words of the command line


def _with_full_names(words: list[str]) -> list[str]:
    """Return the words with ``--data.pred_len`` for ``--pred_len``, and with the path of each configuration."""
    full: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in _SHORT:
            word = f"--data.{name[2:]}{equals}{value}"
        elif name == "--config" and equals:
            word = f"--config={_found(value)}"
        elif full and full[-1] in ("-c", "--config"):
            word = _found(word)
        else:
            _check_value(value if equals and name.startswith("--") else word)
        full.append(word)
    return full


def _found(given: str) -> str:
    """Return the path of a configuration, and print it if the installed one is used."""
    file, is_elsewhere = find_config(given)
    if is_elsewhere:
        rank_zero_info(f"Using the installed configuration {file}")
    return str(file)


def _check_value(text: str) -> None:
    """Refuse an option whose value is YAML without end, or the path of such a file, before the parser reads it."""
    file = Path(text)
    if file.suffix in (".yaml", ".yml") and file.is_file():
        check_yaml(file.read_text(encoding="utf-8", errors="replace"), file)
    elif "*" in text or text.count("[") + text.count("{") > 60:
        check_yaml(text, "an option")


def _with_configuration(words: list[str]) -> list[str]:
    """Return the words, with the configuration stored in the checkpoint if the user gives only a checkpoint.

    Raises:
        InputError: if there is neither a configuration nor a checkpoint that holds one.
    """
    given = {word.partition("=")[0] for word in words}
    if given & {"-c", "--config", "--model", "--data", "-h", "--help", "--model.help", "--data.help"}:
        return words

    verb = words[0]
    if "--ckpt_path" not in given:
        raise InputError(
            f"{verb} needs a configuration: -c FILE, or --model CLASS and --data CLASS. Type lightning configs for a "
            "list of those that are installed"
        )

    runs = Path(_value(words, "--trainer.default_root_dir") or Path.cwd()) / "lightning_logs"
    path = find_checkpoint(_value(words, "--ckpt_path") or "", runs, resume=verb == "fit")
    if verb == "fit":
        raise InputError(
            "fit needs the complete configuration of the run. Type: lightning fit "
            f"-c {path.parent.parent / 'config.yaml'} --ckpt_path {path}"
        )

    config = yaml.safe_dump(_trusted_configuration(TaskCheckpoint.read(path), given))
    rank_zero_info(f"Using the configuration in {path}")
    return [verb, "--config", config, *words[1:]]


def _family(backbone: str) -> str:
    """Return the first word of the name of a timm model: 'unireplknet' of 'unireplknet_a.in1k' or of a test model."""
    return backbone.rpartition("/")[2].removeprefix("test_").partition("_")[0].partition(".")[0]


def _backbone_in(config: str) -> str | None:
    """Return the name of the backbone in a configuration, given as a file or as YAML text."""
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8") if _exists(Path(config)) else config)
    model = content.get("model") if isinstance(content, dict) else None
    args = model.get("init_args") if isinstance(model, dict) else None
    backbone = args.get("backbone") if isinstance(args, dict) else None
    return backbone if isinstance(backbone, str) else None


def _values(words: list[str], option: str) -> list[str]:
    """Return all values of an option that is given several times."""
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]
    return found + [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def _value(words: list[str], option: str) -> str | None:
    """Return the last value of an option among the words, or None if it is not given."""
    found = None
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _trusted_configuration(checkpoint: TaskCheckpoint, given: set[str]) -> dict[str, Any]:
    """Return the part of a checkpoint's configuration that may come from anybody.

    A file must not choose what code runs. So only the task, the data module and the precision are taken. Both classes
    must be exported by an installed modality, no argument may name a class (but those of the members of a joint task,
    which must be exported as well), and Python files must be installed ones.

    Args:
        checkpoint: a checkpoint of any origin.
        given: names of the options in the command. With ``--model.config FILE`` the user chooses the Python file.

    Raises:
        InputError: if something is refused; the message names it and says how to give it explicitly.
    """
    config = checkpoint.config
    if config is None:
        raise InputError(f"{checkpoint.path} holds no configuration; give that of its training: -c FILE")

    trusted: dict[str, Any] = {}
    base: type
    for section, base in (("model", Task), ("data", DataModule)):
        content = config.get(section)
        class_path = content.get("class_path") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(class_path, str):
            raise InputError(
                f"the configuration in {checkpoint.path} names no class for {section}; give that of its training: "
                "-c FILE"
            )

        args = content.get("init_args") or {}
        _check_trusted(class_path, args, base, section, checkpoint.path, given)
        trusted[section] = {"class_path": class_path, "init_args": args}

    trainer = config.get("trainer")
    precision = trainer.get("precision") if isinstance(trainer, dict) else None
    if isinstance(precision, str | int):
        trusted["trainer"] = {"precision": precision}
    return trusted


def _check_trusted(
    class_path: str, args: dict[str, Any], base: type, section: str, path: Path, given: set[str]
) -> None:
    """Check that a class and its arguments, which are from a file, do not choose what code runs.

    Args:
        class_path: import path of the class, which an installed modality must export.
        args: its arguments; those in the class's ``holds`` may have further classes of modalities.
        base: class from which all of them must derive.
        section: 'model' or 'data'.
        path: path of the file.
        given: names of the options in the command.

    Raises:
        InputError: if they could; the message says how to give them explicitly.
    """
    kind: Any = modality_class(class_path, base)
    for name in kind.holds:
        held = args.get(name)
        for inner in held.values() if isinstance(held, dict) else ():
            settings = inner if isinstance(inner, dict) else {}
            inner_args = settings.get("init_args") or {}
            _check_trusted(str(settings.get("class_path")), inner_args, base, section, path, set())

    if _names_a_class({name: value for name, value in args.items() if name not in kind.holds}):
        raise InputError(
            f"the configuration in {path} names a class among the arguments of {class_path}, and a file must not "
            "choose what code runs; look into it, and if you trust it, save it and give it with -c FILE"
        )

    for name in kind.runs_files:
        value = args.get(name)
        if value is not None and f"--{section}.{name}" not in given and not kind.trusts_file(name, value):
            raise InputError(
                f"{path} names the Python file {value!r}, which would be run; look into it, and if you trust it add "
                f"--{section}.{name} {value}"
            )


def _names_a_class(value: Any) -> bool:
    """Return whether settings hold a ``class_path`` at any depth."""
    if isinstance(value, dict):
        return "class_path" in value or any(_names_a_class(inner) for inner in value.values())
    return isinstance(value, list) and any(_names_a_class(inner) for inner in value)


# Helpers


def _is_first_process() -> bool:
    """Return whether this is the first process of a run, even before the processes are connected."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _exists(path: Path) -> bool:
    """Return whether a path exists; an invalid path does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _imported(class_path: str) -> Any:
    """Import a class by its path."""
    module, name = class_path.rsplit(".", 1)
    return getattr(import_module(module), name)
