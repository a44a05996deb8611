"""Lists, class folders and folders of frames; batches of clips; wrong lines and videos that cannot be read."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_clips import PLAIN, SMALL, number_of, numbered, write_colors, write_list, write_sound, write_video

from core.data.samples import Broken, PartlyBroken
from core.errors import InputError, MissingError
from video import FrameList, VideoDataModule, VideoFolder, VideoList, VideoSpec
from video.decoding import VideoFile
from video.files import FrameFolder, video_files

BOTH: dict[str, Any] = {**SMALL, **PLAIN, "batch_size": 2, "test_views": 1, "test_crops": 1}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists of three training and two validation videos, whose brightness encodes the frame number."""
    for name, count in (("a b.mp4", 20), ("c.mp4", 12), ("d.mp4", 3)):
        write_video(tmp_path / "videos" / name, numbered(count))
    lines = ["videos/a b.mp4 0", "", "videos/c.mp4 2", "videos/d.mp4 1"]
    write_list(tmp_path, "train", lines)
    return write_list(tmp_path, "val", lines[2:])


def _set_up(data: Any, stage: str = "fit") -> Any:
    data.prepare_data()
    data.setup(stage)
    return data


def _numbers(clip: torch.Tensor) -> list[int]:
    """Return the numbers of the frames of a clip (T, 3, H, W) uint8."""
    return [number_of(frame.permute(1, 2, 0).numpy()) for frame in clip]


def test_lists_with_a_space_in_a_path(lists: Path) -> None:
    data = _set_up(VideoList(str(lists), **BOTH))
    assert data.classes == ["0", "1", "2"]
    assert [(source.name, label) for source, label in data.train_set.samples] == [
        ("a b.mp4", 0),
        ("c.mp4", 2),
        ("d.mp4", 1),
    ]
    assert data.test_set.samples == data.val_set.samples
    clip, label = data.val_set[0]
    assert clip.shape == (4, 3, 32, 32)
    assert label == 2
    assert _numbers(clip) == [2, 4, 7, 9]  # a window of 8 of 12 frames: linspace(2, 10, 4) without its end
    assert _numbers(data.val_set[1][0]) == [0, 2, 2, 2]  # one of two frames, then the last


def test_test_list_data_root_and_names(lists: Path) -> None:
    (lists / "videos" / "test.csv").write_text("c.mp4 1\n", encoding="utf-8")
    for name in ("train", "val"):
        write_list(lists / "videos", name, ["c.mp4 0", "d.mp4 3"])
    (lists / "names.txt").write_text("run\njump\nsit\nsleep\n", encoding="utf-8-sig")  # as spreadsheets write it
    data = _set_up(VideoList(str(lists / "videos"), class_names=str(lists / "names.txt"), **BOTH))
    assert data.classes == ["run", "jump", "sit", "sleep"]
    assert [label for _, label in data.test_set.samples] == [1]
    elsewhere = VideoList(str(lists), data_root="/elsewhere", num_classes=7, **BOTH)
    assert len(_set_up(elsewhere).classes) == 7
    assert elsewhere.val_set.samples[0][0] == Path("/elsewhere/videos/c.mp4")  # type: ignore[union-attr]


def test_training_repeats_one_decoded_clip(lists: Path) -> None:
    data = _set_up(VideoList(str(lists), **BOTH | {"repeats": 3, "scale": [0.3, 0.6]}))
    clips, _ = data.train_set[0]
    assert clips.shape == (3, 4, 3, 32, 32)
    assert _numbers(clips[0]) == _numbers(clips[1]) == _numbers(clips[2])
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (2, 3, 4, 3, 32, 32)
    assert y.shape == (2,)


def test_batches_are_raw_frames(lists: Path) -> None:
    data = _set_up(VideoList(str(lists), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), **BOTH))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        frames, _ = next(iter(loader))
        assert frames.dtype == torch.uint8
        assert frames.shape == (2, 4, 3, 32, 32)


