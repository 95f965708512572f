"""Worker processes: crashes, hangs and errors of one job do not stop the others, and no process is left behind."""

import multiprocessing
import os
import signal
import time

import pytest

from mvd_hf.curation.workers import run_guarded


def misbehave(item: str) -> str:
    """Work that hangs, crashes, ends or fails for some items."""
    if item == "hang":
        time.sleep(600)
    if item == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "end":
        os._exit(3)
    if item == "fail":
        raise RuntimeError("a fault of the program")
    return item.upper()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_lost_processes_do_not_stop_the_others(num_workers):
    items = ["a", "crash", "hang", "end", "b", "c"]
    outcomes = sorted(run_guarded(misbehave, enumerate(items), num_workers, time_limit=1.0))
    assert [result for _, result, _ in outcomes] == ["A", None, None, None, "B", "C"]
    reasons = [reason for _, _, reason in outcomes]
    assert "SIGKILL" in reasons[1]
    assert "within 1 seconds" in reasons[2]
    assert "exit code 3" in reasons[3]
    assert reasons[0] == reasons[4] == reasons[5] == ""


def test_fault_of_the_program_reaches_the_main_process():
    with pytest.raises(RuntimeError, match="fault of the program"):
        list(run_guarded(misbehave, enumerate(["a", "fail"]), 1, time_limit=30.0))


def test_jobs_are_taken_only_as_workers_become_free():
    taken = []

    def jobs():
        for index in range(6):
            taken.append(index)
            yield index, "a"

    outcomes = run_guarded(misbehave, jobs(), 2, time_limit=30.0)
    next(outcomes)
    assert len(taken) == 2
    assert len(list(outcomes)) == 5


def test_no_process_is_left_behind():
    others = set(multiprocessing.active_children())  # of tests before, such as workers of a data loader
    outcomes = run_guarded(misbehave, enumerate(["a", "hang", "hang"]), 3, time_limit=30.0)
    assert next(outcomes) == (0, "A", "")
    assert set(multiprocessing.active_children()) - others
    outcomes.close()
    assert set(multiprocessing.active_children()) <= others
