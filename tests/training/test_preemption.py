"""Requests to stop, full disks, and other numbers of processes."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mvd_hf.training.checkpoints import LAYOUT_NAME, StepLayout, is_disk_full
from mvd_hf.training.preemption import StopRequest, outlive_signals


def test_a_request_to_stop_is_remembered_and_no_more_than_that():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal is not None
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_nothing_is_watched():
    found = []

    def watch():
        with StopRequest() as request:
            found.append(request.signal is not None)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [False]


class Signalled(torch.utils.data.Dataset):
    """Its third item is asked for while its worker is being stopped."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_workers_outlive_a_signal_and_are_started_as_before():
    started = torch.zeros(2, dtype=torch.int64).share_memory_()
    loader = torch.utils.data.DataLoader(Signalled(), num_workers=2, batch_size=None)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader)
    loader.worker_init_fn = outlive_signals(lambda worker: started.index_fill_(0, torch.tensor(worker), 1))
    assert [int(item) for item in loader] == list(range(6))
    assert started.tolist() == [1, 1]
    loader.worker_init_fn = outlive_signals(None)
    assert len(list(loader)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("end", [pytest.param("sys.exit(3)", marks=pytest.mark.long), "raise SystemError"])
def test_workers_that_are_left_do_not_hold_up_the_end(end):
    script = f"""
import sys, torch
from mvd_hf.training.preemption import outlive_signals
loader = torch.utils.data.DataLoader(
    range(100), num_workers=2, persistent_workers=True, worker_init_fn=outlive_signals(None)
)
iterator = iter(loader)
next(iterator)
{end}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == (3 if "exit" in end else 1), ended.stderr


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), True),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file: No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("full"), False),
    ],
)
def test_a_full_disk_is_recognised(error, is_full):
    assert is_disk_full(error) == is_full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [1, 1000000])
def test_what_torch_says_of_a_full_disk_is_recognised(size):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"weight": torch.zeros(size)}, "/dev/full")
    assert is_disk_full(caught.value)


@pytest.mark.parametrize("text", ["{", '{"processes": 2}', "[1, 2, 3]"])
def test_a_damaged_record_of_processes_is_named(tmp_path, text):
    (tmp_path / LAYOUT_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"processes\.json' is damaged .*delete its checkpoint"):
        StepLayout.load(tmp_path)


def test_other_processes_are_compared_with_those_of_the_checkpoint(tmp_path):
    former = StepLayout(num_processes=2, batch_size=8, accumulation=2)
    former.save(tmp_path)
    assert StepLayout.load(tmp_path) == former
    assert StepLayout.load(tmp_path / "none") is None
    assert StepLayout(4, 4, 2).compare(None) is None
    assert former.compare(former) is None
    text = StepLayout(1, 8, 4).compare(former)
    assert "Resuming with 8 x 4 x 1 processes (before: 8 x 2 x 2 processes)" in text
    assert "steps have the same videos" in text
    text = StepLayout(4, 8, 2).compare(former)
    assert "a step has 64 videos, before it had 32" in text
    assert "keep the product" in text
