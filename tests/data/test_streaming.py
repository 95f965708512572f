"""Streamed clips: rows divided among processes and workers, epochs, resuming, unreadable videos."""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch

from launching import warm_server
from mvd_hf.data.augmentation import PretrainingAugmentation
from mvd_hf.data.clips import ClipSampler, collate_clips
from mvd_hf.data.masking import tube_mask
from mvd_hf.data.sources import load_rows
from mvd_hf.data.streaming import StreamingClips, part_of
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.video_reading import VideoReader, VideoReadError

FRAMES = partial(pretraining_frames, num_frames=2, stride=2)
MASK = partial(tube_mask, (1, 4, 4), 0.75)
CLIP_SAMPLER = ClipSampler(FRAMES, PretrainingAugmentation([16]), MASK)


class NumberOnly:
    """A clip_sampler that gives the number in a file's name, and reads no file."""

    def __call__(self, item, generator, is_image=False) -> list[dict[str, torch.Tensor]]:
        draw = torch.rand((), generator=generator)
        return [{"number": torch.tensor(int(Path(item["path"]).stem)), "draw": draw}]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> list[str]:
    """Paths of 6 videos of 8 frames, named by their number."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy_dataset(folder, num_train=6, num_validation=0, num_frames=8, height=32, width=40)
    return sorted(map(str, folder.glob("train/*.mp4")))


def read_shards(shards: list[list[str]]):
    for path in itertools.chain(*shards):
        yield {"video": {"path": path, "bytes": None}, "label": int(Path(path).stem)}


def stream_of(*shards: list[str]) -> datasets.IterableDataset:
    """A stream of videos with as many shards as there are lists; the label is the number in the file's name."""
    features = datasets.Features({"video": datasets.Video(decode=False), "label": datasets.Value("int64")})
    return datasets.IterableDataset.from_generator(
        read_shards, features=features, gen_kwargs={"shards": list(shards)}
    ).decode(False)


def numbered(*sizes: int) -> datasets.IterableDataset:
    """A stream of rows 0, 1, ... with shards of these sizes."""
    numbers = iter(range(sum(sizes)))
    return stream_of(*([f"{next(numbers)}.mp4" for _ in range(size)] for size in sizes))


def loader_of(data: StreamingClips, batch_size: int = 1, workers: int = 0, **options) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        data, batch_size=batch_size, num_workers=workers, collate_fn=collate_clips, **options
    )


def epoch_of(
    rows, size: int, *, processes: int = 1, workers: int = 0, batch_size: int = 1, epoch: int = 0, **options
) -> list[list[list[int]]]:
    """Numbers of the rows that each process trains on, as batches."""
    data = StreamingClips(rows, NumberOnly(), size, **options)
    numbers = []
    for process in range(processes):
        data.begin_epoch(epoch, batch_size=batch_size, process=process, num_processes=processes)
        numbers.append([batch["number"].tolist() for batch in loader_of(data, batch_size, workers)])
    return numbers


def flat(numbers) -> list[int]:
    return [number for process in numbers for batch in process for number in batch]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (7, 2, 3), (1,) * 12])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_parts_of_a_stream_are_its_rows_once_each(sizes, num_parts, shuffled):
    rows = numbered(*sizes)
    rows = rows.shuffle(seed=3, buffer_size=4) if shuffled else rows
    parts = [[row["label"] for row in part_of(rows, part, num_parts)] for part in range(num_parts)]
    assert sorted(itertools.chain(*parts)) == list(range(12))


def test_of_a_single_shard_whole_blocks_are_taken():
    parts = [[row["label"] for row in part_of(numbered(10), part, 3, block_size=2)] for part in range(3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5]]


def test_of_several_shards_that_readers_share_single_rows_are_taken():
    parts = [[row["label"] for row in part_of(numbered(4, 4), part, 4, block_size=4)] for part in range(4)]
    assert parts == [[0, 2], [4, 6], [1, 3], [5, 7]]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(36,), (1,) * 36], ids=["one shard", "many shards"])
