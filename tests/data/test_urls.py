"""URLs: bounds of size and time, redirections, and what rows of others may name."""

import http.server
import threading

import datasets
import fsspec
import pytest

from mvd_hf.data import urls
from mvd_hf.data.decoding import open_media
from mvd_hf.data.sources import load_rows
from mvd_hf.data.urls import check_place, check_places, is_local_host, read_url
from mvd_hf.model import video_reading
from mvd_hf.model.video_reading import VideoReadError
from video_files import H264, numbered_frames, numbers, write


class Server(http.server.BaseHTTPRequestHandler):
    """Serves five bytes; `/elsewhere` leads to them."""

    def do_GET(self):
        self.send_response(302 if self.path == "/elsewhere" else 200)
        if self.path == "/elsewhere":
            self.send_header("Location", "/clip.mp4")
        self.send_header("Content-Length", "0" if self.path == "/elsewhere" else "5")
        self.end_headers()
        if self.path != "/elsewhere" and self.command == "GET":
            self.wfile.write(b"bytes")

    do_HEAD = do_GET

    def log_message(self, *arguments):
        """Nothing."""


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_of_your_network_is_read(server):
    assert read_url(f"{server}/clip.mp4") == read_url(f"{server}/elsewhere") == b"bytes"


def test_a_host_of_the_internet_does_not_lead_to_the_local_network(server, monkeypatch):
    monkeypatch.setattr(urls, "is_local_host", lambda host: False)
    with pytest.raises(VideoReadError, match=r"127\.0\.0\.1"):
        read_url(f"{server}/clip.mp4?internet")


def test_size_and_time_are_bounded(monkeypatch):
    fsspec.filesystem("memory").pipe("/bounded.mp4", b"12345")
    assert read_url("memory://bounded.mp4") == b"12345"
    monkeypatch.setattr(urls, "MAX_BYTES", 4)
    with pytest.raises(VideoReadError, match="more than 4 bytes"):
        read_url("memory://bounded.mp4")
    monkeypatch.setattr(urls, "MAX_BYTES", 5)
    monkeypatch.setattr(urls, "MAX_SECONDS", -1)
    with pytest.raises(VideoReadError, match="seconds"):
        read_url("memory://bounded.mp4")


def test_local_hosts_are_known_in_any_notation():
    for host in (
        "localhost",
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "2130706433",
        "nas",
    ):
        assert is_local_host(host)
    assert not is_local_host("8.8.8.8")


REFUSED = ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1/a.mp4", "http://[::1]:80/a.mp4", "local:///a.mp4")
REFUSED += ("zip://a.mp4::file:///a.zip", "sftp://10.0.0.1/a.mp4", "simplecache::http://8.8.8.8/a.mp4")


@pytest.mark.parametrize("path", REFUSED)
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_others_name_nothing_local(path, streaming):
    rows = datasets.Dataset.from_dict(
        {"video": [{"path": "http://8.8.8.8/a.mp4", "bytes": None}, {"path": path, "bytes": None}]}
    )
    rows = rows.to_iterable_dataset() if streaming else rows
    with pytest.raises(ValueError, match="allow_local_urls"):
        list(check_places(rows, ["video"], "user/others"))


def test_rows_of_others_may_hold_content_and_name_the_internet():
    for path in ("http://8.8.8.8/a.mp4", "hf://datasets/a/b/c.mp4", "zip://a.mp4::https://8.8.8.8/b.zip"):
        check_place(path, "user/others")
    check_place("http://127.0.0.1/a.mp4", "http://127.0.0.1/list.csv")  # the user named this host
    rows = datasets.Dataset.from_dict({"video": [{"path": "/home/others/a.mp4", "bytes": b"content"}]})
    for found in (rows, rows.to_iterable_dataset()):
        assert len(list(check_places(found, ["video"], "user/others"))) == 1


def test_a_list_at_a_url_is_checked_and_one_of_yours_is_not(tmp_path, monkeypatch, server):
    monkeypatch.setattr(
        "mvd_hf.data.sources.read_list_file",
        lambda *arguments: datasets.Dataset.from_dict({"video": [{"path": "file:///etc/passwd", "bytes": None}]}),
    )
    with pytest.raises(ValueError, match=r"file:///etc/passwd.*allow_local_urls"):
        load_rows("https://example.org/list.csv")
    assert len(load_rows("https://example.org/list.csv", allow_local_urls=True)) == 1
    rows = datasets.Dataset.from_dict(
        {"video": [{"path": "https://example.org/a", "bytes": None}], "clip": ["/a.mp4"]}
    )
    monkeypatch.setattr("mvd_hf.data.sources.read_json_lines", lambda *arguments: rows)
    with pytest.raises(ValueError, match=r"'/a\.mp4'.*allow_local_urls"):
        load_rows("https://example.org/list.jsonl", video_column="clip")
    (tmp_path / "list.csv").touch()
    assert len(load_rows(str(tmp_path / "list.csv"))) == 1


class Ranges(Server):
    """Serves `content`, by ranges unless the path asks for whole files, and counts the bytes sent."""

    content, sent = b"", 0

    def do_GET(self):
        start, stop = 0, len(self.content)
        has_range = "Range" in self.headers and "whole" not in self.path
        if has_range:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or stop) + 1, stop)
        self.send_response(206 if has_range else 200)
        if "whole" not in self.path:
            self.send_header("Accept-Ranges", "bytes")
        if has_range:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content[start:stop])
            type(self).sent += stop - start

    do_HEAD = do_GET


@pytest.fixture
def ranges(tmp_path, monkeypatch):
    """A server of a long video."""
    path = write(tmp_path / "a.mp4", numbered_frames(240), **(H264 | {"crf": "1"}))
    Ranges.content, Ranges.sent = path.read_bytes(), 0
    monkeypatch.setattr(urls, "MIN_RANGED_BYTES", 1000)
    monkeypatch.setattr(urls, "BLOCK", 4096)
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_the_wanted_part_of_a_long_remote_video_is_fetched(ranges):
    wanted = [3, 6, 10]
    for item in (f"{ranges}/a.mp4", {"path": f"{ranges}/a.mp4", "bytes": None}):
        Ranges.sent = 0
        with open_media(item) as reader:
            assert numbers(reader.read(wanted)) == wanted
        assert Ranges.sent < 0.7 * len(Ranges.content)


def test_a_server_without_ranges_sends_the_whole_file(ranges):
    with open_media(f"{ranges}/whole.mp4") as reader:
        assert numbers(reader.read([5])) == [5]
    assert Ranges.sent >= len(Ranges.content)


def test_parts_of_remote_files_are_bounded_too(ranges, monkeypatch):
    monkeypatch.setattr(urls, "MAX_BYTES", 3000)
    with pytest.raises(VideoReadError, match="3000 bytes"), open_media(f"{ranges}/a.mp4") as reader:
        reader.read([0])
    monkeypatch.setattr(urls, "MAX_BYTES", 4 << 30)
    monkeypatch.setattr(urls, "MAX_SECONDS", 0)
    with pytest.raises(VideoReadError), open_media(f"{ranges}/a.mp4") as reader:
        reader.read([0])
    with pytest.raises(VideoReadError, match="nowhere"), open_media("http://127.0.0.1:1/nowhere.mp4"):
        pass
