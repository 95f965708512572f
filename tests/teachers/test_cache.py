"""Targets on disk: what is read belongs to the clip and the teacher, and a disk that fails gives nothing else."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvd_hf import MVDForPixelReconstruction, load_teachers
from mvd_hf.teachers import TargetCacheConfig, load_cached_teachers
from mvd_hf.teachers import cache as cache_module
from mvd_hf.teachers.cache import LOOKUPS, Budget, CachedTeacher, CachingCollator, TargetFolder, hash_of_clip
from mvd_hf.teachers.teacher import Teacher

CPU = torch.device("cpu")


def clips(count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def make(tmp_path, tiny_teachers, tiny_student_config):
    """Makes a cached video teacher, with changes to its entry, to the cache and to the run's precision."""

    def make(precision: str = "fp32", folder: Path = tmp_path / "cache", entry=None, **cache) -> CachedTeacher:
        config = TargetCacheConfig(str(folder), **({"dtype": "float32"} | cache))
        entry = {"model": tiny_teachers["video"], **(entry or {})}
        grid = tiny_student_config.grid, tiny_student_config.num_frames
        (teacher,) = load_cached_teachers({"video": entry}, config, *grid).values()
        return teacher.open(precision, CPU)

    return make


@pytest.fixture
def teacher(tiny_teachers, tiny_student_config):
    options = {"video": tiny_teachers["video"]}, tiny_student_config.grid, tiny_student_config.num_frames
    return load_teachers(*options)["video"]


def files(teacher: CachedTeacher) -> list[Path]:
    return sorted(teacher.stored.folder.rglob("*.safetensors"))


def test_targets_are_computed_once_and_read_without_weights_by_later_runs(make, teacher):
    first = make()
    assert torch.equal(first({32: clips()}), teacher({32: clips()}))
    assert torch.equal(first({32: clips()}), teacher({32: clips()}))
    assert (first.passes, len(files(first))) == (1, 3)
    later = make()
    assert torch.equal(later({32: clips()[[2, 0]]}), teacher({32: clips()})[[2, 0]])
    assert (later.passes, later.teacher) == (0, None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_computed_equals_what_is_read_in_half_precision(make, teacher, dtype):
    first, later = make(dtype=dtype), make(dtype=dtype)
    computed, read = first({32: clips()}), later({32: clips()})
    assert computed.dtype == read.dtype == getattr(torch, dtype)
    assert torch.equal(computed, read)
    assert torch.equal(computed, teacher({32: clips()}).to(computed.dtype))


def test_targets_that_overflow_are_not_stored(make, monkeypatch):
    cached = make(dtype="float16")
    monkeypatch.setattr(Teacher, "__call__", lambda *_: torch.full((3, 32, 32), 1e5))
    with pytest.raises(ValueError, match="not finite in float16"):
        cached({32: clips()})
    assert files(cached) == []


def test_a_clip_with_another_pixel_has_other_targets(make, teacher):
    changed = clips()
    changed[1, 0, 0, 0, 0] ^= 1
    cached = make()
    cached({32: clips()})
    assert torch.equal(cached({32: changed}), teacher({32: changed}))
    assert (cached.passes, len(files(cached))) == (2, 4)
    assert hash_of_clip(clips()[0]) != hash_of_clip(clips()[0].float())


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ({"layer": 1}, {}),
        ({"norm": "post"}, {}),
        ({"target_norm": "layernorm"}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({}, {"dtype": "bfloat16"}),
        ({}, {"precision": "bf16"}),
    ],
)
def test_other_settings_are_kept_apart(make, entry, options):
    make()({32: clips()})
    other = make(entry=entry, **options)
    other({32: clips()})
    assert other.passes == 1


def test_speed_loss_and_views_share_targets(make):
    make()({32: clips()})
    other = make(entry={"weight": 0.5, "loss": "l2", "frames_per_pass": 4}, views=3)
    other({32: clips()})
    assert other.passes == 0


def test_other_weights_or_another_processor_are_kept_apart_wherever_they_lie(make, tiny_teachers, tmp_path):
    make()({32: clips()})
    for place, changes in (
        ("same", None),
        ("weights", "model.safetensors"),
        ("processor", "preprocessor_config.json"),
    ):
        folder = tmp_path / place
        folder.mkdir()
        for path in Path(tiny_teachers["video"]).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if changes == "model.safetensors":
            save_file({name: value + 1e-3 for name, value in load_file(folder / changes).items()}, folder / changes)
        elif changes is not None:
            (folder / changes).write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
        other = make(entry={"model": str(folder)})
        other({32: clips()})
        assert other.passes == (changes is not None), place


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "foreign"])
def test_a_damaged_file_is_computed_again_and_replaced(make, teacher, damage, caplog):
    first = make()
    first({32: clips()})
    path = files(first)[1]
    content = bytearray(path.read_bytes())
    if damage == "foreign":
        save_file({"targets": torch.zeros(32, 32)}, path)
    elif damage == "bit":
        content[-7] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    later = make()
    assert torch.equal(later({32: clips()}), teacher({32: clips()}))
    assert (later.passes, path.name in caplog.text) == (1, True)
    assert make().stored.read([path.stem]) is not None


