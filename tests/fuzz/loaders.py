"""Fuzz what reads foreign files other than videos: only a value or a clear error may come out. See README.md."""

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mvd_hf import MVDConfig, MVDForVideoClassification, convert_checkpoint
from mvd_hf.arguments import parse_arguments
from mvd_hf.curation.official_splits import SPLIT_READERS
from mvd_hf.data.arguments import DataArguments
from mvd_hf.data.labels import read_label_names
from mvd_hf.data.list_files import read_list_file
from mvd_hf.data.sources import read_manifest
from mvd_hf.detection.ava import ava_map, read_boxes, read_key_frames, read_label_map, read_person_boxes
from mvd_hf.hub.conversion import read_checkpoint
from mvd_hf.hub.loading import load_classifier
from mvd_hf.training.checkpoints import LAYOUT_NAME, StepLayout
from mvd_hf.training.meters import BadVideos

SECONDS = 10  # for a case
# what a file may never make a loader do: (event of Python's audit hooks)
ACTIONS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WORDS = [
    b"../../../etc/passwd",
    b"/etc/passwd",
    b"\x00",
    b"\xff\xfe",
    b"nan",
    b"inf",
    b"-1",
    b"1e400",
    b"9" * 30,
    b'"',
    b"'",
]
WORDS += [
    b"[" * 3000,
    b"{a: " * 2000,
    b"&a [*a]",
    b"!!python/object/apply:os.system [id]",
    b"a" * 140_000,
    b",,,,,,,,,,",
    b"\n",
]
WORDS += [
    b"2001-99-99",
    b"0x",
    b"<<: 1",
    b"? [1]: 2",
    b"null",
    b"[]",
    b"{}",
    b"1:99:99",
    "\u2028\u0000\ud7ff".encode(),
    b"\r",
]


class Planted:
    """Unpickled by a careless reader, it starts a program."""

    def __reduce__(self):
        return os.system, ("true",)


@dataclass
class Target:
    """A loader: the files it reads, one of which is damaged, the call, and whether it takes them undamaged."""

    files: dict[str, bytes]
    load: Callable[[Path], object]
    is_sound: bool = True


def saved(content, **options) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(content, file.name, **options)
        return Path(file.name).read_bytes()


