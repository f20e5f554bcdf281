"""Many clients that wait for events of their jobs, in one process: `python -m benchmarks.watchers PORT IDS`.

They come back as EventSource does, until standard input ends. Then a line of JSON says how many seconds after its end
each job was told, how many ends were told twice, and how many answers were refusals.
"""

import asyncio
import json
import resource
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

COME_BACK_S = 0.1


class Watchers:
    """What clients have heard.

    Attributes:
        late_s: seconds from the end of each job until its client heard of it, but for jobs that had ended before.
        told: times that each end was told.
        refused: answers that were no streams.
    """

    def __init__(self, port: int) -> None:
        self.late_s: list[float] = []
        self.told: Counter[str] = Counter()
        self.refused = 0
        self._port = port

    async def watch(self, ids: list[str]) -> None:
        """Waits for events of some jobs."""
        last_event_id, query = "", "&".join(f"id={each}" for each in ids)
        while True:
            began = time.time()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            last = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
            writer.write(f"GET /v1/jobs/events?{query} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
            if b" 200 " not in await reader.readline():
                self.refused += 1
            while (line := (await reader.readline()).decode().strip()) != "0":
                name, _, value = line.partition(": ")
                if name == "id":
                    last_event_id = value
                elif name == "data":
                    self._hear(json.loads(value), began)
            writer.close()
            await asyncio.sleep(COME_BACK_S)

    def _hear(self, job: dict[str, str], began: float) -> None:
        if job["finished_at"] is not None:
            ended = datetime.fromisoformat(job["finished_at"]).timestamp()
            self.told[job["id"]] += 1
            if ended > began:
                self.late_s.append(time.time() - ended)


async def main(port: int, path: Path) -> None:
    """Runs all clients until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    watchers = Watchers(port)
    tasks = [asyncio.create_task(watchers.watch(ids)) for ids in json.loads(path.read_text())]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    twice = sum(times > 1 for times in watchers.told.values())
    print(json.dumps({"late_s": watchers.late_s, "twice": twice, "refused": watchers.refused}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
