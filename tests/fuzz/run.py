"""Fuzz the PyAV video reader: damaged files must end in frames or in a VideoReadError. See README.md beside this."""

import argparse
import ctypes
import gc
import io
import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from mvd_hf.model import video_reading
from mvd_hf.model.video_reading import VideoReader, VideoReadError

HEIGHT, WIDTH, NUM_FRAMES = 64, 96, 30
H264 = {"codec": "libx264", "preset": "veryfast", "mbtree": "0"}
HEVC = {"codec": "libx265", "preset": "ultrafast", "x265-params": "log-level=none:pools=1:keyint=10"}
MPEG4 = {"codec": "mpeg4", "b": "1M"}
VP9 = {"codec": "libvpx-vp9", "b": "500k", "cpu-used": "8", "deadline": "realtime"}
# suffix of the container and options of the encoder; those whose encoder PyAV lacks are left out
FORMATS = {
    "h264_mp4": ("mp4", H264),
    "h264_fragmented_mp4": ("mp4", H264 | {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "h264_faststart_mov": ("mov", H264 | {"movflags": "faststart"}),
    "h264_mkv": ("mkv", H264),
    "h264_avi": ("avi", H264),
    "h264_ts": ("ts", H264),
    "h264_flv": ("flv", H264),
    "h264_elementary_stream": ("h264", H264),
    "h264_10_bit_mp4": ("mp4", H264 | {"pix_fmt": "yuv420p10le"}),
    "hevc_mp4": ("mp4", HEVC),
    "hevc_mkv": ("mkv", HEVC),
    "hevc_ts": ("ts", HEVC),
    "mpeg4_avi": ("avi", MPEG4),
    "mpeg4_b_frames_avi": ("avi", MPEG4 | {"bf": "2"}),
    "mpeg4_mp4": ("mp4", MPEG4 | {"bf": "2"}),
    "mpeg2_mpg": ("mpg", {"codec": "mpeg2video", "b": "1M", "bf": "2"}),
    "mjpeg_avi": ("avi", {"codec": "mjpeg", "b": "1M", "pix_fmt": "yuvj420p"}),
    "vp8_webm": ("webm", {"codec": "libvpx", "b": "500k", "deadline": "realtime"}),
    "vp9_webm": ("webm", VP9),
    "vp9_mp4": ("mp4", VP9),
    "av1_mp4": ("mp4", {"codec": "libsvtav1", "preset": "12", "crf": "40"}),
    "av1_mkv": ("mkv", {"codec": "libsvtav1", "preset": "12", "crf": "40"}),
    "flv1_flv": ("flv", {"codec": "flv", "b": "1M"}),
    "wmv2_asf": ("wmv", {"codec": "wmv2", "b": "1M"}),
    "gif": ("gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "apng": ("apng", {"codec": "apng", "pix_fmt": "rgb24"}),
    "prores_mov": ("mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
}
# names of fields of mp4, avi, webm (identifiers) and flv files, next to which lengths, counts and sizes stand
MARKS = (
    *(b"moov trak mdia minf stbl stsd stts ctts stss stsz stsc stco elst tkhd mvhd mdhd avc1 avcC hvc1 hvcC".split()),
    *(b"av01 av1C vp09 vpcC moof traf trun tfhd tfdt mdat ftyp colr pasp LIST avih strh strf movi idx1 RIFF".split()),
    *(b"00dc indx onMetaData GIF89a acTL fcTL fdAT IHDR".split()),
    *(bytes.fromhex(mark) for mark in ("1A45DFA3", "18538067", "1654AE6B", "1F43B675", "A3", "1549A966", "B0", "BA")),
)
LENGTHS = (0, 1, 2, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAX_PIXELS = 1 << 20
GROWTH_EVERY = 400  # cases between two looks at a child's memory, which may grow by so many bytes in all
MAX_GROWTH = 96 << 20


def make_seeds() -> dict[str, bytes]:
    """One undamaged video per format, as bytes."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports errors only
    texture = np.random.default_rng(0).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, options) in FORMATS.items():
            path = Path(folder) / f"{name}.{suffix}"
            options = dict(options)
            codec, pix_fmt = options.pop("codec"), options.pop("pix_fmt", "yuv420p")
            muxer = {"movflags": options.pop("movflags")} if "movflags" in options else {}
            if codec not in av.codecs_available:
                continue
            with av.open(str(path), "w", options=muxer) as container:
                stream = container.add_stream(codec, rate=25, options=options)
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
                stream.codec_context.thread_count, stream.gop_size = 1, 10
                for i in range(NUM_FRAMES):
                    frame = av.VideoFrame.from_ndarray(np.roll(texture, (i, 2 * i), (0, 1)), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            files[name] = path.read_bytes()
    return files


# damage


def place(rng, data: bytearray, whole: bool = False) -> int:
    """A position, in half of the cases within the header or the last bytes, where containers keep their tables."""
    span = len(data)
    if whole or rng.random() < 0.5:
        return int(rng.integers(span))
    near = int(rng.integers(min(span, 1500)))
    return near if rng.random() < 0.6 else span - 1 - near


def chunk(rng, data: bytearray) -> slice:
    start = place(rng, data)
    return slice(start, start + int(min(rng.geometric(1 / 200), 20000)))


def flip_bits(rng, data, other):
    for _ in range(int(rng.geometric(0.1))):
        data[place(rng, data)] ^= 1 << int(rng.integers(8))


def flip_many_bits(rng, data, other):
    for position in rng.integers(len(data), size=int(rng.integers(50, 500))):
        data[position] ^= 1 << int(rng.integers(8))


def change_header(rng, data, other):
    for _ in range(int(rng.integers(1, 12))):
        data[int(rng.integers(min(len(data), 600)))] = int(rng.integers(256))


def truncate(rng, data, other):
    del data[place(rng, data) :]


def cut_start(rng, data, other):
    del data[: int(rng.integers(min(len(data), 3000)))]


def delete_chunk(rng, data, other):
    del data[chunk(rng, data)]


def duplicate_chunk(rng, data, other):
    part, at = data[chunk(rng, data)], place(rng, data)
    data[at:at] = part * int(rng.integers(1, 8))


def move_chunk(rng, data, other):
    where = chunk(rng, data)
    part = data[where]
    del data[where]
    at = int(rng.integers(len(data) + 1))
    data[at:at] = part


def splice(rng, data, other):
    part = other[int(rng.integers(len(other))) :]
    if rng.random() < 0.5:
        del data[place(rng, data) :]
        data.extend(part)
    else:
        data[chunk(rng, data)] = part[: int(rng.integers(1, 3000))]


def overwrite(rng, data, other):
    where = chunk(rng, data)
    size = len(data[where])
    data[where] = rng.choice([bytes(size), b"\xff" * size, rng.bytes(size)])


def change_length(rng, data, other):
    """Set a number of 1 to 8 bytes, mostly beside a mark, to a limit or a neighbour of what it was."""
    at = place(rng, data, whole=True)
    found = [m.start() for mark in rng.permutation(np.array(MARKS, dtype=object))[:6] for m in re.finditer(mark, data)]
    if found and rng.random() < 0.85:
        at = max(0, int(rng.choice(found)) + int(rng.choice([-4, -4, *range(1, 80)])))
    size, order = int(rng.choice([1, 2, 4, 4, 4, 8])), "big" if rng.random() < 0.7 else "little"
    value = int.from_bytes(data[at : at + size], order) + int(rng.choice([-2, -1, 1, 2, 8, 1000]))
    if rng.random() < 0.6:
        value = int(rng.choice(np.array(LENGTHS, dtype=object)))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)


MUTATIONS = (
    flip_bits,
    flip_many_bits,
    change_header,
    truncate,
    cut_start,
    delete_chunk,
    duplicate_chunk,
    move_chunk,
    splice,
    overwrite,
    change_length,
    change_length,
    change_length,
)


class FailingFile(io.BytesIO):
    """A file object that is lost after some reads, as on a network."""

    def __init__(self, data: bytes, num_reads: int):
        super().__init__(data)
        self.num_reads = num_reads

    def read(self, size: int = -1) -> bytes:
        self.num_reads -= 1
        if self.num_reads < 0:
            raise RuntimeError("the connection is lost")
        return super().read(size)


@dataclass
class Case:
    """One damaged file and how it is read: everything follows from the seed and the number."""

    data: bytes
    name: str
    kind: str
    order: list[float]
    has_box: bool
    is_indexed: bool


def make_case(files: dict[str, bytes], seed: int, number: int) -> Case:
    rng = np.random.default_rng([seed, number])
    name, other = (str(name) for name in rng.choice(list(files), 2))
    data, steps = bytearray(files[name]), []
    if rng.random() < 0.03:
        data = bytearray(rng.bytes(int(rng.integers(1, 5000))))
        steps.append("random")
        if rng.random() < 0.7:
            data[:0] = files[name][: int(rng.integers(4, 64))]
    for _ in range(min(int(rng.geometric(0.45)), 6)):
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        if data:
            mutation(rng, data, files[other])
            steps.append(mutation.__name__)
    return Case(
        data=bytes(data),
        name=f"{name}: {', '.join(steps)}",
        kind=str(rng.choice(["bytes", "path", "file", "buffer", "failing file"], p=[0.25, 0.3, 0.2, 0.2, 0.05])),
        order=rng.random(int(rng.integers(1, 9))).tolist(),
        has_box=rng.random() < 0.3,
        is_indexed=rng.random() < 0.4,
    )


# one case, in a child process


def read_case(case: Case, scratch: Path) -> tuple[str, int, str]:
    """Read a case: its outcome ("frames", "error" or "finding"), the number of frames, the reason."""
    video_reading.MIN_INDEXED_PACKETS = 1 if case.is_indexed else 2500
    scratch.write_bytes(case.data)
    file = scratch.open("rb")
    source = {
        "bytes": case.data,
        "path": scratch,
        "file": file,
        "buffer": io.BytesIO(case.data),
        "failing file": FailingFile(case.data, 1 + int(12 * case.order[0])),
    }[case.kind]
    count = 0
    try:
        with VideoReader(source, max_pixels=MAX_PIXELS) as reader:
            for order in ([0.0], case.order, [0.999], case.order[::-1]):
                indices = [int(part * len(reader)) for part in order]
                decoded = reader.decode(indices)
                height, width = decoded.size
                box = (height // 4, width // 4, -(-height // 2), -(-width // 2)) if case.has_box else None
                frames = decoded.rgb(box)
                if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != len(order):
                    return "finding", count, f"wrong result {frames.dtype} {frames.shape}"
                if frames.shape[1] * frames.shape[2] > MAX_PIXELS:
                    return "finding", count, f"more than max_pixels: {frames.shape}"
                count += len(frames)
        return "frames", count, ""
    except VideoReadError as error:
        return "error", count, re.sub(r"\(.*\)|\d+(\.\d+)?", "N", error.reason or "")
    except BaseException:
        return "finding", count, traceback.format_exc()
    finally:
        file.close()


def resident(pid: int | str = "self") -> int:
    """Memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def left_behind() -> str:
    """An exception that PyAV keeps for its next call, which may be on another video; empty if there is none."""
    try:
        av.error.err_check(0)
    except Exception as error:
        return repr(error)
    return ""


def open_things() -> tuple[int, int]:
    """Numbers of open files and of threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def trimmed() -> int:
    """Memory of this process after the allocator gave back what it holds free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def work(files: dict[str, bytes], seed: int, connection, scratch: Path):
    """A child process: read the cases whose numbers arrive, send the outcomes."""
    done, memory = 0, []
    while (number := connection.recv()) is not None:
        case = make_case(files, seed, number)
        before = open_things()
        outcome, count, reason = read_case(case, scratch)
        gc.collect()
        if outcome != "finding" and open_things() > before:
            outcome, reason = "finding", f"open files and threads grew from {before} to {open_things()}"
        error = left_behind()
        if outcome != "finding" and error:
            outcome, reason = "finding", f"PyAV is left with {error}"
        done += 1
        if done % GROWTH_EVERY == 0:
            memory.append(trimmed())
            if outcome != "finding" and memory[-1] - memory[0] > MAX_GROWTH:
                sizes = ", ".join(str(size >> 20) for size in memory)
                outcome, reason = "finding", f"memory after every {GROWTH_EVERY} cases: {sizes} MiB"
        connection.send((number, outcome, count, reason, case.name))


# the parent


@dataclass
class Worker:
    """A child process, the case that it reads, and since when."""

    process: multiprocessing.Process
    connection: object
    scratch: Path
    number: int = -1
    since: float = 0.0
    baseline: int = 0


@dataclass
class Counts:
    """What came out of all cases."""

    cases: int = 0
    frames: int = 0
    read: int = 0
    errors: Counter = field(default_factory=Counter)
    findings: list = field(default_factory=list)


class Fuzzer:
    """A pool of child processes that read cases under a limit of time and memory."""

    def __init__(self, arguments: argparse.Namespace, files: dict[str, bytes], folder: Path):
        self.arguments, self.files, self.folder = arguments, files, folder
        self.counts, self.next_number = Counts(), 0
        self.context = multiprocessing.get_context("fork")
        self.workers = [self.start(i) for i in range(arguments.workers)]

    def start(self, place: int) -> Worker:
        ours, theirs = self.context.Pipe()
        scratch = self.folder / f"case_{place}"
        process = self.context.Process(
            target=work, args=(self.files, self.arguments.seed, theirs, scratch), daemon=True
        )
        process.start()
        theirs.close()
        worker = Worker(process, ours, scratch, baseline=resident())
        self.give(worker)
        return worker

    def give(self, worker: Worker):
        worker.number, worker.since = self.next_number, time.monotonic()
        self.next_number += 1
        worker.connection.send(worker.number)

    def report(self, number: int, name: str, reason: str):
        """Save the file of a finding."""
        stem = self.arguments.output / f"seed{self.arguments.seed}_case{number}"
        self.arguments.output.mkdir(parents=True, exist_ok=True)
        case = make_case(self.files, self.arguments.seed, number)
        stem.with_suffix(".bin").write_bytes(case.data)
        stem.with_suffix(".txt").write_text(f"{name or case.name}\nread as {case.kind}, {case}\n\n{reason}\n"[:4000])
        self.counts.findings.append((number, reason))
        print(f"FINDING seed {self.arguments.seed} case {number} ({case.name}):\n{reason}", flush=True)

    def collect(self, worker: Worker) -> bool:
        """Take in an outcome, or end a child over its limits. Returns whether the child goes on."""
        problem = None
        try:
            if worker.connection.poll(0.02):
                number, outcome, count, reason, name = worker.connection.recv()
                self.counts.cases += 1
                self.counts.frames += count
                self.counts.read += outcome == "frames"
                if outcome == "error":
                    self.counts.errors[reason] += 1
                if outcome == "finding":
                    self.report(number, name, reason)
                return True
            if time.monotonic() - worker.since > self.arguments.seconds:
                problem = f"not finished after {self.arguments.seconds} s"
            elif resident(worker.process.pid) - worker.baseline > self.arguments.memory << 20:
                problem = f"more than {self.arguments.memory} MiB of memory"
        except (EOFError, OSError):
            worker.process.join(5)
            problem = f"the process died with exit code {worker.process.exitcode}"
        if problem is None:
            return True
        self.counts.cases += 1
        worker.process.kill()
        worker.process.join()
        self.report(worker.number, "", problem)
        return False

    def run(self) -> Counts:
        end = time.monotonic() + 60 * self.arguments.minutes
        while time.monotonic() < end:
            for i, worker in enumerate(self.workers):
                number = self.counts.cases
                if not self.collect(worker):
                    self.workers[i] = self.start(i)
                elif self.counts.cases > number:
                    self.give(worker)
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
        return self.counts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of time for a case")
    parser.add_argument("--memory", type=int, default=1024, help="limit of memory for a case, MiB above the start")
    parser.add_argument("--output", type=Path, default=Path("fuzz_findings"), help="where files of findings are saved")
    parser.add_argument("--case", type=int, help="read this one case in this process and show what happens")
    return parser.parse_args()


def main() -> int:
    arguments, files = parse_arguments(), make_seeds()
    print(f"{len(files)} formats: {', '.join(files)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.case is not None:
            case = make_case(files, arguments.seed, arguments.case)
            outcome, count, reason = read_case(case, Path(folder) / "case")
            print(f"{case.name}, read as {case.kind}: {outcome} after {count} frames. {reason}")
            return outcome == "finding"
        counts = Fuzzer(arguments, files, Path(folder)).run()
    print(f"seed {arguments.seed}: {counts.cases} cases, {counts.read} read to the end, {counts.frames} frames")
    for reason, count in counts.errors.most_common():
        print(f"{count:8} VideoReadError: {reason}")
    print(f"{len(counts.findings):8} findings")
    return bool(counts.findings)


if __name__ == "__main__":
    sys.exit(main())
