"""Audit of a data set: what each file is found to be, duplicates, overlap, lost processes, resuming, the manifest."""

import csv
import hashlib
import importlib.util
import os
import signal
import sys
import time
import wave
from pathlib import Path

import av
import datasets
import fsspec
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from launching import ROOT, start
from mvd_hf.curation import audit, workers
from mvd_hf.curation.audit import (
    COLUMNS,
    AuditSettings,
    FileInspector,
    FileReport,
    audit_videos,
    describe_audit,
    find_overlap,
    report_of_row,
    write_manifest,
)
from mvd_hf.curation.workers import read_results
from mvd_hf.data.arguments import DataArguments
from mvd_hf.data.list_files import read_list_file
from mvd_hf.data.sources import load_rows, read_manifest
from mvd_hf.data.toy import toy_frames, write_video

RECIPE = ROOT / "recipes" / "audit.py"
SETTINGS = AuditSettings(num_frames=4, stride=2)  # a clip spans 8 frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    """Contents of files of every kind."""
    folder = tmp_path_factory.mktemp("contents")
    for name, num_frames, motion in (("long", 16, "up"), ("other", 12, "left"), ("brief", 5, "up")):
        write_video(folder / f"{name}.mp4", toy_frames("dots", motion, num_frames, 32, 48, np.random.default_rng(0)))
    with wave.open(str(folder / "sound"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    (folder / "text").write_text("<html>404 not found</html>", encoding="utf-8")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def encode(path: Path, codec: str, num_frames: int, seconds_of_sound: int = 0, is_cover: bool = False, **options):
    """Write a video without the settings of `write_video`, with silence beside it."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = 32, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if is_cover:
            stream.disposition = Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000, layout="mono") if seconds_of_sound else None
        for frame in toy_frames("dots", "up", num_frames, 32, 48, np.random.default_rng(0)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        for _ in range(8 * seconds_of_sound):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
        if sound is not None:
            container.mux(sound.encode(None))


def rows_of(folder: Path, contents: dict[str, bytes | None], labels=None) -> datasets.Dataset:
    """Rows of a list file over a folder with these files; `None` for one that is missing."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    labels = [0] * len(contents) if labels is None else labels
    lines = [f"{name} {label}\n" for name, label in zip(contents, labels, strict=True)]
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return read_list_file(folder / "list.txt")


def byte_rows(items: list[tuple[str | None, bytes | None]], feature=datasets.Video) -> datasets.Dataset:
    """Rows that hold the bytes of files."""
    cells = [None if path is content is None else {"path": path, "bytes": content} for path, content in items]
    column = {"video" if feature is datasets.Video else "image": cells}
    features = datasets.Features({name: feature(decode=False) for name in column})
    return datasets.Dataset.from_dict(column, features=features)


def statuses(reports: list[FileReport]) -> list[str]:
    return [report.status for report in reports]


def table(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# files


def test_every_status_in_the_order_of_the_data_set(tmp_path, videos):
    contents = {
        "a.mp4": videos["long"],
        "b.mp4": videos["brief"],
        "c.mp4": videos["long"],
        "d.mp4": videos["sound"],
        "e.mp4": videos["text"],
        "f.mp4": None,
        "g.mp4": b"",
    }
    reports = audit_videos(rows_of(tmp_path, contents, range(7)), SETTINGS)
    assert [report.file for report in reports] == [str(tmp_path / name) for name in contents]
    assert statuses(reports) == ["ok", "short", "duplicate", "no_video", *["unreadable"] * 3]
    assert [report.label for report in reports] == list("0123456")
    assert reports[0].reason == ""
    assert "5 frames" in reports[1].reason
    assert "spans 8" in reports[1].reason
    assert reports[2].same_as == str(tmp_path / "a.mp4")
    assert "no video stream" in reports[3].reason
    assert "cannot be opened" in reports[4].reason
    assert reports[5].reason == "no such file"
    assert [report.bytes for report in reports[3:]] == [len(videos["sound"]), len(videos["text"]), None, 0]


def test_facts_of_a_video(tmp_path, videos):
    (report,) = audit_videos(rows_of(tmp_path, {"a.mp4": videos["long"]}), SETTINGS)
    assert (report.num_frames, report.declared_frames, report.decoded_frames) == (16, 16, 5)
    assert (report.width, report.height, report.fps, report.duration) == (48, 32, 25.0, 0.64)
    assert (report.codec, report.bytes) == ("h264", len(videos["long"]))
    assert report.hash == hashlib.blake2b(videos["long"], digest_size=16).hexdigest()


def test_clip_that_fits_exactly_is_not_short(tmp_path, videos):
    rows = rows_of(tmp_path, {"a.mp4": videos["long"]})
    assert statuses(audit_videos(rows, AuditSettings(num_frames=4, stride=4))) == ["ok"]
    assert statuses(audit_videos(rows, AuditSettings(num_frames=17, stride=1))) == ["short"]


def test_what_a_container_does_not_declare_is_blank(tmp_path):
    encode(tmp_path / "raw.h264", "libx264", 10)
    encode(tmp_path / "silent.mkv", "libx264", 10)
    encode(tmp_path / "sound.mkv", "libx264", 10, seconds_of_sound=2)
    encode(tmp_path / "sound.mp4", "libx264", 10, seconds_of_sound=2)
    names = ("raw.h264", "silent.mkv", "sound.mkv", "sound.mp4")
    raw, *others = reports = [FileInspector()(str(tmp_path / name)) for name in names]
    assert [(report.status, report.num_frames, report.codec) for report in reports] == [("ok", 10, "h264")] * 4
    assert (raw.fps, raw.duration, raw.declared_frames) == (None, None, None)
    assert [report.duration for report in others] == [0.4, None, 0.4]  # that of sound.mkv may be that of its sound


def test_cover_image_is_no_video(tmp_path):
    encode(tmp_path / "a.mp4", "mjpeg", 1, seconds_of_sound=1, is_cover=True)
    report = FileInspector()(str(tmp_path / "a.mp4"))
    assert (report.status, report.codec) == ("no_video", "")


def test_only_a_thorough_audit_finds_damage_between_the_probes(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, toy_frames("dots", "up", 40, 32, 48, np.random.default_rng(0)), gop_size=1)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
        start, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    rows = rows_of(tmp_path, {"a.mp4": None})
    assert statuses(audit_videos(rows, SETTINGS)) == ["ok"]
    (report,) = audit_videos(rows, AuditSettings(thorough=True))
    assert (report.status, report.num_frames) == ("unreadable", 40)
    assert "7" in report.reason


def test_truncated_file_is_a_finding(tmp_path, videos):
    encode(tmp_path / "a.mp4", "mpeg4", 20, movflags="faststart")
    content = (tmp_path / "a.mp4").read_bytes()
    rows = rows_of(tmp_path, {"cut.mp4": content[: len(content) * 4 // 5], "whole.mp4": videos["long"]})
    reports = audit_videos(rows, SETTINGS)
    assert reports[0].num_frames < reports[0].declared_frames == 20
    (line,) = [line for line in describe_audit(reports).splitlines() if line.startswith("fewer frames")]
    assert "cut.mp4" in line
    assert "whole.mp4" not in line


def test_bytes_streams_and_rows_without_a_file(videos):
    rows = byte_rows([(None, videos["long"]), ("x.mp4", videos["other"]), (None, None), ("y.mp4", b"")])
    for some_rows in (rows, rows.to_iterable_dataset()):
        reports = audit_videos(some_rows, SETTINGS)
        assert statuses(reports) == ["ok", "ok", "unreadable", "unreadable"]
        assert reports[0].file == f"blake2b:{reports[0].hash}"
        assert [report.file for report in reports[1:]] == ["x.mp4", "row 2", "y.mp4"]
        assert [report.num_frames for report in reports] == [16, 12, None, None]


def test_urls_are_fetched(videos):
    with fsspec.open("memory://audited.mp4", "wb") as file:
        file.write(videos["long"])
    rows = datasets.Dataset.from_dict(
        {"video": [{"path": f"memory://{name}.mp4", "bytes": None} for name in ("audited", "absent")]}
    )
    found, absent = audit_videos(rows, SETTINGS)
    assert (found.file, found.status, found.bytes) == ("memory://audited.mp4", "ok", len(videos["long"]))
    assert (absent.status, absent.bytes) == ("unreadable", None)
    assert "cannot be fetched" in absent.reason


def test_images_have_one_frame_and_are_not_short(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    rows = byte_rows([("a.png", (tmp_path / "a.png").read_bytes()), ("b.png", b"no image")], datasets.Image)
    image, broken = audit_videos(rows, SETTINGS)
    assert (image.status, image.num_frames, image.width, image.height) == ("ok", 1, 30, 20)
    assert (image.codec, image.fps, image.duration) == ("png", None, None)
    assert broken.status == "unreadable"
    assert "number of frames" not in describe_audit([image, broken])


def test_an_error_is_the_fault_of_the_file_unless_a_package_is_missing(tmp_path, videos, monkeypatch):
    def fail(error):
        def open_media(*arguments):
            raise error

        monkeypatch.setattr(audit, "open_media", open_media)

    rows = rows_of(tmp_path, {"a.mp4": videos["long"]})
    fail(SyntaxError("broken chunk"))
    (report,) = audit_videos(rows, SETTINGS)
    assert (report.status, report.reason) == ("unreadable", "SyntaxError: broken chunk")
    fail(ImportError("pip install av"))
    with pytest.raises(ImportError, match="av"):
        audit_videos(rows, SETTINGS)


# labels, duplicates, overlap


def test_labels_are_names_where_the_data_set_knows_them(tmp_path, videos):
    rows = byte_rows([("a.mp4", videos["long"]), ("b.mp4", videos["other"])])
    rows = rows.add_column("label", [1, 0], feature=datasets.ClassLabel(names=["walk", "run"]))
    rows = rows.add_column("json", [{"kind": "x"}, {"kind": "y"}])
    assert [report.label for report in audit_videos(rows, SETTINGS)] == ["run", "walk"]
    assert [report.label for report in audit_videos(rows, SETTINGS, label_column="json.kind")] == ["x", "y"]
    with pytest.raises(ValueError, match="no column 'kind'"):
        audit_videos(rows, SETTINGS, label_column="kind")


def test_unreadable_copies_are_unreadable_and_not_used(tmp_path, videos):
    reports = audit_videos(rows_of(tmp_path, {"a.mp4": videos["text"], "b.mp4": videos["text"]}), SETTINGS)
    assert statuses(reports) == ["unreadable", "unreadable"]
    assert write_manifest(tmp_path / "audit.csv", reports) == 0


def test_duplicates_with_different_labels_are_reported(tmp_path, videos):
    contents = {"a.mp4": videos["long"], "b.mp4": videos["long"], "c.mp4": videos["other"], "d.mp4": videos["other"]}
    reports = audit_videos(rows_of(tmp_path, contents, [3, 5, 7, 7]), SETTINGS)
    assert statuses(reports) == ["ok", "duplicate", "ok", "duplicate"]
    assert "label '5' instead of '3'" in reports[1].reason
    assert "label" not in reports[3].reason
    (line,) = [line for line in describe_audit(reports).splitlines() if line.startswith("same content, different")]
    assert ": 2 (" in line
    assert "c.mp4" not in line


def test_overlap_with_another_data_set(tmp_path, videos, caplog):
    reports = audit_videos(rows_of(tmp_path / "train", {"a.mp4": videos["long"], "b.mp4": videos["other"]}), SETTINGS)
    names = {"x.mp4": videos["brief"], "y.mp4": videos["long"], "z.mp4": videos["long"], "missing.mp4": None}
    find_overlap(reports, rows_of(tmp_path / "test", names), SETTINGS)
    assert [report.overlap for report in reports] == [str(tmp_path / "test" / "y.mp4"), ""]
    assert "missing.mp4" in caplog.text
    assert "also in the other data set: 1 (" in describe_audit(reports)
    assert write_manifest(tmp_path / "audit.csv", reports) == 2
    assert write_manifest(tmp_path / "audit.csv", reports, drop=["overlap"]) == 1


# files that stop their reader


def test_file_that_hangs_or_crashes_its_reader_is_unreadable(tmp_path, videos, monkeypatch):
    read = audit.open_media

    def sometimes(item, *arguments):
        if item["path"].endswith("hang.mp4"):
            time.sleep(600)
        if item["path"].endswith("crash.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(item, *arguments)

    monkeypatch.setattr(audit, "open_media", sometimes)  # processes are forked, with this in place
    names = {"a.mp4": videos["long"], "hang.mp4": videos["other"], "crash.mp4": videos["brief"]}
    output = tmp_path / "audit.csv"
    settings = AuditSettings(num_frames=4, stride=2, workers=1, time_limit=1.0)
    reports = audit_videos(rows_of(tmp_path, names), settings, output=output)
    assert statuses(reports) == ["ok", "unreadable", "unreadable"]
    assert "time_limit" in reports[1].reason
    assert "SIGKILL" in reports[2].reason
    assert [report.bytes for report in reports] == [len(content) for content in names.values()]
    assert len(read_results(f"{output}.partial", COLUMNS, report_of_row)) == 3


# resuming


def read_again(rows, output: Path, monkeypatch, settings=SETTINGS) -> list[str]:
    """Names of the files that an audit reads instead of using earlier reports."""
    read: list[str] = []

    def add(journal, report):
        read.append(Path(report.file).name)
        original(journal, report)

    original = workers.Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(workers.Journal, "add", add)
        audit_videos(rows, settings, output=output)
    return sorted(read)


def interrupt(rows, output: Path, monkeypatch, after: int):
    """An audit that is interrupted after so many files."""
    original, count = workers.Journal.add, [0]

    def add(journal, report):
        count[0] += 1
        if count[0] > after:
            raise KeyboardInterrupt
        original(journal, report)
        assert len(read_results(f"{output}.partial", COLUMNS, report_of_row)) == count[0]  # at once

    settings = AuditSettings(num_frames=4, stride=2, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(workers.Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            audit_videos(rows, settings, output=output)


def test_interrupted_audit_continues_and_gives_what_an_uninterrupted_one_gives(tmp_path, videos, monkeypatch):
    contents = {"a.mp4": videos["text"], "b.mp4": videos["long"], "c.mp4": videos["brief"], "d.mp4": videos["long"]}
    rows, output = rows_of(tmp_path, contents, range(4)), tmp_path / "audit.csv"
    interrupt(rows, output, monkeypatch, after=2)
    assert not output.exists()
    with open(f"{output}.partial", "ab") as file:
        file.write(f"{tmp_path / 'c.mp4'},ok,,5,48,".encode() + "é".encode()[:1])  # cut off while it was written
    assert read_again(rows, output, monkeypatch) == ["c.mp4", "d.mp4"]
    reports = audit_videos(rows, SETTINGS, output=output)
    assert reports == audit_videos(rows, SETTINGS)
    write_manifest(output, reports)
    assert not Path(f"{output}.partial").exists()
    assert not Path(f"{output}.new").exists()


def test_changed_files_are_read_again(tmp_path, videos, monkeypatch):
    contents = {"a.mp4": videos["long"], "b.mp4": videos["long"], "c.mp4": videos["other"]}
    rows, output = rows_of(tmp_path, contents), tmp_path / "audit.csv"
    interrupt(rows, output, monkeypatch, after=2)
    (tmp_path / "a.mp4").write_bytes(videos["brief"])
    assert read_again(rows, output, monkeypatch) == ["a.mp4", "c.mp4"]


def test_finished_manifest_is_taken_over_except_for_unreadable_files(tmp_path, videos, monkeypatch):
    contents = {"a.mp4": videos["long"], "b.mp4": videos["long"], "c.mp4": videos["brief"], "d.mp4": videos["text"]}
    rows, output = rows_of(tmp_path, contents), tmp_path / "audit.csv"
    write_manifest(output, audit_videos(rows, SETTINGS, output=output))
    assert read_again(rows, output, monkeypatch) == ["d.mp4"]
    reports = audit_videos(rows, AuditSettings(num_frames=2, stride=2), output=output)
    assert statuses(reports) == ["ok", "duplicate", "ok", "unreadable"]  # the file of 5 frames is no longer short


def test_thorough_audit_does_not_use_reports_of_one_that_was_not(tmp_path, videos, monkeypatch):
    rows, output = rows_of(tmp_path, {"a.mp4": videos["long"], "b.mp4": videos["sound"]}), tmp_path / "audit.csv"
    write_manifest(output, audit_videos(rows, SETTINGS, output=output))
    thorough = AuditSettings(thorough=True)
    assert read_again(rows, output, monkeypatch, thorough) == ["a.mp4"]
    assert read_again(rows, output, monkeypatch, thorough) == []


def test_bytes_are_known_by_their_hash(tmp_path, videos, monkeypatch):
    output = tmp_path / "audit.csv"
    write_manifest(output, audit_videos(byte_rows([("a.mp4", videos["long"])]), SETTINGS, output=output))
    assert read_again(byte_rows([("a.mp4", videos["long"])]), output, monkeypatch) == []
    changed = bytes([videos["long"][0] ^ 1]) + videos["long"][1:]
    assert read_again(byte_rows([("a.mp4", changed)]), output, monkeypatch) == ["a.mp4"]


def test_other_files_are_not_overwritten(tmp_path, videos):
    rows = rows_of(tmp_path, {"a.mp4": videos["long"]})
    with pytest.raises(ValueError, match=r"list\.txt"):
        audit_videos(rows, SETTINGS, output=tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"a\.mp4"):
        audit_videos(rows, SETTINGS, output=tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == videos["long"]


# the manifest


def test_training_takes_the_manifest_and_leaves_files_out(tmp_path, videos):
    contents = {"a.mp4": videos["long"], "b.mp4": videos["text"], "c.mp4": videos["brief"], "d.mp4": videos["long"]}
    rows, output = rows_of(tmp_path, contents), tmp_path / "folder" / "audit.csv"
    reports = audit_videos(rows, SETTINGS, output=output)
    assert write_manifest(output, reports) == 3
    assert [row["use"] for row in table(output)] == ["yes", "no", "yes", "yes"]
    assert list(table(output)[0])[:7] == ["file", "use", "status", "reason", "num_frames", "width", "height"]
    data = DataArguments(dataset=str(tmp_path / "list.txt"), manifest=str(output))
    assert [Path(item["path"]).name for item in data.rows()["video"]] == ["a.mp4", "c.mp4", "d.mp4"]
    assert write_manifest(output, reports, drop=["unreadable", "short", "duplicate"]) == 1
    assert [Path(item["path"]).name for item in data.rows()["video"]] == ["a.mp4"]


def test_file_in_several_rows_has_one_answer(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos["long"])
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4 1\n", encoding="utf-8")
    reports = audit_videos(read_list_file(tmp_path / "list.txt"), SETTINGS)
    assert statuses(reports) == ["ok", "ok"]
    assert write_manifest(tmp_path / "audit.csv", reports, drop=["duplicate"]) == 2
    text = describe_audit(reports)
    assert "names in several rows: 1 (" in text
    assert "same content, different labels: 2 (" in text


def test_name_with_several_contents_is_used_only_if_all_are_good(tmp_path, videos):
    items = [("a.mp4", "long"), ("a.mp4", "text"), ("b.mp4", "text"), ("b.mp4", "long"), ("c.mp4", "other")]
    reports = audit_videos(byte_rows([(name, videos[content]) for name, content in items]), SETTINGS)
    assert write_manifest(tmp_path / "audit.csv", reports) == 1
    assert [row["use"] for row in table(tmp_path / "audit.csv")] == ["no", "no", "no", "no", "yes"]
    assert read_manifest(tmp_path / "audit.csv") == {"a.mp4": False, "b.mp4": False, "c.mp4": True}
    assert "one name, different contents" in describe_audit(reports)


def test_names_with_every_sign_survive_the_manifest(tmp_path, videos):
    names = ['a, "b"\n.mp4', "视频 #1.mp4", "-c.mp4"]
    rows = byte_rows([(name, videos["long"]) for name in names])
    write_manifest(tmp_path / "audit.csv", audit_videos(rows, SETTINGS))
    assert list(read_manifest(tmp_path / "audit.csv")) == names
    assert [report.file for report in read_results(tmp_path / "audit.csv", COLUMNS, report_of_row)] == names


def test_settings_out_of_range_are_refused():
    for name in ("workers", "stride", "num_frames", "time_limit"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            AuditSettings(**{name: 0})


def test_unknown_status_and_empty_data_set_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'broken'"):
        write_manifest(tmp_path / "audit.csv", [], drop=["broken"])
    with pytest.raises(ValueError, match="empty"):
        audit_videos(byte_rows([]), SETTINGS)


def test_description_counts_and_draws(videos):
    reports = [
        FileReport("a", "ok", num_frames=100, width=64, height=48, fps=25.0, duration=4.0, label="x", bytes=1000),
        FileReport("b", "ok", num_frames=70, width=64, height=48, fps=25.0, label="x", bytes=500),
        FileReport("c", "short", "few", num_frames=9, width=32, height=32, label="y", bytes=1),
        FileReport("d", "unreadable", "damaged", label="z"),
    ]
    lines = describe_audit(reports).splitlines()
    assert lines[:3] == ["4 files, 1,501 bytes", "ok: 2", "short: 1"]
    assert "  d: damaged" in lines
    assert [line.split() for line in lines if "64x48" in line] == [["64x48", "2", "#" * 40]]
    assert [line.split()[:4] for line in lines if "64 to 128" in line] == [["64", "to", "128", "2"]]
    assert [line.split()[3] for line in lines if "16 to 32" in line] == ["0"]
    assert [line.split()[:2] for line in lines if line.split()[0] in "xyz"] == [["z", "0"], ["y", "1"], ["x", "2"]]
    assert [line.split()[1] for line in lines if "unknown" in line] == ["2", "1"]


# the recipe


def recipe():
    spec = importlib.util.spec_from_file_location("audit_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_recipe_takes_the_data_set_first_or_from_a_file(tmp_path, videos):
    folder = tmp_path / "videos: #1"  # signs that mean something in YAML
    rows_of(folder, {"a.mp4": videos["long"]})
    rows_of(tmp_path / "test", {"b.mp4": videos["long"]})
    output, source = tmp_path / "audit.csv", str(folder / "list.txt")
    main = recipe().main
    assert main([source, "--output", str(output), "--num_frames", "2", "--workers=1"]) == 0
    assert [row["status"] for row in table(output)] == ["ok"]
    output.unlink()
    (tmp_path / "audit.yaml").write_text(f"dataset: '{source}'\nnum_frames: 2\n", encoding="utf-8")
    against = ["--against", str(tmp_path / "test" / "list.txt"), "--drop", "overlap"]
    assert main([str(tmp_path / "audit.yaml"), "--output", str(output), *against]) == 0
    assert [(row["use"], Path(row["overlap"]).name) for row in table(output)] == [("no", "b.mp4")]


def test_exit_code_says_whether_files_cannot_be_used(tmp_path, videos, caplog):
    contents = {"a.mp4": videos["long"], "b.mp4": videos["text"], "c.mp4": videos["sound"]}
    for names, num_used in ((["a.mp4", "b.mp4"], 1), (["c.mp4"], 0)):
        rows_of(tmp_path, {name: contents[name] for name in names})
        arguments = [str(tmp_path / "list.txt"), "--output", str(tmp_path / "audit.csv")]
        with caplog.at_level("INFO"):
            assert recipe().main(arguments) == 1
        assert f"{num_used} of {len(names)} files" in caplog.text


def test_recipe_refuses_before_it_reads(tmp_path):
    main = recipe().main
    with pytest.raises(ValueError, match="No data"):
        main([])
    with pytest.raises(ValueError, match="'broken'"):
        main(["list.txt", "--drop", "[broken]"])


@pytest.mark.slow
def test_command_line_with_a_streamed_data_set(tmp_path, videos):
    rows = byte_rows([("a.mp4", videos["long"]), ("b.mp4", videos["text"])])
    rows.to_parquet(tmp_path / "train.parquet")
    words = ["train.parquet", "--streaming", "--output", "audit.csv", "--workers", "1"]
    run = start(str(RECIPE), *words, folder=tmp_path, variables={"HF_HOME": str(tmp_path / "home")})
    assert run.wait() == [1], run.text()
    assert [(row["file"], row["use"]) for row in table(tmp_path / "audit.csv")] == [("a.mp4", "yes"), ("b.mp4", "no")]
    data = DataArguments(dataset=str(tmp_path / "train.parquet"), manifest=str(tmp_path / "audit.csv"), streaming=True)
    assert [row["video"]["path"] for row in data.rows()] == ["a.mp4"]


def test_folder_of_videos(tmp_path, videos):
    for name, content in (("walk/a", "long"), ("run/a", "other"), ("run/b", "long")):
        path = tmp_path / "train" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(videos[content])
    reports = audit_videos(load_rows(str(tmp_path)), SETTINGS)
    found = {Path(report.file).relative_to(tmp_path / "train").as_posix(): report.label for report in reports}
    assert found == {"walk/a.mp4": "walk", "run/a.mp4": "run", "run/b.mp4": "run"}
    assert sorted(statuses(reports)) == ["duplicate", "ok", "ok"]
