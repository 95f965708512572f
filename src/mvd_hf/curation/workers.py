"""Reads every file of a data set in worker processes: damaged files stop nothing, and interrupted runs continue."""

import csv
import dataclasses
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from ..data.sources import has_content, write_table

# processes that may crash or hang


def serve(function: Callable, connection: Connection, other_end: Connection):
    """Loop of a worker process: apply the function to what the connection sends, until it is closed."""
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
    """A process that works on one job at a time, and is replaced when it crashes or takes longer than `time_limit`."""

    def __init__(self, function: Callable, time_limit: float):
        self.function, self.time_limit = function, time_limit
        self.process = self.connection = self.key = self.deadline = None

    def take(self, job: tuple | None):
        """Begin a job (key, item); `None` stops the worker."""
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
        with suppress(OSError):  # the process has ended, which `outcome` reports
            self.connection.send(item)

    def outcome(self) -> tuple | None:
        """(key, result, reason why there is none) once the job has ended in any way, else `None`."""
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
        """End the process. One that the system cannot end (a dead network drive) is abandoned."""
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join(1)
        self.process = None


def run_guarded(
    function: Callable, jobs: Iterable[tuple], num_workers: int, time_limit: float
) -> Iterator[tuple[object, object, str]]:
    """Apply a function in worker processes; neither a crash nor a hang stops the other jobs.

    Args:
        function: called with the item of each job. An exception that it raises ends everything.
        jobs: (key, item) pairs, taken one by one as workers become free.
        num_workers: number of processes.
        time_limit: seconds per job.

    Yields:
        (key, result, reason) in the order in which jobs end. The reason says why the result is `None`, else is empty.
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


# results on disk


def read_results(path: str | Path, columns: Sequence[str], from_row: Callable[[dict], object]) -> list:
    """Results from a CSV file that [`Journal`] wrote, without a row that was cut off.

    Raises:
        ValueError: if the file lacks a column, or naming a damaged line.
    """
    try:
        content = Path(path).read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error
    table = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    if missing:
        raise ValueError(f"{str(path)!r} has other content (no column {missing[0]!r}): give another file to write to.")
    results = []
    for row in table:
        if None in row.values():
            continue
        try:
            results.append(from_row(row))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"Line {table.line_num} of {str(path)!r} is damaged ({error}): delete the file, and it is made again."
            ) from error
    return results


class Journal:
    """Results of earlier runs, and the file `<path>.partial` to which new ones are added as they come.

    A result is a dataclass with the fields `file`, `bytes` and `hash` and the property `is_readable`.

    Args:
        path: the finished file; `None` to read and write nothing.
        columns: its columns.
        to_row, from_row: between a result and a row of the file.

    Raises:
        ValueError: if one of the two files exists and has other content.
    """

    def __init__(self, path: str | Path | None, columns: Sequence[str], to_row: Callable, from_row: Callable):
        self.columns, self.to_row, self.file = columns, to_row, None
        self.known: dict[str, object] = {}
        if path is None:
            return
        self.partial = Path(f"{path}.partial")
        finished, interrupted = (
            read_results(source, columns, from_row) if os.path.exists(source) else []
            for source in (path, self.partial)
        )
        # a finished run's unreadable files are read again, as they may have been repaired
        self.known |= {result.file: result for result in finished if result.is_readable}
        self.known |= {result.file: result for result in interrupted}
        write_table(self.partial, map(to_row, self.known.values()), columns)
        self.file = open(self.partial, "a", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception):
        if self.file is not None:
            self.file.close()

    def find(self, blank):
        """A copy of the earlier result of a file with the same size (and hash, where the row holds its bytes)."""
        known = self.known.get(blank.file)
        if known is None or blank.hash not in ("", known.hash):
            return None
        is_same = known.bytes == blank.bytes or ("://" in blank.file and blank.bytes is None)
        return dataclasses.replace(known) if is_same else None

    def add(self, result):
        """Append a result at once."""
        if self.file is not None:
            csv.DictWriter(self.file, self.columns, lineterminator="\n").writerow(self.to_row(result))
            self.file.flush()


def read_files(items: Iterable, reader, journal: Journal, settings, total: int | None, title: str) -> list:
    """One result per row of a data set, in order; those that the journal has are not read again.

    Args:
        items: the files of the rows (paths, bytes or `{"path", "bytes"}`), `None` where there is none.
        reader: `reader(item)` reads a file in a worker process and gives a `reader.result_type`, `reader.blank(item)`
            gives what is known before, `reader.is_current(result)` says whether an earlier result suffices.
        journal: earlier results; new ones are added.
        settings: has `workers` and `time_limit`.
        total, title: of the progress bar.

    Raises:
        ValueError: if there is no row.
    """
    results: list = []

    def jobs() -> Iterator[tuple[int, object]]:
        """Files to be read. The result of every row is entered here, as far as it is known."""
        for item in items:
            if not has_content(item):
                results.append(
                    reader.result_type(f"row {len(results)}", reason="the row has neither a path nor bytes")
                )
                bar.update()
                continue
            blank = reader.blank(item)
            known = journal.find(blank)
            if known is not None and reader.is_current(known):
                results.append(known)
                bar.update()
            else:
                results.append(blank)
                yield len(results) - 1, item

    with journal, tqdm(total=total, desc=title, unit=" files", disable=None) as bar:
        for index, result, reason in run_guarded(reader, jobs(), settings.workers, settings.time_limit):
            results[index] = result or dataclasses.replace(results[index], reason=reason)
            journal.add(results[index])
            bar.update()
    if not results:
        raise ValueError("The data set is empty: it names no video.")
    return results
