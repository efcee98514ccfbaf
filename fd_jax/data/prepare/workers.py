"""Makes items on all cores, and outlives a photograph that ends its process."""

import collections
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fd_jax.data.prepare.item import ItemConfig, Result, Task, make_item
from fd_jax.errors import InputError

_AHEAD = 4  # tasks of each process that wait


def make_items(
    tasks: Sequence[Task], config: ItemConfig, out: Path, workers: int | None = None
) -> Iterator[Result]:
    """Yields what became of each photograph, as soon as it is known.

    Args:
        tasks: The photographs.
        config: How they become items.
        out: The folder of the training set.
        workers: Processes, by default one for each core; 0 makes items in this process.

    Raises:
        InputError: Processes cannot be started.
        OutputError: A file cannot be written.
    """
    make = functools.partial(make_item, config=config, out=out)
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(tasks))
    if not workers:
        yield from map(make, tasks)
        return
    waiting = collections.deque(tasks)
    suspects: list[Task] = []
    while waiting:
        yield from _until_broken(make, waiting, suspects, workers)
    for task in suspects:
        # Alone, so that it is known which of them it was.
        lost: list[Task] = []
        yield from _until_broken(make, collections.deque([task]), lost, 1)
        if lost:
            yield Result(task.name, task.id, "unreadable", "reading it ended the process")


def _until_broken(
    make: Callable[[Task], Result],
    waiting: collections.deque[Task],
    suspects: list[Task],
    workers: int,
) -> Iterator[Result]:
    """Yields results until no task waits or a process ends; what was under way are suspects."""
    # Not forked: libraries may have threads by now.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts)
    running: collections.deque[tuple[Task, Future[Result]]] = collections.deque()
    try:
        started = pool.submit(os.getpid)
        while waiting or running:
            try:
                while waiting and len(running) < _AHEAD * workers:
                    running.append((waiting[0], pool.submit(make, waiting[0])))
                    waiting.popleft()
                result = running[0][1].result()
            except BrokenProcessPool as error:
                if started.exception() is not None:
                    raise InputError(
                        "processes end as they start, expected room for --workers of them (in a "
                        "script of your own, a call below `if __name__ == '__main__':`)"
                    ) from error
                suspects += [task for task, _ in running]
                return
            running.popleft()
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leaves Ctrl-C to the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
