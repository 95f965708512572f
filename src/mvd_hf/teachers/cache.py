"""Targets on disk: a teacher sees each view of a video once; later epochs, runs and other students read its targets.

    <folder>/<teacher>/teacher.json                  the settings that the targets follow from
    <folder>/<teacher>/<aa>/<clip>.safetensors       targets (L [+ 1], D) of all patches of a clip

<teacher> is a hash of the weights and of all settings that change targets, <clip> a hash of the pixels that the
teacher sees. So what is read always belongs to the clip at hand, whichever video, crop, decoder or run it came from. A
file is complete or absent, and reading compares its checksum.
"""

import hashlib
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import AutoModel, PreTrainedConfig
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from ..model.configuration_mvd import Size, compact_size
from .families import read_config
from .inputs import Grid
from .teacher import Teacher, TeacherConfig, load_teacher, load_teachers

logger = logging.getLogger(__name__)

# raise it where the same weights, settings and pixels give other targets than before
FORMAT = 1
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# fields of a TeacherConfig that do not change what a teacher returns; the weights stand for the model's name
NEUTRAL = (
    *("model", "compile", "frames_per_pass", "shard", "family", "revision", "trust_remote_code"),
    *("loss", "weight", "on", "visible_weight", "visible_weighting"),
)
SETTINGS, PARTIAL = "teacher.json", "partial"
TARGETS, CHECKSUM = "targets", "crc32"
# key of a batch: per cached teacher the hashes of the clips and, where all of them are stored, their targets
LOOKUPS = "target_lookups"
# seconds after which a file that was never finished belongs to no running process
ABANDONED = 3600.0
CONFIGURATIONS = (CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)
# in the order in which transformers looks for them
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


@dataclass
class TargetCacheConfig:
    """A cache of targets on disk, as an entry of a recipe.

    Args:
        folder: where the targets are. Several runs, students and teachers may share it.
        views: number of fixed views (frames, crop and flip) of each training video, which epochs take in turn. Masks
            are new in every epoch.
        dtype: `bfloat16`, `float16` or `float32`, in which targets are stored and trained on. With `float32` losses
            equal those without a cache.
        gib: GiB that the folder may hold; where it is full, teachers compute what is missing. By default no limit.
        teachers: names of the teachers whose targets are stored; by default all.

    Raises:
        ValueError: if a value is not one of the choices, or there is no folder.
    """

    folder: str = ""
    views: int = 1
    dtype: str = "bfloat16"
    gib: float | None = None
    teachers: list[str] | None = None

    def __post_init__(self):
        if not self.folder:
            raise ValueError("target_cache has no folder: give target_cache.folder.")
        if self.dtype not in DTYPES:
            raise ValueError(f"There is no target_cache.dtype={self.dtype!r}; choose {', '.join(DTYPES)}.")
        if self.views < 1:
            raise ValueError(f"target_cache.views={self.views} must be at least 1.")
        if self.gib is not None and not 0 <= self.gib < math.inf:
            raise ValueError(f"target_cache.gib={self.gib} must be a number of GiB, at least 0, or null for no limit.")

    def holds(self, teacher: str) -> bool:
        """Whether the targets of a teacher are stored."""
        return self.teachers is None or teacher in self.teachers


# identities


