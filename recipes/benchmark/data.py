"""Benchmarks from video files to batches of uint8 clips: ours, decord, torchcodec, plain PyAV.

The methods of a table take turns in random order within one run, on the same frames and crops, so that their ratios
are valid on a machine with other work. Each method runs in its own fresh process and cannot reuse memory that another
one freed. CPU time is that of the whole process, decoder threads included.
"""

import itertools
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mvd_hf.data.augmentation import MultiScaleCrop, PretrainingAugmentation, resize_frames
from mvd_hf.data.clips import ClipDataset, ClipSampler, collate_clips, sample_generator
from mvd_hf.data.masking import tube_mask
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.data.transcoding import TranscodeSettings, transcode
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.video_reading import VideoReader

from .decoders import FLOOR, OURS, DecoderFloor, check_frames, decode_everything, decoders, fixed_frames
from .reports import about
from .videos import make_large_video, make_videos

logger = logging.getLogger(__name__)

STAGES = (
    "open and scan packets", "decode", "colors of the crop", "resize", "layout (channels first)",
    "mask", "close", "whole clip", "collate",
)  # fmt: skip
DATA_TITLES = {
    "decode": "Decode alone: a clip's frames as RGB, file opened each time",
    "stages": "Stages of ours: CPU time per clip",
    "clip": "File to clip: frames, crop and resize, in one process",
    "loader": "DataLoader",
    "clips_per_video": "Clips per decode: CPU time per clip",
    "kept": "Frames kept in memory: CPU time per clip of a later epoch",
    "transcoded": "Clips of videos as they are, and after `transcode.py`: CPU time per clip",
    "memory": "Memory of one process that reads clip after clip",
}
# frames, height and width of videos whose frames fit into memory: those of `recipes/study`, and clips of a second
TRANSCODED_SIZES = ((256, 340), (1080, 1920), (2160, 3840))
KEPT_SIZES = ((10, 40, 48), (32, 240, 320))


