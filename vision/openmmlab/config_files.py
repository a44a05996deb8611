"""OpenMMLab config files: how they are read, what is built from them, and what Lightning does not use of them."""

import contextlib
import copy
import difflib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import nn

from core.errors import InputError, MissingError, listed
from core.io.untrusted import restricted_pickles

__all__ = [
    "ConfigOptions",
    "build_dataset",
    "build_model",
    "build_test_pipeline",
    "build_unread_dataset",
    "check_order",
    "config_path",
    "fit_to_data",
    "innermost",
    "is_harmless",
    "packaged_config",
    "quiet",
    "read_config",
    "unused_settings",
    "use_backbone",
]

ConfigOptions = dict[str, Any]
"""Values that replace those of a config, by dotted name, as in MMEngine's ``--cfg-options``:
``{'model.backbone.with_cp': True}``. The config decides what a value may be."""

_PACKAGED = Path(__file__).parent / "configs"

_HARMLESS_KEY = re.compile(
    r"model(\.(?!(type|init_cfg|pretrained)\b)[A-Za-z0-9_]+)+|(train|val|test)_dataloader\.dataset\.data_root"
)
"""Options that cannot make MMEngine import or call anything, as long as their values are numbers or text."""

_BUILD_ERRORS = (TypeError, KeyError, AssertionError, ValueError)
"""The errors of the registries about settings that do not fit."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what OpenMMLab and pycocotools print and log while they build; warnings about the config are shown."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*(``build_loss`` would be deprecated|Default ``avg_non_ignore``)")
            yield
    finally:
        logger.setLevel(level)


def packaged_config(config: str | Path) -> Path | None:
    """Return the path of the config of this name in ``vision/openmmlab/configs``, or None if there is none.

    A config file is Python code that is executed. When its name comes from a checkpoint, it must be one of these.
    """
    path = _PACKAGED / config
    inside = path.resolve().is_relative_to(_PACKAGED.resolve())
    return path if inside and path.is_file() else None


def config_path(config: str | Path) -> Path | None:
    """Return the file that ``config`` names, by path or among the configs of the package; None if there is none."""
    return Path(config) if Path(config).is_file() else packaged_config(config)


def is_harmless(name: str, value: Any) -> bool:
    """Return whether an argument that an untrusted checkpoint names executes no code from outside the package.

    MMEngine imports and calls whatever a 'type' names, and some of its readers open pickles. Harmless are only the
    configs of the package, and options that set numbers or text of the model, or the folder of a data set.

    Args:
        name: name of the argument, 'config' or 'options'.
        value: value of the argument.
    """
    if name == "config":
        return packaged_config(str(value)) is not None

    return isinstance(value, Mapping) and all(
        _HARMLESS_KEY.fullmatch(str(key)) and _is_plain(inner) for key, inner in value.items()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def read_config(config: str | Path, options: ConfigOptions | None = None) -> Config:
    """Read a config file and replace some of its values.

    Args:
        config: path of a ``.py`` config, or the name of one in ``vision/openmmlab/configs``.
        options: the values to replace, see :data:`ConfigOptions`.

    Raises:
        MissingError: if the file or a package that it needs is missing.
        InputError: if the file cannot be read, or is neither for MMDetection nor for MMSegmentation.
    """
    path = config_path(config)
    if path is None:
        known = [file.name for file in sorted(_PACKAGED.glob("*.py"))]
        near = difflib.get_close_matches(str(config), known, n=3, cutoff=0.3) or known[:3]
        raise MissingError(f"there is no config {config}; give a file, or one of ours such as {', '.join(near)}")

    try:
        read = Config.fromfile(path)
        read.merge_from_dict(options or {})
    except (OSError, SyntaxError, KeyError, TypeError, ImportError, NameError, AttributeError) as error:
        raise InputError(f"{path} cannot be read with options {options or {}}: {error}") from error

    scope = read.get("default_scope")
    if scope not in ("mmdet", "mmseg"):
        raise InputError(f"{path} has default_scope={scope!r}; expected 'mmdet' or 'mmseg'")

    try:
        with quiet():
            import_modules_from_strings([f"{scope}.models", f"{scope}.datasets"])
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{path} needs {error.name}; type in LarKit's folder: pip install -e '.[openmmlab]'"
        ) from error
    return read


def use_backbone(config: Config, name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Replace the backbone of a config by a model of LarKit or timm, and fit the layer after it to its channels.

    Args:
        config: what :func:`read_config` returns; it is changed.
        name: name of a model, such as 'unireplknet_t' or 'convnext_atto'.
        arguments: arguments of the model.

    Raises:
        InputError: if there is no such model, or it has no maps at the strides of the config.
    """
    from vision.openmmlab.backbones import backbone_settings

    stages = tuple(config.model.backbone.get("out_indices", (0, 1, 2, 3)))
    settings, channels = backbone_settings(name, stages, dict(arguments or {}))
    config.model.backbone = ConfigDict(settings)

    head = config.model.get("neck") or config.model.get("decode_head")
    if not isinstance(head, dict) or len(head.get("in_channels", ())) != len(channels):
        raise InputError(
            f"the layer after the backbone of {config.filename} does not take {len(channels)} maps; set the backbone "
            "in the config"
        )
    head["in_channels"] = channels
    auxiliary = config.model.get("auxiliary_head")
    if auxiliary:
        auxiliary.in_channels = channels[auxiliary.get("in_index", -1)]


