"""A client of a stream of events that comes back as EventSource does."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence

import requests


class Follower:
    """Follows jobs in a thread until it is told to stay away.

    Attributes:
        ends: events of ends, by name and job.
        statuses: of the answers, 0 for a connection that failed.
    """

    def __init__(self, address: str, ids: Sequence[str]) -> None:
        self.ends: Counter[tuple[str, str]] = Counter()
        self.statuses: list[int] = []
        self._url = f"{address}/v1/jobs/events?" + "&".join(f"id={each}" for each in ids)
        self._last_event_id = ""
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while not self.statuses or self.statuses[-1] != 204:
            try:
                self._read()
            except requests.RequestException:
                self.statuses.append(0)
                time.sleep(0.5)

    def _read(self) -> None:
        headers = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        with requests.get(self._url, headers=headers, stream=True, timeout=30) as answer:
            self.statuses.append(answer.status_code)
            if answer.status_code != 200:
                time.sleep(0.5)  # the service starts
                return
            event: dict[str, str] = {}
            for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif "event" in event:
                    self._last_event_id = event["id"]
                    if event["event"] in ("done", "failed"):
                        self.ends[event["event"], json.loads(event["data"])["id"]] += 1
                    event = {}
                else:
                    event = {}
