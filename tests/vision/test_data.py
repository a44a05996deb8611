"""Class folders and digits: which files go to which split, with which label."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training.small_runs import CLASSES, picture, write_photos

from core.errors import InputError, MissingError
from vision import Digits, ImageFolder
from vision.data import to_image
from vision.demo import handwritten_digits
from vision.feature_map import PixelMap


def _folder(root: Path | None, **options: Any) -> ImageFolder:
    return ImageFolder(None if root is None else str(root), size=32, batch_size=4, num_workers=0, **options)


def _set_up(data: Any, stage: str = "fit") -> Any:
    data.prepare_data()
    data.setup(stage)
    return data


def _files(dataset: Any) -> set[str]:
    return {str(path) for path, _ in dataset.samples}


def test_splits_are_the_folders(tmp_path: Path) -> None:
    data = _set_up(_folder(write_photos(tmp_path, train=4, val=3, test=2)))
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set, data.predict_set)] == [12, 9, 6, 6]
    for split, dataset in {"train": data.train_set, "val": data.val_set, "test": data.test_set}.items():
        assert all(Path(path).is_relative_to(tmp_path / split) for path in _files(dataset))
    assert data.predict_set[0][1] == str(tmp_path / "test" / "brick" / "0.png")


def test_classes_are_numbered_by_name_and_labels_follow_the_folder(tmp_path: Path) -> None:
    data = _set_up(_folder(write_photos(tmp_path, ["n02", "n10", "n01"], train=2, val=1)))
    assert data.classes == ["n01", "n02", "n10"]
    for path, label in [*data.train_set.samples, *data.val_set.samples]:
        assert path.parent.name == data.classes[label]


def test_test_falls_back_to_validation_and_other_split_names(tmp_path: Path) -> None:
    data = _set_up(
        _folder(write_photos(tmp_path, training=2, validation=1), train_split="training", val_split="validation")
    )
    assert _files(data.test_set) == _files(data.val_set)
    assert len(data.val_set) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("valid", r"has no folder val, and valid would not be read: type --data\.val_split valid, or .* _valid to"),
        ("Validation", r"--data\.val_split Validation, or rename it to _Validation to leave it out"),
        ("DEV", r"has no folder val, and DEV would"),
        ("eval", r"has no folder val, and eval would"),
        ("testing", "has no folder test, and testing would not be read: rename it to test, or rename it to _testing"),
        ("Tests", "has no folder test, and Tests would"),
    ],
)
def test_a_split_under_a_name_that_is_not_read(name: str, message: str, tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=2, **{name: 1})
    with pytest.raises(InputError, match=message):
        _folder(root).prepare_data()
    with pytest.raises(InputError, match=message):
        _folder(root).setup("test")
    (root / name).rename(root / f"_{name}")
    assert len(_set_up(_folder(root)).train_set) == 3
    (root / f"_{name}").rename(root / name)
    write_photos(root, val=1, test=1)
    assert len(_set_up(_folder(root)).train_set) == 6


def test_a_split_under_another_name_is_read_where_it_is_named(tmp_path: Path) -> None:
    data = _set_up(_folder(write_photos(tmp_path, train=2, valid=1), val_split="valid"))
    assert (len(data.train_set), len(data.val_set)) == (6, 3)
    write_photos(tmp_path, Test=1)
    if not (tmp_path / "test").is_dir():
        with pytest.raises(InputError, match="and Test would not be read: rename it to test"):
            _folder(tmp_path, val_split="valid").prepare_data()


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 1), (0.1, 1), (0.3, 3), (0.9, 9)])
def test_without_a_validation_folder_a_share_of_each_class_is_held_out(
    share: float, held_out: int, tmp_path: Path
) -> None:
    root = write_photos(tmp_path, train=10)
    first, second = _set_up(_folder(root, val_share=share)), _set_up(_folder(root, val_share=share))
    train, val = _files(first.train_set), _files(first.val_set)
    assert not train & val
    assert len(train | val) == 30
    assert Counter(label for _, label in first.val_set.samples) == dict.fromkeys(range(3), held_out)
    assert _files(second.val_set) == val
    alone = _folder(root, val_share=share)
    alone.setup("validate")
    assert _files(alone.val_set) == val


def test_held_out_share_leaves_something_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 'brick' has one file, too few to hold one out"):
        _set_up(_folder(write_photos(tmp_path / "one", train=1)))
    for share, images in ((0.99, 10), (0.9, 2)):
        root = write_photos(tmp_path / str(images), train=images)
        data = _set_up(_folder(root, val_share=share))
        assert Counter(label for _, label in data.train_set.samples) == dict.fromkeys(range(3), 1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(InputError, match=rf"val_share={share}"):
        _folder(None, val_share=share)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no folder .*/nowhere/train; expected .*/<class>/\*\.jpg"):
        _folder(tmp_path / "nowhere").prepare_data()
    with pytest.raises(MissingError, match=r"type --data\.root FOLDER"):
        _folder(None).prepare_data()


def test_empty_folder_and_a_single_class(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(MissingError, match="has 0 class folders; expected at least two"):
        _folder(tmp_path).prepare_data()
    write_photos(tmp_path, ["only"], train=1)
    with pytest.raises(MissingError, match="has 1 class folders"):
        _folder(tmp_path).prepare_data()


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_class_folder_without_images(content: list[str], tmp_path: Path) -> None:
    folder = write_photos(tmp_path, train=1) / "train" / "zebra"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("no image")
    with pytest.raises(MissingError, match=r"zebra holds no images; expected files ending in \.bmp"):
        _folder(tmp_path).prepare_data()


def test_class_in_validation_that_training_lacks(tmp_path: Path) -> None:
    root = write_photos(write_photos(tmp_path, train=1), [*CLASSES, "zebra"], val=1)
    with pytest.raises(InputError, match=r"val has classes that training lacks: zebra"):
        _set_up(_folder(root))


def test_validation_may_lack_a_class_and_labels_stay(tmp_path: Path) -> None:
    root = write_photos(write_photos(tmp_path, train=1), ["leaf", "sea"], val=1)
    data = _set_up(_folder(root))
    assert [label for _, label in data.val_set.samples] == [1, 2]
    assert data.classes == CLASSES


def test_upper_case_suffixes_and_folders_within_a_class(tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=1, val=1)
    (root / "train" / "sea" / "deep").mkdir()
    picture(2, 5).save(root / "train" / "sea" / "deep" / "A.JPEG")
    data = _set_up(_folder(root))
    assert (root / "train" / "sea" / "deep" / "A.JPEG", 2) in data.train_set.samples
    assert len(data.train_set) == 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_any_image_mode_becomes_three_channels(mode: str, tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=1, val=1)
    ramp = np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)
    image = Image.fromarray(ramp) if mode == "I;16" else picture(0, 0).convert(mode)
    image.save(root / "val" / "brick" / "0.tif")
    (root / "val" / "brick" / "0.png").unlink()
    x, label = _set_up(_folder(root)).val_set[0]
    assert x.shape == (3, 32, 32)
    assert label == 0
    assert x.float().std() > 0


def test_gray_mode_has_one_channel(tmp_path: Path) -> None:
    data = _set_up(_folder(write_photos(tmp_path, train=1, val=1), mode="L", mean=[0.5], std=[0.2]))
    assert data.val_set[0][0].shape == data.train_set[0][0].shape == (1, 32, 32)


def _broken(root: Path, split: str) -> Path:
    """Cuts a JPEG of a split in half."""
    file = root / split / "leaf" / "1.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def test_truncated_file_is_named(tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=2, val=2)
    file = _broken(root, "val")
    loader = _set_up(_folder(root)).val_dataloader()
    with pytest.raises(InputError, match=rf"{file} cannot be decoded.*--data\.skip_broken true"):
        list(loader)


def test_truncated_file_is_skipped_on_request_with_a_warning(tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=2, val=2)
    file = _broken(root, "val")
    loader = _set_up(_folder(root, skip_broken=True)).val_dataloader()
    with pytest.warns(UserWarning, match=f"skipped: {file}"):
        labels = torch.cat([y for _, y in loader])
    assert labels.tolist() == [0, 0, 1, 2, 2]


def test_all_files_of_a_batch_broken(tmp_path: Path) -> None:
    root = write_photos(tmp_path, train=2, val=1)
    for file in (root / "val").rglob("*.png"):
        file.write_bytes(b"nothing")
    loader = _set_up(_folder(root, skip_broken=True)).val_dataloader()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="no image can be used"):
        list(loader)


@pytest.fixture(scope="module")
def digits() -> Digits:
    data: Digits = _set_up(Digits(num_workers=0, batch_size=50))
    return data


def _pixels(dataset: Any) -> list[np.ndarray]:
    return [array for (_, array), _ in dataset.samples]


def test_digits_are_split_for_good_in_balance(digits: Any) -> None:
    again = _set_up(Digits(num_workers=0))
    for name, count in {"train_set": 350, "val_set": 50, "test_set": 100}.items():
        files = getattr(digits, name).samples
        assert Counter(label for _, label in files) == dict.fromkeys(range(10), count)
        assert np.array_equal(_pixels(getattr(digits, name)), _pixels(getattr(again, name)))
    assert np.array_equal(_pixels(digits.predict_set), _pixels(digits.test_set))
    x, y = next(iter(digits.val_dataloader()))
    assert x.shape == (50, 1, 32, 32)
    assert Counter(y.tolist()) == dict.fromkeys(range(10), 5)
    assert digits.classes == [str(d) for d in range(10)]


def test_digits_of_the_splits_are_disjoint(digits: Any) -> None:
    splits = [{i.tobytes() for i in _pixels(s)} for s in (digits.train_set, digits.val_set, digits.test_set)]
    assert [len(split) for split in splits] == [3500, 500, 1000]
    assert len(set.union(*splits)) == 5000


def test_digits_are_normalized_and_named(digits: Any) -> None:
    spec = digits.spec()
    x: Tensor = PixelMap(spec.mean, spec.std)(torch.stack([digits.val_set[i][0] for i in range(100)]))
    assert x.mean().abs() < 0.2
    assert 0.7 < x.std() < 1.3
    assert digits.predict_set[0][1].startswith("digits/")
    assert len({digits.predict_set[i][1] for i in range(1000)}) == 1000


def test_all_who_ask_share_the_digits() -> None:
    """Reading them takes seconds; whoever wrote into them would write into everybody's."""
    (images, labels), (again, others) = handwritten_digits(), handwritten_digits()
    assert images is again
    assert labels == others
    assert labels is not others
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"auto_augment": "foo"}, r"auto_augment='foo': .*; expected one of timm's policies"),
        ({"mode": "L"}, r"mode='L' has 1 channels, but mean has 3 values and std 3; give one for each channel"),
        ({"size": 0}, "size=0"),
        ({"std": (0.2, 0.0, 0.2)}, r"std=\(0.2, 0.0, 0.2\)"),
        ({"hflip": 2.0}, "hflip=2.0"),
        ({"scale": (1.0, 0.1)}, r"scale=\(1.0, 0.1\)"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageFolder(None, **option)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5), (4, 5, 3), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_arrays(shape: tuple[int, ...], dtype: Any) -> None:
    """Height and width, with or without channels on either side; floats are rounded to bytes."""
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = to_image(pixels if dtype == np.uint8 else (pixels / 255).astype(dtype), "array 0")

    assert image.size == (5, 4)
    assert image.mode == ("RGB" if 3 in shape else "L")
    expected = np.moveaxis(pixels, 0, -1) if shape[0] == 3 else pixels.squeeze()
    assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"array 0 has the shape \(4, 5, 2\); expected \(H, W\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"array 0 has the shape \(2, 4, 5, 3\)"),
        (np.zeros((0, 5), np.float32), r"array 0 has the shape \(0, 5\)"),
        (np.full((4, 5), 2.0), r"array 0 holds floats from 2 to 2; expected \[0, 1\], or uint8"),
        (np.full((4, 5), np.nan), "array 0 holds floats from nan to nan"),
        (np.zeros((4, 5), np.int64), r"array 0 holds int64; expected uint8, or floats in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_image(array, "array 0")
