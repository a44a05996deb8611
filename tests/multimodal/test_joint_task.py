"""The members of a joint task: what they share, its names, its gradients, folding, and what cannot be joined."""

import copy
from typing import Any

import pytest
import torch
from small_members import RAW, TASKS, joint, randomize, raw_batch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
from core.errors import InputError
from core.training.hub import from_pretrained, save_pretrained
from multimodal import JointTask

NORMS = ("shared", "per_member")


def _image_twice(**options: Any) -> dict[str, dict[str, Any]]:
    image = TASKS["image"]
    return {"first": image, "second": {**image, "init_args": {**image["init_args"], **options}}}


def _shared(task: JointTask) -> dict[str, list[str]]:
    """Names of the backbone's tensors that the members have in common, and of those that each has for itself."""
    first, second = (dict(task.tasks()[name].backbone.named_parameters()) for name in task.members)
    common = [name for name in first if name in second and first[name] is second[name]]
    return {"common": common, "own": [name for name in first if name not in common]}


@pytest.mark.parametrize("norms", NORMS)
def test_members_share_all_but_stem_norm_and_head(norms: Any) -> None:
    task = joint(norms=norms)
    names = _shared(task)
    norm_names = [f"{n}." for n, m in task.tasks()["image"].backbone.named_modules() if isinstance(m, _BatchNorm)]
    expected = ("downsample_layers.0.", "norm.", "head.", *(norm_names if norms == "per_member" else ()))
    assert names["own"]
    assert all(name.startswith(expected) for name in names["own"])
    assert not any(name.startswith(expected) for name in names["common"])
    assert any(name.endswith("gamma") for name in names["common"])
    assert task.tasks()["image"].feature_map is not task.tasks()["series"].feature_map


def test_shared_running_statistics_are_the_same_tensors() -> None:
    task = joint(norms="shared")
    first, second = (dict(task.tasks()[name].backbone.named_buffers()) for name in task.members)
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] for name in first if name.startswith("stages."))


@pytest.mark.parametrize(("share", "stages"), [("none", []), ([1], [1]), ([0, 3], [0, 3]), ("all", [0, 1, 2, 3])])
def test_stages_are_shared_with_the_layers_before_them(share: Any, stages: list[int]) -> None:
    names = _shared(joint(share=share, norms="shared"))["common"]
    assert sorted({int(name.split(".")[1]) for name in names if name.startswith("stages.")}) == stages
    between = {int(name.split(".")[1]) for name in names if name.startswith("downsample_layers.")}
    assert sorted(between) == [stage for stage in stages if stage > 0]


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("backbone", ["test_unireplknet", "test_replknet"])
def test_state_dict_has_shared_tensors_once_and_loads(norms: Any, backbone: str) -> None:
    task = joint(backbone=backbone, backbone_args={}, norms=norms)
    randomize(task)
    state = task.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert any(name.startswith("backbone.stages.") for name in state)

    other = joint(backbone=backbone, backbone_args={}, norms=norms)
    other.load_state_dict(state)
    for name in RAW:
        raw = raw_batch(name)
        assert_close(other.eval()(name, raw), task.eval()(name, raw), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if "stages.1." not in name})


@pytest.mark.parametrize("change", ["deepcopy", "double", "assign"])
def test_layers_stay_shared(change: str) -> None:
    task = joint()
    names = _shared(task)["common"]
    if change == "deepcopy":
        task = copy.deepcopy(task)
    elif change == "double":
        task = task.double()
    else:
        task.load_state_dict({name: tensor.clone() for name, tensor in task.state_dict().items()}, assign=True)
    assert _shared(task)["common"] == names


