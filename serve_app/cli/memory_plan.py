"""The memory that each container of a service needs, predicted from its settings, and settings that fit a limit.

What grows with settings is bounded by the settings themselves: painting by the engine's memory model, decoding by the
Codec's budget, uploads by the guard. What does not grow was measured, and is a constant here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from serve_app.engine.memory import MemoryModel
from serve_app.frames import MIN_SIDE, Precision, Size
from serve_app.settings import (
    MIB,
    CodecSettings,
    GuardSettings,
    IngressSettings,
    JobRunnerSettings,
    Settings,
    StylizerSettings,
    load_settings,
)
from serve_app.web.openai_edits import most_held_bytes
from serve_app.web.openai_uploads import base64_bytes, most_body_bytes

# Idle processes, each its own part of what they share (docs/benchmarks.md, soak and decoding; x86-64, CUDA's torch).
CONTROLLER_BYTES = 95_000_000
PROXY_BYTES = 100_000_000
INGRESS_BYTES = 130_000_000
CODEC_BYTES = 150_000_000  # its decoders and their fork server take 45 MB of it
RUNNER_BYTES = 130_000_000
STYLIZER_BYTES = 710_000_000
NUMBA_BYTES = 110_000_000  # where it paints in bf16
STREAM_BYTES = 60_000  # a client that waits for events of jobs, in the proxy
# Ray's own processes. Their sum was measured (550 MB on one machine, 220 MB more with the dashboard); how it divides
# between what only the head has (the GCS) and what each node has (the raylet, its agents) is an estimate.
RAY_HEAD_BYTES = 200_000_000
RAY_NODE_BYTES = 350_000_000
DASHBOARD_BYTES = 220_000_000
GPU_HOST_BYTES = 4096 * MIB  # of a Stylizer on a GPU whose config grants no `memory`; not measured

DECODER_GROWTH_BYTES = 16_000_000  # after which a decoder is replaced
ENCODERS = 4  # paintings that one Codec encodes at a time
FULL = 0.95  # of a container's limit: above it Ray kills replicas
STEP_BYTES = 64 * MIB  # to which limits are rounded up
SHARED_MEMORY = 0.3  # of a container's limit: the size that Ray gives its object store in /dev/shm

EVERYTHING = "all"
HEAD = "head"
MAX_SIDE = 16_383  # as IngressSettings has it
LEAST_QUEUE = 8
TRAVELS = {
    "Ingress": "files",
    "Codec": "frames",
    "Stylizer": "frames",
    "JobRunner": "files",
}  # what each keeps for others
DEPLOYMENTS = ("Ingress", "Codec", "Stylizer", "JobRunner")


@dataclass(frozen=True)
class Deployment:
    """A deployment as the plan sees it.

    Attributes:
        replicas: as many as there may be.
        memory_bytes: that Ray grants each of them, if the config says so.
        num_cpus: that Ray grants each of them.
        num_gpus: likewise.
    """

    replicas: int
    memory_bytes: int | None
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class Service:
    """The settings of a service that decide how much memory it takes.

    Attributes:
        args: of the application.
        guard: None where it is off.
        ingress, codec, stylizer, runner: the deployments' settings.
        deployments: by name; those that there are.
        allocator: that Stylizers run on, on a CPU.
        cores: of the machine that Stylizers run on.
        is_cluster: whether there is a proxy on every node, and Ray's dashboard, by which Serve is told what to run.
    """

    args: Settings
    guard: GuardSettings | None
    ingress: IngressSettings
    codec: CodecSettings
    stylizer: StylizerSettings
    runner: JobRunnerSettings
    deployments: Mapping[str, Deployment]
    allocator: str
    cores: int
    is_cluster: bool

    @property
    def on_gpu(self) -> bool:
        """Whether Stylizers paint on GPUs."""
        granted = self.deployments["Stylizer"].num_gpus > 0
        return self.args.device == "cuda" or (self.args.device == "auto" and granted)

    @property
    def largest(self) -> Size:
        """The largest painting: a square."""
        return Size(self.ingress.max_side, self.ingress.max_side)

    @property
    def uploads_bytes(self) -> int:
        """The most that the photographs in the service have together, in files."""
        return self._forwarded_bytes(self.ingress.max_form_bytes if self.args.jobs.enabled else self.ingress.max_bytes)

    @property
    def bodies_bytes(self) -> int:
        """The most that all bodies in the service have together; photographs in JSON are longer than their files."""
        return max(self.uploads_bytes, self._forwarded_bytes(most_body_bytes(self.ingress.max_bytes, is_form=False)))

    def _forwarded_bytes(self, each: int) -> int:
        """Returns the most that all bodies in the service have, if one may have `each`."""
        admitted = max(self.ingress.queue_most_pictures * self.ingress.max_bytes, each)
        if self.guard is None or self.is_cluster:  # where each of several proxies forwards its own
            return admitted
        return min(admitted, max(self.guard.max_forwarded_bytes, each))

    @property
    def frames_bytes(self) -> int:
        """The most that all decoded photographs and paintings take that one Ingress has admitted."""
        side = self.ingress.max_side
        waiting = min(self.ingress.queue_most_pictures * side**2, max(self.ingress.queue_most_pixels, side**2))
        jobs = min(self.runner.most_pictures * side**2, max(self.runner.most_pixels, side**2))
        painted = (self.stylizer.max_batch_size * self.deployments["Stylizer"].replicas + ENCODERS) * side**2
        return 3 * (waiting + painted + (jobs if "JobRunner" in self.deployments else 0))

    @property
    def slots(self) -> int:
        """Pictures that one Stylizer paints side by side on a CPU."""
        share = max(1, int(self.deployments["Stylizer"].num_cpus))
        named = {"host": self.cores, "share": share}
        threads = self.args.threads
        return min(named[threads] if isinstance(threads, str) else threads, self.stylizer.max_batch_size)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that Stylizers may paint in; on CPUs `auto` depends on the processor and the style."""
        if self.args.precision != "auto":
            return (self.args.precision,)
        return ("fp16",) if self.on_gpu else ("fp32", "bf16")

    def painting_bytes(self) -> int:
        """The most that painting adds to a Stylizer on a CPU."""
        return max(map(self._painting_bytes, self.precisions))

    def _painting_bytes(self, precision: Precision) -> int:
        planned = MemoryModel(precision, self.allocator).planned_bytes(self.largest, slots=self.slots)
        budget = self.args.memory_bytes
        return (planned if budget is None else min(planned, budget)) + (NUMBA_BYTES if precision == "bf16" else 0)

    def card_bytes(self) -> int:
        """The most that one Stylizer takes on a card: CUDA's context, and a full batch of the largest paintings."""
        model = MemoryModel(self.precisions[0], "cuda")
        planned = model.planned_bytes(self.largest, self.stylizer.max_batch_size)
        return self.args.cuda_context_bytes + min(planned, self.args.memory_bytes or planned)

    @cached_property
    def parts(self) -> dict[str, dict[str, int]]:
        """The bytes of each kind of process or memory, by the name of what they belong to; for one replica."""
        guard = self.guard
        proxy_uploads = self.bodies_bytes if guard is None else guard.memory_bytes + self.proxy_bytes(guard)
        streams = guard.max_streams * STREAM_BYTES if guard and self.args.jobs.enabled else 0
        decoding = self.codec.memory_bytes + min(self.codec.decoder_processes, ENCODERS) * DECODER_GROWTH_BYTES
        shared = min(self.codec.decoder_processes * self.ingress.max_bytes, self.uploads_bytes)
        jobs = self.runner.most_pictures * self.ingress.max_bytes if "JobRunner" in self.deployments else 0
        painting = {} if self.on_gpu else {"processes": STYLIZER_BYTES, "painting": self.painting_bytes()}
        granted = self.deployments["Stylizer"].memory_bytes
        parts = {
            HEAD: {
                "processes": RAY_HEAD_BYTES + (DASHBOARD_BYTES if self.is_cluster else 0) + CONTROLLER_BYTES,
            },
            "node": {"processes": RAY_NODE_BYTES},
            "proxy": {"processes": PROXY_BYTES + streams, "uploads": proxy_uploads},
            "Ingress": {
                "processes": INGRESS_BYTES,
                "uploads": self.bodies_bytes,
                "decoding": base64_bytes(self.ingress.max_bytes),  # the text of one JSON body beside its bytes
                "frames": most_held_bytes(self.ingress.max_side),
            },
            "Codec": {"processes": CODEC_BYTES, "uploads": shared, "decoding": decoding},
            "Stylizer": painting or {"processes": granted or GPU_HOST_BYTES},
            "JobRunner": {"processes": RUNNER_BYTES, "uploads": jobs},
            # In the object store, or in the calls between replicas: files on their way to Codecs, and frames.
            "files": {"uploads": self.uploads_bytes + jobs},
            "frames": {"frames": self.frames_bytes},
        }
        return {name: part for name, part in parts.items() if name not in DEPLOYMENTS or name in self.deployments}

    def proxy_bytes(self, guard: GuardSettings) -> int:
        """The most that one proxy has in the service at a time; a larger body goes alone."""
        form = guard.max_form_bytes if self.args.jobs.enabled else guard.max_bytes
        return max(guard.max_forwarded_bytes, form, most_body_bytes(guard.max_bytes, is_form=False))

    def containers(self) -> dict[str, dict[str, int]]:
        """The bytes of what is in each kind of container, by its name: all in one, the head, or one replica of each."""
        whole = {name: sum(part.values()) for name, part in self.parts.items()}
        replicas = {name: whole[name] * each.replicas for name, each in self.deployments.items()}
        everything = {**whole, **replicas}
        node = {name: whole[name] for name in (["node", "proxy"] if self.is_cluster else ["node"])}
        alone = {name: {**node, name: whole[name]} for name in self.deployments}
        for name, travels in TRAVELS.items():
            if name in alone:
                alone[name][travels] = whole[travels]
        head = {HEAD: whole[HEAD], "node": whole["node"], "proxy": whole["proxy"]}
        return {EVERYTHING: everything, HEAD: head, **alone}

    def limit_bytes(self, container: str) -> int:
        """The memory limit that a container needs: Ray lets the prediction fill `FULL` of it."""
        return rounded_up(sum(self.containers()[container].values()) / FULL)

    def with_setting(self, block: str, **values: Any) -> "Service":
        """Returns a service with other values in one block of settings, checked as those of a file are."""
        settings = getattr(self, block)
        changed = load_settings(type(settings), {**settings.model_dump(), **values}, block)
        return replace(self, **{block: changed})

    def with_max_side(self, side: int) -> "Service":
        """Returns a service that paints at most so large."""
        return self.with_setting("ingress", max_side=side)

    def problems(self, card_bytes: int | None = None) -> Iterator[str]:
        """Yields a sentence for each setting that contradicts another, whatever the limit of a container is.

        Args:
            card_bytes: of a GPU's memory, if it is known.
        """
        stylizer = self.deployments["Stylizer"]
        if self.args.memory_bytes is not None:
            precision, allocator = self.precisions[0], "cuda" if self.on_gpu else self.allocator
            model = MemoryModel(precision, allocator)
            if model.tallest_rows(self.largest, 1, self.args.memory_bytes) is None:
                side = model.largest_side(self.largest, self.args.memory_bytes)
                yield (
                    f"args.memory_bytes ({in_mib(self.args.memory_bytes)}) does not hold one painting of "
                    f"{self.largest} in {precision}: the largest max_side that it holds is {side}."
                )
        for name, each in self.deployments.items():
            needed = sum(self.parts[name].values())
            if each.memory_bytes is not None and each.memory_bytes < needed:
                yield (
                    f"{name}.ray_actor_options.memory ({in_mib(each.memory_bytes)}) is under what a replica may take "
                    f"({in_mib(needed)})."
                )
        if self.on_gpu and card_bytes is not None:
            share = int(card_bytes * min(stylizer.num_gpus or 1, 1))
            model = MemoryModel(self.precisions[0], "cuda")
            room = share - self.args.cuda_context_bytes
            if model.tallest_rows(self.largest, 1, max(room, 0)) is None:
                yield (
                    f"A share of {stylizer.num_gpus or 1:g} of a card of {in_mib(card_bytes)} leaves "
                    f"{in_mib(max(room, 0))} for painting, which does not hold one painting of {self.largest}."
                )


