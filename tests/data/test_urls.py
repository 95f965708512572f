"""URLs: bounds of size and time, redirections, and what rows of others may name."""

import http.server
import threading

import datasets
import fsspec
import pytest

from mvd_hf.data import urls
from mvd_hf.data.sources import load_rows
from mvd_hf.data.urls import check_place, check_places, is_local_host, read_url
from mvd_hf.model.video_reading import VideoReadError


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
    (tmp_path / "list.csv").touch()
    assert len(load_rows(str(tmp_path / "list.csv"))) == 1
