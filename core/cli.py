"""The ``lightning`` command: fit, validate, test, predict and export from YAML files, and the papers' analyses.

Installed as ``lightning`` and ``larkit``; ``python -m core.cli`` is the same.
"""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from core.errors import InputError, MissingError
from core.stopping import how_stopped, let_go, machine_message, notes, say, terminable

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

__all__ = ["main"]

HELP = """\
usage: lightning VERB -c FILE [-c FILE ...] [--key value ...]
       lightning ANALYSIS MODEL [MODEL ...] [--key value ...]

Train and use large-kernel ConvNets. A second -c changes single values of the first; --key value changes both.

  fit       train, validate after each epoch, keep the best and the last checkpoint
            lightning fit -c vision/configs/cls.yaml
            lightning fit -c vision/configs/cls.yaml --ckpt_path last --trainer.max_epochs 20     (go on with a run)
  validate  measure a checkpoint on the validation split
            lightning validate -c vision/configs/cls.yaml --ckpt_path best
  test      measure a checkpoint on the test split
            lightning test -c vision/configs/cls.yaml --ckpt_path best
  predict   write a CSV with the class of every file, or with what comes next in a series
            lightning predict -c vision/configs/cls.yaml --ckpt_path best --data.predict_path photos/
  export    write ONNX or torch.export in inference form, and compare its outputs with the model's
            lightning export -c vision/configs/cls.yaml --ckpt_path best --format onnx
  stats     measure mean and standard deviation of the training data, for data that need it before fit
            lightning stats -c audio/configs/cls.yaml
            (of a series: its dominant period)

Analyses take names of timm or LarKit models, NAME=FILE for weights of your own, or checkpoints that fit wrote; they
print a table and write a picture and a JSON file.

  erf         effective receptive field on your images
              lightning erf resnet50 unireplknet_t --images photos/
  shape-bias  shape against texture on cue-conflict images
              lightning shape-bias resnet50 unireplknet_t --images cue-conflict/
  cost        parameters, multiplications, memory and speed in training and inference form
              lightning cost resnet50 unireplknet_t replknet_31b --size 224

  lightning push CHECKPOINT OWNER/NAME                    share what fit wrote on the Hugging Face Hub
  lightning push CHECKPOINT --folder FOLDER               write the same files into a folder

--ckpt_path takes a file, or 'best' or 'last' for the newest run of the task in lightning_logs/.

  lightning VERB --help                                   options of a verb
  lightning fit --model.help vision.ImageClassifier       options of a class
  lightning fit -c FILE --print_config                    the whole configuration
  lightning --version
"""

VERBS = ("fit", "validate", "test", "predict", "export", "stats")
ANALYSES = ("erf", "shape-bias", "cost")


def main(args: "ArgsType" = None) -> None:
    """Run one verb.

    Args:
        args: the command line after the program's name; by default that of the process.

    Raises:
        SystemExit: with one line on the error stream, if what the user gave cannot be used or the machine fails; with
            status 130 after Ctrl-C and 143 after SIGTERM.
    """
    words = sys.argv[1:] if args is None else list(args) if isinstance(args, tuple) else args
    if isinstance(words, list):
        if not words or words[0] in ("-h", "--help"):
            print(HELP, end="")
            return
        if words[0] == "--version":
            print(f"larkit {version('larkit')}")
            return
    from core.torch_files import restricted_pickles  # torch takes a second, which --help need not wait for

    try:
        with terminable(), restricted_pickles():
            _run(words)
    except BaseException as error:
        _end(error)


def _end(error: BaseException) -> None:
    """Leave with what the user should know; what is a defect of this program keeps its traceback."""
    if os.environ.get("LARKIT_TRACEBACK"):
        raise error
    stopped = how_stopped(error) if isinstance(error, KeyboardInterrupt | SystemExit) else None
    if stopped is not None:
        let_go(error)
        say(f"\nlightning: stopped by {stopped[1]}. {notes(error)}".rstrip())
        raise SystemExit(stopped[0]) from None
    message = (_message(error) or machine_message(error)) if isinstance(error, Exception) else None
    if message is None:
        raise error
    let_go(error)
    raise SystemExit(f"lightning: error: {message}{'. ' * bool(notes(error))}{notes(error)}") from None


