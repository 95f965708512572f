"""Worker processes in which reading a damaged file may crash or hang without stopping the others."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait


def serve(function: Callable, connection: Connection, other_end: Connection):
    """Work of a process: results of the function for what comes through the connection, until that is closed."""
    other_end.close()  # or this copy would keep the connection open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    with suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            try:
                outcome = function(item)
            except Exception as error:
                outcome = error
            connection.send(outcome)


class GuardedWorker:
    """A process that works on one job at a time, and is replaced when it crashes or takes too long.

    Args:
        function: what it does with the item of a job.
        time_limit: seconds per job.
    """

    def __init__(self, function: Callable, time_limit: float):
        self.function, self.time_limit = function, time_limit
        self.process = self.connection = self.key = self.deadline = None

    def take(self, job: tuple | None):
        """Begin a job (key, item); with `None` the worker is out of work."""
        if job is None:
            self.stop()
            return
        if self.process is None:
            self.connection, end = multiprocessing.Pipe()
            arguments = (self.function, end, self.connection)
            self.process = multiprocessing.Process(target=serve, args=arguments, daemon=True)
            self.process.start()
            end.close()
        self.key, item = job
        self.deadline = time.monotonic() + self.time_limit
        with suppress(OSError):  # of a process that has ended: told when the result is asked for
            self.connection.send(item)

    def outcome(self) -> tuple | None:
        """(key, result, reason why there is none) of the job if it has ended in any way, else `None`.

        Raises:
            Exception: what the function raised.
        """
        if self.connection.poll():
            try:
                result = self.connection.recv()
            except (EOFError, OSError):
                return self.key, None, self._end_of_process()
            if isinstance(result, Exception):
                raise result
            return self.key, result, ""
        if time.monotonic() < self.deadline:
            return None
        self.stop()
        return self.key, None, f"was not read within {self.time_limit:g} seconds (time_limit)"

    def _end_of_process(self) -> str:
        """Why the process has ended."""
        self.process.join(1)
        code = self.process.exitcode
        self.stop()
        if code is not None and code < 0:
            return f"the process that read it was ended by {signal.Signals(-code).name}"
        return f"the process that read it ended with exit code {code}"

    def stop(self):
        """End the process. One that the system cannot end (a dead network drive) is left to itself."""
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join(1)
        self.process = None


def run_guarded(
    function: Callable, jobs: Iterable[tuple], num_workers: int, time_limit: float
) -> Iterator[tuple[object, object, str]]:
    """Results of a function in worker processes, as they come: neither a crash nor a hang stops the others.

    Args:
        function: called with the item of each job; what it raises ends everything.
        jobs: (key, item) pairs, taken one by one as workers become free.
        num_workers: processes.
        time_limit: seconds per job.

    Yields:
        (key, result, reason): the reason is empty, or says why the result is `None`.
    """
    jobs = iter(jobs)
    workers = [GuardedWorker(function, time_limit) for _ in range(num_workers)]
    try:
        for worker in workers:
            worker.take(next(jobs, None))
        while busy := [worker for worker in workers if worker.process is not None]:
            remaining = min(worker.deadline for worker in busy) - time.monotonic()
            wait([worker.connection for worker in busy], max(remaining, 0))
            for worker in busy:
                outcome = worker.outcome()
                if outcome is not None:
                    yield outcome
                    worker.take(next(jobs, None))
    finally:
        for worker in workers:
            worker.stop()