def test_an_epoch_has_every_row_once(sizes, processes):
    for workers in (0, 1, 2, 3):
        rows = epoch_of(numbered(*sizes), 36, processes=processes, workers=workers, shuffle_buffer=8)
        assert sorted(flat(rows)) == list(range(36)), workers
        assert len({len(batches) for batches in rows}) == 1


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("size", [24, 29])
def test_of_a_single_shard_no_row_comes_twice_however_batches_fall_on_workers(processes, workers, size):
    rows = epoch_of(numbered(size), size, processes=processes, workers=workers, batch_size=4)
    whole = size // (4 * processes)
    assert [[len(batch) for batch in batches] for batches in rows] == [[4] * whole] * processes
    assert max(Counter(flat(rows)).values()) == 1


@pytest.mark.parametrize("shuffle_buffer", [1, 4])
def test_with_uneven_shards_a_reader_keeps_to_its_own_and_begins_them_again(shuffle_buffer):
    """All batches are whole and readers share no row; those with few rows repeat them, those with many leave some."""
    data = StreamingClips(numbered(9, 3), NumberOnly(), 12, shuffle_buffer=shuffle_buffer)
    seen = []
    for process in range(2):
        data.begin_epoch(0, batch_size=2, process=process, num_processes=2)
        batches = list(loader_of(data, 2))
        assert [len(batch["number"]) for batch in batches] == [2, 2, 2]
        columns = [torch.cat([batch[key] for batch in batches]).tolist() for key in ("number", "draw")]
        seen.append(list(zip(*columns, strict=True)))
    first, second = ({number for number, _ in rows} for rows in seen)
    assert not first & second
    few, many = sorted(seen, key=lambda rows: len({number for number, _ in rows}))
    assert sorted(number for number, _ in few) == [9, 9, 10, 10, 11, 11]
    assert len(set(few)) == 6  # with other draws each time
    assert len({number for number, _ in many}) == 6
    assert {number for number, _ in many} < set(range(9))


def test_over_the_epochs_uneven_shards_that_fit_the_buffer_are_seen_whole():
    seen = set()
    for epoch in range(12):
        seen.update(flat(epoch_of(numbered(9, 3), 12, processes=2, batch_size=2, epoch=epoch, shuffle_buffer=9)))
    assert seen == set(range(12))


@pytest.mark.parametrize("shuffle_buffer", [0, 1])
def test_without_a_buffer_the_order_is_the_streams(shuffle_buffer):
    rows = numbered(3, 3, 4)
    for epoch in (0, 1):
        assert flat(epoch_of(rows, 10, epoch=epoch, shuffle_buffer=shuffle_buffer)) == list(range(10))


def test_each_epoch_and_seed_has_an_order_of_its_own():
    def order(**options):
        return tuple(flat(epoch_of(numbered(6, 6), 12, shuffle_buffer=5, **options)))

    orders = {order(epoch=epoch, seed=seed) for epoch in range(3) for seed in range(2)}
    assert len(orders) == 6
    assert order(epoch=2, seed=1) in orders


def test_items_are_those_of_the_shape_of_other_data_sets(toy):
    data = StreamingClips(stream_of(toy), CLIP_SAMPLER, 6, label_column="label", shuffle_buffer=0)
    items = list(data)
    assert [item["labels"].item() for item in items] == list(range(6))
    assert {key: (tuple(value.shape), value.dtype) for key, value in items[0].items()} == {
        "pixel_values": ((2, 3, 16, 16), torch.uint8),
        "bool_masked_pos": ((16,), torch.bool),
        "labels": ((), torch.int64),
    }


def test_several_clips_of_a_video_come_together(toy):
    clip_sampler = ClipSampler(FRAMES, PretrainingAugmentation([16]), MASK, repeats=3)
    data = StreamingClips(stream_of(toy), clip_sampler, 6, label_column="label", shuffle_buffer=0)
    data.begin_epoch(0, batch_size=2)
    labels = [batch["labels"].tolist() for batch in loader_of(data, 2)]
    assert labels == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 4, 5, 5, 5]]