def hash_of_files(paths: Iterable[str | os.PathLike]) -> str:
    """Hash of the contents of files in their order."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def checkpoint_files(model: str, revision: str | None = None) -> list[str]:
    """The configurations and weights of a local folder or Hub id, those that `from_pretrained` reads.

    Raises:
        ValueError: if there are no weights.
    """

    def find(name: str) -> str | None:
        return cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    weights = next(filter(None, map(find, WEIGHTS)), None)
    if weights is None:
        raise ValueError(f"The teacher {model!r} has none of {', '.join(WEIGHTS)}: its targets cannot be cached.")
    parts = (
        get_checkpoint_shard_files(model, weights, revision=revision)[0] if weights.endswith(".json") else [weights]
    )
    return [*filter(None, map(find, CONFIGURATIONS)), *parts]


def hash_of_clip(clip: torch.Tensor) -> str:
    """Hash of the pixels (T, C, h, w) of a clip."""
    clip = clip.contiguous()
    found = hashlib.sha256(f"{clip.dtype} {tuple(clip.shape)}".encode())
    found.update(clip.view(torch.uint8).cpu().numpy())
    return found.hexdigest()[:32]


def clips_by_size(batch: Mapping) -> dict[Size, torch.Tensor]:
    """The clips (B, T, C, h, w) of a batch by their size."""
    return {compact_size(clip.shape[-2:]): clip for name, clip in batch.items() if name.startswith("pixel_values")}


def empty_teacher(
    config: TeacherConfig, model_config: PreTrainedConfig, student_grid: Grid, num_frames: int
) -> Teacher:
    """A teacher without weights, on the meta device: it knows its sizes and has checked its settings."""
    with torch.device("meta"):
        model = AutoModel.from_config(model_config, attn_implementation="eager").float()  # not the dtype on disk
    return Teacher(replace(config, compile=False), model, student_grid, num_frames).to("meta")


# files


class Budget:
    """Bytes that this process may still add to a folder, which the processes of a run fill in equal parts.

    Args:
        folder: the folder.
        gib: GiB that the folder may hold; `None` for no limit.
    """

    def __init__(self, folder: Path, gib: float | None):
        self.folder, self.gib = folder, gib
        self.left: float | None = math.inf if gib is None else None  # counted when the first file is written
        self.is_full = False

    def count(self) -> float:
        """The bytes that are left to this process."""
        used = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        return (self.gib * 2**30 - used) / (dist.get_world_size() if dist.is_initialized() else 1)

    def take(self, size: int) -> bool:
        """Whether there is room for another file, which is then taken; the first refusal is logged."""
        self.left = self.count() if self.left is None else self.left
        if size <= self.left:
            self.left -= size
            return True
        if not self.is_full:
            logger.warning("%s holds target_cache.gib=%g: teachers compute what is missing.", self.folder, self.gib)
        self.is_full = True
        return False


class TargetFolder:
    """The targets of one teacher on disk, by the hash of the clip.

    Args:
        folder: the teacher's part of the cache.
        dtype: of the targets.
        budget: limits what is written.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, budget: Budget):
        self.folder, self.dtype, self.budget = folder, dtype, budget
        self.is_writable = True

    def path(self, clip: str) -> Path:
        return self.folder / clip[:2] / f"{clip}.safetensors"

    def read(self, clips: Sequence[str]) -> torch.Tensor | None:
        """Targets (B, L, D) of clips; `None` if one of them is missing or damaged."""
        targets = []
        for clip in clips:
            target = self._read(self.path(clip))
            if target is None:
                return None
            targets.append(target)
        return torch.stack(targets)

    def _read(self, path: Path) -> torch.Tensor | None:
        try:
            with safe_open(path, "pt") as file:
                target, checksum = file.get_tensor(TARGETS), (file.metadata() or {}).get(CHECKSUM)
            if checksum == checksum_of(target) and target.dtype == self.dtype:
                return target
            reason = "another checksum"
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read (%s): the teacher computes its targets.", path, error)
            return None
        except SafetensorError as error:
            reason = str(error)
        logger.warning("%s is damaged (%s) and is removed: the teacher computes its targets.", path, reason)
        with suppress(OSError):
            path.unlink()
        return None

    def write(self, clips: Sequence[str], targets: torch.Tensor):
        """Store targets (B, L, D) of clips that are not stored yet; a failure ends writing, not the run."""
        if not self.is_writable:
            return
        for clip, target in zip(clips, targets.cpu(), strict=True):
            path = self.path(clip)
            if path.exists():
                continue
            content = save({TARGETS: target}, {CHECKSUM: checksum_of(target)})
            if not self.budget.take(len(content)):
                return
            try:
                put_file(self.folder, path, content)
            except OSError as error:
                self.is_writable = False
                logger.warning("No more targets are written to %s (%s): the run goes on.", self.folder, error)
                return

    def remove_partial_files(self):
        """Remove what processes left that were killed while writing."""
        with suppress(OSError):
            for path in (self.folder / PARTIAL).iterdir():
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)


