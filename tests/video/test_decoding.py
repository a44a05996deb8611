"""Frames of real files: the right one at any time and frame rate, rotated as the file says, and unusable files."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from small_clips import gray, number_of, numbered, write_sound, write_video

import video.decoding
from core.data.samples import read_or_skip
from core.errors import InputError, MissingError
from video.decoding import VideoFile
from video.sampling import Sampling

FORMATS = [
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"g": "7"}),
    ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=9:bframes=3"}),
    ("mkv", "libx264", {"g": "12"}),
    ("mp4", "libx265", {"x265-params": "log-level=none:keyint=12"}),
    ("webm", "libvpx-vp9", {"g": "10"}),
    ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    ("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    ("ts", "libx264", {"g": "12"}),
    ("mov", "mjpeg", {}),
    ("avi", "libx264", {"g": "12", "bf": "2"}),
    ("mp4", "libsvtav1", {"svtav1-params": "keyint=12"}),
    ("webm", "libsvtav1", {}),
    ("flv", "libx264", {"g": "12", "bf": "2"}),
    ("wmv", "wmv2", {"g": "12"}),
]


def _read(file: Path, indices: Any, **options: Any) -> Any:
    with VideoFile(file, **options) as clip:
        return clip.read(np.asarray(indices, np.int64))


def _numbers(file: Path, indices: Any) -> list[int]:
    return [number_of(frame) for frame in _read(file, indices)]


def _all(file: Path) -> Any:
    """Return all frames (N, H, W, 3), decoded from the beginning."""
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(("suffix", "codec", "options"), FORMATS, ids=lambda v: str(v))
def test_each_frame_is_the_one_asked_for(suffix: str, codec: str, options: Any, tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8) for i in range(36)]
    frames = [frame.repeat(8, 0).repeat(8, 1) for frame in noise]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    file = write_video(tmp_path / f"a.{suffix}", frames, codec=codec, pix_fmt=pix_fmt, **options)
    expected = _all(file)
    assert len(expected) == 36
    for i, frame in enumerate(expected):  # in spite of the codec each is nearest to its own
        distances = [np.abs(frame.astype(int) - other).mean() for other in frames]
        assert int(np.argmin(distances)) == i
    with VideoFile(file) as clip:
        assert len(clip) == 36
        generator = np.random.default_rng(0)
        some = [np.sort(generator.choice(36, count, replace=False)).tolist() for count in (2, 3, 4, 6, 12)]
        for indices in ([0], [35], [20, 3, 3, 34], range(36), [11, 12, 13], [8, 30], *some):
            found = clip.read(np.array(indices))
            assert found.shape == (len(indices), 48, 64, 3)
            assert np.abs(found.astype(int) - expected[list(indices)]).max() <= 2


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"bf": "0"}), ("mp4", {}), ("mkv", {}), ("ts", {})])
def test_only_what_is_needed_is_decoded(
    suffix: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in formats in which FFmpeg seeks by decoding time, which is not the presentation time."""
    file = write_video(tmp_path / f"a.{suffix}", numbered(36) * 5, g="10", **options)
    demuxed, opened = list[int](), video.decoding._open_container

    class Spy:
        def __init__(self, container: Any) -> None:
            self.container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def demux(self, stream: Any) -> Any:
            for packet in self.container.demux(stream):
                demuxed.append(1)
                yield packet

    monkeypatch.setattr(video.decoding, "_open_container", lambda path: Spy(opened(path)))
    with VideoFile(file) as clip:
        demuxed.clear()
        assert [number_of(frame) for frame in clip.read(np.array([95, 23, 151]))] == [95 % 36, 23, 151 % 36]
    assert len(demuxed) <= 3 * 12


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (66, 50), (65, 49), (33, 71), (3, 2), (161, 17)])
def test_odd_sizes(width: int, height: int, tmp_path: Path) -> None:
    ramp = np.linspace(20, 230, width)[None, :, None].repeat(height, 0).repeat(3, 2).astype(np.uint8)
    file = write_video(tmp_path / "a.mkv", [ramp] * 4, pix_fmt="yuv444p", crf="5")
    found = _read(file, [2])[0]
    assert found.shape == (height, width, 3)
    assert np.abs(found.astype(int) - ramp).max() < 16


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_rotation_flag(rotation: int, tmp_path: Path) -> None:
    pixels = np.full((32, 64, 3), 40, np.uint8)
    pixels[:8, :16] = 220  # a bright corner at the top left
    file = write_video(tmp_path / "a.mp4", [pixels] * 4, rotation=rotation)
    assert np.abs(_read(file, [1])[0].astype(int) - np.rot90(pixels, rotation // 90)).mean() < 6


def test_rotation_flag_of_a_phone(tmp_path: Path) -> None:
    """The matrix that phones write if the picture is to be rotated clockwise by 90 degrees."""
    pixels = np.full((32, 64, 3), 40, np.uint8)
    pixels[:8, :16] = 220
    file = write_video(tmp_path / "a.mp4", [pixels] * 4, rotation=-90)
    content = file.read_bytes()
    start = content.index(b"tkhd") + 4 + 4 + 36  # version and flags, then 36 bytes up to the matrix
    a, b, _, c, d = np.frombuffer(content[start : start + 20], ">i4") / 65_536
    assert [a, b, c, d] == [0, 1, -1, 0]
    assert np.argwhere(_read(file, [1])[0][:, :, 0] > 150)[:, 1].min() > 15  # the corner is at the top right


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 4, 5, 30, 31, 32, 33]  # the sixth frame is on the screen for most of the time
    for suffix in ("mp4", "mkv"):
        file = write_video(tmp_path / f"a.{suffix}", numbered(10), times=times)
        middles = (np.arange(10) + 0.5) * 3.4
        expected = [int(np.searchsorted(times, middle, side="right")) - 1 for middle in middles]
        assert _numbers(file, range(10)) == expected
        assert expected.count(5) == 8


def test_video_that_begins_late(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", numbered(12), times=range(40, 52), g="4")
    assert _numbers(file, [0, 5, 11]) == [0, 5, 11]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_very_short_clips(count: int, tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", numbered(count))
    for sampling in (Sampling(), Sampling(mode="uniform")):
        for indices in (sampling.center(count), sampling.random(count)):
            assert _numbers(file, indices) == indices.tolist()


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", numbered(3, (120, 90)))
    assert _read(file, [1], short_side=45).shape == (1, 45, 60, 3)
    assert _read(file, [1], short_side=100).shape == (1, 90, 120, 3)
    assert number_of(_read(file, [2], short_side=45)[0]) == 2


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.mp4 is empty; replace it$"):
        VideoFile(tmp_path / "a.mp4")


def test_sound_alone(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a\.mp4 has sound and no pictures; give a video, or take it out of the list$"
    ):
        VideoFile(write_sound(tmp_path / "a.mp4"))


def test_cover_is_no_video(tmp_path: Path) -> None:
    sound, cover = write_sound(tmp_path / "sound.mp4"), tmp_path / "a.mp4"
    with av.open(str(sound)) as source, av.open(str(cover), "w") as container:
        (track,) = source.streams.audio
        own = container.add_stream_from_template(track)
        picture: Any = container.add_stream("mjpeg", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")
        container.mux([*picture.encode(frame), *picture.encode()])
        for packet in source.demux(track):
            if packet.size:
                packet.stream = own
                container.mux(packet)
    with av.open(str(cover)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(InputError, match=r"a\.mp4 has sound and no pictures"):
        VideoFile(cover)


def test_one_frame(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mp4 has too few frames \(1\); a clip needs at least two$"):
        VideoFile(write_video(tmp_path / "a.mp4", numbered(1)))


def test_no_duration(tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for pixels in numbered(8):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                packet.pts = packet.dts = packet.duration = 0
                container.mux(packet)
    with pytest.raises(InputError, match=r"a\.mkv has 8 frames and lasts 0 s; replace it$"):
        VideoFile(file)


@pytest.mark.parametrize("content", [b"not a video at all, but text", b"\x00" * 4_096])
def test_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4 cannot be decoded as a video: .*; replace it$"):
        VideoFile(tmp_path / "a.mp4")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_file_that_is_cut_off(share: float, tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(40)]
    for flags in ({}, {"movflags": "+faststart"}):
        file = tmp_path / "a.mp4"
        with av.open(str(file), "w", options=flags) as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for pixels in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"a\.mp4 (is cut off after \d+ of 40 frames|cannot be decoded)"):
            _read(file, range(40))


def test_damage_in_the_middle_is_an_error_where_it_hides_frames(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", numbered(36), codec="mjpeg", pix_fmt="yuvj420p")
    content = bytearray(file.read_bytes())
    middle = content.index(b"mdat") + len(content) // 3
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4 cannot be decoded as a video"):
        _read(file, range(36))


def test_frame_that_is_lost_is_named_by_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_video(tmp_path / "a.mp4", numbered(36))
    monkeypatch.setattr(VideoFile, "_decode", lambda *_: {})
    with pytest.raises(InputError, match=r"a\.mp4 cannot be decoded as a video: no frame at 0\.80 s; replace it$"):
        _read(file, [20, 22])

    # The time counts from the beginning of the video, also if its times do not begin at zero.
    late = write_video(tmp_path / "late.mkv", numbered(36), times=range(40, 76))
    with pytest.raises(InputError, match=r"late\.mkv cannot be decoded as a video: no frame at 0\.80 s; replace it$"):
        _read(late, [20, 22])


def test_lost_frame_of_a_joined_file_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write_video(tmp_path / "a.ts", numbered(12), g="4").read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part + part)

    monkeypatch.setattr(VideoFile, "_decode", lambda *_: {})
    with pytest.raises(InputError, match=r"joined\.ts cannot be decoded as a video: no frame 20; replace it$"):
        _read(joined, [20, 22])


def test_codec_that_is_unknown(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.avi", numbered(4), codec="mjpeg", pix_fmt="yuvj420p")
    file.write_bytes(file.read_bytes().replace(b"MJPG", b"QQQQ").replace(b"mjpg", b"QQQQ"))
    with pytest.raises(InputError, match=r"^.*a\.avi has a codec that FFmpeg does not know; convert it"):
        VideoFile(file)


@pytest.mark.parametrize("suffix", ["ts", "webm"])
def test_files_that_were_joined(suffix: str, tmp_path: Path) -> None:
    """The times of the frames restart, and the second file has frames of another size."""
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    first = write_video(tmp_path / f"a.{suffix}", numbered(12), codec=codec, g="4")
    second = write_video(tmp_path / f"b.{suffix}", numbered(30, (96, 80))[12:], codec=codec, g="4")
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(first.read_bytes() + second.read_bytes())

    with VideoFile(joined) as clip:
        assert len(clip) == 30
        frames = clip.read(np.array([0, 11, 12, 29, 5]))
    assert frames.shape == (5, 48, 64, 3)
    assert [number_of(frame) for frame in frames] == [0, 11, 12, 29, 5]


@pytest.mark.parametrize("error", [AttributeError("no such thing"), RuntimeError("broken"), MemoryError("too large")])
def test_whatever_a_decoder_raises_names_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_video(tmp_path / "a.mp4", numbered(4))

    def fail(*_: Any) -> None:
        raise error

    with VideoFile(file) as clip:
        monkeypatch.setattr(VideoFile, "_decode", fail)
        with pytest.raises(InputError, match=rf"^{file} cannot be decoded as a video: {error}; replace it$"):
            clip.read(np.array([1]))

    monkeypatch.setattr(VideoFile, "_read_index", fail)
    with pytest.raises(InputError, match=rf"^{file} cannot be decoded as a video: {error}; replace it$"):
        VideoFile(file)
    with pytest.warns(UserWarning, match=f"skipped: {file}"):
        assert read_or_skip(lambda: VideoFile(file), skip_broken=True) is None


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no video .*no\.mp4; correct the list that names it"):
        VideoFile(tmp_path / "no.mp4")


def test_brightness_of_numbers() -> None:
    assert [number_of(np.full((2, 2, 3), gray(i), np.uint8)) for i in range(36)] == list(range(36))