def by_label(data: StreamingClips, **loader) -> dict[int, dict]:
    batches = [
        {key: value[i] for key, value in batch.items()}
        for batch in loader_of(data, **loader)
        for i in range(len(batch["labels"]))
    ]
    return {item["labels"].item(): item for item in batches}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_clip_of_a_file_depends_on_seed_and_epoch_alone(toy):
    def clips(epoch=0, seed=0, workers=0, shards=(6,), **options):
        paths = iter(toy)
        rows = stream_of(*([next(paths) for _ in range(size)] for size in shards))
        data = StreamingClips(rows, CLIP_SAMPLER, 6, label_column="label", seed=seed, **options)
        data.begin_epoch(epoch)
        return by_label(data, workers=workers)

    reference = clips()
    for same in (clips(workers=2), clips(shards=(3, 3), workers=1), clips(shuffle_buffer=0)):
        assert same.keys() == reference.keys() == set(range(6))
        assert all(equal(same[label], reference[label]) for label in reference)
    for other in (clips(epoch=1), clips(seed=1)):
        for label in reference:
            assert not torch.equal(other[label]["pixel_values"], reference[label]["pixel_values"])
            assert not torch.equal(other[label]["bool_masked_pos"], reference[label]["bool_masked_pos"])


@pytest.mark.parametrize(
    ("persistent", "context"), [(False, None), (True, None), pytest.param(True, "forkserver", marks=pytest.mark.slow)]
)
def test_workers_see_each_epoch_begin(toy, persistent, context):
    data = StreamingClips(stream_of(toy[:3], toy[3:]), CLIP_SAMPLER, 6, label_column="label", shuffle_buffer=3)
    alone = StreamingClips(stream_of(toy[:3], toy[3:]), CLIP_SAMPLER, 6, label_column="label", shuffle_buffer=3)
    context = context and warm_server()
    loader = loader_of(data, workers=2, persistent_workers=persistent, multiprocessing_context=context)
    seen = []
    for epoch in (0, 1, 5):
        data.begin_epoch(epoch)
        alone.begin_epoch(epoch)
        expected = by_label(alone)
        batches = list(loader)
        assert len(batches) == 6
        for batch in batches:
            item = {key: value[0] for key, value in batch.items()}
            assert equal(item, expected[item["labels"].item()])
        seen.append([batch["labels"].item() for batch in batches])
    assert seen[0] != seen[1] or seen[1] != seen[2]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_resuming_gives_the_rest_of_the_epoch(toy, processes, workers):
    data = StreamingClips(stream_of(toy, toy, toy), CLIP_SAMPLER, 18, label_column="label", shuffle_buffer=4)
    for process in range(processes):
        place = {"batch_size": 3, "process": process, "num_processes": processes}
        data.begin_epoch(2, **place)
        whole = list(loader_of(data, 3, workers))
        for skipped in (1, 2, len(whole)):
            data.begin_epoch(2, **place, skipped_batches=skipped)
            rest = list(loader_of(data, 3, workers))
            assert rest[:skipped] == [None] * skipped
            assert len(rest) == len(whole)
            assert all(equal(one, other) for one, other in zip(rest[skipped:], whole[skipped:], strict=True))


def test_what_is_skipped_is_not_decoded(toy, monkeypatch):
    decoded = []
    decode = VideoReader.decode
    monkeypatch.setattr(VideoReader, "decode", lambda self, *args: decoded.append(self.source) or decode(self, *args))
    data = StreamingClips(stream_of(toy), CLIP_SAMPLER, 6, shuffle_buffer=0)
    data.begin_epoch(0, batch_size=2, skipped_batches=2)
    list(loader_of(data, 2))
    assert decoded == toy[4:]