def fit_to_data(config: Config, spec: Any) -> None:
    """Give the heads of a config the number of classes of the data, and its pipelines the size of the images.

    Args:
        config: what :func:`read_config` returns; it is changed.
        spec: description of the data, a :class:`vision.openmmlab.data.OpenMMLabSpec`. Unless the data are files of the
            user, the config stays as it is.
    """
    if not spec.own_files:
        return
    if spec.classes:
        weights = list(getattr(spec, "class_weights", ())) or None
        _set_classes(config.model, len(spec.classes), weights)
    if spec.size is None:
        return

    width, height = spec.size
    for split in ("train", "val", "test"):
        for part in innermost(config[f"{split}_dataloader"].dataset):
            for step in part.pipeline:
                if "scale" in step:
                    step["scale"] = (width, height)
                if "crop_size" in step:  # MMDetection gives the width first, MMSegmentation the height
                    is_detector = config.default_scope == "mmdet"
                    step["crop_size"] = (width, height) if is_detector else (height, width)


def _set_classes(settings: Any, count: int, weights: list[float] | None) -> None:
    """Set ``num_classes`` at any depth, and ``class_weight`` in LarKit's loss; weights of other classes are removed."""
    if isinstance(settings, list | tuple):
        for inner in settings:
            _set_classes(inner, count, weights)
    if not isinstance(settings, dict):
        return

    for key, value in settings.items():
        if key == "num_classes":
            settings[key] = count
        elif key == "class_weight":
            settings[key] = weights if settings.get("type") == "PixelCrossEntropy" else None
        else:
            _set_classes(value, count, weights)


def build_model(config: Config, *, pretrained: bool = False) -> nn.Module:
    """Build the model of a config and initialize its weights.

    Args:
        config: what :func:`read_config` returns.
        pretrained: load the weights that the backbone's ``init_cfg`` names; otherwise ``init_cfg`` is ignored.

    Raises:
        InputError: if the model cannot be built from its settings, or its backbone names no weights to load.
    """
    settings = config.model.copy()
    if pretrained and not settings.backbone.get("init_cfg"):
        name = settings.backbone.get("variant") or settings.backbone.get("name") or settings.backbone.type
        raise InputError(
            f"no published weights are known for the backbone {name} of {config.filename}; leave --model.pretrained "
            "out, or give a file with --model.weights FILE"
        )
    if not pretrained:
        settings.backbone = {key: value for key, value in settings.backbone.items() if key != "init_cfg"}

    with DefaultScope.overwrite_default_scope(config.default_scope), quiet(), restricted_pickles():
        try:
            model: nn.Module = MODELS.build(settings)
        except _BUILD_ERRORS as error:
            raise InputError(f"the model of {config.filename} cannot be built: {error}") from error
        model.init_weights()  # type: ignore[operator]
    return model


