"""The faults of `scripts/bench chaos`: each is injected into a service under load, lifted, and waited for."""

import asyncio
import itertools
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.chaos.bad_clients import converse, drip, request_head
from benchmarks.chaos.ledger import MINUTE_S, Injection
from benchmarks.chaos.service import DAMAGED, ChaosService, NotRecoveredError
from benchmarks.load import Clock
from benchmarks.paths import STYLIZE_PATH
from benchmarks.servers import DECODER

FAULT_AT_S = 5.0  # of each minute
RECOVERY_S = 300.0  # within which the service must be back
DISK_FULL_S = 20.0
DATABASE_STOPPED_S = 15.0
DAMAGED_S = 20.0
CLOCK_BACK_S, CLOCK_BACK_BY_S = 30.0, 3600
SLOW_UPLOADS, SLOW_UPLOADS_S = 50, 25.0
ABORTED_UPLOADS = 200
ABORT_PAUSE_S = 0.1  # at most, between the beginning of an upload and its end
BALLAST_CHUNK = bytes(2**20)
UPLOAD_BYTES = 500_000  # that an upload announces which will never be complete


@dataclass(frozen=True)
class Fault:
    """A fault, and what it may cost.

    Attributes:
        name: as the report has it.
        inject: injects it, lifts it, and returns when the service has recovered.
        missing: returns why it cannot be injected here; None if it can.
        breaks_connections: whether clients may lose their connections by it.
        damaged_style: whose requests may be refused meanwhile.
    """

    name: str
    inject: Callable[[ChaosService], None]
    missing: Callable[[ChaosService], str | None] = lambda service: None
    breaks_connections: bool = False
    damaged_style: str | None = None


def killing(name: str) -> Callable[[ChaosService], None]:
    """Returns a fault that kills the processes with a role, and waits for their successors."""

    def inject(service: ChaosService) -> None:
        service.wait_until(lambda: bool(service.processes(name)), RECOVERY_S, f"there was no {name} to kill")
        victims = service.processes(name)
        killed = {process.pid for process in victims}
        service.kill(victims)

        def has_successor() -> bool:
            living = {process.pid for process in service.processes(name)}
            return bool(living - killed) and service.is_ready()

        service.wait_until(has_successor, RECOVERY_S, f"no other {name} had taken the place of the killed one")

    return inject


def kill_a_decoder(service: ChaosService) -> None:
    """Kills one of the processes that decode; their fork server, which has the same title, lives on."""
    decoders = [
        process
        for process in service.processes(DECODER)
        if (parent := process.parent()) is not None and DECODER in " ".join(parent.cmdline())
    ]
    if not decoders:
        raise NotRecoveredError("there was no decoder to kill")
    service.kill([random.choice(decoders)])
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready")


def kill_the_node(service: ChaosService) -> None:
    """Kills all that `animegan run` has started, which ends it; the supervisor starts it again."""
    starts = service.supervisor.starts
    service.kill(service.session())
    service.wait_until(lambda: service.supervisor.starts > starts, RECOVERY_S, "the service had not ended")
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready again")


def fill_the_disk(service: ChaosService) -> None:
    """Fills the file system of the pictures to the last byte, keeps it full, and frees it."""
    assert service.disk is not None  # else the fault is missing
    ballast, end = service.disk / "ballast", time.monotonic() + DISK_FULL_S
    try:
        with ballast.open("wb", buffering=0) as file:
            while time.monotonic() < end and not service.stopping.is_set():
                with suppress(OSError):
                    while file.write(BALLAST_CHUNK) == len(BALLAST_CHUNK):
                        pass
                service.stopping.wait(0.2)
    finally:
        ballast.unlink()
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready")


def stop_the_database(service: ChaosService) -> None:
    """Stops PostgreSQL at once, and starts it again."""
    assert service.database is not None  # else the fault is missing
    service.database.stop()
    try:
        service.stopping.wait(DATABASE_STOPPED_S)
    finally:
        service.database.start()
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready")


def damage_a_style(service: ChaosService) -> None:
    """Flips a byte in a style's file, and kills the Stylizer, whose successor reads it; then restores it, likewise."""
    whole = service.style_file.read_bytes()
    middle = len(whole) // 2
    try:
        service.style_file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
        killing("Stylizer")(service)
        service.stopping.wait(DAMAGED_S)
    finally:
        service.style_file.write_bytes(whole)
    killing("Stylizer")(service)
    seeds = itertools.count(time.time_ns() % 10**9)
    service.wait_until(lambda: service.paints(DAMAGED, next(seeds)), RECOVERY_S, "the restored style was not painted")


def set_the_clock_back(service: ChaosService) -> None:
    """Sets the clock of the JobRunner back, and right again."""
    service.set_clock(-CLOCK_BACK_BY_S)
    try:
        service.stopping.wait(CLOCK_BACK_S)
    finally:
        service.set_clock(0)
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready")