def test_an_unreadable_video_ends_the_stream_by_name(toy, tmp_path):
    (tmp_path / "9.mp4").write_bytes(b"no video")
    data = StreamingClips(stream_of([toy[0], str(tmp_path / "9.mp4")]), CLIP_SAMPLER, 2, shuffle_buffer=0)
    with pytest.raises(VideoReadError, match=r"9\.mp4: cannot be opened as a video"):
        list(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_videos_are_skipped_and_told(toy, tmp_path, workers):
    (tmp_path / "9.mp4").write_bytes(b"no video")
    paths = [*toy[:3], str(tmp_path / "9.mp4")]
    data = StreamingClips(
        stream_of(paths), CLIP_SAMPLER, 4, label_column="label", on_bad_video="skip", shuffle_buffer=0
    )
    data.begin_epoch(0, batch_size=2)
    first, second = loader_of(data, 2, workers)
    assert first["labels"].tolist() == [0, 1]
    assert second["labels"].tolist() == [2]
    ((file, reason),) = second["bad_videos"]
    assert file == paths[3]
    assert reason.startswith("cannot be opened as a video")
    sound = StreamingClips(stream_of(paths[:3]), CLIP_SAMPLER, 3, label_column="label")
    assert torch.equal(second["pixel_values"][0], by_label(sound)[2]["pixel_values"])
    data.begin_epoch(0)
    assert list(loader_of(data))[3]["is_blank"] is True


def test_rules_that_a_stream_cannot_follow_are_refused(toy):
    with pytest.raises(ValueError, match="no other video at hand for on_bad_video='substitute'; choose 'skip'"):
        StreamingClips(stream_of(toy), CLIP_SAMPLER, 6, on_bad_video="substitute")
    with pytest.raises(ValueError, match="no on_bad_video='ignore'; choose raise, skip, substitute"):
        StreamingClips(stream_of(toy), CLIP_SAMPLER, 6, on_bad_video="ignore")


def test_an_empty_stream_is_refused(toy):
    with pytest.raises(ValueError, match="data set is empty"):
        StreamingClips(stream_of([]), CLIP_SAMPLER, 6)
    with pytest.raises(ValueError, match="data set is empty"):
        StreamingClips(stream_of(toy), CLIP_SAMPLER, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_readers_than_videos_are_refused(workers):
    data = StreamingClips(numbered(2), NumberOnly(), 8)
    data.begin_epoch(0, process=2, num_processes=3)
    iterator = iter(loader_of(data, 1, workers))
    with pytest.raises(ValueError, match="Reader 3 of 3 finds no video in the stream: use fewer processes or workers"):
        next(iterator)
    assert list(iterator) == []  # which lets the worker end


def test_the_length_is_that_of_this_processes_epoch():
    data = StreamingClips(numbered(23), NumberOnly(), 23)
    assert (len(data), data.size) == (23, 23)
    data.begin_epoch(0, batch_size=4, num_processes=2)
    assert len(data) == 8
    assert len(loader_of(data, 4)) == 2
    data.begin_epoch(0, batch_size=4, num_batches=7, num_processes=2)
    assert len(data) == 28
    assert len(list(data)) == 28


def test_a_stream_longer_than_its_rows_begins_them_again_with_other_draws():
    data = StreamingClips(numbered(3), NumberOnly(), 7, shuffle_buffer=0)
    items = list(data)
    assert [item["number"].item() for item in items] == [0, 1, 2, 0, 1, 2, 0]
    assert len({item["draw"].item() for item in items}) == 7


def test_labels_with_names_need_them(toy):
    rows = stream_of(toy).map(lambda row: {**row, "label": "even" if row["label"] % 2 == 0 else "odd"})
    with pytest.raises(ValueError, match="names such as 'even': give label_names"):
        StreamingClips(rows, CLIP_SAMPLER, 6, label_column="label")
    data = StreamingClips(rows, CLIP_SAMPLER, 6, label_column="label", label_names=["odd", "even"], shuffle_buffer=0)
    assert [item["labels"].item() for item in data] == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_is_streamed_whole(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    for shard in range(3):
        items = [{"path": f"{4 * shard + i}.mp4", "bytes": b"x"} for i in range(4)]
        rows = datasets.Dataset.from_dict({"video": items}).cast_column("video", datasets.Video(decode=False))
        rows.to_parquet(tmp_path / f"train-{shard}.parquet")
    rows = load_rows(str(tmp_path), streaming=True)
    assert rows.num_shards == 3
    assert sorted(flat(epoch_of(rows, 12, workers=workers and 3, shuffle_buffer=5))) == list(range(12))