def checksum_of(target: torch.Tensor) -> str:
    return f"{zlib.crc32(target.view(torch.uint8).numpy()):08x}"


def put_file(folder: Path, path: Path, content: bytes):
    """Write a file of a folder: another process sees it whole or not at all."""
    partial = folder / PARTIAL / uuid4().hex
    for parent in (partial.parent, path.parent):
        parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def open_folder(root: Path, model: str, settings: Mapping) -> Path:
    """The part of a cache for a teacher of these settings, made where there is none.

    Raises:
        ValueError: if it cannot be made or read, or the settings in it are others.
    """
    text = json.dumps(settings, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / SETTINGS
    try:
        if not path.exists():
            put_file(folder, path, json.dumps({"model": model, "settings": settings}, indent=2).encode())
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except OSError as error:
        raise ValueError(
            f"target_cache.folder={str(root)!r} cannot be used ({error}): give another folder."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}): delete its folder.") from error
    if found != json.loads(text):
        raise ValueError(f"{str(path)!r} has the settings of another teacher: delete its folder.")
    return folder


# teachers


class CachedTeacher:
    """A [`Teacher`] that computes only targets that are not stored; its weights are loaded when the first is missing.

    Call [`open`] before the first batch.

    Args:
        config: the entry of a recipe.
        cache: where its targets are stored.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.
        budget: limits what is written, together with other teachers.

    Attributes:
        passes: how many batches the teacher computed.

    Raises:
        ValueError: if its patches cannot match the student's, or its weights are divided among processes.
    """

    def __init__(
        self,
        config: TeacherConfig,
        cache: TargetCacheConfig,
        student_grid: Grid,
        num_frames: int,
        budget: Budget | None = None,
    ):
        if config.shard:
            raise ValueError(
                f"shard=True of the teacher {config.model!r} excludes target_cache: a process that reads targets does "
                "not take part in the passes of the others. Choose one."
            )
        if config.family or config.trust_remote_code:
            raise ValueError(
                f"The targets of the teacher {config.model!r} cannot be cached, as it is not known what its own code "
                "computes: leave it out of target_cache.teachers."
            )
        self.config, self.cache = config, cache
        self.budget = budget or Budget(Path(cache.folder), cache.gib)
        self.student_grid, self.num_frames = student_grid, num_frames
        outline = empty_teacher(config, read_config(config.model, revision=config.revision), student_grid, num_frames)
        self.layer_dim, self.image_size = outline.layer_dim, outline.image_size
        self.choices = {"frames": outline.frames, "norm": "pre" if outline.final_norm is None else "post"}
        self.device, self.passes = torch.device("cpu"), 0
        self.teacher: Teacher | None = None
        self.stored: TargetFolder | None = None

    def settings(self, precision: str) -> dict:
        """Whatever the targets of a clip follow from."""
        fields = {name: value for name, value in asdict(self.config).items() if name not in NEUTRAL}
        for name, default in (("grid", "exact"), ("guides_masks", False)):
            if fields[name] == default:
                del fields[name]  # as earlier versions wrote it
        if self.config.target_norm != "layernorm":
            fields["target_norm"] = "none"  # statistics are applied to what is stored
        return {
            "format": FORMAT,
            "files": hash_of_files(checkpoint_files(self.config.model, self.config.revision)),
            **fields,
            **self.choices,
            "image_size": self.image_size if isinstance(self.image_size, int) else list(self.image_size),
            "student_grid": list(self.student_grid),
            "num_frames": self.num_frames,
            "autocast": precision,
            "stored_dtype": self.cache.dtype,
        }

    def open(self, precision: str, device: torch.device) -> "CachedTeacher":
        """Open its part of the cache.

        Args:
            precision: of the run, such as `bf16`.
            device: where it computes.

        Raises:
            ValueError: if the folder cannot be used.
        """
        folder = open_folder(Path(self.cache.folder), self.config.model, self.settings(precision))
        self.stored = TargetFolder(folder, DTYPES[self.cache.dtype], self.budget)
        self.stored.remove_partial_files()
        self.device = device
        return self

    def __call__(
        self,
        clips: Mapping[Size, torch.Tensor],
        hashes: Sequence[str] | None = None,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Targets (B, L, D) of clips (B, T, C, h, w) by their size.

        Args:
            clips: as for a [`Teacher`].
            hashes, targets: what a [`CachingCollator`] found; by default both are looked up now.

        Raises:
            ValueError: if computed targets are not finite in the dtype in which they are stored.
        """
        if targets is not None:
            return targets
        hashes = list(map(hash_of_clip, clips[self.image_size])) if hashes is None else hashes
        targets = self.stored.read(hashes)  # another process may have written them since the batch was made
        if targets is not None:
            return targets.to(self.device)
        if self.teacher is None:
            logger.info("Loading the teacher %r, as targets are missing in %s.", self.config.model, self.stored.folder)
            self.teacher = load_teacher(self.config, self.student_grid, self.num_frames).to(self.device)
        self.passes += 1
        targets = self.teacher(clips).to(self.stored.dtype)
        if not targets.isfinite().all():
            raise ValueError(
                f"The targets of the teacher {self.config.model!r} are not finite in {self.cache.dtype}, and are not "
                "stored: choose another target_cache.dtype, or another dtype of the teacher."
            )
        self.stored.write(hashes, targets)
        return targets


class CachingCollator:
    """Collates batches, in a data worker, and adds the stored targets under `target_lookups`.

    Args:
        collate: makes a batch of items.
        teachers: by name; those that are no [`CachedTeacher`] are passed over.
    """

    def __init__(self, collate: Callable[[list], dict | None], teachers: Mapping):
        self.collate = collate
        self.stored = {
            name: (teacher.image_size, teacher.stored)
            for name, teacher in teachers.items()
            if isinstance(teacher, CachedTeacher)
        }

    def __call__(self, items: list) -> dict | None:
        batch = self.collate(items)
        if batch is None:
            return None
        clips, hashes = clips_by_size(batch), {}
        batch[LOOKUPS] = {}
        for name, (size, stored) in self.stored.items():
            if size not in hashes:
                hashes[size] = list(map(hash_of_clip, clips[size]))
            batch[LOOKUPS][name] = {"hashes": hashes[size], "targets": stored.read(hashes[size])}
        return batch


def load_cached_teachers(
    teachers: Mapping[str, TeacherConfig | Mapping | str],
    cache: TargetCacheConfig | None,
    student_grid: Grid,
    num_frames: int,
) -> dict[str, Teacher | CachedTeacher]:
    """Teachers by name, those whose targets are cached without weights.

    Args:
        teachers, student_grid, num_frames: as for `mvd_hf.load_teachers`.
        cache: where targets are stored, and of which teachers; `None` for none.

    Raises:
        ValueError: as `mvd_hf.load_teachers`, or if the cache names a teacher that there is not.
    """
    if cache is None:
        return load_teachers(teachers, student_grid, num_frames)
    unknown = set(cache.teachers or ()) - teachers.keys()
    if unknown:
        raise ValueError(f"target_cache.teachers names {sorted(unknown)}, the teachers are {sorted(teachers)}.")
    budget, loaded = Budget(Path(cache.folder), cache.gib), {}
    for name, entry in teachers.items():
        config = TeacherConfig.from_entry(name, entry)
        if cache.holds(name):
            loaded[name] = CachedTeacher(config, cache, student_grid, num_frames, budget)
        else:
            loaded[name] = load_teacher(config, student_grid, num_frames)
    return loaded