def test_spec_holds_what_a_model_must_know(lists: Path) -> None:
    options = BOTH | {"test_views": 2, "sampling": "uniform", "mean": (0.1, 0.2, 0.3), "short_side": 64}
    data = VideoList(str(lists), num_classes=4, **options)
    assert data.settings() == VideoSpec(
        num_frames=4,
        sampling_rate=2,
        sampling="uniform",
        size=32,
        mean=(0.1, 0.2, 0.3),
        test_views=2,
        test_crops=1,
        short_side=64,
    )
    assert data.spec() == replace(data.settings(), classes=("0", "1", "2", "3"))
    assert VideoSpec.from_dict(data.spec().to_dict()) == data.spec()
    again = VideoDataModule.from_spec(data.spec(), batch_size=3, num_workers=0)
    assert again.settings() == data.settings()
    assert again.batch_size == 3


def test_views_and_crops_of_a_test_video(lists: Path) -> None:
    data = _set_up(VideoList(str(lists), **BOTH | {"test_views": 2, "test_crops": 3}))
    clips, _ = data.test_set[0]
    assert clips.shape == (6, 4, 3, 32, 32)
    assert [_numbers(clip) for clip in clips] == [[0, 2, 4, 6], [4, 6, 8, 10]] * 3
    x, _ = next(iter(data.test_dataloader()))
    assert x.shape == (2, 6, 4, 3, 32, 32)


def test_published_views_are_five_clips_of_three_crops(lists: Path) -> None:
    data = _set_up(VideoList(str(lists), **{**SMALL, **PLAIN}))
    clips, _ = data.test_set[0]
    assert clips.shape == (15, 4, 3, 32, 32)
    assert [_numbers(clip) for clip in clips[:5]] == [list(range(i, i + 8, 2)) for i in (0, 0, 2, 2, 4)]


def test_list_that_a_spreadsheet_wrote(lists: Path) -> None:
    """It begins with a byte-order mark."""
    (lists / "val.csv").write_text("videos/c.mp4 2\n", encoding="utf-8-sig")
    (source, label), *more = _set_up(VideoList(str(lists), **BOTH)).val_set.samples
    assert (source, label, more) == (lists / "videos" / "c.mp4", 2, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("videos/c.mp4", "line 2: got 'videos/c.mp4'; expected 'path label', with whole numbers from 0"),
        ("videos/c.mp4,1", "line 2: got 'videos/c.mp4,1'; expected 'path label'"),
        ("videos/c.mp4 one", "line 2: got 'videos/c.mp4 one'"),
        ("videos/c.mp4 -1", "line 2: got 'videos/c.mp4 -1'"),
        ("videos/c.mp4 1.5", "line 2: got 'videos/c.mp4 1.5'"),
        ("videos/c.mp4 3", r"line 2: label 3 is outside 0\.\.2; correct it, or set --data\.num_classes"),
    ],
)
def test_wrong_line_of_a_list(line: str, message: str, lists: Path) -> None:
    write_list(lists, "val", ["videos/c.mp4 1", line])
    with pytest.raises(InputError, match=rf"val\.csv, {message}"):
        VideoList(str(lists), **BOTH).prepare_data()


def test_label_beyond_the_given_number_of_classes(lists: Path) -> None:
    with pytest.raises(InputError, match=r"train\.csv, line 3: label 2 is outside 0\.\.1"):
        VideoList(str(lists), num_classes=2, **BOTH).prepare_data()


