"""The ``lightning`` command: train, evaluate, predict and export from YAML files, and the papers' analyses.

Installed as ``lightning`` and ``larkit``; ``python -m core.cli`` is the same.
"""

import ctypes
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError
from core.stopping import machine_message, notes, refused_by_trainer, say, stop_signal, terminable

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

__all__ = ["keep_freed_memory", "main"]

HELP = """\
usage: lightning VERB -c FILE [-c FILE ...] [--key value ...]
       lightning VERB --ckpt_path RUN_OR_FILE [--key value ...]
       lightning ANALYSIS MODEL [MODEL ...] [--key value ...]

Train and use large-kernel ConvNets on images, sound, point clouds, videos and time series.

  configs   list the configurations that are installed; -c finds them by name from any folder
            lightning configs
  fit       train, validate after each epoch, keep the best and the last checkpoint
            lightning fit -c vision/configs/cls.yaml
            lightning fit -c vision/configs/folder.yaml --data.root photos/                (your own images)
            lightning fit -c vision/configs/det.yaml --data.coco boxes.json --data.images photos/
            lightning fit -c vision/configs/cls.yaml --ckpt_path last --trainer.max_epochs 20        (resume)
  tune      search learning rate, layer scale, augmentation and input size within a given time, before fit
            lightning tune -c vision/configs/folder.yaml --data.root photos/ --minutes 20
  validate  measure a checkpoint on the validation split
            lightning validate --ckpt_path best
  test      measure a checkpoint on the test split
            lightning test --ckpt_path best
  predict   write predictions.csv: the classes of every file, or the next values of a series
            lightning predict --ckpt_path best --data.predict_path photos/
  export    write an ONNX or torch.export file in inference form, and compare its outputs with the model's
            lightning export --ckpt_path best --format onnx
  stats     measure statistics of the training data: mean and standard deviation, or the period of a series
            lightning stats -c audio/configs/folder.yaml --data.root sounds/
  backtest  forecast the test part of a series from many origins; the errors by origin and step, beside simple forecasts
            lightning backtest --ckpt_path best --stride 24

A second -c changes single values of the first; --key value changes both. --ckpt_path takes a checkpoint, the folder of
a run, or 'best' or 'last' of the newest run in lightning_logs/. Without -c, the configuration of that run is used.

Analyses compare models and write a table, a picture and a JSON file. A model is a timm or LarKit name, NAME=FILE for
your own weights, or a checkpoint of fit.

  erf         effective receptive field, measured on your images
              lightning erf resnet50 unireplknet_t --images photos/
  shape-bias  share of decisions by shape rather than texture, on cue-conflict images
              lightning shape-bias resnet50 unireplknet_t --images cue-conflict/
  cost        parameters, multiplications, memory and speed, in training and inference form
              lightning cost resnet50 unireplknet_t replknet_31b --size 224

  lightning push CHECKPOINT OWNER/NAME                    share a checkpoint on the Hugging Face Hub
  lightning push CHECKPOINT --folder FOLDER               write the same files to a folder

  lightning VERB --help                                   options of a verb
  lightning fit --model.help ImageClassifier              options of a task; --data.help for a data module
  lightning fit -c FILE --print_config                    the complete configuration
  lightning --version
"""

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
"""Numbers of glibc's settings, from malloc.h."""

PACKAGES = ("core", "vision", "audio", "pointcloud", "timeseries", "video", "multimodal")
"""Top-level packages of LarKit, beside each other."""

VERBS = ("fit", "validate", "test", "predict", "export", "stats", "backtest")
ANALYSES = ("erf", "shape-bias", "cost")


