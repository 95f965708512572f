"""How to use a checkpoint, as a snippet of Python that is executed as it stands before a card shows it."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.toy import toy_frames, write_video

EXAMPLE_NAME = "example.mp4"
# by what a checkpoint is
SNIPPETS = {
    "classifier": """\
{import_line}from transformers import pipeline

classify = pipeline("video-classification", model="{name}"{trust})
print(classify("video.mp4", top_k=3))

# the mean over several clips and crops of the video, as in the paper's tests
classify = pipeline("video-multiview-classification", model="{name}"{trust})
print(classify("video.mp4", top_k=3))
""",
    "detector": """\
{import_line}from transformers import pipeline

detect = pipeline("video-action-detection", model="{name}"{trust})
# who is in the middle frame: x1, y1, x2, y2 as parts of its width and height, as a person detector tells them
print(detect("video.mp4", boxes=[[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.8, 0.9]], top_k=3))

# who is in the frame after one second
print(detect("video.mp4", boxes=[[0.2, 0.2, 0.6, 0.9]], time=1.0, top_k=3))
""",
    "encoder": """\
{import_line}from transformers import pipeline

extract = pipeline("video-feature-extraction", model="{name}"{trust})
print(extract("video.mp4")["features"].shape)  # of one clip

# windows over the whole video, and a vector for each of their tubelets
print(extract("video.mp4", window_step=32, features="tubelets")["features"].shape)
""",
    "encoder without final norm": """\
import torch
{import_line}from transformers import AutoModel, AutoVideoProcessor

processor = AutoVideoProcessor.from_pretrained("{name}"{trust})
model = AutoModel.from_pretrained("{name}", add_final_norm=False{trust})
with torch.no_grad():
    print(model(**processor("video.mp4", return_tensors="pt")).last_hidden_state.shape)
""",
}
# runs a program as if mvd_hf were not installed
WITHOUT_PACKAGE = (
    "import sys; sys.modules['mvd_hf'] = None; exec(compile(open('usage.py').read(), 'usage.py', 'exec'))"
)


@dataclass
class Usage:
    """A snippet as a card shows it.

    Args:
        snippet: from [`usage_snippet`].
        with_code: whether the checkpoint carries the code of its model.
        printed: what it printed, if it was executed.
        video: what it was executed with, in words.
    """

    snippet: str
    with_code: bool = False
    printed: str | None = None
    video: str = ""


def usage_snippet(name: str, kind: str, with_code: bool) -> str:
    """The snippet that a card shows.

    Args:
        name: the checkpoint, as `from_pretrained` takes it.
        kind: what it is, a key of `SNIPPETS`.
        with_code: whether the checkpoint carries the code of its model; else `mvd_hf` must be installed.
    """
    import_line, trust = ("", ", trust_remote_code=True") if with_code else ("import mvd_hf\n", "")
    return SNIPPETS[kind].format(name=name, import_line=import_line, trust=trust)


def write_example(path: str | os.PathLike):
    """Write a video of our own making, three seconds long, that shows how a checkpoint is used."""
    write_video(path, toy_frames("rings", "left", 75, 240, 320, np.random.default_rng(0)))


def run_usage(snippet: str, name: str, folder: str | os.PathLike, video: str | os.PathLike, with_code: bool) -> str:
    """Execute a snippet in a fresh interpreter, without network, and give what it prints.

    Args:
        snippet: from [`usage_snippet`].
        name: the checkpoint's name in it, which stands for the folder.
        folder: the checkpoint.
        video: what stands for `video.mp4`.
        with_code: whether `mvd_hf` shall be out of reach, so that the code in the folder is used.

    Raises:
        ValueError: if it fails; with the end of what it says.
    """
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(folder).resolve(), target_is_directory=True)
        (Path(place) / "video.mp4").symlink_to(Path(video).resolve())
        (Path(place) / "usage.py").write_text(snippet, encoding="utf-8")
        environment = os.environ | {"HF_HOME": str(Path(place) / "home"), "HF_HUB_OFFLINE": "1"}
        program = ["-c", WITHOUT_PACKAGE] if with_code else ["usage.py"]
        result = subprocess.run(
            [sys.executable, *program], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        raise ValueError(
            f"The checkpoint {str(folder)!r} cannot be used as its card would say:\n{snippet}\n{result.stderr[-3000:]}"
        )
    return result.stdout


def show_usage(folder: str | os.PathLike, name: str, kind: str, with_code: bool) -> Usage:
    """The usage of a checkpoint and what it prints, for the example in its folder or else a video of our own making.

    Args:
        folder: the checkpoint.
        name, kind, with_code: as in [`usage_snippet`].

    Raises:
        ValueError: if it fails.
    """
    snippet = usage_snippet(name, kind, with_code)
    example = Path(folder) / EXAMPLE_NAME
    if example.is_file():
        printed = run_usage(snippet, name, folder, example, with_code)
        return Usage(snippet, with_code, printed, f"`{EXAMPLE_NAME}`")
    with tempfile.TemporaryDirectory() as place:
        write_example(Path(place) / EXAMPLE_NAME)
        printed = run_usage(snippet, name, folder, Path(place) / EXAMPLE_NAME, with_code)
    return Usage(snippet, with_code, printed, "a small made-up video")