def _run(words: Any) -> None:
    _quieten()
    verb = words[0] if isinstance(words, list) else None  # Lightning also takes a dictionary, which says it within
    if verb in ANALYSES:
        from core.analysis.verbs import run_analysis

        run_analysis(words)
    elif verb == "push":
        from core.training.push import run_push

        run_push(words)
    else:
        _train(words)


def _train(words: Any) -> None:
    """Run one of the verbs that Lightning's command line parses."""
    from jsonargparse import ArgumentError, set_parsing_settings

    from core.training.cli import LarKitCLI  # lightning takes seconds, which --help need not wait for

    if "import_path_denylist" in inspect.signature(set_parsing_settings).parameters:  # jsonargparse 4.53
        set_parsing_settings(import_path_denylist=[])  # what runs commands may not be named as a class

    for modality in entry_points(group="larkit.modalities"):
        modality.load()  # a class imported here can be named without its module in a YAML file
    if not isinstance(words, list):
        LarKitCLI.run_verb(words)
        return
    _check_verb(words[0])
    _check_files(words)
    try:
        with _as_command_line(words):
            LarKitCLI.run_verb(None)
    except ArgumentError as error:
        raise InputError(_shortened(str(error))) from error


@contextmanager
def _as_command_line(words: list[str]) -> Iterator[None]:
    """Put the words into ``sys.argv``: Lightning starts further processes by this command line."""
    command, sys.argv = sys.argv, [sys.argv[0] if words == sys.argv[1:] else __file__, *words]
    try:
        yield
    finally:
        sys.argv = command


def _check_verb(verb: str) -> None:
    if verb not in VERBS:
        known = ", ".join((*VERBS, "push", *ANALYSES))
        raise InputError(f"unknown verb {verb!r}; expected one of {known}. Type: lightning --help")


def _check_files(words: list[str]) -> None:
    for flag, file in pairwise(words):
        if flag in ("-c", "--config") and not Path(file).is_file():
            near = ", ".join(sorted(str(path) for path in Path().glob("*/configs/**/*.yaml")))
            raise MissingError(f"there is no configuration {file}; here are {near or 'none: see the README'}")
        if flag in ("-c", "--config"):
            try:
                yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise InputError(f"{file} is not YAML: {error}") from error


def _message(error: BaseException | None) -> str | None:
    """What to tell the user, or None for an error that is not the user's.

    The parser wraps what a constructor raises, and a data-loading process puts its traceback before the message.
    """
    while error is not None and not isinstance(error, InputError):
        if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a setting it cannot use
            return str(error)
        error = error.__cause__
    text, name = str(error), f"{type(error).__name__}: "
    return None if error is None else text.rsplit(name, 1)[-1].strip() if "Traceback" in text else text


def _shortened(text: str) -> str:
    """The parser's message without the types that the value does not have either."""
    head, _, reasons = text.partition("Errors:")
    kept = [line.strip() for line in reasons.splitlines() if line.strip() and "NoneType" not in line]
    kept = [line for line in kept if not line.startswith("Given value")]
    return " ".join([head.splitlines()[0], *kept]) if kept else text


def _quieten() -> None:
    """Leave out warnings that are expected here and that the user cannot act on."""
    # theirs: Lightning advises more workers than a small data set needs
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # expected: evaluation needs none of the callbacks that training had
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
    # theirs: torch.export reads its own file into a buffer that is not writable
    warnings.filterwarnings("ignore", message=".*buffer is not writable.*")
    # expected: depthwise weights (C, 1, K, K) have two equal ways to write their strides
    warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
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
