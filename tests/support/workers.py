"""A worker over a store of jobs in a thread of the test, painting as the fake pipeline does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fakes import paint

from serve_app.errors import RequestError
from serve_app.jobs.store import JobStore
from serve_app.jobs.words import Lease

POLL_S = 0.01


def work_off(store: JobStore, painter: str = "") -> int:
    """Ends every job that waits, one after another; returns their number."""
    ended = 0
    while lease := store.queue.claim():
        end(store, lease, painter)
        ended += 1
    return ended


def end(store: JobStore, lease: Lease, painter: str = "") -> None:
    """Paints a job, or fails it with its reason. By default nobody says who has painted it, so it is not reused."""
    assert lease.job.request is not None
    try:
        store.finish(lease, paint(store.photo(lease.job), lease.job.request, painter=painter))
    except RequestError as error:
        store.queue.fail(lease, error)


@contextmanager
def working(store: JobStore, painter: str = "") -> Iterator[None]:
    """Works in the background until the end of a block."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(POLL_S):
            work_off(store, painter)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
