"""Forks interpreters that have imported torch and the like, but neither the libraries of Hugging Face nor ours.

Reads a job from each line of its input and answers with its exit code. `launching.run_fresh` speaks to it.
"""

import gc
import json
import os
import sys

import av  # noqa: F401
import pandas  # noqa: F401
import pyarrow  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torchvision.transforms.v2  # noqa: F401

assert not {"transformers", "huggingface_hub", "mvd_hf"} & set(sys.modules)
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["variables"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(job["log"], os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv = ["-c", *job["arguments"]]
        sys.path[0] = ""
        exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
