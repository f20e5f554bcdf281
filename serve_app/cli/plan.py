"""`animegan plan`: says how much memory each container needs, and which settings fit a limit."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from serve_app.cli.memory_plan import (
    DEPLOYMENTS,
    EVERYTHING,
    HEAD,
    Deployment,
    Service,
    differences,
    in_mib,
    largest_side,
    saving,
    settings_that_fit,
    shared_bytes,
)
from serve_app.errors import SettingsError
from serve_app.settings import (
    MIB,
    CodecSettings,
    GuardSettings,
    IngressSettings,
    JobRunnerSettings,
    Model,
    Settings,
    StylizerSettings,
    load_settings,
)
from serve_app.styles.catalogue import shipped_dir

AUTO_REPLICAS = 100  # the most that Serve starts for `num_replicas: auto`
LABELS = {
    HEAD: "head: GCS, controller",
    "node": "node: Ray's agents",
    "files": "files: photographs on their way",
    "frames": "frames: decoded, painted",
}
KINDS = ("processes", "uploads", "decoding", "painting", "frames")


def add_plan_parser(commands: Any) -> None:
    """Adds `animegan plan` to the commands."""
    plan = commands.add_parser("plan", help="say how much memory each container needs, and which settings fit")
    plan.add_argument("--config", type=Path, help="default: the shipped configs/prod.yaml")
    plan.add_argument("--max-side", type=int, metavar="PIXELS", help="of a painting; default: the config's")
    plan.add_argument("--replicas", type=int, metavar="N", help="Stylizers; default: the most that the config allows")
    plan.add_argument("--max-batch-size", type=int, metavar="N", help="pictures that a Stylizer paints at a time")
    plan.add_argument("--queue", type=int, metavar="N", help="pictures admitted at a time (queue_most_pictures)")
    plan.add_argument("--device", choices=["auto", "cpu", "cuda"])
    plan.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"])
    plan.add_argument("--cores", type=int, help="of the machine that paints; default: this one's")
    plan.add_argument("--memory", metavar="SIZE", help="a limit to fit, for example 2GiB")
    plan.add_argument(
        "--container",
        choices=[EVERYTHING, HEAD, *DEPLOYMENTS],
        default=EVERYTHING,
        help="whose limit --memory is; default: of one container with everything in it",
    )
    plan.add_argument("--gpu-memory", metavar="SIZE", help="of a card, for example 24GiB")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command=plan_memory)


def plan_memory(options: argparse.Namespace) -> int:
    """`animegan plan`."""
    service = with_options(read_service(options.config or default_config(), options.cores), options)
    limit, card = size_of(options.memory, "--memory"), size_of(options.gpu_memory, "--gpu-memory")
    if options.container not in service.containers():
        raise SettingsError(f"--container: there is no {options.container} in this config")
    problems = list(service.problems(card))
    needed = service.limit_bytes(options.container)
    fitting: Service | None = None
    if limit is not None:
        fitting = settings_that_fit(service, options.container, limit)
        if needed > limit:
            what = "everything in one container" if options.container == EVERYTHING else options.container
            problems.append(
                f"These settings do not fit: {what} needs {in_mib(needed)}, and {in_mib(limit)} are allowed."
            )
    if options.json:
        print(json.dumps(as_json(service, options.container, limit, fitting, problems), indent=2))
    else:
        print("\n".join(as_text(service, options.container, limit, fitting)))
    for problem in problems:
        print(f"animegan: {problem}", file=sys.stderr)
    return 1 if problems else 0


def default_config() -> Path:
    """Returns configs/prod.yaml: inside the package in a wheel, beside it in a clone."""
    return shipped_dir().parent / "configs" / "prod.yaml"


def read_service(path: Path, cores: int | None = None) -> Service:
    """Reads a config file.

    Args:
        path: of the file.
        cores: of the machine that paints; default, of this one.

    Raises:
        SettingsError: with all that `animegan check` finds.
    """
    from serve_app.cli.config_lint import ONE_MACHINE, listed, read  # it imports Ray

    config, findings = read(path)
    if findings:
        raise SettingsError("\n".join(findings))
    applications = listed(config, "applications")
    if not applications:
        raise SettingsError(f"{path}: applications: there is none")
    application = applications[0]
    blocks = {str(each["name"]): each for each in listed(application, "deployments")}
    args = load_settings(Settings, application.get("args") or {}, "args")
    stylizer = blocks.get("Stylizer", {})
    variables = ((stylizer.get("ray_actor_options") or {}).get("runtime_env") or {}).get("env_vars") or {}
    guard = config.get("guard") or {}

    def settings(model: type[Model], name: str) -> Model:
        return load_settings(model, blocks.get(name, {}).get("user_config") or {}, f"{name}.user_config")

    names = DEPLOYMENTS if args.jobs.enabled else DEPLOYMENTS[:-1]
    return Service(
        args=args,
        guard=None if config.get("guard") is False else load_settings(GuardSettings, guard, "guard"),
        ingress=settings(IngressSettings, "Ingress"),
        codec=settings(CodecSettings, "Codec"),
        stylizer=settings(StylizerSettings, "Stylizer"),
        runner=settings(JobRunnerSettings, "JobRunner"),
        deployments={name: as_deployment(blocks.get(name, {})) for name in names},
        allocator="tcmalloc" if "tcmalloc" in variables.get("LD_PRELOAD", "") else "system",
        cores=cores or len(os.sched_getaffinity(0)),
        is_cluster=config.get("proxy_location") not in ONE_MACHINE,
    )


def as_deployment(block: Mapping[str, Any]) -> Deployment:
    """Returns what the plan needs of a deployment's block; Serve's defaults where it says nothing."""
    granted = block.get("ray_actor_options") or {}
    scaling, replicas = block.get("autoscaling_config") or {}, block.get("num_replicas") or 1
    if replicas == "auto":
        replicas = scaling.get("max_replicas", AUTO_REPLICAS)
    elif scaling:
        replicas = scaling.get("max_replicas", 1)
    memory = granted.get("memory")
    return Deployment(
        replicas=int(replicas),
        memory_bytes=None if memory is None else int(memory),
        num_cpus=float(granted.get("num_cpus", 1)),
        num_gpus=float(granted.get("num_gpus") or 0),
    )


def with_options(service: Service, options: argparse.Namespace) -> Service:
    """Returns the service with what the command line says in place of the config.

    Raises:
        SettingsError: if a value is out of range.
    """
    if options.max_side is not None:
        service = service.with_max_side(options.max_side)
    if options.queue is not None:
        least = min(service.ingress.queue_least_pictures, options.queue)
        service = service.with_setting("ingress", queue_most_pictures=options.queue, queue_least_pictures=least)
    if options.max_batch_size is not None:
        service = service.with_setting("stylizer", max_batch_size=options.max_batch_size)
    for key in ("device", "precision"):
        if (value := getattr(options, key)) is not None:
            service = service.with_setting("args", **{key: value})
    for name in ("replicas", "cores"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name}: must be at least 1, not {value}")
    if options.replicas is not None:
        stylizer = replace(service.deployments["Stylizer"], replicas=options.replicas)
        service = replace(service, deployments={**service.deployments, "Stylizer": stylizer})
    return service


def size_of(text: str | None, option: str) -> int | None:
    """Returns the bytes of a size such as 2GiB; None for none.

    Raises:
        SettingsError: if it is no size.
    """
    if text is None:
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise SettingsError(f"{option}: {text} is no size; write 2GiB or 600MB, for example") from None


def as_text(service: Service, container: str, limit: int | None, fitting: Service | None) -> Iterator[str]:
    """Yields the lines of a plan for people."""
    device = "GPUs" if service.on_gpu else "the CPU"
    side_by_side = service.stylizer.max_batch_size if service.on_gpu else service.slots
    yield (
        f"Paintings of up to {service.largest} in {' or '.join(service.precisions)} on {device}, {side_by_side} at a "
        f"time in each Stylizer; up to {service.ingress.queue_most_pictures} admitted by an Ingress."
    )
    yield ""
    yield from table(
        ["one of", "there are", *KINDS, "MiB in all"],
        (
            [LABELS.get(name, name), *row_of(part, service.deployments.get(name))]
            for name, part in service.parts.items()
        ),
    )
    yield ""
    yield from table(
        ["container", "holds", "limit", "/dev/shm"],  # noqa: S108 # nosec B108 # a heading
        (
            [name, holds(name, parts), in_mib(service.limit_bytes(name)), in_mib(shared_bytes(service, name))]
            for name, parts in service.containers().items()
        ),
    )
    if service.on_gpu:
        yield ""
        yield f"On its card each Stylizer takes up to {in_mib(service.card_bytes())}, CUDA's context included."
    if limit is not None:
        yield ""
        yield from advice(service, container, limit, fitting)


def row_of(part: Mapping[str, int], deployment: Deployment | None) -> list[str]:
    """Returns the cells of one row of the table of parts."""
    cells = [f"{part[kind] / MIB:,.0f}" if kind in part else "" for kind in KINDS]
    return [str(deployment.replicas) if deployment else "", *cells, f"{sum(part.values()) / MIB:,.0f}"]


def holds(name: str, parts: Mapping[str, int]) -> str:
    """Returns what is in a container, in words."""
    return "all of the above" if name == EVERYTHING else ", ".join(parts)


def advice(service: Service, container: str, limit: int, fitting: Service | None) -> Iterator[str]:
    """Yields what fits a limit."""
    if service.limit_bytes(container) <= limit:
        side = largest_side(service, container, limit)
        yield f"These settings fit in {in_mib(limit)}; so does max_side up to {side}."
    elif fitting is None:
        *_, leanest = saving(service)
        yield (
            f"No settings fit in {in_mib(limit)}. With max_side {service.ingress.max_side} the least is "
            f"{in_mib(leanest.limit_bytes(container))}."
        )
    else:
        yield f"These settings would fit in {in_mib(limit)}:"
        yield from (f"  {name}: {value}" for name, value in differences(service, fitting).items())


def as_json(
    service: Service, container: str, limit: int | None, fitting: Service | None, problems: list[str]
) -> dict[str, Any]:
    """Returns a plan for programs; every figure is in bytes."""
    return {
        "max_side": service.ingress.max_side,
        "parts": {
            name: {
                "replicas": service.deployments[name].replicas if name in service.deployments else 1,
                **part,
                "total": sum(part.values()),
            }
            for name, part in service.parts.items()
        },
        "containers": {
            name: {
                "predicted_bytes": sum(parts.values()),
                "limit_bytes": service.limit_bytes(name),
                "shm_bytes": shared_bytes(service, name),
            }
            for name, parts in service.containers().items()
        },
        "card_bytes": service.card_bytes() if service.on_gpu else None,
        "limit": None
        if limit is None
        else {
            "container": container,
            "bytes": limit,
            "fits": service.limit_bytes(container) <= limit,
            "settings_that_fit": None if fitting is None else differences(service, fitting),
        },
        "problems": problems,
    }


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yields the lines of a table; what begins with a digit is aligned to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