def main(args: "ArgsType" = None) -> None:
    """Run one verb.

    Args:
        args: words of the command line after the name of the program; by default those of the process.

    Raises:
        SystemExit: with a one-line message if the input cannot be used or the machine fails; with status 130 after
            Ctrl-C, and 143 after SIGTERM.
    """
    words = sys.argv[1:] if args is None else args
    if isinstance(words, tuple):
        words = list(words)

    if isinstance(words, list):
        if not words or words[0] in ("-h", "--help"):
            print(HELP, end="")
            return
        if words[0] == "--version":
            print(f"larkit {version('larkit')}")
            return

    from core.io.untrusted import restricted_pickles  # torch takes a second to import; --help need not wait for it

    keep_freed_memory()
    try:
        with terminable(), restricted_pickles():
            _run(words)
    except BaseException as error:
        _end(error)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next training step; other C libraries are left as they are.

    By default glibc returns the maps of a step to the system, and the next step waits for the same pages again. Keeping
    them gave 17.1 instead of 16.0 images per second in training UniRepLKNet-A (224 x 224, batches of 16, two cores).
    The process keeps the memory of its largest step. ``LARKIT_MALLOC=system`` leaves glibc's settings as they are.
    """
    if sys.platform != "linux" or os.environ.get("LARKIT_MALLOC") == "system":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return

    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    mallopt(_M_MMAP_MAX, 0)


def _end(error: BaseException) -> None:
    """Exit with a message for the user; an error of the program itself keeps its traceback."""
    if os.environ.get("LARKIT_TRACEBACK"):
        raise error

    stopped = stop_signal(error) if isinstance(error, KeyboardInterrupt | SystemExit) else None
    if stopped is not None:
        status, name = stopped
        say(f"\nlightning: stopped by {name}. {notes(error)}".rstrip())
        raise SystemExit(status) from None

    message = (_message(error) or machine_message(error)) if isinstance(error, Exception) else None
    if message is None:
        raise error
    hint = notes(error)
    raise SystemExit(f"lightning: error: {message}. {hint}" if hint else f"lightning: error: {message}") from None


def _run(words: Any) -> None:
    """Run the verb that the words name."""
    _filter_warnings()
    verb = words[0] if isinstance(words, list) else None  # Lightning also takes a dictionary, which holds the verb
    if verb == "configs":
        from core.config_files import list_configs

        print(list_configs())
    elif verb in ANALYSES:
        from core.analysis.verbs import run_analysis

        run_analysis(words)
    elif verb == "push":
        from core.training.hub import run_push

        run_push(words)
    else:
        _run_lightning(words)


def _run_lightning(words: Any) -> None:
    """Run one of the verbs that Lightning's command line parses."""
    from jsonargparse import ArgumentError, set_parsing_settings

    if isinstance(words, list):
        _check_verb(words[0])

    from core.training.folds import SeveralFolds, run_folds
    from core.training.lightning_cli import LarKitCLI  # Lightning takes seconds to import; --help need not wait for it

    if "import_path_denylist" in inspect.signature(set_parsing_settings).parameters:  # jsonargparse 4.53
        set_parsing_settings(import_path_denylist=[])  # refuse classes that run commands, such as subprocess.Popen

    for modality in entry_points(group="larkit.modalities"):
        modality.load()  # so that a YAML file can name its classes without their modules

    if not isinstance(words, list):
        LarKitCLI.run_verb(words)
        return

    def run(given: list[str], command: type[LarKitCLI] = LarKitCLI) -> Any:
        with _as_command_line(given):
            return command.run_verb(None)

    try:
        if words[0] == "tune":
            from core.training.tune import run_tune

            run_tune(words, run)
        else:
            run(words)
    except SeveralFolds as request:
        run_folds(words, request.count, run)
    except ArgumentError as error:
        raise InputError(_shortened(str(error))) from error


@contextmanager
def _as_command_line(words: list[str]) -> Iterator[None]:
    """Put the words into ``sys.argv``, from which Lightning takes the command line of further processes."""
    command = sys.argv
    program = command[0] if words == command[1:] else __file__
    sys.argv = [program, *words]
    try:
        yield
    finally:
        sys.argv = command


def _check_verb(verb: str) -> None:
    """Raise an error for a verb that does not exist."""
    if verb not in (*VERBS, "tune"):
        known = ", ".join((*VERBS, "tune", "configs", "push", *ANALYSES))
        raise InputError(f"unknown verb {verb!r}; expected one of {known}. Type: lightning --help")


def _message(error: BaseException | None) -> str | None:
    """Return the message for the user, or None if the input is not the reason for the error.

    The parser wraps errors that a constructor raises, and a data-loading process puts its traceback before the message.
    """
    while error is not None and not isinstance(error, InputError):
        if refused_by_trainer(error):
            return " ".join(str(error).split()).removesuffix(".")
        error = error.__cause__
    if error is None:
        return None

    text = str(error)
    return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip() if "Traceback" in text else text


def _shortened(text: str) -> str:
    """Return the parser's message without the lines on None, which an option may always be, and on the given value."""
    head, _, reasons = text.partition("Errors:")
    kept = [line.strip() for line in reasons.splitlines() if line.strip() and "NoneType" not in line]
    kept = [line for line in kept if not line.startswith("Given value")]
    return " ".join([head.splitlines()[0], *kept] if kept else text.split())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this package as one line for the user, and any other with its place in the code."""
    own = [Path(__file__).parents[1] / package for package in PACKAGES]
    if issubclass(category, UserWarning) and any(Path(filename).is_relative_to(folder) for folder in own):
        return f"lightning: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _filter_warnings() -> None:
    """Hide warnings that are expected here and that the user cannot act on, and shorten those of this package."""
    warnings.formatwarning = _format_warning
    # theirs: Lightning advises more workers than a small data set needs
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # expected: a data set of a few batches logs its learning rate once an epoch or less
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # expected: evaluation needs none of the callbacks that training had
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
    # theirs: torch.export reads its own file into a buffer that is not writable
    warnings.filterwarnings("ignore", message=".*buffer is not writable.*")
    # expected: depthwise weights (C, 1, K, K) have two equal ways to write their strides
    warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
    # expected: --model.freeze and --model.norm_eval keep modules in eval mode
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    # theirs: Lightning's own use of a torch API that torch has renamed
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # expected: the second logger of a run writes into the folder of the first
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    # theirs: invitations to install other packages of Lightning's maker
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).addFilter(lambda record: "\N{ELECTRIC LIGHT BULB} Tip" not in record.getMessage())
    # expected: two batches before training do not hold every class
    warnings.filterwarnings("ignore", message=".*No (positive|negative) samples.*")
    # expected: a compiler for CUDA without a GPU
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: "No CUDA runtime" not in record.getMessage()
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


if __name__ == "__main__":
    main()
