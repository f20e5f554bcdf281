"""Delivers webhooks: claims messages, signs them, and sends each until it has arrived. Asyncio, without Ray.

Several couriers may work over one store: each attempt is claimed by one of them.
"""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from standardwebhooks import Webhook

from serve_app.errors import RequestError
from serve_app.jobs.delivery import Delivery, LookUp, Outcome
from serve_app.jobs.outbox import JITTER, PAUSES_S, Message
from serve_app.jobs.signing import client_secret
from serve_app.jobs.store import JobStore
from serve_app.jobs.words import FINISHED, Job
from serve_app.jobs.work import run_in
from serve_app.settings import WebhookSettings

logger = logging.getLogger(__name__)

PLACES = 8  # messages at a time,
PLACES_OF_HOST = 2  # and of these to one host, so that a slow one leaves room for others
POLL_S = 3.0  # between two looks for messages of jobs that other processes have ended
PAUSE_S = 3.0  # after an attempt to reach the database
LEASE_S = 20.0  # that an attempt may take beyond its `timeout_s`, before it counts as lost
ENDING_S = 2.0  # for which a courier that stops waits for what it has begun
THREADS = 2

Describe = Callable[[Job], dict[str, Any]]
Answer = TypeVar("Answer")


class Observer(Protocol):
    """Is told what came of attempts."""

    def sent(self, outcome: str) -> None:
        """Handles one: `delivered`, `postponed`, `given-up`, or `dropped` since the job is gone."""


class Courier:
    """Delivers messages until it is stopped. For one event loop.

    Args:
        store: of the jobs.
        settings: of webhooks.
        secret: of the service; each message is signed with what its client has of it.
        describe: returns a job as members of JSON, as clients see it.
        observer: is told what came of attempts.
        look_up: returns the addresses of a name; by default the system's.
        jitter: a random number from 0 to 1.
    """

    def __init__(
        self,
        store: JobStore,
        settings: WebhookSettings,
        secret: bytes,
        describe: Describe,
        observer: Observer | None = None,
        look_up: LookUp | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._outbox = store.outbox
        self._lease_s = settings.timeout_s + LEASE_S
        self._secret = secret
        self._describe = describe
        self._observer = observer
        self._delivery = Delivery(settings, look_up)
        self._jitter = jitter
        self._threads = ThreadPoolExecutor(THREADS, "webhooks")
        self._sending: dict[asyncio.Task[None], Message] = {}
        self._changed = asyncio.Event()  # a message may have come, a place is free, or the courier is to stop
        self._is_stopping = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to deliver."""
        self._loop = asyncio.create_task(self._claim_all())

    def nudge(self) -> None:
        """Says that a job has ended, so that an idle courier need not wait for its next look."""
        self._changed.set()

    def fault(self) -> BaseException | None:
        """Returns what ended the loop that should never end, if anything did."""
        if self._is_stopping or self._loop is None or not self._loop.done() or self._loop.cancelled():
            return None
        return self._loop.exception() or RuntimeError("a loop ended")

    async def stop(self) -> None:
        """Stops, and hands back what is not delivered. Safe to call again."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._changed.set()
        loops = [] if self._loop is None else [self._loop]
        if loops:
            await asyncio.wait([*loops, *self._sending], timeout=ENDING_S)
        unfinished = dict(self._sending)
        for task in (*loops, *unfinished):
            task.cancel()
        await asyncio.gather(*loops, *unfinished, return_exceptions=True)
        for message in unfinished.values():
            try:
                await self._in_thread(self._outbox.hand_back, message)
            except RequestError:  # the store has logged it; it is due again when its lease has run out
                continue
        await self._delivery.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _claim_all(self) -> None:
        while not self._is_stopping:
            self._changed.clear()
            message, pause_s = None, POLL_S
            if len(self._sending) < PLACES:
                try:
                    message = await self._in_thread(self._outbox.claim, self._lease_s, self._full_hosts())
                except RequestError:  # the store has logged it
                    pause_s = PAUSE_S
            if message is not None:
                self._begin(message)
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), pause_s)
            except TimeoutError:
                continue

    def _full_hosts(self) -> list[str]:
        hosts = Counter(message.host for message in self._sending.values())
        return [host for host, count in hosts.items() if count >= PLACES_OF_HOST]

    def _begin(self, message: Message) -> None:
        task = asyncio.create_task(self._carry(message))
        self._sending[task] = message
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        message = self._sending.pop(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the webhook %s waits until its attempt counts as lost", message.id, exc_info=error)

    async def _carry(self, message: Message) -> None:
        """Makes one attempt at a message, and writes down what came of it."""
        try:
            job = (await self._in_thread(self._store.find, [message.job])).get(message.job)
            if job is None or job.status not in FINISHED:  # erased or forgotten, or it waits again
                await self._in_thread(self._outbox.remove, message)
                return self._tell("dropped")
            is_lost = message.attempt > len(PAUSES_S) + 1  # each time its courier died
            await self._settle(message, "failed" if is_lost else await self._send(message, job))
        except RequestError:  # the store has logged it; the same message is sent again, with the same id
            self._tell("postponed")

    async def _send(self, message: Message, job: Job) -> Outcome:
        assert job.finished_at is not None  # its status says so
        now = datetime.now(UTC)
        content = {
            "type": f"job.{job.status}",
            "timestamp": job.finished_at.isoformat().replace("+00:00", "Z"),
            "data": self._describe(job),
        }
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(client_secret(self._secret, job.client)).sign(message.id, now, body),
        }
        return await self._delivery.send(message.url, headers, body.encode())

    async def _settle(self, message: Message, outcome: Outcome) -> None:
        if outcome == "delivered":
            await self._in_thread(self._outbox.remove, message)
            return self._tell("delivered")
        if outcome == "failed" and message.attempt <= len(PAUSES_S):
            pause_s = PAUSES_S[message.attempt - 1] * (1 + JITTER * (2 * self._jitter() - 1))
            await self._in_thread(self._outbox.postpone, message, pause_s)
            return self._tell("postponed")
        refused = "the receiver redirects or is gone, or may not be called"
        reason = refused if outcome == "refused" else f"{message.attempt} attempts have failed"
        logger.warning("the webhook %s to %s is given up: %s", message.id, message.host, reason)
        await self._in_thread(self._outbox.remove, message)
        return self._tell("given-up")

    def _tell(self, outcome: str) -> None:
        if self._observer is not None:
            self._observer.sent(outcome)

    async def _in_thread(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        return await run_in(self._threads, partial(function, *arguments))
