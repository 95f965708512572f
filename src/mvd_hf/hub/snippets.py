"""Snippets of Python that show how to use a checkpoint; a card shows a snippet only after running it."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from ..data.toy import toy_frames, write_video

EXAMPLE_NAME = "example.mp4"
# by the kind of checkpoint
SNIPPETS = {
    "classifier": """\
{import_line}from transformers import pipeline

classify = pipeline("video-classification", model={name}{trust})
print(classify("video.mp4", top_k=3))

# the mean over several clips and crops of the video, as in the paper's tests
classify = pipeline("video-multiview-classification", model={name}{trust})
print(classify("video.mp4", top_k=3))
""",
    "detector": """\
{import_line}from transformers import pipeline

detect = pipeline("video-action-detection", model={name}{trust})
# who is in the middle frame: x1, y1, x2, y2 as parts of its width and height, as a person detector gives them
print(detect("video.mp4", boxes=[[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.8, 0.9]], top_k=3))

# who is in the frame after one second
print(detect("video.mp4", boxes=[[0.2, 0.2, 0.6, 0.9]], time=1.0, top_k=3))
""",
    "encoder": """\
{import_line}from transformers import pipeline

extract = pipeline("video-feature-extraction", model={name}{trust})
print(extract("video.mp4")["features"].shape)  # of one clip

# windows over the whole video, and a vector for each of their tubelets
print(extract("video.mp4", window_step=32, features="tubelets")["features"].shape)
""",
    "encoder without final norm": """\
import torch
{import_line}from transformers import AutoModel, AutoVideoProcessor

processor = AutoVideoProcessor.from_pretrained({name}{trust})
model = AutoModel.from_pretrained({name}, add_final_norm=False{trust})
with torch.no_grad():
    print(model(**processor("video.mp4", return_tensors="pt")).last_hidden_state.shape)
""",
}
# runs a program as if mvd_hf were not installed
WITHOUT_PACKAGE = (
    "import sys; sys.modules['mvd_hf'] = None; exec(compile(open('snippet.py').read(), 'snippet.py', 'exec'))"
)


@dataclass
class Snippet:
    """A snippet on a card: its code, whether the checkpoint holds the code of the model, its output and its video."""

    code: str
    with_code: bool = False
    printed: str | None = None
    video: str = ""


def make_snippet(name: str, kind: str, with_code: bool) -> str:
    """The code for a checkpoint of a kind (a key of `SNIPPETS`); without model code it imports `mvd_hf`."""
    import_line, trust = ("", ", trust_remote_code=True") if with_code else ("import mvd_hf\n", "")
    literal = json.dumps(name, ensure_ascii=False)  # in double quotes, with escapes that Python shares
    return SNIPPETS[kind].format(name=literal, import_line=import_line, trust=trust)


def write_example(path: str | os.PathLike):
    """Write a synthetic video of three seconds."""
    write_video(path, toy_frames("rings", "left", 75, 240, 320, np.random.default_rng(0)))


def run_snippet(code: str, name: str, folder: str | os.PathLike, video: str | os.PathLike, with_code: bool) -> str:
    """Run a snippet offline in a fresh interpreter and return its output; raises ValueError if it fails.

    `name` in the code stands for the folder, `video.mp4` for the video. With code, `mvd_hf` cannot be imported.
    """
    if not PurePath(name).name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"{name!r} cannot be the name of a checkpoint in a snippet: give user/name.")
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(folder).resolve(), target_is_directory=True)
        (Path(place) / "video.mp4").symlink_to(Path(video).resolve())
        (Path(place) / "snippet.py").write_text(code, encoding="utf-8")
        environment = os.environ | {"HF_HOME": str(Path(place) / "home"), "HF_HUB_OFFLINE": "1"}
        program = ["-c", WITHOUT_PACKAGE] if with_code else ["snippet.py"]
        result = subprocess.run(
            [sys.executable, *program], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        raise ValueError(f"The snippet for the card of {str(folder)!r} fails:\n{code}\n{result.stderr[-3000:]}")
    return result.stdout


def execute_snippet(folder: str | os.PathLike, name: str, kind: str, with_code: bool) -> Snippet:
    """The snippet of a checkpoint with its output for the example video of the folder, or else for a synthetic one."""
    code, example, words = make_snippet(name, kind, with_code), Path(folder) / EXAMPLE_NAME, f"`{EXAMPLE_NAME}`"
    with tempfile.TemporaryDirectory() as place:
        if not example.is_file():
            example, words = Path(place) / EXAMPLE_NAME, "a small synthetic video"
            write_example(example)
        return Snippet(code, with_code, run_snippet(code, name, folder, example, with_code), words)
