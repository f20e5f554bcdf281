"""The load of `scripts/bench chaos`: requests and jobs that arrive by the clock, whatever becomes of earlier ones."""

import asyncio
import io
import itertools
import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from PIL import Image, UnidentifiedImageError

from benchmarks.chaos.ledger import Answer, JobLedger, RequestLedger, Verdict
from benchmarks.load import FIRST_ADDRESS, TIMEOUT_S, Clock, open_session
from benchmarks.paths import STYLIZE_PATH
from benchmarks.photographs import photograph
from serve_app.frames import Size

JOBS_PATH = "/v1/jobs"
ADDRESSES = 8  # that clients come from
FIRST_SEED = 10**6  # above those of the photographs that measure the saturation
OTHER_STYLE_SHARE = 0.1  # of all photographs
REPEATED_SHARE = 0.2  # of submissions: sent again though they were answered
FOLLOW_S = 2.0  # between two looks at all unfinished jobs
FOLLOWED = 100  # jobs that one request asks for, at most
AGAIN_S = (1.0, 10.0)  # bounds of the time after which a submission that was refused is sent again
MULTIPLE = 4  # painted sides may lose up to so many pixels, less one


@dataclass(frozen=True)
class Arrival:
    """A photograph that is due.

    Attributes:
        due_s: since the load began.
        number: of the arrival; the photograph's seed and its client follow from it.
        is_job: whether it is to be painted later.
        style: it is to be painted in.
    """

    due_s: float
    number: int
    is_job: bool
    style: str


def arrivals(times: Sequence[float], jobs_share: float, styles: tuple[str, str], seed: int = 0) -> list[Arrival]:
    """Returns what is due at each time.

    Args:
        times: in seconds.
        jobs_share: of photographs that are to be painted later.
        styles: the usual one, and the one for `OTHER_STYLE_SHARE`.
        seed: of the choices.
    """
    chance = random.Random(seed)
    return [
        Arrival(due_s, number, chance.random() < jobs_share, styles[chance.random() < OTHER_STYLE_SHARE])
        for number, due_s in enumerate(times)
    ]


