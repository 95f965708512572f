"""Benchmarks of the data path, from video files to batches of uint8 clips: ours, decord, torchcodec, plain PyAV.

The methods of a table take turns in random order within one run, on the same frames and crops, so that their ratios
hold on a machine that does other things too. Each has a fresh process of its own, and profits from no memory that
another one freed. CPU time is that of the whole process, with the threads of its decoders.
"""

import datetime
import importlib
import importlib.metadata
import itertools
import json
import logging
import multiprocessing
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import datasets
import numpy as np
import psutil
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .augmentation import MultiScaleCrop, PretrainingAugmentation, resize_frames
from .clips import ClipCutter, ClipDataset, sample_generator
from .collation import collate_clips
from .masking import tube_mask
from .model.frame_sampling import pretraining_frames
from .model.video_reading import DECODERS_THAT_SKIP, VideoReader
from .toy import make_toy_dataset

logger = logging.getLogger(__name__)


def optional(name: str):
    """A package, or `None` if it is missing or cannot load its libraries."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError):
        return None


decord, torchcodec = optional("decord"), optional("torchcodec.decoders")

OURS, FLOOR = "mvd_hf", "floor: bare decoding of the packets needed"
NOT_MEASURED = "not measured"
PACKAGES = ("mvd_hf", "torch", "torchvision", "numpy", "pillow", "av", "decord", "torchcodec")
GOP_SIZES = (250, 12)
# smoothness (in frame heights), contrast (grey levels) and speed (pixels per frame) of the content's layers
LAYERS = ((1 / 6, 45, 0.6), (1 / 24, 22, 1.2), (1 / 80, 14, 1.0), (1 / 256, 8, 1.0))
GRAIN = 3.0  # grey levels of noise, other in every frame
STAGES = (
    "open and scan packets", "decode", "colour conversion", "copy of the crop", "resize", "layout (channels first)",
    "mask", "close", "whole clip", "collate",
)  # fmt: skip
TITLES = {
    "decode": "Decode alone: a clip's frames as RGB, file opened each time",
    "stages": "Stages of ours: CPU time per clip",
    "clip": "File to clip: frames, crop and resize, in one process",
    "loader": "DataLoader",
    "clips_per_video": "Clips per decode: CPU time per clip",
    "memory": "Memory of one process that reads clip after clip",
}

# gives the frame numbers (T,) to read of a video with so many frames
ChooseFrames = Callable[[int], np.ndarray]


@dataclass
class DataBenchmarkArguments:
    """What to measure, as a recipe's keys.

    Args:
        output: folder of the report and of the videos that are made for it.
        videos: files to measure on, instead of those made here (340x256, 300 frames, GOP 250 and 12).
        parts: tables to measure, of `mvd_hf.benchmarks.TITLES`; `memory` is only measured where clips are asked for.
        rounds: clips per file, drawn at random, that each method reads.
        workers, batch_size: of the DataLoader.
        loader_rounds, loader_clips: passes through the DataLoader, of which the median counts, and clips of each.
        memory: number of clips to read one after another.
        num_frames, stride, size: frames of a clip, every how many-th frame, pixels of the square clip.
        seed: seed of all random choices.
    """

    output: str = "outputs/benchmarks"
    videos: list = field(default_factory=list)
    parts: list = field(default_factory=lambda: list(TITLES))
    rounds: int = 20
    workers: int = 2
    batch_size: int = 8
    loader_rounds: int = 5
    loader_clips: int = 96
    memory: int = 0
    num_frames: int = 16
    stride: int = 4
    size: int = 224
    seed: int = 0

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(TITLES))
        if unknown:
            raise ValueError(f"There is no part {', '.join(unknown)}; choose {', '.join(TITLES)}.")
        if self.rounds < 1 or self.loader_rounds < 1:
            raise ValueError(f"rounds={self.rounds} and loader_rounds={self.loader_rounds} must be at least 1.")

    def choose(self, total_frames: int, generator: torch.Generator) -> np.ndarray:
        """Frame numbers (T,) of one random clip."""
        return pretraining_frames(total_frames, self.num_frames, self.stride, generator=generator)[0]

    def cutter(self, num_clips: int = 1, with_mask: bool = True) -> ClipCutter:
        """Ours: `num_clips` clips of a video and their masks."""
        grid = (max(self.num_frames // 2, 1), self.size // 16, self.size // 16)
        return ClipCutter(
            partial(pretraining_frames, num_frames=self.num_frames, stride=self.stride, num_clips=num_clips),
            PretrainingAugmentation([self.size]),
            partial(tube_mask, grid, 0.9) if with_mask else None,
        )


# videos


def natural_frames(num_frames: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) uint8 of what codecs meet in practice: drifting texture, moving shapes, grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    layers = []
    for smoothness, contrast, speed in LAYERS:
        blur = np.exp(-2 * (np.pi * smoothness * height) ** 2 * (rows**2 + columns**2))
        spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) * blur
        spectrum *= contrast / np.fft.irfft2(spectrum, (height, width)).std()
        layers.append((spectrum, speed * rng.normal(size=2)))
    shapes = [
        (rng.random(2) * (height, width), 2.5 * rng.normal(size=2), rng.uniform(0.06, 0.16) * height, rng.random(3))
        for _ in range(5)
    ]
    for i in range(num_frames):
        drift = [i * (rows * down + columns * right) for _, (down, right) in layers]
        moved = sum(layer[0] * np.exp(-2j * np.pi * shift) for layer, shift in zip(layers, drift, strict=True))
        frame = 118 + np.fft.irfft2(moved, (height, width))
        for start, velocity, radius, colour in shapes:
            top, left = (start + i * velocity) % (height, width)
            inside = np.hypot(np.arange(height)[:, None] - top, np.arange(width)[None] - left) < radius
            frame[:, inside] = 0.3 * frame[:, inside] + 170 * colour[:, None]
        frame += GRAIN * rng.standard_normal((height, width))
        yield np.ascontiguousarray(frame.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_video(path: Path, frames: Iterable[np.ndarray], gop_size: int):
    """Write frames (H, W, 3) uint8, H and W even, as an H.264 mp4 file, with the encoder's defaults."""
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23"})
        stream.pix_fmt, stream.gop_size, stream.codec_context.thread_count = "yuv420p", gop_size, 1
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.rename(path)