def innermost(dataset: Any) -> list[Any]:
    """Return the data sets inside RepeatDataset, ConcatDataset and other wrappers; without a wrapper, the one given.

    Takes data sets, or the settings of data sets in a config.
    """
    held = getattr(dataset, "datasets", None) or getattr(dataset, "dataset", None)
    if held is None:
        return [dataset]

    parts = held if isinstance(held, list | tuple) else [held]
    return [inner for part in parts for inner in innermost(part)]


def build_dataset(config: Config, split: str) -> Any:
    """Build the data set of a config for 'train', 'val' or 'test', with its pipeline, and check its files.

    Raises:
        MissingError: if its files are missing.
        InputError: if it cannot be built, or has no samples.
    """
    from vision.openmmlab.annotations import check_label_maps, checked_coco  # it imports mmdet

    settings = copy.deepcopy(config[f"{split}_dataloader"].dataset)
    parts = innermost(settings)
    for part in parts:
        if part.type in ("CocoDataset", "mmdet.CocoDataset"):
            part.type = "CheckedCocoDataset"

    with checked_coco(parts):
        dataset = _build(settings, config, split)
    if config.default_scope == "mmseg":
        for part in innermost(dataset):
            check_label_maps(part)
    if len(dataset) == 0:
        raise InputError(f"the {split} data of {config.filename} have no samples; check paths, suffixes and classes")
    return dataset


def build_unread_dataset(config: Config, split: str) -> Any:
    """Build the first data set of a split, without wrappers or annotations; it knows only its classes and paths.

    Raises:
        InputError: if it cannot be built.
    """
    settings = copy.deepcopy(innermost(config[f"{split}_dataloader"].dataset)[0])
    settings.update(lazy_init=True, pipeline=[])
    return _build(settings, config, split)


def _build(settings: Any, config: Config, split: str) -> Any:
    for part in innermost(settings):
        _check_class_names(part, config)

    with DefaultScope.overwrite_default_scope(config.default_scope), quiet():
        try:
            return DATASETS.build(settings)
        except InputError:
            raise
        except FileNotFoundError as error:
            raise MissingError(
                f"the {split} data of {config.filename} are missing: {error}; set their path with --data.options"
            ) from error
        except _BUILD_ERRORS as error:
            raise InputError(f"the {split} data of {config.filename} cannot be read: {error!r}") from error


def _check_class_names(settings: Any, config: Config) -> None:
    """Refuse a class that is named twice, and a string instead of a tuple, whose letters would count as classes."""
    classes = (settings.get("metainfo") or {}).get("classes")
    if isinstance(classes, str) and not Path(classes).is_file():
        raise InputError(
            f"metainfo of {config.filename} has classes={classes!r}, which is a string; expected a tuple, with a comma "
            f"even for one class: classes=({classes!r},)"
        )

    if isinstance(classes, list | tuple) and len(set(classes)) < len(classes):
        twice = sorted({str(name) for name in classes if classes.count(name) > 1})
        raise InputError(f"metainfo of {config.filename} names the class {listed(twice)} twice; keep one of each")


def build_test_pipeline(config: Config, *, from_arrays: bool = False) -> Compose:
    """Build the test pipeline of a config, without the steps that load annotations.

    Args:
        config: what :func:`read_config` returns.
        from_arrays: expect the image under 'img', (H, W, 3) uint8 BGR, instead of a file under 'img_path'.

    Raises:
        InputError: with ``from_arrays``, if the pipeline does not begin with LoadImageFromFile.
    """
    steps = []
    for step in innermost(config.test_dataloader.dataset)[0].pipeline:
        kind = _kind(step)
        if _loads_annotations(kind):
            continue
        if from_arrays and kind == "LoadImageFromFile":
            step = {**step, "type": "LoadImageFromNDArray"}
        steps.append(step)

    if from_arrays and (not steps or _kind(steps[0]) != "LoadImageFromNDArray"):
        raise InputError(
            f"the test pipeline of {config.filename} does not begin with LoadImageFromFile, so it takes no arrays; "
            "give image files"
        )
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return Compose(steps)