class ChaosLoad:
    """Clients that send photographs, submit jobs and follow them.

    Args:
        address: of the service.
        side: pixels of the photographs.
        clock: of the load.
        requests: takes note of all answers.
        jobs: takes note of all jobs.
    """

    def __init__(self, address: str, side: int, clock: Clock, requests: RequestLedger, jobs: JobLedger) -> None:
        self._address = address
        self._side = side
        self._clock = clock
        self._requests = requests
        self._jobs = jobs
        self._sessions: list[aiohttp.ClientSession] = []
        self._given_up = asyncio.Event()  # nothing is sent any more

    async def run(self, due: Sequence[Arrival], drain_s: float) -> None:
        """Sends everything when it is due; returns when all is answered and all jobs have ended, or have not in time.

        Args:
            due: in the order of time.
            drain_s: seconds without the end of a job, after which those that are left count as lost.
        """
        async with AsyncExitStack() as stack:
            await self._open_sessions(stack)
            follower = asyncio.create_task(self._follow())
            tasks: list[asyncio.Task[Any]] = []
            for arrival in due:
                await asyncio.sleep(max(0, arrival.due_s - self._clock.now()))
                tasks.append(asyncio.create_task(self._submit(arrival) if arrival.is_job else self._send(arrival)))
            await self._drain(tasks, drain_s)
            self._given_up.set()
            await asyncio.gather(*tasks)
            follower.cancel()
            await self._look(list(self._jobs.jobs))

    async def run_closed(self, style: str, clients: int) -> None:
        """Sends photographs from so many clients, each the next when the last has been answered, until `stop`."""
        numbers = itertools.count()

        async def client() -> None:
            while not self._given_up.is_set():
                verdict = await self._send(Arrival(self._clock.now(), next(numbers), is_job=False, style=style))
                if verdict is not Verdict.DONE:
                    await asyncio.sleep(AGAIN_S[0])

        async with AsyncExitStack() as stack:
            await self._open_sessions(stack)
            await asyncio.gather(*(client() for _ in range(clients)))

    def stop(self) -> None:
        """Has the clients of `run_closed` send nothing more."""
        self._given_up.set()

    async def _open_sessions(self, stack: AsyncExitStack) -> None:
        for number in range(ADDRESSES):
            session = open_session(str(FIRST_ADDRESS + number), TIMEOUT_S)
            self._sessions.append(await stack.enter_async_context(session))

    async def _drain(self, tasks: "Sequence[asyncio.Task[Any]]", drain_s: float) -> None:
        last, left = self._clock.now(), -1
        while self._clock.now() - last < drain_s:
            now_left = sum(not task.done() for task in tasks) + len(self._jobs.unfinished())
            if not now_left:
                return
            if now_left != left:
                last, left = self._clock.now(), now_left
            await asyncio.sleep(1)

    def _photo(self, number: int) -> bytes:
        return photograph(FIRST_SEED + number, Size(self._side, self._side), "JPEG")

    async def _send(self, arrival: Arrival) -> Verdict:
        answer, body = await self._post(arrival, f"{STYLIZE_PATH}?style={arrival.style}", {})
        if answer.status == 200:
            is_good = is_picture(body, self._side)
            answer = replace(answer, is_good=is_good, code="" if is_good else "not a picture")
        return self._requests.add(answer)

    async def _submit(self, arrival: Arrival) -> None:
        """Submits a job until the submission is answered: the key sees to it that there is only one."""
        key = f"chaos-{arrival.number}"
        repeats = random.Random(arrival.number).random() < REPEATED_SHARE
        while not self._given_up.is_set():
            path = f"{JOBS_PATH}?style={arrival.style}"
            answer, body = await self._post(arrival, path, {"Idempotency-Key": key})
            answer = replace(answer, is_submission=True, is_good=answer.status == 202)
            verdict = self._requests.add(answer)
            if verdict is Verdict.DONE:
                self._jobs.accept(key, json.loads(body)["id"], self._clock.now())
                if not repeats:
                    return
                repeats = False
            elif verdict is Verdict.OTHER and 400 <= answer.status < 500:
                return  # it will not be answered otherwise
            least, most = AGAIN_S
            await asyncio.sleep(min(max(answer.retry_after_s or 0, least), most))

    async def _post(self, arrival: Arrival, path: str, headers: dict[str, str]) -> tuple[Answer, bytes]:
        """Posts a photograph; returns how it was answered, and the body."""
        session, photo = self._sessions[arrival.number % ADDRESSES], self._photo(arrival.number)
        status, code, retry_after_s, body, is_broken = 0, "", None, b"", False
        try:
            async with session.post(self._address + path, data=photo, headers=headers) as response:
                body = await response.read()
                status, retry_after = response.status, response.headers.get("Retry-After", "")
                retry_after_s = float(retry_after) if retry_after.isdecimal() else None
                code = problem_code(body) if status >= 400 else ""
        except TimeoutError:
            code = "no answer in time"
        except (aiohttp.ClientError, OSError) as error:
            code, is_broken = type(error).__name__, True
        answer = Answer(arrival.due_s, self._clock.now(), status, code, retry_after_s, arrival.style)
        return replace(answer, is_broken=is_broken), body

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            await self._look(self._jobs.unfinished())

    async def _look(self, ids: Sequence[str]) -> None:
        """Asks for jobs; what is not answered is asked for at the next look."""
        for start in range(0, len(ids), FOLLOWED):
            asked = ids[start : start + FOLLOWED]
            query = "&".join(f"id={each}" for each in asked)
            try:
                async with self._sessions[0].get(f"{self._address}{JOBS_PATH}?{query}") as response:
                    if response.status != 200:
                        continue
                    reports: list[dict[str, Any]] = (await response.json())["jobs"]
            except (TimeoutError, aiohttp.ClientError, OSError):
                continue
            at_s = self._clock.now()
            for report in reports:
                self._jobs.see(report, at_s)
            for missing in set(asked) - {report["id"] for report in reports}:
                self._jobs.miss(missing, at_s)


def problem_code(body: bytes) -> str:
    """Returns the code of a problem document; the beginning of the body if it is none."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:60])


def is_picture(body: bytes, side: int) -> bool:
    """Returns whether a body is a whole image of about so many pixels a side."""
    try:
        with Image.open(io.BytesIO(body)) as image:
            image.load()
            return all(side - MULTIPLE < each <= side for each in image.size)
    except (OSError, UnidentifiedImageError, SyntaxError):
        return False
