"""Reads URLs within bounds of size and time, and keeps rows of others away from this machine and its network."""

import io
import ipaddress
import os
import socket
import time
from functools import lru_cache
from urllib.parse import urlsplit

import aiohttp
import datasets
import fsspec
import huggingface_hub.constants

from ..model.video_reading import VideoReadError

MAX_BYTES, MAX_SECONDS = 4 << 30, 600
CHUNK = 1 << 20
# files of at least so many bytes are read by ranges, in blocks of so many, where the server allows it
MIN_RANGED_BYTES, BLOCK = 64 << 20, 1 << 20
# protocols that a row of a foreign data set may name; others reach files or services of this machine
PUBLIC_PROTOCOLS = frozenset(("hf", "http", "https", "s3", "gs", "gcs", "az", "abfs"))
ARCHIVES = frozenset(("zip", "tar", "gzip", "bz2", "xz", "zstd"))


def is_local_address(address: str) -> bool:
    """Whether an IP address is of this machine or its network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (getattr(found, "ipv4_mapped", None) or found).is_global


@lru_cache(4096)
def is_local_host(host: str) -> bool:
    """Whether a host is, or is a name for, an address of this machine or its network."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError:  # fetching it will fail, too
        return "." not in host or host.lower().endswith((".localhost", ".local", ".internal", ".lan"))
    return any(is_local_address(entry[4][0]) for entry in found)


def public_socket(address) -> socket.socket:
    """A socket for an address of the internet; raises OSError for one of this machine or its network."""
    family, kind, protocol, _, place = address
    if is_local_address(place[0]):
        raise OSError(f"it leads to {place[0]}, an address of the local network")
    return socket.socket(family, kind, protocol)


async def public_client(loop=None, **options) -> aiohttp.ClientSession:
    """An HTTP client that reaches no address of the local network, not even by a redirection."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=public_socket), **options)


def open_url(url: str) -> fsspec.core.OpenFile:
    """A URL as a file of fsspec; one of the internet is not followed to an address of the local network."""
    protocol, _, place = url.rpartition("::")[2].partition("://")
    if protocol not in ("http", "https"):
        return fsspec.open(url, "rb")
    options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=MAX_SECONDS)}}
    if not is_local_host(urlsplit(f"//{place}").hostname or ""):
        options["get_client"] = public_client
    return fsspec.open(url, "rb", **{protocol: options})


def read_url(url: str) -> bytes:
    """Content of a URL; raises VideoReadError if it cannot be read, is too large or takes too long."""
    content, end = bytearray(), time.monotonic() + MAX_SECONDS
    try:
        with open_url(url) as file:
            while chunk := file.read(CHUNK):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise VideoReadError(url, f"has more than {MAX_BYTES} bytes: download and cut it")
                if time.monotonic() > end:
                    raise VideoReadError(url, f"takes more than {MAX_SECONDS} seconds to fetch: download it")
    except (ImportError, VideoReadError):  # a missing package of a protocol is no fault of the file
        raise
    except Exception as error:  # fsspec lets errors of HTTP clients through
        raise VideoReadError(url, f"cannot be fetched ({error or type(error).__name__})") from error
    return bytes(content)


class RangedFile(io.RawIOBase):
    """A remote file of which only what is read is fetched, within the bounds of [`read_url`].

    Args:
        url: for messages.
        file: a file of fsspec that reads ranges.
    """

    def __init__(self, url: str, file):
        self.name, self.file = url, file
        self.bytes_read, self.end = 0, time.monotonic() + MAX_SECONDS

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer) -> int:
        content = self.file.read(len(buffer))
        self.bytes_read += len(content)
        if self.bytes_read > MAX_BYTES:
            raise VideoReadError(self.name, f"has more than {MAX_BYTES} bytes: download and cut it")
        if time.monotonic() > self.end:
            raise VideoReadError(self.name, f"takes more than {MAX_SECONDS} seconds to fetch: download it")
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self.file.close()
        super().close()


def open_ranges(url: str) -> RangedFile | None:
    """A large URL as a file that is fetched in parts; `None` if it is small, or its server gives no ranges.

    Raises:
        VideoReadError: if it cannot be reached.
    """
    try:
        remote = open_url(url)
        facts = remote.fs.info(remote.path)
        if (facts.get("size") or 0) < MIN_RANGED_BYTES or not facts.get("partial", True):
            return None
        file = remote.fs.open(remote.path, "rb", block_size=BLOCK)
        try:
            file.seek(1)
            file.read(1)
        except ValueError:  # of fsspec, if the server sends the file from its beginning
            return None
        file.seek(0)
        return RangedFile(url, file)
    except ImportError:
        raise
    except Exception as error:  # fsspec lets errors of HTTP clients through
        raise VideoReadError(url, f"cannot be fetched ({error or type(error).__name__})") from error


def is_foreign(source: str) -> bool:
    """Whether a source was made by others: a data set of the Hub, or at a URL."""
    protocol, separator, _ = source.partition("://")
    return protocol not in ("file", "local", "memory") if separator else not (os.path.exists(source) or "*" in source)


def check_place(path: str | None, source: str):
    """Raise ValueError if a row of a foreign source names this machine's files or an address of the local network."""
    parts = (path or "").split("::")
    place = parts[-1]
    protocol, separator, rest = place.partition("://")
    if not separator:
        caches = (
            huggingface_hub.constants.HF_HUB_CACHE,
            datasets.config.HF_DATASETS_CACHE,
            datasets.config.DOWNLOADED_DATASETS_PATH,
            datasets.config.EXTRACTED_DATASETS_PATH,
        )
        refused = path and not any(
            os.path.abspath(place).startswith(f"{os.path.abspath(cache)}{os.sep}") for cache in caches
        )
        reason = "a file of this machine"
    elif protocol not in PUBLIC_PROTOCOLS or any(part.partition("://")[0] not in ARCHIVES for part in parts[:-1]):
        refused, reason = True, f"{protocol}://"
    else:
        host = urlsplit(f"//{rest}").hostname or ""
        own = urlsplit(f"//{source.partition('://')[2]}").hostname if "://" in source else None
        refused = protocol in ("http", "https") and host != own and is_local_host(host)
        reason = "an address of the local network"
    if refused:
        raise ValueError(
            f"The data set {source!r} names {path!r}, {reason}, which a data set of others may not: give "
            "allow_local_urls=true if you trust it."
        )


def check_places(rows, columns: list[str], source: str):
    """Rows of a foreign source after [`check_place`] of those without content; a stream is checked as it is read."""
    for column in columns:
        if isinstance(rows, datasets.IterableDataset):
            rows = rows.filter(is_allowed, input_columns=column, fn_kwargs={"source": source})
            continue
        for chunk in rows.data.column(column).chunks:
            if hasattr(chunk, "field") and {"path", "bytes"} <= {field.name for field in chunk.type}:
                chunk = chunk.field("path").filter(chunk.field("bytes").is_null())
            for path in chunk.unique().to_pylist():
                is_allowed(path, source)
    return rows


def is_allowed(item: dict | str | bytes | None, source: str) -> bool:
    """True for a row's file that [`check_place`] accepts."""
    path = (item["path"] if item["bytes"] is None else None) if isinstance(item, dict) else item
    if isinstance(path, str):
        check_place(path, source)
    return True