def test_gradient_of_shared_weights_is_the_sum_over_the_members() -> None:
    task = joint().double().train()
    randomize(task)
    losses = {name: task(name, raw_batch(name).double()).square().mean() for name in RAW}
    weight = task.get_parameter("backbone.stages.1.0.pwconv1.1.weight")
    parts = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses.values()]
    assert all(part.abs().max() > 0 for part in parts)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert_close(weight.grad, parts[0] + parts[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("backbone", ["test_unireplknet", "test_replknet"])
def test_every_member_folds_exactly(norms: Any, backbone: str) -> None:
    task = joint(backbone=backbone, backbone_args={}, norms=norms).double().eval()
    randomize(task)
    whole = core.reparameterize(task)
    for name in RAW:
        raw = raw_batch(name).double()
        expected = task(name, raw)
        member = core.reparameterize(task.member(name))
        assert not any(isinstance(module, _BatchNorm) for module in member.modules())
        assert_close(member(raw), expected, rtol=1e-9, atol=1e-10)
        assert_close(whole(name, raw), expected, rtol=1e-9, atol=1e-10)
    assert not any(isinstance(module, _BatchNorm) for module in whole.modules())
    assert _shared(task)["common"]  # folding has changed a copy


def test_per_member_statistics_differ_after_training_and_shared_ones_do_not() -> None:
    name = "stages.1.0.dwconv.origin_bn.running_mean"
    for norms in NORMS:
        task = joint(norms=norms).train()
        for member in RAW:
            task(member, raw_batch(member))
        first, second = (task.tasks()[member].backbone.get_buffer(name) for member in RAW)
        assert torch.equal(first, second) == (norms == "shared")


def test_optimizer_has_each_parameter_once_at_its_place_in_the_network() -> None:
    task = joint(layer_decay=0.5)
    groups = task.parameter_groups(1.0)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in task.parameters() if parameter.requires_grad}
    assert len(listed) == len(set(listed))
    assert set(listed) == trainable

    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    alone = {id(p): group["lr"] for group in task.tasks()["series"].parameter_groups(1.0) for p in group["params"]}
    assert {rates[key] for key in alone} == set(alone.values())
    assert all(rates[key] == rate for key, rate in alone.items())
    stem = task.get_parameter("members.image.backbone.downsample_layers.0.0.weight")
    block = task.get_parameter("backbone.stages.3.0.pwconv1.1.weight")
    assert rates[id(stem)] < rates[id(block)] < 1.0
    assert rates[id(task.get_parameter("members.image.backbone.head.weight"))] == 1.0


def test_member_taken_out_is_a_task_of_its_own() -> None:
    task = joint(lr=0.003, weight_decay=0.1)
    randomize(task)
    image = task.member("image")
    raw = raw_batch("image")
    assert_close(image.eval()(raw), task.eval()("image", raw), rtol=0, atol=0)
    assert not {id(p) for p in image.parameters()} & {id(p) for p in task.parameters()}
    assert (image.hparams["lr"], image.hparams["weight_decay"]) == (0.003, 0.1)
    assert "members" not in image.hparams

    built = type(image)(**{key: value for key, value in image.hparams.items() if not key.startswith("_")})
    built.load_state_dict(image.state_dict())
    assert_close(built.eval()(raw), image(raw), rtol=0, atol=0)


def test_freezing_keeps_the_shared_layers() -> None:
    task = joint(freeze="backbone", norms="shared").train()
    assert not any(parameter.requires_grad for parameter in task.backbone.parameters())
    assert task.get_parameter("members.image.backbone.downsample_layers.0.0.weight").requires_grad
    before = {name: tensor.clone() for name, tensor in task.backbone.state_dict().items()}
    for name in RAW:
        task(name, raw_batch(name))
    assert_close(task.backbone.state_dict(), before, rtol=0, atol=0)


def test_shared_as_a_folder_and_loaded(tmp_path: Any) -> None:
    task = joint().eval()
    randomize(task)
    save_pretrained(task, tmp_path / "shared")
    same = from_pretrained(tmp_path / "shared")
    assert isinstance(same, JointTask)
    assert _shared(same)["common"] == _shared(task)["common"]
    assert_close(same("image", raw_batch("image")), task("image", raw_batch("image")), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": {}}, "--model.members is empty"),
        ({"members": {"values": TASKS["image"]}}, "'values' cannot be the name of a member"),
        ({"members": {"a.b": TASKS["image"]}}, "'a.b' cannot be the name"),
        ({"members": {"image": {"init_args": {}}}}, "member 'image' is .*expected class_path"),
        ({"members": {"image": {"class_path": "os.system"}}}, "member 'image': class_path is 'os.system'"),
        ({"members": {"image": {"class_path": "vision.ImageClassifer"}}}, "vision exports no such class"),
        ({"members": _image_twice(lr=0.1)}, "member 'second' sets lr, which is set for all"),
        ({"members": _image_twice(num_class=3)}, "member 'second': vision.ImageClassifier does not take"),
        ({"members": _image_twice(backbone_args={"depths": [1, 1, 2, 1]})}, "'first' and 'second' cannot share"),
        ({"members": _image_twice(backbone_args={"extra": "none"})}, "'second' cannot share the layer stages.0.0.se"),
        ({"members": _image_twice(backbone_args={"checkpoint_path": "x"})}, "sets backbone_args checkpoint_path"),
        ({"members": {"joint": {"class_path": "multimodal.JointTask"}}}, "cannot be a member"),
        ({"backbone": "test_resnet"}, "test_resnet|which cannot be shared"),
        ({"share": [4]}, r"share=\[4\]; expected 'all', 'none', or a list of stages from 0 to 3"),
        ({"norms": "own"}, "expected 'shared' or 'per_member'"),
        ({"loss_weights": {"sound": 1.0}}, "loss_weights has sound"),
        ({"spec": {"members": {"image": {}}}}, "member 'series' has no data"),
    ],
)
def test_what_cannot_be_joined(options: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"members": TASKS} | options
    if args.get("backbone") == "test_resnet":
        args["backbone_args"] = {}
    with pytest.raises(InputError, match=message):
        joint(**args)


def test_surplus_data_and_unknown_member() -> None:
    with pytest.raises(InputError, match="the data have 'cloud', which is no member"):
        joint(spec={"members": {name: {} for name in (*TASKS, "cloud")}})
    with pytest.raises(InputError, match="there is no member 'cloud'; the members are image, series"):
        joint().member("cloud")
    with pytest.raises(InputError, match=r"task.member\('image'\).predict"):
        joint().predict("file.png")