def check_order(config: Config, split: str) -> None:
    """Refuse an evaluation pipeline that loads annotations before it resizes the image.

    Predictions are in pixels of the original image, so the annotations must be too.

    Raises:
        InputError: if the image is resized after the annotations are loaded; the message names the step.
    """
    for part in innermost(config[f"{split}_dataloader"].dataset):
        kinds = [_kind(step) for step in part.get("pipeline", [])]
        last_resize = max((i for i, kind in enumerate(kinds) if "Resize" in kind), default=-1)
        if any(_loads_annotations(kind) for kind in kinds[: last_resize + 1]):
            raise InputError(
                f"the {split} pipeline of {config.filename} loads annotations before {kinds[last_resize]}, which would "
                "scale them; put LoadAnnotations after it"
            )


def unused_settings(config: Config, *, pretrained: bool, weights: str | None) -> str | None:
    """List the settings of a config that only MMEngine's ``Runner`` uses, and the options that replace them.

    Args:
        config: what :func:`read_config` returns.
        pretrained: whether the weights that the backbone's ``init_cfg`` names are loaded.
        weights: file with weights that is loaded into the model, if any.

    Returns:
        One sentence, or None if everything is used.
    """
    name = Path(config.filename or "the config").name
    if name.endswith("_a_digit_scenes.py") or config.get("own_data"):
        return None  # det.yaml and seg.yaml set the same

    unused = _unused_optimization(config)
    hooks = [_kind(hook) for hook in config.get("custom_hooks") or []]
    if hooks:
        averages = any("EMA" in hook for hook in hooks)
        unused[f"custom_hooks ({', '.join(hooks)})"] = ["--trainer.callbacks+ EMA"] if averages else []

    if weights is None:
        if config.model.get("backbone", {}).get("init_cfg") and not pretrained:
            unused["init_cfg of the backbone"] = ["--model.pretrained true"]
        if config.get("load_from"):
            unused["load_from"] = [f"--model.weights {config.load_from}"]

    if not unused:
        return None
    instead = [option for options in unused.values() for option in options]
    message = f"{name}: Lightning does not use its {', '.join(unused)}"
    return f"{message}; set {', '.join(instead)}" if instead else message


def _unused_optimization(config: Config) -> dict[str, list[str]]:
    """Return which of optimizer and schedule the config sets, each with the options that replace it."""
    unused: dict[str, list[str]] = {}

    wrapper = config.get("optim_wrapper")
    if wrapper:
        learning_rate = wrapper.get("optimizer", {}).get("lr")
        layer_decay = (wrapper.get("paramwise_cfg") or {}).get("decay_rate", 1.0)
        max_norm = (wrapper.get("clip_grad") or {}).get("max_norm")

        options = []
        if learning_rate is not None:
            options.append(f"--model.lr {learning_rate}")
        if layer_decay < 1:
            options.append(f"--model.layer_decay {layer_decay}")
        if max_norm is not None:
            options.append(f"--trainer.gradient_clip_val {max_norm}")
        unused["optim_wrapper"] = options

    if config.get("param_scheduler"):
        unused["param_scheduler"] = ["--model.warmup_epochs EPOCHS"]
    return unused


def _kind(step: Any) -> str:
    """Return the type of a pipeline step or hook without its package, 'Resize' for 'mmdet.Resize'."""
    return str(step["type"]).rpartition(".")[2]


def _loads_annotations(kind: str) -> bool:
    return kind.startswith("Load") and kind.endswith("Annotations")
