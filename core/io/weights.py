"""Load weights into a model from a file, an address or the Hub, and translate the names of other projects.

Files are read with ``weights_only=True`` or as safetensors, so that a downloaded checkpoint never executes code.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from core.errors import InputError, MissingError, listed
from core.io.downloads import hub_file, web_file
from core.io.untrusted import read_torch_file
from core.layers.feature_map import FeatureMap

__all__ = ["checkpoint_filter_fn", "load_weights", "read_state_dict"]

_logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

_HUB_PREFIX = "hf-hub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w-]+(\.\d[\w-]*)*")  # 'org/model.v1.5', but not the path 'folder/model.pth'
_WRAPPERS = ("state_dict", "model", "module")
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.", "encoder.")

# Norms after the stages. The last norm is 'norm'; those on the maps of single stages are 'norm0' to 'norm3' in
# UniRepLKNet and 'stages.0.norm' to 'stages.3.norm' in RepLKNet.
_OUTPUT_NORM = re.compile(r"(norm\d*|stages\.\d+\.norm)\.")
_FEATURE_NORM = re.compile(r"(norm\d+|stages\.\d+\.norm)\.")
_STAGE_NORM = re.compile(r"(backbone\.)?stages\.\d+\.norm\.")

_FORM_ADVICE = {
    ("training", "inference"): (
        "The file is in training form: load it before core.reparameterize, or build with inference_mode=False."
    ),
    ("training", "merged"): "The file is in training form: load it before model.merge_small_kernels().",
    ("merged", "training"): (
        "The small kernels of the file are merged: build the model with small_kernel_merged=True."
    ),
    ("merged", "inference"): (
        "The file has norms left: build with small_kernel_merged=True, load it, then call core.reparameterize."
    ),
    ("inference", "training"): "The file is in inference form: build the model with inference_mode=True.",
    ("inference", "merged"): "The file is in inference form: build the model with inference_mode=True.",
}
"""Advice in the error message, by the form of the file and the form of the model."""


def load_weights(model: Model, source: str | Path) -> Model:
    """Load published weights, or your own, into a model in place.

    Supported formats:

    - official ``.pth`` files, plain or wrapped in ``'model'`` or ``'state_dict'``. If a training state holds
      ``'model_ema'`` as well, ``'model'`` is loaded, whereas timm's ``checkpoint_path`` loads the average;
    - mmpretrain's RepLKNet files;
    - checkpoints of detectors and segmentors, with the prefix ``backbone.``; averages, named ``ema_...``, are ignored;
    - safetensors files;
    - Lightning checkpoints of this project;
    - files in inference form, for models in inference form.

    The first convolution adapts to another number of input channels as in timm. A classifier of another size and norms
    after the stages that are missing from the file keep their initial weights, with a warning. The statistics of a
    task's feature map stay those of its own data. Everything else must match exactly.

    Args:
        model: a backbone, a ``features_only`` model, or a module with a ``backbone``.
        source: path of a file, web address (https://...), Hub repository ``org/name``, or file in a Hub repository,
            ``hf-hub:org/name/file.pth``.

    Returns:
        The model itself.

    Raises:
        MissingError: if there is no such file or repository.
        InputError: if the file is not a checkpoint, or tensors do not fit the model; the message names them.
    """
    state_dict = _from_mmpretrain(read_state_dict(source))
    target = _find_target(model, state_dict)
    state_dict = _strip_prefixes(state_dict, target)

    # A model that was built for the maps of some stages does not have the tensors of the others.
    is_feature_model = isinstance(model, FeatureGetterNet)
    if is_feature_model or getattr(target, "pruned", False):
        own = target.state_dict()
        if not is_feature_model and not getattr(target, "feature_norms", True):
            _warn_of_lost_norms(state_dict, own, str(source))
        state_dict = {name: tensor for name, tensor in state_dict.items() if name in own}

    state_dict = _fit(state_dict, target, str(source))
    target.load_state_dict(state_dict, strict=False)  # _fit has compared every name and shape
    return model


def read_state_dict(source: str | Path) -> StateDict:
    """Read the tensors of a checkpoint by name, on the CPU, without the dictionaries that wrap them.

    Args:
        source: file, address or repository, see :func:`load_weights`.

    Raises:
        MissingError: if there is no such file or repository.
        InputError: if the file is not a checkpoint.
    """
    name = str(source)
    if Path(source).is_file():
        path = Path(source)
    elif name.startswith(("http://", "https://")):
        path = web_file(name)
    elif name.startswith(_HUB_PREFIX) or _REPOSITORY.fullmatch(name):
        path = _hub_weights(name.removeprefix(_HUB_PREFIX))
    else:
        kind = "a folder" if Path(source).is_dir() else "not there"
        raise MissingError(
            f"no weights at {name!r} (it is {kind}); give a .pth, .ckpt or .safetensors file, a Hub repository such as "
            "'org/name', or a file in one: 'hf-hub:org/name/file.pth'"
        )
    return _unwrap(_read_file(path), name)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> StateDict:
    """Convert a pretrained file and compare it with the model; timm calls this hook before it loads the tensors."""
    unwrapped = _strip_prefixes(_from_mmpretrain(_unwrap(state_dict, "the pretrained file")), model)
    return _fit(unwrapped, model, "the pretrained file", adapt_stem=False)


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return read_torch_file(path)

    try:
        return load_file(path)
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {error}") from error


def _hub_weights(name: str) -> Path:
    """Download the file 'org/name/file', or the weights of the repository 'org/name'."""
    parts = name.split("/")
    repository = "/".join(parts[:2])
    files = ["/".join(parts[2:])] if len(parts) > 2 else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        try:
            return hub_file(repository, file)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # the Hub's own errors derive from these
            reason = error

    raise MissingError(
        f"could not get {' or '.join(files)} of {repository!r} from the Hugging Face Hub: {reason}; check the name and "
        "the network, or download the file and pass its path"
    )


def _unwrap(content: Any, source: str) -> StateDict:
    """Find the state dict in the content of a file, which may wrap it in dictionaries."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner

    tensors = {}
    if isinstance(content, Mapping):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(
            f"{source} holds no tensors by name; expected a state dict, plain or in 'state_dict' or 'model'"
        )
    return tensors


def _find_target(model: nn.Module, state_dict: StateDict) -> nn.Module:
    """Find the part of the model that the file describes: the model itself, or the backbone inside it."""
    if isinstance(model, FeatureGetterNet):
        return _find_target(model.model, state_dict)

    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return model

    own = model.state_dict().keys() - _statistics(model)
    file_has_backbone = any(name.startswith("backbone.") for name in state_dict)
    model_has_backbone = any(name.startswith("backbone.") for name in own)
    model_is_backbone = all(name.startswith("backbone.") for name in own)
    if not model_has_backbone and any(name in own for name in state_dict):
        return model  # the model gives the tensors of `backbone` other names, and the file uses those
    if model_is_backbone or not file_has_backbone:
        return _find_target(backbone, state_dict)
    return model


def _strip_prefixes(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Remove the prefixes of wrappers that the model does not have, and the ``ema_`` copies of OpenMMLab."""
    own = model.state_dict()
    foreign = [prefix for prefix in _PREFIXES if not any(name.startswith(prefix) for name in own)]
    state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith("ema_")}

    # Wrappers can be nested, so look for another prefix after each one.
    while prefix := next((p for p in foreign if any(name.startswith(p) for name in state_dict)), None):
        inside = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
    return state_dict


def _from_mmpretrain(state_dict: StateDict) -> StateDict:
    """Rename the tensors of mmpretrain's RepLKNet files to the official names; other files stay as they are."""
    norms = [name for name in state_dict if re.match(r"backbone\.stages\.\d+\.norm\.", name)]
    if "head.fc.weight" not in state_dict or not norms:
        return state_dict

    # mmpretrain keeps the norm before the classifier in the last stage.
    last_norm = max(norms).rpartition(".")[0] + "."
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.replace(last_norm, "backbone.norm.").removeprefix("backbone.")
        renamed[re.sub(r"^head\.fc\.", "head.", name)] = tensor
    return renamed


def _fit(state_dict: StateDict, model: nn.Module, source: str, *, adapt_stem: bool = True) -> StateDict:
    """Choose the tensors of a file that the model loads, and raise an error if any other difference is left.

    Args:
        state_dict: tensors of the file, under the model's names.
        model: the model that will load them.
        source: name of the file in messages.
        adapt_stem: adapt the first convolution to the input channels of the model; False leaves this to timm.
    """
    statistics = _statistics(model)
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in statistics}
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in statistics}

    stem = _stem_name(model)
    if stem in state_dict and state_dict[stem].ndim == 4 and state_dict[stem].shape[1] != own[stem].shape[1]:
        if adapt_stem:
            state_dict[stem] = _adapt_stem(state_dict[stem], own[stem].shape[1], f"{stem} of {source}")
        else:
            own[stem] = state_dict[stem]

    _refuse_lost_norm(state_dict, own, model, source)

    # Remove the parts that may differ from both sides: a classifier of another size, and norms after the stages.
    classifier = _classifier_name(model)
    _drop_other_classifier(state_dict, own, classifier, source)

    initial = _parts_left_initial(state_dict, own, classifier)
    for name in initial:
        del own[name]
    if initial:
        _logger.warning("%s has no %s: they keep their initial weights", source, listed(initial))

    unused = [name for name in state_dict if _OUTPUT_NORM.match(name) and name not in own]
    for name in unused:
        del state_dict[name]

    _compare(state_dict, own, source)
    return state_dict


