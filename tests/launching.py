"""Runs of scripts, on one or more CPU processes, and what they leave behind.

A fresh interpreter takes about ten seconds to import the libraries. `launch` therefore forks its processes from a
server that has imported them, `run_fresh` from one that knows neither us nor the libraries of Hugging Face;
`launch_for_real` goes through `accelerate launch`, as a user does.
"""

import atexit
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
# ten times what a run takes on an idle machine of two cores
PATIENCE = 600
# exit codes of a run that a signal has stopped
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["warm_server"])


def environment(**more: str) -> dict[str, str]:
    """An environment without network and without a GPU."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


@contextlib.contextmanager
def replaced_environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def warm_server() -> multiprocessing.context.BaseContext:
    """A server that forks processes which have imported us; of workers it unpickles what they are given."""
    places = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    with replaced_environment(environment(PYTHONPATH=places)):
        forkserver.ensure_running()
    return FORKING


def run_script(script: str, words: list[str], variables: dict[str, str], folder: str, log: str):
    """Be a process that runs a script, in a session of its own with the data workers that it starts."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no server has forked
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM):  # which the server ignores
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process would leave them out


@dataclass
class Run:
    """A script that runs."""

    processes: list
    log: Path = field(default_factory=lambda: Path(tempfile.mkstemp(suffix=".log")[1]))

    def signal(self, number: signal.Signals):
        """Signal all its processes and their data workers, as a scheduler does."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def wait(self) -> list[int]:
        """The exit codes of its processes; where one fails the others are ended, as launchers do."""
        deadline = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in self.processes):
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"The run has not ended.\n{self.text()[-4000:]}")
            if any(process.exitcode not in (None, 0, *STOPPED) for process in self.processes):
                self.processes[0].join(2)  # time to print its own error
                self.signal(signal.SIGKILL)
            multiprocessing.connection.wait([process.sentinel for process in self.processes], timeout=1)
        return [process.exitcode for process in self.processes]

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def words_of(words, options) -> list[str]:
    """The words of a command line, with the options as keys."""
    return [*map(str, words), *(f"--{key}={value}" for key, value in options.items())]


def start(script: str, *words, processes: int = 1, folder: Path = ROOT, variables=None, **options) -> Run:
    """Begin a run of a script of `recipes/`, or of another one by its path."""
    variables = environment(**(variables or {}))
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    run = Run([])
    for rank in range(processes):
        own = variables | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else variables
        arguments = (str(ROOT / "recipes" / script), words_of(words, options), own, str(folder), str(run.log))
        process = warm_server().Process(target=run_script, args=arguments)
        process.start()
        run.processes.append(process)
    return run


def launch(script: str, *words, processes: int = 1, **options) -> str:
    """Run a recipe to its end; gives what it printed."""
    run = start(script, *words, processes=processes, **options)
    codes = run.wait()
    assert not any(codes), run.text()[-6000:]
    return run.text()


def launch_for_real(script: str, *words, processes: int = 1, **options) -> str:
    """Run a recipe to its end through `accelerate launch`; gives what it printed."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(["--multi_gpu"] if processes > 1 else []),
        *(f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        *("--main_process_port=0", str(ROOT / "recipes" / script), *words_of(words, options)),
    ]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@functools.cache
def fresh_server() -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "tests" / "fresh_server.py")]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    atexit.register(server.terminate)
    return server


def run_fresh(code: str, *arguments, folder: Path = ROOT, variables=None) -> str:
    """What a program prints in an interpreter of its own, which has imported only torch and the like."""
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    job = {"code": code, "arguments": list(map(str, arguments)), "folder": str(folder), "log": str(log)}
    server = fresh_server()
    server.stdin.write(json.dumps(job | {"variables": environment(**(variables or {}))}) + "\n")
    server.stdin.flush()
    ended, text = server.stdout.readline().strip(), log.read_text(encoding="utf-8", errors="replace")
    assert ended == "0", text[-6000:]
    return text


def signal_when(path: Path, number: signal.Signals, script: str, *words, processes: int = 1, **options) -> list[int]:
    """Start a recipe, signal all its processes as soon as a file is there, and wait for their end and exit codes."""
    run = start(script, *words, processes=processes, **options)
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert all(process.is_alive() for process in run.processes), f"it ended too soon:\n{run.text()[-4000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.signal(number)
    codes = run.wait()
    while any(is_alive(process.pid) for process in run.processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return codes


def is_alive(session: int) -> bool:
    """Whether a process group still has a process that has not ended."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def history(output: Path) -> dict[int, dict]:
    """What a run logged per step, read from its last checkpoint."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return {entry["step"]: entry for entry in state["log_history"] if "loss" in entry}