def test_missing_and_empty_lists(lists: Path) -> None:
    (lists / "val.csv").write_text("\n\n", encoding="utf-8")
    with pytest.raises(MissingError, match=r"val\.csv is empty; expected lines of 'path label'"):
        VideoList(str(lists), **BOTH).prepare_data()
    (lists / "val.csv").unlink()
    with pytest.raises(MissingError, match=r"there is no list .*val\.csv; expected lines of 'path label'"):
        VideoList(str(lists), **BOTH).prepare_data()
    with pytest.raises(MissingError, match=r"type --data\.root FOLDER, with FOLDER/train\.csv"):
        VideoList(**BOTH).prepare_data()
    with pytest.raises(MissingError, match=r"there is no .*names\.txt; give a file"):
        VideoList(str(lists.parent / "lists"), class_names="names.txt", **BOTH)._read_class_names(3)
    with pytest.raises(InputError, match="both say how many classes there are"):
        VideoList(str(lists), num_classes=2, class_names="names.txt", **BOTH)


def test_broken_video_stops_with_its_name(lists: Path) -> None:
    (lists / "videos" / "c.mp4").write_bytes(b"damaged")
    data = _set_up(VideoList(str(lists), **BOTH))
    for part, number in ((data.train_set, 1), (data.val_set, 0), (data.test_set, 0)):
        with pytest.raises(
            InputError, match=r"c\.mp4 cannot be decoded .*; replace it, or type --data.skip_broken true"
        ):
            part[number]


def test_broken_video_is_a_row_of_the_prediction_with_its_reason(lists: Path) -> None:
    broken = lists / "videos" / "c.mp4"
    broken.write_bytes(b"damaged")
    data = _set_up(VideoList(str(lists), **BOTH | {"batch_size": 3}))
    (batch,) = data.predict_dataloader()
    assert isinstance(batch, PartlyBroken)
    [(place, sample)] = batch.broken
    assert (place, sample.name) == (0, str(broken))
    assert "c.mp4 cannot be decoded" in sample.reason
    _, names = batch.batch
    assert list(names) == [str(lists / "videos" / "d.mp4")]


def test_broken_video_is_left_out_on_request(lists: Path) -> None:
    (lists / "videos" / "c.mp4").write_bytes(b"damaged")
    data = _set_up(VideoList(str(lists), skip_broken=True, **BOTH | {"batch_size": 3}))
    for loader, labels in (
        (data.train_dataloader(), [0, 1]),
        (data.val_dataloader(), [1]),
        (data.test_dataloader(), [1]),
    ):
        with pytest.warns(UserWarning, match=r"skipped: .*c\.mp4 cannot be decoded as a video"):
            ((frames, targets),) = loader
        assert len(frames) == len(labels)
        assert sorted(targets.tolist()) == labels


def test_missing_video_is_never_left_out(lists: Path) -> None:
    (lists / "videos" / "c.mp4").unlink()
    with pytest.raises(MissingError, match=r"there is no video .*c\.mp4; correct the list"):
        _set_up(VideoList(str(lists), skip_broken=True, **BOTH)).train_set[1]