def _statistics(model: nn.Module) -> set[str]:
    """List the statistics of the data in a task's feature map by name, such as a mean and a standard deviation."""
    feature_map = getattr(model, "feature_map", None)
    if not isinstance(feature_map, FeatureMap):
        return set()
    return {f"feature_map.{name}" for name, _ in feature_map.named_buffers(recurse=False)}


def _stem_name(model: nn.Module) -> str:
    """Return the name of the weight of the first convolution."""
    return next((f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")


def _classifier_name(model: nn.Module) -> str:
    """Return the name of the classifier, which timm's models give by ``get_classifier``; by default 'head'."""
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    return next((name for name, module in model.named_modules() if module is classifier), "head")


def _adapt_stem(weight: Tensor, channels: int, where: str) -> Tensor:
    try:
        return adapt_input_conv(channels, weight)
    except (AssertionError, NotImplementedError):
        raise InputError(
            f"{where} takes {weight.shape[1]} input channels, the model {channels}; only files for 3 channels can be "
            f"adapted. Build the model with in_chans={weight.shape[1]}"
        ) from None


def _refuse_lost_norm(state_dict: StateDict, own: StateDict, model: nn.Module, source: str) -> None:
    """Raise an error for a model without classifier and a folded file whose last norm is part of its classifier.

    The embeddings of such a model would lack the scale and shift of the norm.
    """
    can_fold = hasattr(model, "norm_in_head")
    classifier_is_lost = "head.weight" in state_dict and "head.weight" not in own and "norm.weight" in own
    if not (can_fold and classifier_is_lost) or _form(state_dict) != "inference":
        return
    scale = state_dict.get("norm.weight")
    shift = state_dict.get("norm.bias")
    if scale is not None and shift is not None and not (bool((scale == 1).all()) and bool((shift == 0).all())):
        return  # the official converter does not fold the last norm, so the file still has it

    raise InputError(
        f"{source} is folded, with the last norm in its classifier, and the model has no classifier: its embeddings "
        f"would lack the norm. Build it with num_classes={len(state_dict['head.weight'])}, or load a file that was not "
        "folded"
    )


def _drop_other_classifier(state_dict: StateDict, own: StateDict, classifier: str, source: str) -> None:
    """Remove the classifier from both sides, unless file and model have equally many classes."""
    weight = f"{classifier}.weight"
    if weight not in state_dict:
        return

    file_classes = len(state_dict[weight])
    model_classes = len(own[weight]) if weight in own else 0
    if file_classes == model_classes:
        return

    if model_classes:
        _logger.warning(
            "%s has %d classes, the model %d: a new classifier is trained", source, file_classes, model_classes
        )
    for name in (weight, f"{classifier}.bias"):
        state_dict.pop(name, None)
        own.pop(name, None)


def _parts_left_initial(state_dict: StateDict, own: StateDict, classifier: str) -> list[str]:
    """List the tensors after the stages that the model has and the file may lack: the classifier and norms."""
    in_file = f"{classifier}.weight" in state_dict
    in_model = f"{classifier}.weight" in own
    head = [name for name in own if name.startswith(f"{classifier}.")] if in_model and not in_file else []

    # A classifier from the file was trained on the output of the last norm, which must then be in the file as well.
    norm = _FEATURE_NORM if in_model and in_file else _OUTPUT_NORM
    return head + [name for name in own if norm.match(name) and name not in state_dict]


def _compare(state_dict: StateDict, own: StateDict, source: str) -> None:
    """Compare names and shapes of all tensors.

    Raises:
        InputError: if a tensor is missing, unexpected, or of another shape; the message names all of them.
    """
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} {tuple(state_dict[name].shape)} where the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]

    lines = []
    for title, names in (("Missing", missing), ("Unexpected", unexpected), ("Other shape", shapes)):
        if names:
            lines.append(f"  {title}: {listed(names)}")
    if not lines:
        return

    # By default the file is from another variant; some differences have a known reason.
    advice = "Build the variant that the file was saved from: same depths, dims and kernel_sizes."
    forms = _form(state_dict), _form(own)
    if shapes and not missing and not unexpected and all("head." in line for line in shapes):
        advice = "The heads of the file have other classes: give the model as many, or load the file into its backbone."
    elif unexpected and not missing and all(_STAGE_NORM.match(name) for name in unexpected):
        advice = "The file was trained with norms on its maps: build its backbone with feature_norms=True."
    elif forms in _FORM_ADVICE:
        advice = _FORM_ADVICE[forms]
    raise InputError("\n".join([f"{source} does not fit the model.", *lines, f"  {advice}"]))


def _form(names: Iterable[str]) -> str:
    """Return the form of a network by the names of its tensors: 'training', 'merged' (small kernels) or 'inference'."""
    names = list(names)
    if not any(name.endswith("running_var") for name in names):
        return "inference"
    return "merged" if any("lkb_reparam" in name for name in names) else "training"


def _warn_of_lost_norms(state_dict: StateDict, own: StateDict, source: str) -> None:
    """Warn if the file has norms on the maps of stages, and the model has these stages without norms."""
    stages = {name.rpartition(".norm.")[0] for name in state_dict if _STAGE_NORM.match(name)}
    lost = sorted(stage for stage in stages if any(name.startswith(f"{stage}.") for name in own))
    if lost:
        _logger.warning(
            "%s was trained with norms on its maps (%s), and this model has none; build it with feature_norms=True to "
            "keep them",
            source,
            ", ".join(f"{stage}.norm" for stage in lost),
        )