def make_videos(folder: Path, num_frames: int = 300, height: int = 256, width: int = 340) -> dict[str, list[str]]:
    """Paths of two videos for each GOP size; those that the folder has already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {}
    for gop_size, seed in itertools.product(GOP_SIZES, range(2)):
        path = folder / f"content{seed}_{width}x{height}_{num_frames}_gop{gop_size}.mp4"
        if not path.exists():
            make_video(path, natural_frames(num_frames, height, width, seed), gop_size)
        groups.setdefault(f"GOP {gop_size}", []).append(str(path))
    return groups


def fixed_frames(indices: np.ndarray, total_frames: int) -> np.ndarray:
    """These frame numbers, whatever the number of frames."""
    return indices


# decoding: (path, choose) to frames (T, H, W, 3) uint8


def decode_ours(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by [`VideoReader`]."""
    with VideoReader(path) as reader:
        return reader.read(choose(len(reader)))


def decode_decord(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by decord with one decoder thread, as the official program reads them."""
    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(choose(len(reader))).asnumpy()


def decode_torchcodec(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by torchcodec in its exact mode with one decoder thread."""
    decoder = torchcodec.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at([int(index) for index in choose(len(decoder))]).data.numpy()


def decode_everything(path: str, choose: ChooseFrames, convert_all: bool) -> np.ndarray:
    """Frames read with PyAV's `decode` from the first to the last.

    Args:
        path: the file.
        choose: gives the frame numbers to keep.
        convert_all: convert every frame to RGB with PyAV's defaults, as many a tutorial does (though those not kept
            are dropped at once here), instead of the kept ones with one converter and one thread.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        if not convert_all:
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        count = stream.frames
        if count == 0:
            count = sum(packet.size > 0 for packet in container.demux(stream))
            container.seek(0)
        indices, reformatter, kept = choose(count), VideoReformatter(), {}
        wanted = {int(index) for index in indices}
        for index, frame in enumerate(container.decode(stream)):
            if convert_all:
                pixels = frame.to_ndarray(format="rgb24")
            elif index in wanted:
                pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if index in wanted:
                kept[index] = pixels
    return np.stack([kept[int(index)] for index in indices])


class DecoderFloor:
    """The decoder's own time: packets read beforehand, no needless one decoded, no colours converted.

    A file's packets are read when it is first decoded.
    """

    def __init__(self):
        self.videos: dict[str, tuple] = {}

    @staticmethod
    def open(path: str) -> tuple:
        """Container, packets, and packets of the frames in display order.

        Raises:
            ValueError: if the packets have no times to plan by.
        """
        container = av.open(path)
        stream = container.streams.best("video")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets if not packet.is_discard]
        if None in times or len(set(times)) != len(times) or not packets[0].is_keyframe:
            container.close()
            raise ValueError(f"The packets of {path!r} have no times to plan by.")
        order = sorted((i for i, packet in enumerate(packets) if not packet.is_discard), key=lambda i: packets[i].pts)
        return container, packets, order

    def __call__(self, path: str, choose: ChooseFrames) -> set[int]:
        """Decode what the frames need; gives the numbers of those that came out."""
        if path not in self.videos:
            self.videos[path] = self.open(path)
        _, packets, order = self.videos[path]
        decoder = packets[0].stream.codec_context
        skips = decoder.name in DECODERS_THAT_SKIP
        number_of = {packets[order[index]].pts: int(index) for index in choose(len(order))}
        wanted = sorted(order[index] for index in number_of.values())
        came_out: set[int] = set()
        for start, stop in self._runs(packets, wanted):
            for packet in itertools.chain(packets[start:stop], [None]):
                if packet is not None and skips:
                    decoder.skip_frame = "DEFAULT" if packet.pts in number_of else "NONREF"
                came_out |= {number_of[frame.pts] for frame in decoder.decode(packet) if frame.pts in number_of}
            decoder.flush_buffers()
        return came_out

    @staticmethod
    def _runs(packets: list, wanted: list[int]) -> list[list[int]]:
        """Ranges of packets from the key packet before wanted ones to the last of them."""
        runs: list[list[int]] = []
        for i in wanted:
            start = max(j for j in range(i + 1) if packets[j].is_keyframe and packets[j].pts <= packets[i].pts)
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(runs[-1][1], i + 1)
            else:
                runs.append([start, i + 1])
        return runs

    def close(self):
        """Free the files and decoders."""
        for container, *_ in self.videos.values():
            container.close()


def decoders() -> dict[str, Callable | None]:
    """The ways to decode that are compared; `None` for what is not installed."""
    return {
        OURS: decode_ours,
        "decord, 1 thread": decord and decode_decord,
        "torchcodec, exact": torchcodec and decode_torchcodec,
        "PyAV, decode all, convert the clip's": partial(decode_everything, convert_all=False),
        "PyAV, decode and convert all": partial(decode_everything, convert_all=True),
    }


# clips by other means


def official_views(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> dict[str, torch.Tensor]:
    """What the official program makes of frames, as it is described: two float views (3, T, size, size) of one crop.

    Each frame becomes a Pillow image and is cropped. Then, once per view: resized, stacked, made a float in [0, 1] and
    normalised.
    """
    top, left, height, width = box
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    images = [image.crop((left, top, left + width, top + height)) for image in images]
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).repeat(len(images))[:, None, None]
    std = torch.tensor(IMAGENET_DEFAULT_STD).repeat(len(images))[:, None, None]
    views = {}
    for name in ("student", "teacher"):
        resized = [image.resize((size, size), Image.Resampling.BILINEAR) for image in images]
        stacked = np.concatenate([np.asarray(image) for image in resized], axis=2)
        pixels = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div_(255)
        pixels.sub_(mean).div_(std)
        views[name] = pixels.view(len(images), 3, size, size).transpose(0, 1)
    return views


def uint8_view(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> dict[str, torch.Tensor]:
    """One uint8 clip (T, 3, size, size) of frames, resized by torchvision."""
    top, left, height, width = box
    return {
        "pixel_values": resize_frames(np.ascontiguousarray(frames[:, top : top + height, left : left + width]), size)
    }


class OtherClips(torch.utils.data.Dataset):
    """Clips with the frames and crops that [`ClipDataset`] draws, by other means.

    Args:
        paths: the files.
        decode: reads frames, as those of [`decoders`] do.
        transform: makes tensors of frames, a box and a size.
        arguments: frames and size of a clip, and the seed.
    """

    def __init__(self, paths: Sequence[str], decode: Callable, transform: Callable, arguments: DataBenchmarkArguments):
        self.paths, self.decode, self.transform, self.arguments = paths, decode, transform, arguments
        self.crop = MultiScaleCrop(arguments.size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        generator = sample_generator(self.arguments.seed, epoch, index)
        frames = self.decode(self.paths[index], partial(self.arguments.choose, generator=generator))
        return self.transform(frames, self.crop(*frames.shape[1:3], generator), self.arguments.size)


def video_rows(paths: Sequence[str]) -> datasets.Dataset:
    """Files as the rows of a source."""
    return datasets.Dataset.from_dict({"video": [{"path": path, "bytes": None} for path in paths]})


def clip_methods(paths: Sequence[str], arguments: DataBenchmarkArguments) -> dict[str, Callable | None]:
    """Data sets of the same clips: `dataset[(epoch, index)]`; `None` for what is not installed."""
    exhaustive = partial(decode_everything, convert_all=False)
    others = {
        "official way (decord, Pillow, two float views)": (decord and decode_decord, official_views),
        "PyAV, decode all, then the official way": (exhaustive, official_views),
        "torchcodec, torchvision, uint8": (torchcodec and decode_torchcodec, uint8_view),
    }
    ours = ClipDataset(video_rows(paths), arguments.cutter(), seed=arguments.seed)
    return {OURS: ours} | {
        name: decode and OtherClips(paths, decode, transform, arguments)
        for name, (decode, transform) in others.items()
    }


# measuring


def measure(call: Callable) -> tuple[float, float]:
    """CPU and wall milliseconds of a call, with what freeing its result takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def fresh_processes():
    """Context of processes that inherit this package's modules and nothing that happened since.

    How often memory is handed back to the system, and so the time of large temporaries, depends on what a process has
    freed before.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def serve(method: Callable, tasks: Sequence[tuple], pipe):
    """Measure a method on the tasks whose numbers come through a pipe; send back costs or errors."""
    torch.set_num_threads(1)
    while True:
        task = tasks[pipe.recv()]
        try:
            pipe.send(measure(partial(method, *task)))
        except Exception as error:  # of any type: other packages'
            pipe.send(f"{type(error).__name__}: {error}")


def compare(
    methods: dict[str, Callable | None], tasks: Sequence[tuple], num_warm_up: int, seed: int
) -> dict[str, np.ndarray | None]:
    """CPU and wall milliseconds (tasks, 2) of every method, each in its own process, on every task.

    The methods take turns in random order on each task.

    Args:
        methods: called with the tasks' values; `None` for what is not installed gives `None`, and so does what fails.
        tasks: the methods' arguments.
        num_warm_up: so many tasks, the first ones, do not count.
        seed: seed of the order.

    Raises:
        RuntimeError: if our own method fails.
    """
    context = fresh_processes()
    pipes, processes = {}, []
    for name, method in methods.items():
        if method is not None:
            pipes[name], end = context.Pipe()
            processes.append(context.Process(target=serve, args=(method, tasks, end), daemon=True))
            processes[-1].start()
            end.close()  # so that the death of the process ends the pipe
    rng = np.random.default_rng(seed)
    costs: dict[str, list] = {name: [] for name in pipes}
    try:
        for i, name in ((i, name) for i in range(len(tasks)) for name in rng.permutation(list(costs))):
            try:
                pipes[name].send(i)
                cost = pipes[name].recv()
            except (EOFError, OSError):
                cost = "its process died"
            if not isinstance(cost, str):
                costs[name].append(cost)
                continue
            if name == OURS:
                raise RuntimeError(f"{name} fails on {tasks[i]}: {cost}")
            logger.warning("%s fails: %s", name, cost)
            del costs[name]
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {name: np.array(costs[name][num_warm_up:]) if name in costs else None for name in methods}


def rows_of(files: str, costs: dict[str, np.ndarray | None], reference: str) -> list[dict]:
    """A table's rows: means per clip, and CPU time over that of the reference with its 95 % interval (bootstrap)."""
    base = costs[reference][:, 0]
    draws = np.random.default_rng(0).integers(len(base), size=(2000, len(base)))
    rows = []
    for name, cost in costs.items():
        row = {"files": files, "method": name, "cpu_ms": None, "wall_ms": None, "clips_per_s": None}
        row |= {"cpu_ratio": None, "low": None, "high": None}
        if cost is not None:
            cpu, wall = cost.mean(axis=0)
            low, high = np.quantile(cost[draws, 0].sum(axis=1) / base[draws].sum(axis=1), (0.025, 0.975))
            row |= {"cpu_ms": cpu, "wall_ms": wall, "clips_per_s": 1e3 / wall}
            row |= {"cpu_ratio": cpu / base.mean(), "low": low, "high": high}
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return rows


def check_frames(method: Callable | None, tasks: Sequence[tuple]) -> str:
    """Whether a decoder gives the frames of an exhaustive decode: `same`, `other frames`, or why it fails."""
    if method is None:
        return NOT_MEASURED
    for path, choose in tasks:
        try:
            frames = method(path, choose)
        except Exception as error:  # of any type: other packages'
            return f"fails ({type(error).__name__})"
        if isinstance(frames, set):  # the floor keeps no frames
            agrees = frames == set(choose(0).tolist())
        else:
            agrees = np.array_equal(frames, decode_everything(path, choose, convert_all=False))
        if not agrees:
            return "other frames"
    return "same"


def measure_decode(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of the decoders, with whether their frames are those of an exhaustive decode."""
    rows = []
    for files, paths in groups.items():
        methods = {**decoders(), FLOOR: DecoderFloor()}
        generator = sample_generator(arguments.seed, 0)
        tasks = []
        for _, path in itertools.product(range(arguments.rounds + 1), paths):
            with VideoReader(path) as reader:
                tasks.append((path, partial(fixed_frames, arguments.choose(len(reader), generator))))
        costs = compare(methods, tasks, len(paths), arguments.seed)
        frames = {name: check_frames(method, tasks[: len(paths)]) for name, method in methods.items()}
        rows += [{**row, "frames": frames[row["method"]]} for row in rows_of(files, costs, OURS)]
        methods[FLOOR].close()
    return rows


class StageClock:
    """CPU milliseconds of named stages, added up."""

    def __init__(self):
        self.total: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = time.process_time()
        try:
            yield
        finally:
            self.total[name] += 1e3 * (time.process_time() - start)


class StagedReader(VideoReader):
    """A [`VideoReader`] that tells decoding and colour conversion apart."""

    def __init__(self, source: str, clock: StageClock):
        super().__init__(source)
        self.clock = clock

    def _decode(self, wanted: list[int]) -> Iterator[tuple]:
        frames = super()._decode(wanted)
        while True:
            with self.clock.stage("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def _to_rgb(self, frame) -> np.ndarray:
        with self.clock.stage("colour conversion"):
            return super()._to_rgb(frame)


def staged_clip(path: str, clock: StageClock, key: tuple[int, int], arguments: DataBenchmarkArguments) -> dict:
    """The clip that [`ClipDataset`] makes for a key (epoch, index), every stage by the clock."""
    generator = sample_generator(arguments.seed, *key)
    cutter = arguments.cutter()
    with clock.stage("whole clip"):
        with clock.stage("open and scan packets"):
            reader = StagedReader(path, clock)
        with reader:
            indices = arguments.choose(len(reader), generator)
            with clock.stage("read"):
                frames = reader.read(indices, partial(cutter.augmentation.crop, generator=generator))
            with clock.stage("resize"):
                batch = torch.from_numpy(frames).permute(0, 3, 1, 2)
                size = [arguments.size, arguments.size]
                resized = v2.functional.resize(batch, size, v2.InterpolationMode.BILINEAR, antialias=True)
            with clock.stage("layout (channels first)"):
                clip = {"pixel_values": resized.contiguous()}
            with clock.stage("mask"):
                clip["bool_masked_pos"] = cutter.mask(generator=generator)
            with clock.stage("close"):
                reader.close()
    return clip


def measure_stages(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of the stages of our path, in CPU milliseconds per clip and as parts of the whole clip."""
    rows = []
    for files, paths in groups.items():
        clock, batch, count = StageClock(), [], 0
        for path in paths:
            staged_clip(path, StageClock(), (0, 0), arguments)  # warm-up
        for key in itertools.product(range(1, arguments.rounds + 1), range(len(paths))):
            batch.append(staged_clip(paths[key[1]], clock, key, arguments))
            count += 1
            if len(batch) == arguments.batch_size or count == arguments.rounds * len(paths):
                with clock.stage("collate"):
                    collate_clips(batch)
                batch = []
        total = {name: value / count for name, value in clock.total.items()}
        total["copy of the crop"] = total.pop("read") - total["decode"] - total["colour conversion"]
        rows += [
            {"files": files, "stage": stage, "cpu_ms": total[stage], "share": total[stage] / total["whole clip"]}
            for stage in STAGES
        ]
    return rows


def measure_clips(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of whole clips, from file to tensor."""
    rows = []
    for files, paths in groups.items():
        data = clip_methods(paths, arguments)
        methods = {name: clips and clips.__getitem__ for name, clips in data.items()}
        keys = [((epoch, i),) for epoch, i in itertools.product(range(arguments.rounds + 1), range(len(paths)))]
        rows += rows_of(files, compare(methods, keys, len(paths), arguments.seed), OURS)
    return rows


def cpu_seconds() -> float:
    """CPU time of this process and of its living children, which are data workers."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def measure_loader(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of a DataLoader over all files: medians over passes that the methods take in turns."""
    paths = [path for group in groups.values() for path in group]
    data = clip_methods(paths, arguments)
    keys = [divmod(i, len(paths)) for i in range(arguments.loader_clips)]
    loaders = {
        name: clips
        and torch.utils.data.DataLoader(
            clips,
            arguments.batch_size,
            sampler=keys,
            num_workers=arguments.workers,
            collate_fn=collate_clips if name == OURS else None,
            multiprocessing_context=fresh_processes() if arguments.workers else None,
            persistent_workers=arguments.workers > 0,
        )
        for name, clips in data.items()
    }

    def read_all(name: str) -> tuple[float, float]:
        """CPU and wall milliseconds per clip of one pass."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        for batch in loaders[name]:
            del batch
        seconds = cpu_seconds() - cpu, time.perf_counter() - wall
        return tuple(1e3 * value / len(keys) for value in seconds)

    rng = np.random.default_rng(arguments.seed)
    costs: dict[str, list] = {}
    for name in (name for name, loader in loaders.items() if loader is not None):
        try:
            read_all(name)  # starts the workers
            costs[name] = []
        except Exception as error:  # of any type: other packages'
            if name == OURS:
                raise
            logger.warning("%s fails: %s", name, error)
    for _ in range(arguments.loader_rounds):
        for name in rng.permutation(list(costs)):
            costs[name].append(read_all(name))
    middle = {name: np.median(cost, axis=0, keepdims=True) for name, cost in costs.items()}
    rows = rows_of(f"all, {arguments.workers} workers", {name: middle.get(name) for name in loaders}, OURS)
    ours = 1e3 / middle[OURS][0, 1]
    for row in rows:
        row.pop("low"), row.pop("high")
        row["clips_per_s_ratio"] = row["clips_per_s"] and ours / row["clips_per_s"]
    return rows


def measure_clips_per_video(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of one, two and four clips cut from a video that is decoded once: means per clip."""
    rows = []
    for files, paths in groups.items():
        counts = {"1 clip": 1, "2 clips": 2, "4 clips": 4}
        data = {
            name: ClipDataset(video_rows(paths), arguments.cutter(count), seed=arguments.seed)
            for name, count in counts.items()
        }
        methods = {name: clips.__getitem__ for name, clips in data.items()}
        keys = [((epoch, i),) for epoch, i in itertools.product(range(arguments.rounds + 1), range(len(paths)))]
        costs = compare(methods, keys, len(paths), arguments.seed)
        rows += rows_of(files, {name: cost / counts[name] for name, cost in costs.items()}, "1 clip")
    return rows


def measure_memory(arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of memory and open files while one process reads clips of small videos, as paths and as bytes.

    One file is cut off and one damaged; both are substituted, so that errors are among what may leak.
    """
    folder = make_toy_dataset(Path(arguments.output) / "small", num_train=8, num_validation=0, num_frames=24)
    paths = sorted((folder / "train").glob("*.mp4"))
    whole = paths[0].read_bytes()
    items = [{"path": str(path), "bytes": None} for path in paths]
    items += [{"path": None, "bytes": path.read_bytes()} for path in paths]
    middle = len(whole) // 2
    items.append({"path": None, "bytes": whole[:middle]})
    items.append({"path": None, "bytes": whole[:middle] + bytes(100) + whole[middle + 100 :]})
    small = DataBenchmarkArguments(num_frames=8, stride=2, size=32)
    rows = datasets.Dataset.from_dict({"video": items})
    clips = ClipDataset(rows, small.cutter(), seed=arguments.seed, on_bad_video="substitute")
    process = psutil.Process()
    step = max(min(1000, arguments.memory // 10), 1)
    table = []
    for i in range(arguments.memory):
        clips[divmod(i, len(clips))]
        if (i + 1) % step == 0:
            table.append(
                {"clips": i + 1, "rss_mb": process.memory_info().rss / 2**20, "open_files": process.num_fds()}
            )
    return table


# the report


def processor() -> str:
    """Model of the CPU."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def about() -> dict[str, str]:
    """Hardware, versions and date, which every report starts with."""
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": processor(),
        "cores": str(os.cpu_count()),
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
    }


def data_benchmark(arguments: DataBenchmarkArguments) -> dict:
    """The report: `about`, and a table (a list of rows) for every part, see `TITLES`.

    CPU and wall times are milliseconds per clip; `cpu_ratio` is CPU time over ours (over that of 1 clip in
    `clips_per_video`), from `low` to `high` with 95 % confidence. What is not installed has `None` for numbers.
    """
    report: dict = {"about": about(), "arguments": vars(arguments)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a data worker
    try:
        if arguments.memory and "memory" in arguments.parts:  # first, while the process is small
            logger.info("Reading %d clips.", arguments.memory)
            report["memory"] = measure_memory(arguments)
        groups = {Path(path).name: [str(path)] for path in arguments.videos}
        for part in (part for part in PARTS if part in arguments.parts):
            groups = groups or make_videos(Path(arguments.output) / "videos")
            logger.info("Measuring: %s.", TITLES[part])
            report[part] = PARTS[part](groups, arguments)
    finally:
        torch.set_num_threads(threads)
    return report


def cell(value) -> str:
    """A table's value as text."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def as_table(rows: list[dict]) -> str:
    """Rows with the same keys as an aligned Markdown table."""
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    is_number = [isinstance(value, int | float) for value in rows[0].values()]
    lines.insert(1, ["-" * (width - number) + ":" * number for width, number in zip(widths, is_number, strict=True)])
    aligned = [
        [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, is_number, strict=True)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def as_text(report: dict) -> str:
    """A report as a header and a table per part."""
    header = ", ".join(f"{name} {value}" for name, value in report["about"].items())
    tables = [f"{TITLES[part]}\n\n{as_table(report[part])}" for part in TITLES if report.get(part)]
    return "\n\n".join([header, *tables])


def save_report(report: dict, folder: str | Path, name: str) -> Path:
    """Write a report as JSON to `<folder>/<name>.json` and return the file's path."""
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return path


PARTS = {
    "decode": measure_decode,
    "stages": measure_stages,
    "clip": measure_clips,
    "loader": measure_loader,
    "clips_per_video": measure_clips_per_video,
}