def lowered(block: str, key: str, value: int) -> Callable[[Service], Service]:
    """Returns a step that lowers one setting to a value, or leaves it where it is lower already."""
    return lambda service: service.with_setting(block, **{key: min(getattr(getattr(service, block), key), value)})


def smaller_forms(service: Service) -> Service:
    """Forms no larger than one photograph, and only so many bytes at a time in the service."""
    most = service.ingress.max_bytes
    service = service.with_setting("ingress", max_form_bytes=min(service.ingress.max_form_bytes, most))
    if service.guard is None:
        return service
    guard = service.guard
    return service.with_setting(
        "guard",
        max_form_bytes=guard.max_bytes,
        max_forwarded_bytes=min(guard.max_forwarded_bytes, most),
        memory_bytes=min(guard.memory_bytes, most),
    )


def shorter_queue(pictures: int) -> Callable[[Service], Service]:
    """Returns a step that admits fewer pictures at a time."""

    def step(service: Service) -> Service:
        most = min(service.ingress.queue_most_pictures, pictures)
        least = min(service.ingress.queue_least_pictures, most)
        return service.with_setting("ingress", queue_most_pictures=most, queue_least_pictures=least)

    return step


def fewer_streams(service: Service) -> Service:
    """Fewer clients that wait for events of jobs in a proxy."""
    return service if service.guard is None else lowered("guard", "max_streams", 256)(service)


