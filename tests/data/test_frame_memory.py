"""Frames kept in memory: the same frames, crops and refusals as from the files, read at most once."""

import pickle
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mvd_hf import MVDConfig
from mvd_hf.data import clips as clips_module
from mvd_hf.data import frame_memory
from mvd_hf.data.arguments import (
    DataArguments,
    FinetuningClipArguments,
    finetuning_clips,
    load_clips,
    pretraining_clips,
)
from mvd_hf.data.augmentation import PretrainingAugmentation
from mvd_hf.data.clips import ClipDataset, ClipSampler
from mvd_hf.data.decoding import open_media
from mvd_hf.data.frame_memory import FrameMemory
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from short_runs import counts

FRAMES = partial(pretraining_frames, num_frames=4, stride=2)
FRAME_BYTES = 48 * 64 * 3
SIZES = {"image_size": 32, "patch_size": 8, "num_frames": 4}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> list[str]:
    """Paths of 4 videos of 16 frames."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy_dataset(folder, num_train=4, num_validation=0, num_frames=16, height=48, width=64)
    return sorted(map(str, folder.glob("train/*.mp4")))


@pytest.fixture(autouse=True)
def process_memory(monkeypatch) -> FrameMemory:
    """A process that has kept nothing yet."""
    memory = FrameMemory()
    for module in (frame_memory, clips_module):
        monkeypatch.setattr(module, "PROCESS_MEMORY", memory)
    return memory


@pytest.fixture
def read(monkeypatch) -> Counter:
    """How often files are opened, and frames are decoded."""
    counts = Counter()
    open_file, decode = VideoReader.__init__, VideoReader.decode

    def counted_open(self, *args, **kwargs):
        counts["opened"] += 1
        open_file(self, *args, **kwargs)

    def counted_decode(self, indices):
        counts["frames"] += len(indices)
        return decode(self, indices)

    monkeypatch.setattr(VideoReader, "__init__", counted_open)
    monkeypatch.setattr(VideoReader, "decode", counted_decode)
    return counts


def clips(paths: list[str], memory_gib: float, frames=FRAMES) -> ClipDataset:
    rows = datasets.Dataset.from_dict({"video": paths, "label": list(range(len(paths)))})
    return ClipDataset(rows, ClipSampler(frames, PretrainingAugmentation([32, 24]), memory_gib=memory_gib))


def test_clips_are_those_of_the_files_in_every_epoch(toy, read):
    kept, decoded = clips(toy, memory_gib=1), clips(toy, memory_gib=0)
    for epoch in range(8):
        for i in range(len(toy)):
            one, other = kept[(epoch, i)], decoded[(epoch, i)]
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_frame_is_decoded_once(toy, read, monkeypatch):
    monkeypatch.setattr(frame_memory, "WHOLE_FRAMES", 0)
    data = clips(toy, memory_gib=1)
    for epoch in range(30):
        for i in range(len(toy)):
            data[(epoch, i)]
    assert read["frames"] <= 16 * len(toy)
    before = dict(read)
    for i in range(len(toy)):
        data[(3, i)]  # an epoch that was there before
    assert read == before


def test_a_short_video_is_opened_once(toy, read):
    data = clips(toy, memory_gib=1)
    for epoch in range(5):
        for i in range(len(toy)):
            data[(epoch, i)]
    assert read == {"opened": len(toy), "frames": 16 * len(toy)}


def test_of_a_long_video_only_what_is_wanted_is_decoded(toy, read, monkeypatch):
    monkeypatch.setattr(frame_memory, "WHOLE_FRAMES", 15)
    memory = FrameMemory(1)
    for indices in ([3, 4], [4, 5], [3, 4, 5]):
        with memory.open(toy[0]) as video:
            video.decode(indices)
    assert read == {"opened": 2, "frames": 3}


def test_a_damaged_frame_that_no_one_wants_does_no_harm(toy, monkeypatch):
    decode = VideoReader.read

    def without_the_last(self, indices):
        if 15 in list(indices):
            raise VideoReadError(self.source, "1 of 16 frames cannot be decoded (15)")
        return decode(self, indices)

    monkeypatch.setattr(VideoReader, "read", without_the_last)
    memory = FrameMemory(1)
    for _ in range(2):
        with memory.open(toy[0]) as video, VideoReader(toy[0]) as reader:
            assert (video.decode([3, 4]).rgb() == decode(reader, [3, 4])).all()
    with pytest.raises(VideoReadError, match=r"0000\.mp4: 1 of 16 frames cannot"), memory.open(toy[0]) as video:
        video.decode([14, 15])


def test_a_full_memory_keeps_what_it_has_and_goes_on(toy, process_memory, monkeypatch):
    monkeypatch.setattr(frame_memory, "WHOLE_FRAMES", 0)
    data = clips(toy, memory_gib=9 * FRAME_BYTES / 2**30)  # two clips of four frames and one frame
    files = clips(toy, memory_gib=0)
    for epoch in range(3):
        for i in range(len(toy)):
            assert torch.equal(data[(epoch, i)]["pixel_values"], files[(epoch, i)]["pixel_values"])
    memory = process_memory
    held = sum(frame.nbytes for video in memory.videos.values() for frame in video.frames.values())
    assert 8 * FRAME_BYTES <= held == memory.size <= 9 * FRAME_BYTES
    assert len(memory.videos) < len(toy)


def test_a_kept_video_reads_as_its_file(toy):
    memory = FrameMemory(1)
    with VideoReader(toy[0]) as reader:
        for indices in ([2, 9, 9], [9, 2], np.array([5, 2]), [15, 0]):
            with memory.open(toy[0]) as video:
                assert len(video) == len(reader) == 16
                for box in (None, (3, 4, 20, 30)):
                    assert (video.decode(indices).rgb(box) == reader.decode(indices).rgb(box)).all()


def test_bytes_are_told_apart_by_content_not_by_their_name(toy):
    contents = [Path(path).read_bytes() for path in toy[:2]]
    memory = FrameMemory(1)
    for _ in range(2):
        for path, content in zip(toy, contents, strict=False):
            with memory.open({"path": "clip.mp4", "bytes": content}) as video, VideoReader(path) as reader:
                assert (video.decode([0, 15]).rgb() == reader.read([0, 15])).all()
    assert len(memory.videos) == 2


def test_a_file_that_changed_is_read_again(toy, tmp_path):
    path, memory = tmp_path / "video.mp4", FrameMemory(1)
    for source in toy[:2]:
        path.unlink(missing_ok=True)
        path.write_bytes(Path(source).read_bytes())
        with memory.open(str(path)) as video, VideoReader(source) as reader:
            assert (video.decode([0, 15]).rgb() == reader.read([0, 15])).all()


def test_trainings_share_the_memory_of_their_process(toy, read):
    for _ in range(3):
        clips(toy[:1], memory_gib=1)[(0, 0)]
    assert read["opened"] == 1


def test_what_is_kept_does_not_travel_with_the_clips(toy):
    data = clips(toy, memory_gib=1)
    empty = len(pickle.dumps(data))
    for i in range(len(toy)):
        data[i]
    assert len(pickle.dumps(data)) == empty


def test_what_cannot_be_read_is_refused_by_name_as_from_the_file(toy, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    memory = FrameMemory(1)
    for path, indices in ((str(bad), [0]), (str(tmp_path / "missing.mp4"), [0]), (toy[0], [16])):
        with pytest.raises(VideoReadError) as expected, open_media(path) as reader:
            reader.read(indices)
        for _ in range(2):
            with pytest.raises(VideoReadError) as found, memory.open(path) as video:
                video.decode(indices)
            assert str(found.value) == str(expected.value)
    assert len(memory.videos) == 0


def test_frames_of_two_sizes_are_refused(toy, monkeypatch):
    monkeypatch.setattr(frame_memory, "WHOLE_FRAMES", 0)
    memory = FrameMemory(1)
    decode = VideoReader.read
    with memory.open(toy[0]) as video:
        video.decode([0])
    monkeypatch.setattr(VideoReader, "read", lambda self, indices: decode(self, indices)[:, :30])
    with (
        pytest.raises(VideoReadError, match=r"0000\.mp4: frames change from 64x48 to 64x30"),
        memory.open(toy[0]) as video,
    ):
        video.decode([0, 1])


def test_a_file_is_closed_after_use(toy, monkeypatch):
    closed = []
    close = VideoReader.close
    monkeypatch.setattr(VideoReader, "close", lambda self: closed.append(self.source) or close(self))
    memory = FrameMemory(1)
    with memory.open(toy[0]) as video:
        len(video), video.decode([0]), video.decode([1])
        assert not closed
    assert closed == [toy[0]]


def test_images_are_kept_too(tmp_path, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source: opened.append(source) or open_image(source))
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    memory = FrameMemory(1)
    for _ in range(2):
        with memory.open(str(path), is_image=True) as image:
            assert len(image) == 1
            assert (image.decode([0, 0]).rgb() == pixels).all()
    assert len(opened) == 1


def test_workers_give_the_same_clips(toy):
    def loaded(memory_gib: float) -> list[torch.Tensor]:
        loader = torch.utils.data.DataLoader(clips(toy, memory_gib), batch_size=None, num_workers=2)
        return [item["pixel_values"] for _ in range(2) for item in loader]

    for one, other in zip(loaded(1), loaded(0), strict=True):
        assert torch.equal(one, other)


def pretraining(data: DataArguments, evaluation: bool) -> ClipDataset:
    return pretraining_clips(data, MVDConfig.from_name("mvd-s", **SIZES), counts(), evaluation=evaluation)


def finetuning(data: DataArguments, evaluation: bool) -> ClipDataset:
    keys = FinetuningClipArguments("label", sampling="dense", flip=0.0)
    return finetuning_clips(data, keys, MVDConfig.from_name("mvd-s", **SIZES), evaluation=evaluation)


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_recipes_key_is_for_its_training_videos(toy, tmp_path, read, make):
    path = tmp_path / "videos.csv"
    path.write_text("".join(f"{video},{i}\n" for i, video in enumerate(toy)))
    data = DataArguments(str(path), eval_dataset=str(path), stride=2, memory_gib=1)
    for evaluation, opened in ((False, len(toy)), (True, 3 * len(toy))):
        read.clear()
        clips_of = make(data, evaluation)
        for epoch in range(3):
            for i in range(len(toy)):
                clips_of[(epoch, i)]
        assert read["opened"] == opened


def test_the_key_reaches_the_clips(toy, read):
    data = load_clips(str(Path(toy[0]).parent), FRAMES, PretrainingAugmentation([32]), memory_gib=1)
    for _ in range(2):
        for i in range(len(toy)):
            data[(0, i)]
    assert read["opened"] == len(toy)


def test_less_than_nothing_is_refused(toy):
    for gib in (-1, float("nan"), float("inf"), "lots"):
        with pytest.raises(ValueError, match=f"memory_gib={gib!r} must be a number of GiB, at least 0"):
            clips(toy, memory_gib=gib)
