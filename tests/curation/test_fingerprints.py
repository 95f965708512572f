"""Fingerprints of videos: what the thumbnails hold, files that cannot be read, and the file that stores them."""

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mvd_hf.curation import fingerprints as module
from mvd_hf.curation import workers
from mvd_hf.curation.fingerprints import (
    COLUMNS,
    FingerprintSettings,
    VideoFingerprint,
    fingerprint_of_row,
    flat,
    read_fingerprints,
    thumbnail,
    thumbnail_positions,
    unreadable,
)
from mvd_hf.curation.workers import Journal, read_results
from mvd_hf.data.decoding import read_frames
from mvd_hf.data.sources import load_rows, write_table
from mvd_hf.data.toy import toy_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    """Contents of small files: two videos, a black one, one of a single frame, and no video."""
    folder = tmp_path_factory.mktemp("contents")
    for name, num_frames in (("a", 24), ("b", 40), ("single", 1)):
        write_video(
            folder / f"{name}.mp4", toy_frames("dots", "up", num_frames, 32, 48, np.random.default_rng(num_frames))
        )
    write_video(folder / "black.mp4", np.zeros((20, 32, 48, 3), dtype=np.uint8))
    (folder / "text").write_text("<html>404 not found</html>", encoding="utf-8")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def rows_of(folder: Path, contents: dict[str, bytes | None]) -> datasets.Dataset:
    """Rows of files in a folder; `None` for one that is missing."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return datasets.Dataset.from_dict(
        {"video": [{"path": str(folder / name), "bytes": None} for name in contents]},
    )


def assert_same(one: VideoFingerprint, other: VideoFingerprint):
    for item in dataclasses.fields(VideoFingerprint):
        np.testing.assert_array_equal(getattr(one, item.name), getattr(other, item.name))


@pytest.fixture
def count_reads(monkeypatch):
    """Names of the files that are read, in the order of the jobs."""
    read = []
    guarded = workers.run_guarded

    def counting(function, jobs, *args):
        def counted():
            for key, item in jobs:
                read.append(Path(item["path"]).name)
                yield key, item

        return guarded(function, counted(), *args)

    monkeypatch.setattr(workers, "run_guarded", counting)
    return read


# thumbnails


def test_a_thumbnail_holds_the_mean_gray_of_each_cell():
    frame = np.zeros((24, 36, 3), dtype=np.uint8)
    frame[:, 18:] = 200
    frame[0, 0] = 255  # one of the six pixels of a cell
    found = thumbnail(frame)
    assert found.shape == (12, 12)
    assert found.dtype == np.uint16
    assert (found[:, 6:] == 200 * 257).all()
    assert found[0, 0] == round(255 / 6 * 257)  # which 8 bits could not hold
    assert found[1:, :6].max() == 0


def test_thumbnails_are_evenly_spaced_from_the_first_frame_to_the_last():
    counts = {(1, 25): 1, (3, None): 3, (16, 30): 16, (60, 30): 16, (120, 30): 28, (120, 15): 56, (9000, 30): 64}
    for (num_frames, fps), expected in {**counts, (280, None): 64}.items():
        positions = thumbnail_positions(num_frames, fps, 64)
        assert len(positions) == expected == len(set(positions))
        assert (positions[0], positions[-1]) == (0, num_frames - 1)
        assert expected == 1 or np.ptp(np.diff(positions)) <= 1


def test_fingerprints_of_a_data_set(tmp_path, videos):
    names = ("a", "black", "text", "missing", "b", "single")
    contents = {name: videos.get(name) for name in names}
    rows = rows_of(tmp_path, contents)
    rows = datasets.concatenate_datasets([rows, datasets.Dataset.from_list([{"video": None}], features=rows.features)])
    found = read_fingerprints(rows)
    assert [Path(fingerprint.file).name for fingerprint in found] == [*names, "row 6"]
    assert [fingerprint.num_frames for fingerprint in found] == [24, 20, 0, 0, 40, 1, 0]
    assert found[0].fps == 25
    assert found[0].bytes == len(videos["a"])
    assert len(found[4].thumbnails) == len(found[4].positions) == 16
    assert flat(found) == [str(tmp_path / "black")]
    reasons = unreadable(found)
    assert [Path(name).name for name in reasons] == ["text", "missing", "row 6"]
    assert "cannot be opened" in reasons[str(tmp_path / "text")]
    assert reasons[str(tmp_path / "missing")] == "no such file"
    assert "neither a path nor bytes" in reasons["row 6"]


def test_thumbnails_are_those_of_the_frames(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos["a"])
    (found,) = read_fingerprints(rows_of(tmp_path, {"a.mp4": None}))
    frames = read_frames(tmp_path / "a.mp4", found.positions)
    np.testing.assert_array_equal(found.thumbnails, [thumbnail(frame) for frame in frames])


def test_large_frames_are_read_in_parts(tmp_path, videos, monkeypatch):
    rows = rows_of(tmp_path, {"b": videos["b"]})
    (whole,) = read_fingerprints(rows)
    sizes = []
    reader = module.open_media(rows[0]["video"])
    with reader as opened:
        read = opened.read
        opened.read = lambda indices: sizes.append(len(indices)) or read(indices)
        monkeypatch.setattr(module, "MAX_READ_BYTES", 4 * 32 * 48 * 3)
        thumbnails = module.read_thumbnails(opened, whole.positions)
    assert sizes == [1, 4, 4, 4, 3]
    np.testing.assert_array_equal(thumbnails, whole.thumbnails)


def test_a_video_of_which_few_frames_show_something_is_flat():
    thumbnails = np.zeros((20, 12, 12), dtype=np.uint16)
    thumbnails[:3, :6] = 60_000
    assert VideoFingerprint("mostly black", num_frames=20, thumbnails=thumbnails).is_flat
    thumbnails[:4, :6] = 60_000
    assert not VideoFingerprint("less black", num_frames=20, thumbnails=thumbnails).is_flat
    assert not VideoFingerprint("unreadable", reason="no such file").is_flat


def test_images_are_videos_of_one_frame(tmp_path):
    Image.fromarray(toy_frames("rings", "up", 1, 40, 40, np.random.default_rng(0))[0]).save(tmp_path / "a.png")
    column = {"image": [{"path": str(tmp_path / "a.png"), "bytes": None}]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    (found,) = read_fingerprints(datasets.Dataset.from_dict(column, features=features))
    assert (found.num_frames, found.fps, found.thumbnails.shape) == (1, None, (1, 12, 12))


def test_a_video_that_takes_too_long_is_given_up_by_name(tmp_path, videos):
    rows = rows_of(tmp_path, {"a": videos["a"]})
    (found,) = read_fingerprints(rows, FingerprintSettings(time_limit=1e-6))
    assert "within" in found.reason
    assert found.bytes == len(videos["a"])


def test_settings_that_cannot_be():
    for name, value in (("max_thumbnails", 8), ("max_thumbnails", 1000), ("workers", 0), ("time_limit", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            FingerprintSettings(**{name: value})


def test_a_data_set_without_rows():
    features = datasets.Features({"video": datasets.Video(decode=False)})
    with pytest.raises(ValueError, match="names no video"):
        read_fingerprints(datasets.Dataset.from_dict({"video": []}, features=features))


# the file


def test_fingerprints_are_stored_and_each_video_is_read_once(tmp_path, videos, count_reads):
    rows = rows_of(tmp_path / "videos", {"a": videos["a"], "b": videos["b"], "text": videos["text"]})
    cache = tmp_path / "new" / "fingerprints.csv"
    first = read_fingerprints(rows, cache=cache)
    assert count_reads == ["a", "b", "text"]
    assert not Path(f"{cache}.partial").exists()
    assert sorted(found.num_frames for found in read_results(cache, COLUMNS, fingerprint_of_row)) == [0, 24, 40]
    second = read_fingerprints(rows, cache=cache)
    assert count_reads == ["a", "b", "text", "text"]  # what could not be read is tried again
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


def test_a_changed_file_or_other_settings_are_read_again(tmp_path, videos, count_reads):
    rows = rows_of(tmp_path / "videos", {"a": videos["a"], "b": videos["b"]})
    cache = tmp_path / "fingerprints.csv"
    read_fingerprints(rows, cache=cache)
    (tmp_path / "videos" / "a").write_bytes(videos["single"])
    assert read_fingerprints(rows, cache=cache)[0].num_frames == 1
    assert count_reads == ["a", "b", "a"]
    assert read_fingerprints(rows, cache=cache)[0].num_frames == 1
    assert count_reads == ["a", "b", "a"]
    read_fingerprints(rows, FingerprintSettings(max_thumbnails=32), cache=cache)
    assert count_reads == ["a", "b", "a", "a", "b"]


def test_several_data_sets_share_a_file(tmp_path, videos, count_reads):
    cache = tmp_path / "fingerprints.csv"
    train = rows_of(tmp_path / "train", {"a": videos["a"]})
    validation = rows_of(tmp_path / "validation", {"a": videos["b"]})
    for _ in range(2):
        found = [read_fingerprints(rows, cache=cache)[0].num_frames for rows in (train, validation)]
        assert found == [24, 40]
    assert count_reads == ["a", "a"]


def test_an_interrupted_run_continues_where_it_ended(tmp_path, videos, count_reads, monkeypatch):
    rows = rows_of(tmp_path / "videos", {"a": videos["a"], "b": videos["b"], "single": videos["single"]})
    cache = tmp_path / "fingerprints.csv"
    add, added = Journal.add, []

    def interrupt(self, fingerprint):
        add(self, fingerprint)
        added.append(fingerprint.file)
        if len(added) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            read_fingerprints(rows, FingerprintSettings(workers=1), cache=cache)
    assert not cache.exists()
    partial = Path(f"{cache}.partial")
    partial.write_bytes(partial.read_bytes() + b"/videos/cut,12")  # a line that was being written
    count_reads.clear()
    found = read_fingerprints(rows, cache=cache)
    assert count_reads == ["single"]
    assert [fingerprint.num_frames for fingerprint in found] == [24, 40, 1]
    assert len(read_results(cache, COLUMNS, fingerprint_of_row)) == 3


def test_contents_in_memory_are_distinguished_by_hash(tmp_path, videos):
    cache = tmp_path / "fingerprints.csv"
    features = datasets.Features({"video": datasets.Video(decode=False)})

    def rows(content: bytes) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"video": [{"path": "0.mp4", "bytes": content}]}, features=features)

    for name, expected in (("a", 24), ("b", 40), ("a", 24)):
        (found,) = read_fingerprints(rows(videos[name]), cache=cache)
        assert (found.file, found.num_frames) == ("0.mp4", expected)
        assert len(found.hash) == 32


def test_a_file_of_another_kind_or_a_damaged_one_is_refused_and_left_alone(tmp_path, videos):
    cache, header = tmp_path / "fingerprints.csv", ",".join(module.COLUMNS)
    rows = rows_of(tmp_path / "videos", {"a": videos["a"]})
    for content, message in {
        "file,label\na,1\n": r"fingerprints\.csv",
        f"{header}\na,,12,,24,25.0,64,AAAA\n": r"Line 2 of .*fingerprints\.csv",
        f"{header}\na,,12,,many,25.0,64,AAAA\n": "Line 2 of .*'many'",
    }.items():
        cache.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_fingerprints(rows, cache=cache)
        assert cache.read_text(encoding="utf-8") == content
        assert not Path(f"{cache}.partial").exists()


def test_thumbnails_survive_packing():
    thumbnails = np.random.default_rng(0).integers(0, 65536, (9, 12, 12), dtype=np.uint16)
    np.testing.assert_array_equal(module.unpack(module.pack(thumbnails)), thumbnails)
    with pytest.raises(ValueError, match="not thumbnails"):
        module.unpack("no base64!")


def test_the_longest_fingerprint_fits_in_a_line_of_the_file(tmp_path):
    thumbnails = np.random.default_rng(0).integers(0, 65536, (320, 12, 12), dtype=np.uint16)
    fingerprint = VideoFingerprint("a", num_frames=4000, fps=25.0, max_thumbnails=320, thumbnails=thumbnails)
    write_table(tmp_path / "fingerprints.csv", [module.row_of(fingerprint)], module.COLUMNS)
    (found,) = read_results(tmp_path / "fingerprints.csv", COLUMNS, fingerprint_of_row)
    assert_same(found, fingerprint)


def test_a_folder_with_labels(tmp_path, videos):
    for name in ("walk/a.mp4", "run/b.mp4"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(videos[path.stem])
    found = read_fingerprints(load_rows(str(tmp_path)))
    assert sorted(fingerprint.num_frames for fingerprint in found) == [24, 40]