def upload_badly(service: ChaosService) -> None:
    """Opens uploads that never end, and others that are broken off."""
    asyncio.run(bad_uploads(service.address, SLOW_UPLOADS, ABORTED_UPLOADS))
    service.wait_until(service.is_ready, RECOVERY_S, "the service was not ready")


async def bad_uploads(address: str, slow: int, aborted: int) -> None:
    """Sends so many uploads of each kind at once."""
    head = request_head(STYLIZE_PATH, f"Content-Length: {UPLOAD_BYTES}")
    tasks = [converse(address, head, drip, SLOW_UPLOADS_S) for _ in range(slow)]
    await asyncio.gather(*tasks, *(abort(address, head) for _ in range(aborted)), return_exceptions=True)


async def abort(address: str, head: bytes) -> None:
    """Begins an upload, and breaks it off."""
    host, port = address.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + bytes(UPLOAD_BYTES // 4))
    await asyncio.sleep(random.uniform(0, ABORT_PAUSE_S))
    writer.transport.abort()


def needs_disk(service: ChaosService) -> str | None:
    """Returns why the disk cannot be filled here."""
    return None if service.disk is not None else "only root may mount a small file system"


def needs_database(service: ChaosService) -> str | None:
    """Returns why the database cannot be stopped here."""
    return (
        None if service.database is not None else "PostgreSQL's server is not installed, and SQLite cannot be stopped"
    )


def needs_clock(service: ChaosService) -> str | None:
    """Returns why the clock cannot be set here."""
    return None if service.is_clock_faked() else "libfaketime is not installed (Debian's package `faketime`)"


FAULTS = [
    Fault("Stylizer", killing("Stylizer")),
    Fault("Codec", killing("Codec")),
    Fault("Ingress", killing("Ingress"), breaks_connections=True),
    Fault("JobRunner", killing("JobRunner")),
    Fault("proxy", killing("ProxyActor"), breaks_connections=True),
    Fault("controller", killing("ServeController")),
    Fault("decoder", kill_a_decoder),
    Fault("node", kill_the_node, breaks_connections=True),
    Fault("disk", fill_the_disk, needs_disk),
    Fault("database", stop_the_database, needs_database),
    Fault("style", damage_a_style, damaged_style=DAMAGED),
    Fault("clock", set_the_clock_back, needs_clock),
    Fault("uploads", upload_badly),
]


class Rotation:
    """Which fault comes next: each in its turn, and none while the service recovers from the last.

    Args:
        faults: at least one.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._turns: Iterator[Fault] = itertools.cycle(faults)

    def next(self, injections: Sequence[Injection]) -> Fault | None:
        """Returns the fault of this minute; None if the last one is not over."""
        if injections and injections[-1].recovered_s is None and injections[-1].error is None:
            return None
        return next(self._turns)


class Injector:
    """Injects a fault each minute.

    Args:
        service: under test.
        faults: in rotation.
        clock: of the load.
        injections: the list that they are added to.
        minute_s: seconds between two faults.
    """

    def __init__(
        self,
        service: ChaosService,
        faults: Sequence[Fault],
        clock: Clock,
        injections: list[Injection],
        minute_s: float = MINUTE_S,
    ) -> None:
        self._service = service
        self._rotation = Rotation(faults)
        self._clock = clock
        self._injections = injections
        self._minute_s = minute_s

    async def run(self, minutes: int) -> None:
        """Injects faults for so many minutes, and returns when the last one is over."""
        tasks = []
        for minute in range(minutes):
            at_s = minute * self._minute_s + min(FAULT_AT_S, self._minute_s / 2)
            await asyncio.sleep(max(0, at_s - self._clock.now()))
            if (fault := self._rotation.next(self._injections)) is not None:
                tasks.append(asyncio.create_task(self._inject(fault, minute)))
        await asyncio.gather(*tasks)

    async def _inject(self, fault: Fault, minute: int) -> None:
        injection = Injection(
            fault.name,
            minute,
            self._clock.now(),
            breaks_connections=fault.breaks_connections,
            damaged_style=fault.damaged_style,
        )
        self._injections.append(injection)
        print(f"{injection.began_s:7.1f} s  {fault.name}", flush=True)
        try:
            await asyncio.to_thread(fault.inject, self._service)
        except (NotRecoveredError, subprocess.CalledProcessError, psutil.Error, OSError) as error:
            injection.error = str(error)
            print(f"{self._clock.now():7.1f} s  {fault.name}: {error}", flush=True)
            return
        injection.recovered_s = self._clock.now()
        print(f"{injection.recovered_s:7.1f} s  {fault.name} is over", flush=True)