def half_precision(service: Service) -> Service:
    """Values of 16 bits between layers, also on CPUs that then convolve in float32."""
    return service if service.on_gpu else service.with_setting("args", precision="fp16")


def smaller_photographs(max_bytes: int) -> Callable[[Service], Service]:
    """Returns a step that refuses files of more bytes."""

    def step(service: Service) -> Service:
        return smaller_forms(lowered("ingress", "max_bytes", max_bytes)(lower_guard(service)))

    def lower_guard(service: Service) -> Service:
        return service if service.guard is None else lowered("guard", "max_bytes", max_bytes)(service)

    return step


# Settings that save memory, in the order in which they are given up: what costs users least comes first.
SAVINGS: list[Callable[[Service], Service]] = [
    smaller_forms,
    fewer_streams,
    lowered("codec", "memory_bytes", 768 * MIB),
    shorter_queue(24),
    lowered("runner", "most_pictures", 2),
    lowered("codec", "memory_bytes", 384 * MIB),
    lowered("stylizer", "max_batch_size", 1),
    half_precision,
    smaller_photographs(16 * MIB),
    shorter_queue(LEAST_QUEUE),
    lowered("codec", "memory_bytes", 192 * MIB),
    smaller_photographs(8 * MIB),
]
KEYS = {  # what SAVINGS and a smaller picture may change, by its name in a config file
    ("args", "precision"): "args.precision",
    ("guard", "max_bytes"): "guard.max_bytes",
    ("guard", "max_form_bytes"): "guard.max_form_bytes",
    ("guard", "max_streams"): "guard.max_streams",
    ("guard", "memory_bytes"): "guard.memory_bytes",
    ("guard", "max_forwarded_bytes"): "guard.max_forwarded_bytes",
    ("ingress", "max_side"): "Ingress.max_side",
    ("ingress", "max_bytes"): "Ingress.max_bytes",
    ("ingress", "max_form_bytes"): "Ingress.max_form_bytes",
    ("ingress", "queue_least_pictures"): "Ingress.queue_least_pictures",
    ("ingress", "queue_most_pictures"): "Ingress.queue_most_pictures",
    ("codec", "memory_bytes"): "Codec.memory_bytes",
    ("stylizer", "max_batch_size"): "Stylizer.max_batch_size",
    ("runner", "most_pictures"): "JobRunner.most_pictures",
}