def test_a_full_disk_ends_writing_and_nothing_else(make, teacher, monkeypatch, caplog):
    cached = make()
    written = Path.write_bytes

    def write_half(path, content):
        written(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    for _ in range(2):
        assert torch.equal(cached({32: clips()}), teacher({32: clips()}))
    assert files(cached) == [] == list((cached.stored.folder / "partial").iterdir())
    assert caplog.text.count("No space left") == 1


def test_files_that_a_killed_process_left_are_not_read_and_removed_later(make):
    cached = make()
    cached({32: clips()})
    recent, old = (cached.stored.folder / "partial" / name for name in ("recent", "old"))
    for path in (recent, old):
        path.write_bytes(files(cached)[0].read_bytes()[:100])
    os.utime(old, (0, 0))
    make()
    assert (recent.exists(), old.exists()) == (True, False)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start_but_may_be_read(make, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"target_cache\.folder='.*file'"):
        make(folder=tmp_path / "file")
    make()({32: clips()})

    def refuse(*_, **options):
        raise PermissionError(errno.EACCES, "read-only")

    for module, name in ((Path, "write_bytes"), (Path, "mkdir"), (Path, "unlink"), (cache_module.os, "replace")):
        monkeypatch.setattr(module, name, refuse)
    reader = make()
    reader({32: clips()})
    assert reader.passes == 0
    reader({32: clips(seed=1)})  # computed, not stored
    assert (reader.passes, len(files(reader))) == (1, 3)
    with pytest.raises(ValueError, match="read-only"):
        make(entry={"layer": 1})


def test_settings_that_were_changed_in_place_are_refused(make):
    path = make().stored.folder / "teacher.json"
    path.write_text(path.read_text().replace('"layer": -1', '"layer": 1'))
    with pytest.raises(ValueError, match=r"teacher\.json"):
        make()
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match="damaged"):
        make()


def test_a_limit_leaves_out_what_would_exceed_it_for_all_teachers_together(tmp_path, caplog):
    size = 4 * 8 * 2 + 120  # of a file, at most
    budget = Budget(tmp_path, 5 * size / 2**30)
    folders = [TargetFolder(tmp_path / name, torch.bfloat16, budget) for name in "ab"]
    for seed in range(3):
        for folder in folders:
            folder.write([f"{seed}{seed}", f"{seed}x"], torch.zeros(2, 4, 8, dtype=torch.bfloat16))
    written = list(tmp_path.rglob("*.safetensors"))
    assert 3 <= len(written) <= 5
    assert sum(path.stat().st_size for path in written) <= 5 * size
    assert caplog.text.count("target_cache.gib") == 1
    assert not Budget(tmp_path, size / 2**30).take(1)  # what is there counts


def test_two_processes_that_compute_the_same_clip_leave_one_file(make, monkeypatch):
    first, second = make(), make()
    hashes = list(map(hash_of_clip, clips()))
    monkeypatch.setattr(Path, "exists", lambda path: False)  # both are about to write
    for cached in (first, second):
        cached.stored.write(hashes, torch.ones(3, 32, 32))
    monkeypatch.undo()
    assert len(files(first)) == 3
    assert torch.equal(second.stored.read(hashes), torch.ones(3, 32, 32))


def test_the_collator_hands_on_hashes_and_what_is_stored(make):
    cached = make()
    collate = CachingCollator(lambda items: items and {"pixel_values": torch.stack(items)}, {"video": cached, "b": 0})
    assert collate(None) is None
    missing = collate(list(clips()))[LOOKUPS]
    assert missing == {"video": {"hashes": [hash_of_clip(clip) for clip in clips()], "targets": None}}
    computed = cached({32: clips()}, **missing["video"])
    lookup = collate(list(clips()))[LOOKUPS]["video"]
    assert torch.equal(lookup["targets"], computed)
    assert cached({}, **lookup) is lookup["targets"]


def test_only_the_chosen_teachers_are_cached(tmp_path, tiny_teachers, tiny_student_config):
    grid = tiny_student_config.grid, tiny_student_config.num_frames
    loaded = load_cached_teachers(tiny_teachers, TargetCacheConfig(str(tmp_path), teachers=["image"]), *grid)
    assert [isinstance(teacher, CachedTeacher) for teacher in loaded.values()] == [True, False]
    with pytest.raises(ValueError, match="'depth'"):
        load_cached_teachers(tiny_teachers, TargetCacheConfig(str(tmp_path), teachers=["depth"]), *grid)


def test_wrong_values_are_refused_by_name(tmp_path, make):
    for field, value in (("folder", ""), ("dtype", "int8"), ("views", 0), ("gib", -1.0)):
        with pytest.raises(ValueError, match=rf"target_cache.*{field}"):
            TargetCacheConfig(**({"folder": str(tmp_path)} | {field: value}))
    with pytest.raises(ValueError, match="shard=True"):
        make(entry={"shard": True})
    with pytest.raises(ValueError, match="layer=9"):
        make(entry={"layer": 9})


def test_weights_that_cannot_be_found_are_refused(make, tiny_teachers, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(tiny_teachers["video"]) / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        make(entry={"model": str(tmp_path)})


def test_all_parts_of_a_large_checkpoint_count(make, tiny_teachers, tmp_path):
    MVDForPixelReconstruction.from_pretrained(tiny_teachers["video"]).save_pretrained(tmp_path, max_shard_size="40KB")
    before = make(entry={"model": str(tmp_path)}).stored.folder
    part = max(tmp_path.glob("model-*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(part).items()}, part)
    assert make(entry={"model": str(tmp_path)}).stored.folder != before