def test_nothing_can_be_decoded(lists: Path) -> None:
    for file in (lists / "videos").iterdir():
        write_sound(file)
    data = _set_up(VideoList(str(lists), skip_broken=True, **BOTH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="no video can be used; check the files named in the warnings"):
            list(data.train_dataloader())


def test_arrays_are_read_like_files(lists: Path) -> None:
    file = lists / "videos" / "a b.mp4"
    with VideoFile(file) as video:
        array = video.read(np.arange(20))
    data = VideoDataModule(**BOTH | {"test_views": 3})
    data.use_sources([file, array])
    (from_file, name), (from_array, number) = data.predict_set[0], data.predict_set[1]  # type: ignore[index]
    assert (name, number) == (str(file), "array 1")
    assert from_file.shape == (3, 4, 3, 32, 32)
    assert torch.equal(from_file, from_array)
    for wrong, message in (
        (
            array[0],
            r"array 0 has the shape \(48, 64, 3\) and the dtype uint8; expected RGB frames \(T, H, W, 3\) uint8",
        ),
        (array / 255, "the dtype float64; expected RGB frames"),
        (array[:1], r"array 0 has too few frames \(1\); a clip needs at least two"),
    ):
        data.use_sources(wrong)
        sample = data.predict_set[0]  # type: ignore[index]
        assert isinstance(sample, Broken)
        assert re.search(message, sample.reason)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Lists of folders of frames, whose brightness encodes their number."""
    for name, count in (("one", 6), ("two", 9)):
        (tmp_path / name).mkdir()
        for i, pixels in enumerate(numbered(count), start=1):
            Image.fromarray(pixels).save(tmp_path / name / f"img_{i:05}.jpg", quality=95)
    for name in ("train", "val"):
        write_list(tmp_path, name, ["one 6 0", "two 9 1"])
    return tmp_path


def test_folders_of_frames(frames: Path) -> None:
    data = _set_up(FrameList(str(frames), sampling="uniform", **BOTH))
    assert [_numbers(data.val_set[i][0]) for i in range(2)] == [[0, 2, 3, 5], [1, 3, 5, 7]]
    assert [label for _, label in data.val_set.samples] == [0, 1]
    assert data.predict_set.samples[0][1] == str(frames / "one")


def test_prediction_of_folders_of_frames(frames: Path) -> None:
    for path, names in ((frames, ["one", "two"]), (frames / "two", ["two"])):
        data = FrameList(sampling="uniform", predict_path=str(path), **BOTH)
        data.setup("predict")
        assert [name for _, name in data.predict_set.samples] == [str(frames / name) for name in names]
        assert len(data.predict_set.samples[-1][0]) == 9
    with pytest.raises(
        MissingError, match=r"has no folder with a frame frame_1\.png; give another one, or set --data\.template"
    ):
        FrameList(predict_path=str(frames), template="frame_{}.png", **BOTH).setup("predict")


def test_wrong_folders_of_frames(frames: Path) -> None:
    (frames / "two" / "img_00004.jpg").unlink()
    with pytest.raises(
        MissingError, match=r"there is no frame .*two/img_00004\.jpg, of 9; correct the list or --data\.template"
    ):
        _set_up(FrameList(str(frames), sampling="uniform", **BOTH)).val_set[1]
    Image.new("RGB", (9, 9)).save(frames / "two" / "img_00004.jpg")
    with pytest.raises(InputError, match="two has images of different sizes"):
        FrameFolder(frames / "two", 9).read(np.array([2, 3]))
    write_list(frames, "train", ["one 6 0", "two 1 1"])
    with pytest.raises(InputError, match=r"two has too few frames \(1\); a clip needs at least two"):
        FrameList(str(frames), **BOTH).prepare_data()
    write_list(frames, "train", ["one 0"])
    with pytest.raises(InputError, match=r"train\.csv, line 1: got 'one 0'; expected 'folder frames label'"):
        FrameList(str(frames), **BOTH).prepare_data()


def test_class_folders(tmp_path: Path) -> None:
    data = _set_up(VideoFolder(str(write_colors(tmp_path, train=3, val=1)), **BOTH))
    assert data.classes == ["blue", "green", "red"]
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (9, 3, 3)
    clip, label = data.val_set[2]
    assert label == 2
    assert clip.float().mean(dim=(0, 2, 3)).argmax() == 0
    with pytest.raises(MissingError, match=r"expected .*<class>/\*\.mp4"):
        VideoFolder(str(tmp_path / "no"), **BOTH).prepare_data()


def test_videos_below_a_folder(tmp_path: Path) -> None:
    for name in ("b.MKV", "a.mp4", "deep/c.avi", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in video_files(tmp_path)] == ["a.mp4", "b.MKV", "c.avi"]
    with pytest.raises(MissingError, match="neither a file nor a folder; give videos"):
        video_files(tmp_path / "no")


@pytest.mark.parametrize(
    "options",
    [
        {"test_views": 0},
        {"short_side": 16},
        {"num_frames": 0},
        {"sampling": "some"},
        {"mean": (0.5,)},
        {"std": (1, 0, 1)},
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(options))}="):
        VideoFolder("videos", **BOTH | options)