def settings_that_fit(service: Service, container: str, limit_bytes: int) -> Service | None:
    """Returns the service with as few of `SAVINGS` as fit the limit, and a smaller `max_side` if it must; else None."""
    for saved in saving(service):
        if saved.limit_bytes(container) <= limit_bytes:
            return saved
    side = largest_side(saved, container, limit_bytes, saved.ingress.max_side)
    return saved.with_max_side(side) if side else None


def saving(service: Service) -> Iterator[Service]:
    """Yields the service as it is, then with one more of `SAVINGS` each time."""
    yield service
    for step in SAVINGS:
        service = step(service)
        yield service


def largest_side(service: Service, container: str, limit_bytes: int, most: int = MAX_SIDE) -> int:
    """Returns the largest `max_side`, a multiple of 4, with which a container fits; 0 if none does."""
    low, high = MIN_SIDE - 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = service.with_max_side(middle).limit_bytes(container) <= limit_bytes
        low, high = (middle, high) if fits else (low, middle)
    return low if low == most else low // 4 * 4 if low >= MIN_SIDE else 0


def differences(before: Service, after: Service) -> dict[str, Any]:
    """Returns the settings in which two services differ, by their names, with the values of the second."""
    changed = {}
    for (block, key), name in KEYS.items():
        old, new = (getattr(getattr(service, block), key, None) for service in (before, after))
        if old != new and not (block == "runner" and "JobRunner" not in after.deployments):
            changed[name] = int(new) if isinstance(new, int) else new  # YAML knows no ByteSize
    return changed


def shared_bytes(service: Service, container: str) -> int:
    """Returns the size that /dev/shm needs: Ray sizes its object store by the limit, not by what is put there."""
    return rounded_up(service.limit_bytes(container) * SHARED_MEMORY)


def rounded_up(count: float) -> int:
    """Returns a number of bytes, rounded up to a multiple of `STEP_BYTES`."""
    return math.ceil(count / STEP_BYTES) * STEP_BYTES


def in_mib(count: int) -> str:
    """Returns a number of bytes in words."""
    return f"{count / MIB:,.0f} MiB"