def tiny_model() -> dict[str, bytes]:
    """The files of a classifier."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "num_frames": 2}
    model = MVDForVideoClassification(MVDConfig(**sizes, num_labels=2))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def targets() -> dict[str, Target]:
    """Every loader with sound files."""
    weights = {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16), "head.weight": torch.zeros(2, 8)}
    checkpoint = saved({"model": weights, "args": argparse.Namespace(model="vit", lr=1.0)})
    old = saved({"module": weights}, _use_new_zipfile_serialization=False)
    boxes = b"a,0902,0.1,0.2,0.3,0.4,12,1\na,0902,0.1,0.2,0.3,0.4,17,1\nb,0903,0.5,0.5,0.9,0.9,80,0\n"
    ucf = {
        "classInd.txt": b"1 Run\n2 Jump\n",
        "trainlist01.txt": b"Run/v_Run_g01_c01.avi 1\nJump/v_Jump_g01_c01.avi 2\n",
        "testlist01.txt": b"Run/v_Run_g02_c01.avi\nJump/v_Jump_g02_c01.avi\n",
    }
    hmdb = {f"{name}_test_split1.txt": b"a.avi 1\nb.avi 2\nc.avi 0\n" for name in ("run", "jump")}
    entry = {"id": "7", "template": "Pushing [something]"}
    ssv2 = {
        "labels.json": b'{"Pushing something": "0"}',
        "train.json": json.dumps([entry]).encode(),
        "validation.json": json.dumps([{**entry, "id": "8"}]).encode(),
    }
    table = b"label,youtube_id,time_start,time_end,split\nrun,abc,0,10,train\njump,def,5,15,train\n"
    kinetics = {"train.csv": table, "val.csv": table.replace(b"abc", b"xyz").replace(b"def", b"uvw")}
    recipe = b"dataset: videos\nstride: 4\nstreaming: false\nsplit: no\nmax_samples: 12\n"
    splits = dict(zip(("ucf101", "hmdb51", "ssv2", "kinetics"), (ucf, hmdb, ssv2, kinetics), strict=True))
    return {
        "recipe": Target(
            {"recipe.yaml": recipe}, lambda at: parse_arguments([str(at / "recipe.yaml")], DataArguments)
        ),
        "command line": Target(
            {"value": b"videos"},
            lambda at: parse_arguments([f"--dataset={read(at / 'value')}"], DataArguments),
        ),
        "list file": Target({"list.csv": b"a.mp4 0\nb/c.mp4 1\n"}, lambda at: read_list_file(at / "list.csv")),
        "manifest": Target({"m.csv": b"file,use\na.mp4,yes\nb.mp4,no\n"}, lambda at: read_manifest(at / "m.csv")),
        "label names": Target({"names.txt": b"run\njump\n"}, lambda at: read_label_names(str(at / "names.txt"))),
        "boxes": Target({"boxes.csv": boxes}, lambda at: read_boxes(at / "boxes.csv")),
        "people": Target({"people.csv": boxes}, lambda at: read_person_boxes(at / "people.csv")),
        "key frames": Target({"frames.csv": b"a,0902\nb,0903\n"}, lambda at: read_key_frames(at / "frames.csv")),
        "average precision": Target(
            {"truth.csv": boxes, "found.csv": boxes}, lambda at: ava_map(at / "truth.csv", at / "found.csv")
        ),
        "label map": Target(
            {"map.pbtxt": b'item {\n  name: "sit"\n  id: 11\n}\nitem { name: "run" id: 10 }\n'},
            lambda at: read_label_map(at / "map.pbtxt"),
        ),
        **{name: Target(files, SPLIT_READERS[name]) for name, files in splits.items()},
        "checkpoint": Target({"c.pth": checkpoint}, lambda at: read_checkpoint(at / "c.pth")),
        "old checkpoint": Target({"c.pth": old}, lambda at: read_checkpoint(at / "c.pth")),
        "planted pickle": Target(
            {"c.pth": pickle.dumps({"model": Planted()})}, lambda at: read_checkpoint(at / "c.pth"), is_sound=False
        ),
        "planted checkpoint": Target(
            {"c.pth": saved({"model": Planted()})}, lambda at: read_checkpoint(at / "c.pth"), is_sound=False
        ),
        # of a model that is incomplete
        "conversion": Target({"c.pth": checkpoint}, lambda at: convert_checkpoint(at / "c.pth"), is_sound=False),
        "deepspeed folder": Target(
            {"latest": b"step1", "step1/mp_rank_00_model_states.pt": saved({"module": weights})}, read_checkpoint
        ),
        "model folder": Target(tiny_model(), lambda at: load_classifier(str(at), 2)),
        "processes": Target(
            {LAYOUT_NAME: b'{"num_processes": 1, "batch_size": 2, "accumulation": 3}'}, StepLayout.load
        ),
        "bad videos": Target(
            {"bad.csv": b"split,file,reason,times\ntraining,a.mp4,empty,2\n"},
            lambda at: BadVideos().load(at / "bad.csv"),
        ),
    }


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


# damage

place = st.floats(0, 1)
edit = st.one_of(
    st.tuples(st.just("replace"), place, place, st.sampled_from(WORDS) | st.binary(max_size=20)),
    st.tuples(st.just("insert"), place, place, st.sampled_from(WORDS) | st.text(max_size=8).map(str.encode)),
    st.tuples(st.just("repeat"), place, place, st.just(b"")),
    st.tuples(st.just("flip"), place, place, st.binary(min_size=1, max_size=1)),
    st.tuples(st.just("value"), place, place, st.sampled_from(WORDS)),
)


def damage(data: bytes, edits: list[tuple[str, float, float, bytes]]) -> bytes:
    """A file after some edits, each at a place or between two places."""
    for kind, first, second, word in edits:
        start, end = sorted((int(first * len(data)), int(second * len(data))))
        if kind == "replace":
            data = data[:start] + word + data[min(end, start + 40) :]
        elif kind == "insert":
            data = data[:start] + word + data[start:]
        elif kind == "repeat":
            data = data[:end] + data[start:end] + data[end:]
        elif kind == "flip" and data:
            at = min(start, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ word[0]]) + data[at + 1 :]
        elif kind == "value":  # in place of a word or a number
            found = list(re.finditer(rb"[\w.]+", data))
            if found:
                match = found[int(first * (len(found) - 1))]
                data = data[: match.start()] + word + data[match.end() :]
        data = data[: 1 << 20]
    return data


# one loader, in a child process


class Guard:
    """Remembers what a loader did that no file may make it do."""

    def __init__(self, folder: Path):
        self.folder, self.is_on, self.seen = os.path.realpath(folder), False, []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple):
        if not self.is_on:
            return
        if event in ACTIONS:
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            is_written = bool(arguments[2] & WRITING)
            if "/etc/" in path or (is_written and not path.startswith((self.folder, "/dev/", tempfile.gettempdir()))):
                self.seen.append(f"open {path} {arguments[1:]}")


def examine(target: Target, name: str, data: bytes, folder: Path, guard: Guard) -> str:
    """Read damaged files; gives what came out: `value`, `error` or a finding."""
    for file, content in target.files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data if file == name else content)
    guard.seen, guard.is_on = [], True
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.load(folder)
        outcome = "value"
    except ValueError as error:
        # others, such as UnicodeDecodeError, do not say which file and what to do
        is_ours = type(error) is ValueError or type(error).__module__.startswith("mvd_hf")
        outcome = "error" if is_ours and str(error) else traceback.format_exc()
    except BaseException:
        outcome = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        guard.is_on = False
    return f"a loader must not {guard.seen}" if guard.seen else outcome


def interrupt(number, frame):
    raise TimeoutError(f"a case takes more than {SECONDS} seconds")


def work(name: str, number: int, seconds: float, output: Path, results):
    """Damage the files of a loader for some time; reports the outcomes and keeps the files of findings."""
    target, counts, findings = targets()[name], Counter(), {}
    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(Path(folder))

        @seed(number)
        @settings(
            max_examples=10**9,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=HealthCheck,
        )
        @given(st.sampled_from(sorted(target.files)), st.lists(edit, max_size=5))
        def run(file, edits):
            if time.monotonic() > end:
                raise KeyboardInterrupt
            data = damage(target.files[file], edits)
            (output / "last").mkdir(exist_ok=True, parents=True)
            (output / "last" / name.replace(" ", "_")).write_bytes(data)  # what a crash leaves
            outcome = examine(target, file, data, Path(folder), guard)
            counts[outcome if outcome in ("value", "error") else "finding"] += 1
            if outcome not in ("value", "error"):
                kind = outcome.strip().splitlines()[-1][:80]
                if kind not in findings:
                    findings[kind] = outcome
                    (output / f"{name.replace(' ', '_')}-{len(findings)}-{Path(file).name}").write_bytes(data)

        with contextlib.suppress(KeyboardInterrupt):
            run()
        if target.is_sound and examine(target, "", b"", Path(folder), guard) != "value":
            findings["sound"] = "the undamaged files are refused"
    results.put((name, counts, findings))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of one loader")
    parser.add_argument("--output", type=Path, default=Path("outputs/fuzz-loaders"))
    options = parser.parse_args()
    names = [options.only] if options.only else list(targets())
    context, is_sound, total = multiprocessing.get_context("fork"), True, 0
    for name in names:
        results = context.Queue()
        seconds = options.minutes * 60 / len(names)
        child = context.Process(target=work, args=(name, options.seed, seconds, options.output, results))
        child.start()
        try:
            _, counts, findings = results.get(timeout=seconds + 10 * SECONDS)
        except Exception:
            counts, findings = Counter(), {"crash": f"the process ended or hung; see {options.output / 'last'}"}
            child.kill()
        child.join()
        total += sum(counts.values())
        print(
            f"{name:20} {counts['value']:7} read {counts['error']:7} refused {counts['finding']:5} findings",
            flush=True,
        )
        for text in findings.values():
            is_sound = False
            print(text)
    print(f"{total} cases")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