@dataclass
class DataBenchmarkArguments:
    """Keys of the benchmark of the data.

    Args:
        output: folder of the report and of the generated videos.
        videos: files to measure on instead of generated ones (340x256, 300 frames, GOP 250 and 12).
        parts: tables to measure, keys of `DATA_TITLES`.
        rounds: random clips per file that each method reads.
        workers, batch_size: of the DataLoader.
        loader_rounds, loader_clips: passes through the DataLoader (the median is reported), and clips per pass.
        memory: clips to read for the table `memory`; 0 leaves it out.
        num_frames, stride, size: frames of a clip, distance between them, side of the clip in pixels.
        seed: seed of all random choices.
    """

    output: str = "outputs/benchmarks"
    videos: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=lambda: list(DATA_TITLES))
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
        unknown = sorted(set(self.parts) - set(DATA_TITLES))
        if unknown:
            raise ValueError(f"parts has {', '.join(unknown)}; choose from {', '.join(DATA_TITLES)}.")
        if self.rounds < 1 or self.loader_rounds < 1:
            raise ValueError(f"rounds={self.rounds} and loader_rounds={self.loader_rounds} must be at least 1.")

    def choose(self, total_frames: int, generator: torch.Generator) -> np.ndarray:
        """Frame numbers (T,) of one random clip."""
        return pretraining_frames(total_frames, self.num_frames, self.stride, generator=generator)[0]

    def clip_sampler(self, num_clips: int = 1, with_mask: bool = True, memory_gib: float = 0.0) -> ClipSampler:
        """Our [`ClipSampler`], which draws `num_clips` clips of a video and their masks."""
        grid = (max(self.num_frames // 2, 1), self.size // 16, self.size // 16)
        return ClipSampler(
            partial(pretraining_frames, num_frames=self.num_frames, stride=self.stride, num_clips=num_clips),
            PretrainingAugmentation([self.size]),
            partial(tube_mask, grid, 0.9) if with_mask else None,
            memory_gib=memory_gib,
        )


# other ways to make clips


def official_views(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> dict[str, torch.Tensor]:
    """Two float views (3, T, size, size) of one crop, made as in the description of the official program.

    Each frame becomes a Pillow image and is cropped. Then, once per view, it is resized, stacked, converted to floats
    in [0, 1] and normalised.
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
    """One uint8 clip (T, 3, size, size), resized by torchvision."""
    top, left, height, width = box
    return {
        "pixel_values": resize_frames(np.ascontiguousarray(frames[:, top : top + height, left : left + width]), size)
    }


class OtherClips(torch.utils.data.Dataset):
    """Clips with the frames and crops of [`ClipDataset`], made in another way.

    Args:
        paths: the files.
        decode: one of [`decoders`].
        transform: makes tensors from frames, a box and a size.
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
    """Files as the rows of a data set."""
    return datasets.Dataset.from_dict({"video": [{"path": path, "bytes": None} for path in paths]})


def clip_methods(paths: Sequence[str], arguments: DataBenchmarkArguments) -> dict[str, Callable | None]:
    """Data sets of the same clips, indexed by (epoch, index); `None` for packages that are not installed."""
    exhaustive = partial(decode_everything, convert_all=False)
    installed = decoders()
    others = {
        "official way (decord, Pillow, two float views)": (installed["decord, 1 thread"], official_views),
        "PyAV, decode all, then the official way": (exhaustive, official_views),
        "torchcodec, torchvision, uint8": (installed["torchcodec, exact"], uint8_view),
    }
    ours = ClipDataset(video_rows(paths), arguments.clip_sampler(), seed=arguments.seed)
    return {OURS: ours} | {
        name: decode and OtherClips(paths, decode, transform, arguments)
        for name, (decode, transform) in others.items()
    }


# measuring


def measure(call: Callable) -> tuple[float, float]:
    """CPU and wall milliseconds of a call, including the time to free its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def fresh_processes():
    """Context of processes that inherit imported modules and nothing else.

    The time of large temporaries depends on memory that a process has freed before.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def serve(method: Callable, tasks: Sequence[tuple], pipe):
    """Measure a method on tasks whose indices come through a pipe; send back costs or errors."""
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
        methods: functions of the values of a task; the cost of `None` (not installed) and of failing ones is `None`.
        tasks: arguments of the methods.
        num_warm_up: number of first tasks that are not measured.
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
    """Rows of a table: means per clip, and CPU time relative to the reference with its 95 % bootstrap interval."""
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


def measure_decode(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of the decoders, and whether their frames equal those of an exhaustive decode."""
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
    """Total CPU milliseconds of named stages."""

    def __init__(self):
        self.total: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context whose CPU time counts for a stage."""
        start = time.process_time()
        try:
            yield
        finally:
            self.total[name] += 1e3 * (time.process_time() - start)


def staged_clip(path: str, clock: StageClock, key: tuple[int, int], arguments: DataBenchmarkArguments) -> dict:
    """The clip that [`ClipDataset`] makes for a key (epoch, index), with a clock for every stage."""
    generator = sample_generator(arguments.seed, *key)
    clip_sampler = arguments.clip_sampler()
    with clock.stage("whole clip"):
        with clock.stage("open and scan packets"):
            reader = VideoReader(path)
        with reader:
            indices = arguments.choose(len(reader), generator)
            with clock.stage("decode"):
                decoded = reader.decode(indices)
            with clock.stage("colors of the crop"):
                frames = decoded.rgb(clip_sampler.augmentation.crop(*decoded.size, generator))
            with clock.stage("resize"):
                batch = torch.from_numpy(frames).permute(0, 3, 1, 2)
                size = [arguments.size, arguments.size]
                resized = v2.functional.resize(batch, size, v2.InterpolationMode.BILINEAR, antialias=True)
            with clock.stage("layout (channels first)"):
                clip = {"pixel_values": resized.contiguous()}
            with clock.stage("mask"):
                clip["bool_masked_pos"] = clip_sampler.mask(generator=generator)
            with clock.stage("close"):
                reader.close()
    return clip


def measure_stages(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of our stages: CPU milliseconds per clip, and their share of the whole clip."""
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
    """CPU time of this process and of its data workers."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def measure_loader(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of a DataLoader over all files: medians over passes; the methods take turns."""
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
    """Table of one, two and four clips from a video that is decoded once: means per clip."""
    rows = []
    for files, paths in groups.items():
        counts = {"1 clip": 1, "2 clips": 2, "4 clips": 4}
        data = {
            name: ClipDataset(video_rows(paths), arguments.clip_sampler(count), seed=arguments.seed)
            for name, count in counts.items()
        }
        methods = {name: clips.__getitem__ for name, clips in data.items()}
        keys = [((epoch, i),) for epoch, i in itertools.product(range(arguments.rounds + 1), range(len(paths)))]
        costs = compare(methods, keys, len(paths), arguments.seed)
        rows += rows_of(files, {name: cost / counts[name] for name, cost in costs.items()}, "1 clip")
    return rows


def measure_kept(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of frames decoded in every epoch, and kept in memory from an earlier one, for small generated videos."""
    if not arguments.videos:
        folder, groups = Path(arguments.output) / "videos", {}
        for num_frames, height, width in KEPT_SIZES:
            paths = make_videos(folder, num_frames, height, width).values()
            groups[f"{num_frames} frames of {width}x{height}"] = list(itertools.chain(*paths))
    rows = []
    for files, paths in groups.items():
        settings = {"decoded in every epoch": 0.0, "kept in memory (memory_gib: 1)": 1.0}
        methods = {
            name: ClipDataset(
                video_rows(paths), arguments.clip_sampler(memory_gib=gib), seed=arguments.seed
            ).__getitem__
            for name, gib in settings.items()
        }
        keys = [((epoch, i),) for epoch, i in itertools.product(range(arguments.rounds + 1), range(len(paths)))]
        rows += rows_of(files, compare(methods, keys, len(paths), arguments.seed), next(iter(methods)))
    return rows


def measure_transcoded(groups: dict[str, list[str]], arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of clips of the files, or of generated ones of three sizes with GOP 250, before and after transcoding."""
    folder = Path(arguments.output) / "videos"
    if not arguments.videos:
        paths = [make_large_video(folder, height, width) for height, width in TRANSCODED_SIZES]
        groups = {f"{path.stem}": [str(path)] for path in paths}
    rows = []
    for files, paths in groups.items():
        copies = [str(folder / "transcoded" / f"{Path(path).stem}.mp4") for path in paths]
        for path, copy in zip(paths, copies, strict=True):
            transcode(path, copy, TranscodeSettings())
        methods = {
            name: ClipDataset(video_rows(chosen), arguments.clip_sampler(), seed=arguments.seed).__getitem__
            for name, chosen in (("source", paths), ("transcoded", copies))
        }
        keys = [((epoch, i),) for epoch, i in itertools.product(range(arguments.rounds + 1), range(len(paths)))]
        rows += rows_of(files, compare(methods, keys, len(paths), arguments.seed), "source")
        rows[-1]["clips_per_s_ratio"] = rows[-1]["clips_per_s"] / rows[-2]["clips_per_s"]
        rows[-2]["clips_per_s_ratio"] = 1.0
    return rows


def measure_memory(arguments: DataBenchmarkArguments) -> list[dict]:
    """Table of memory and open files while one process reads clips of small videos, as paths and as bytes.

    One file is truncated and one damaged; both are substituted, so that leaks in the handling of errors show.
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
    clips = ClipDataset(rows, small.clip_sampler(), seed=arguments.seed, on_bad_video="substitute")
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


def data_benchmark(arguments: DataBenchmarkArguments) -> dict:
    """The report: `about`, and a table (a list of rows) for every part, see `DATA_TITLES`.

    CPU and wall times are milliseconds per clip. `cpu_ratio` is the CPU time relative to ours (in `clips_per_video`
    and `kept`: to the first row), with its 95 % interval from `low` to `high`. Packages that are not installed have
    `None` for numbers.
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
            logger.info("Measuring: %s.", DATA_TITLES[part])
            report[part] = PARTS[part](groups, arguments)
    finally:
        torch.set_num_threads(threads)
    return report


PARTS = {
    "decode": measure_decode,
    "stages": measure_stages,
    "clip": measure_clips,
    "loader": measure_loader,
    "clips_per_video": measure_clips_per_video,
    "kept": measure_kept,
    "transcoded": measure_transcoded,
}
