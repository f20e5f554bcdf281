"""A worker process over a store of jobs, to be killed at any moment: job_worker.py SETTINGS LOG.

It "paints" by reversing a photograph, and appends the id of each job that it ended to the log.
"""

import os
import random
import sys
import time
from pathlib import Path

from jobstores import painting

from serve_app.errors import BrokenImage, RequestError
from serve_app.jobs.store import open_store
from serve_app.settings import JobsSettings


def main(settings: JobsSettings, log: Path) -> None:
    store = open_store(settings)
    log_file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        try:
            store.sweep(strays=random.random() < 0.1)
            lease = store.queue.claim()
            if lease is None:
                time.sleep(0.02)
                continue
            photo = store.photo(lease.job)
            if photo.startswith(b"poison"):
                os.kill(os.getpid(), 9)
            time.sleep(random.random() * 0.05)
            if photo.startswith(b"broken"):
                is_ended = store.queue.fail(lease, BrokenImage("It is broken."))
            else:
                is_ended = store.finish(lease, painting(photo[::-1]))
            if is_ended:
                os.write(log_file, f"{lease.job.id}\n".encode())
        except RequestError as error:
            print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main(JobsSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
