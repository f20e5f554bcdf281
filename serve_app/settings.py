"""All settings. YAML keys are the names of these fields, and units are part of the names.

`Settings` is the application's `args`: it shapes the graph and the engine, and changing it rebuilds them. Each of the
`user_config`s belongs to one deployment, and may change while the service runs. `GuardSettings` and `MetricsSettings`
are blocks of their own, which Serve's HTTP proxies read when they start. `JobsSettings` is the block `jobs` of the
application's `args`.
"""

import difflib
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from serve_app.errors import SettingsError
from serve_app.frames import MIN_SIDE, Device, ImageFormat, Precision

MIB = 2**20
KEY_SOURCE = re.compile(r"off|file:/.+|env:[A-Za-z_][A-Za-z0-9_]*")


def key_source(value: Any) -> str | None:
    """Checks where secrets are; YAML reads a bare off as false, and None stands for a setting that was not given."""
    source = "off" if value is False else value
    if source is None or (isinstance(source, str) and KEY_SOURCE.fullmatch(source)):
        return source
    raise PydanticCustomError("keys", "must be off, file:/ABSOLUTE/PATH or env:VARIABLE")


def switch(value: Any) -> Any:
    """Returns the word that was meant: YAML reads a bare off as false."""
    return "off" if value is False else value


LogClients = Literal["off", "truncated", "full"]


class StrictModel(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IngressSettings(StrictModel):
    """The `user_config` of the Ingress: defaults and limits of a request.

    Attributes:
        default_style: the style of requests that name none.
        default_format: the format of answers, if neither `format` nor `Accept` decides.
        max_side: the longer painted side in pixels, at most; larger photographs are fitted. WebP ends at 16,383.
        max_bytes: of one photograph.
        max_form_bytes: of a form with several photographs.
        max_streams: of events that one Ingress serves where no guard does it in the proxies.
        queue_time_s: an image is admitted while all that one Ingress has admitted can be painted within this time.
        queue_least_pictures: so many images are admitted however long they take.
        queue_most_pictures: no more images are admitted at a time.
        queue_most_pixels: no more pixels are admitted at a time, counted as they are painted.
        timeout_s: seconds from admission to the answer, at most; a request may ask for less.
        trusted_proxies: networks of proxies whose X-Forwarded-For tells clients apart.
        keys: where the API keys are, `file:/ABSOLUTE/PATH` or `env:VARIABLE`, or `off`: anybody may paint. A service
            that listens on more than the loopback does not start without it.
        anonymous_share: with keys, the part of the queue that all clients without one may hold together; 0 refuses
            them.
        log_clients: what the log of requests says of a client's address: nothing, the /24 or /48 around it, or all.
    """

    default_style: str = "cel"
    default_format: ImageFormat = "jpeg"
    max_side: int = Field(default=1024, ge=MIN_SIDE, le=16_383)
    max_bytes: PositiveInt = 32 * MIB
    max_form_bytes: PositiveInt = 256 * MIB
    max_streams: PositiveInt = 16
    queue_time_s: PositiveFloat = 30
    queue_least_pictures: PositiveInt = 8
    queue_most_pictures: PositiveInt = 64
    queue_most_pixels: PositiveInt = 128_000_000
    timeout_s: PositiveFloat = 55
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    keys: Annotated[str | None, BeforeValidator(key_source)] = None
    anonymous_share: float = Field(default=0, ge=0, le=1)
    log_clients: Annotated[LogClients, BeforeValidator(switch)] = "off"


class CodecSettings(StrictModel):
    """The `user_config` of the Codec.

    Attributes:
        max_pixels: of a photograph, as its header states them; checked before anything is decoded.
        memory_bytes: the most that all decodes of one replica take at a time, written as 600MB or 1GiB; others wait.
            An eighth is kept for small ones, so that none waits for a large one.
        decode_timeout_s: of work on one photograph; its process is killed after that.
        decoder_processes: photographs that are decoded at a time, each in a process of its own; others wait.
        background_places: photographs of jobs that are decoded or encoded at a time, so that requests find room.
        retire_after_s: age within a tenth at which a replica is replaced; never by default.
        retire_at_bytes: memory of the replica's own process at which it is replaced; never by default.
    """

    max_pixels: PositiveInt = 64_000_000
    memory_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(1464 * MIB)
    decode_timeout_s: PositiveFloat = 10
    decoder_processes: PositiveInt = 16
    background_places: PositiveInt = 2
    retire_after_s: PositiveFloat | None = None
    retire_at_bytes: Annotated[ByteSize, Field(gt=0)] | None = None


class StylizerSettings(StrictModel):
    """The `user_config` of the Stylizer.

    Attributes:
        max_batch_size: images on the device at a time. On a GPU, a batch of one style and size; on a CPU, images of any
            size painted in parallel, large ones at most one per thread.
        linger_s: how long an image on an idle device waits for others of its size; 0 does not wait.
        release_after_s: idle seconds after which free memory goes back to the system. The next image is then slower.
        stuck_after_s: a batch that runs longer ends the replica at Serve's next health check, and Serve starts another.
        background_after_s: a job that has waited here for so long goes before requests, each of which it delays once at
            most.
        retire_after_s: age within a tenth at which a replica is replaced; never by default.
        retire_at_bytes: host memory of the replica's process at which it is replaced; never by default.
    """

    max_batch_size: PositiveInt = 4
    linger_s: NonNegativeFloat = 0
    release_after_s: PositiveInt = 30
    stuck_after_s: PositiveInt = 120
    background_after_s: PositiveFloat = 60
    retire_after_s: PositiveFloat | None = None
    retire_at_bytes: Annotated[ByteSize, Field(gt=0)] | None = None


HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?)$")]  # without a port


class GuardSettings(StrictModel):
    """The block `guard` of a config file: what each HTTP proxy takes in before it asks the Ingress.

    Attributes:
        max_bytes: of a body.
        max_form_bytes: of a form that may hold many photographs.
        memory_bytes: of all bodies that a proxy holds; beyond it they lie in unlinked files.
        disk_bytes: of all those files.
        spool_dir: their folder; default: the system's for temporary files.
        max_uploads: bodies that a proxy takes in at a time.
        max_forwarded: requests with a body that a proxy has in the service at a time; others wait.
        max_forwarded_bytes: of the bodies of these requests. A larger one is forwarded alone.
        queue_time_s: how long a body may wait for its turn after it has arrived.
        header_timeout_s: within which the headers of a request must arrive.
        body_timeout_s: within which a body must arrive.
        min_bytes_per_s: at which it must arrive, averaged over each `rate_window_s`.
        rate_window_s: see `min_bytes_per_s`.
        max_streams: of events that a proxy serves at a time; others get 503, and ask for their jobs.
        allowed_hosts: names that the header Host may have, `*.example.org` for all below one. Default: the names of the
            loopback interface if the service listens there, else any.
    """

    max_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(32 * MIB)
    max_form_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(256 * MIB)
    memory_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(64 * MIB)
    disk_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(2048 * MIB)
    spool_dir: Path | None = None
    max_uploads: PositiveInt = 1024
    max_forwarded: PositiveInt = 72
    max_forwarded_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(64 * MIB)
    queue_time_s: PositiveFloat = 60
    header_timeout_s: PositiveFloat = 15
    body_timeout_s: PositiveFloat = 300
    min_bytes_per_s: PositiveFloat = 4096
    rate_window_s: PositiveFloat = 20
    max_streams: PositiveInt = 2048
    allowed_hosts: tuple[HostName, ...] | None = None


class MetricsSettings(StrictModel):
    """The block `metrics` of a config file: where the HTTP proxy of each node answers its metrics, if there is a block.

    Attributes:
        host: address to listen at. Whoever reaches it may read the metrics.
        port: to listen at.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65_535)

    @property
    def address(self) -> str:
        """The host and the port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class WebhookSettings(StrictModel):
    """The block `webhooks` of `jobs`: messages that tell a client's own service that a job has ended.

    Attributes:
        secret: where the service's secret is, `file:/ABSOLUTE/PATH` or `env:VARIABLE`, or `off`: there are no webhooks.
            It signs nothing itself; each client gets one that is derived from it.
        allow_http: whether a URL may be http, which anybody on the way can read.
        allow_networks: networks that may be called though they are not public, for receivers inside the site.
        timeout_s: of one attempt, from resolving the name to the status of the answer.
    """

    secret: Annotated[str, BeforeValidator(key_source)] = "off"  # noqa: S105 # where the secret is, or that there is none
    allow_http: bool = False
    allow_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    timeout_s: PositiveFloat = 10


class JobsSettings(StrictModel):
    """The block `jobs` of the application's `args`: pictures that are painted later, and where they are kept.

    Attributes:
        enabled: whether there are jobs at all.
        data_dir: folder of the database and of the pictures; default `ANIMEGAN_DATA_DIR`, else the user's data folder.
        database_url: default: SQLite in `data_dir`. For a cluster `postgresql+psycopg://user@host/name`; its password
            comes from the environment (`PGPASSWORD`, `PGPASSFILE`), and a URL that holds one is refused.
        blobs_url: where photographs and paintings lie; default: a folder in `data_dir`. For a cluster
            `s3://bucket/folder`; its secrets come from the environment (`AWS_ACCESS_KEY_ID` and so on).
        keep_for_s: how long a finished job is kept.
        keep_photos_for_s: how long the photograph of a finished job is kept; never longer than the job.
        keep_stylized_for_s: how long a painting of /v1/stylize is kept, so that the same photograph of the same client
            is answered with it; never longer than a finished job. 0 keeps none.
        forget_after_s: how long the id of an expired or erased job is remembered, and answered with 410.
        max_stored_bytes: of all photographs and paintings. Beyond it finished jobs expire early, oldest first.
            Photographs fill nine tenths of it at most, so that there is room for paintings.
        min_free_bytes: that photographs leave free on the disk of a local blob store; paintings leave half of it.
        max_queued: jobs that wait, of all clients.
        client_share: of the stored bytes and of the queue, that one client alone may fill.
        lease_s: after which a job whose worker went silent is given to another; workers renew at a third of it.
        max_attempts: times that a job is started before it fails.
        webhooks: messages that tell a client's own service that a job has ended.
    """

    enabled: bool = False
    data_dir: Path | None = None
    database_url: str | None = None
    blobs_url: str | None = None
    keep_for_s: PositiveFloat = 86_400
    keep_photos_for_s: NonNegativeFloat = 3600
    keep_stylized_for_s: NonNegativeFloat = 3600
    forget_after_s: NonNegativeFloat = 604_800
    max_stored_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(10_240 * MIB)
    min_free_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(512 * MIB)
    max_queued: PositiveInt = 10_000
    client_share: float = Field(default=0.8, gt=0, le=1)
    lease_s: PositiveFloat = 30
    max_attempts: PositiveInt = 3
    webhooks: WebhookSettings = WebhookSettings()

    @property
    def is_database_local(self) -> bool:
        """Whether the database is a file of one machine."""
        return self.database_url is None or self.database_url.startswith("sqlite:")

    @property
    def are_blobs_local(self) -> bool:
        """Whether the pictures are in a folder of one machine."""
        return self.blobs_url is None or "://" not in self.blobs_url or self.blobs_url.startswith("file:")

    @field_validator("database_url", "blobs_url")
    @classmethod
    def _has_no_password(cls, url: str | None) -> str | None:
        # Settings are shown by Ray's dashboard and in `ps`, and may be logged.
        if url is not None and re.search(r"[?&](password|secret|key|token)=", url):
            raise ValueError("secrets come from the environment, not from the URL")
        if url is not None and "://" in url and urlsplit(url).password is not None:
            raise ValueError("the password comes from the environment, not from the URL")
        return url

    @field_validator("database_url")
    @classmethod
    def _is_a_known_database(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"sqlite:///.|postgresql\+psycopg://", url):
            raise ValueError("should begin with sqlite:/// and a path, or with postgresql+psycopg://")
        if url is not None and url.removeprefix("sqlite:///").startswith(":memory:"):
            raise ValueError("several processes share the database, so it cannot be in memory")
        return url


class Settings(StrictModel):
    """The application's `args`.

    Attributes:
        device: `auto` uses CUDA if Ray grants a GPU, else the CPU. `cpu` uses the CPU even if a GPU is granted.
        precision: of the generator; `auto` is fp16 on CUDA, bf16 on CPUs with AVX512-BF16 or AMX, in styles whose
            paintings cannot be told from those in fp32, and else fp32.
        memory_bytes: the most that painting may add to an idle Stylizer, written as 600MB or 2GiB. Default: on CUDA the
            rest of the GPU share, else the replica's `memory`, else half of the machine's free memory.
        threads: of the generator on a CPU: a number, `share` (the replica's num_cpus) or `host` (every core).
        styles_dir: folder of pulled and imported styles; default `ANIMEGAN_STYLES_DIR`, else beside the shipped ones.
        cuda_context_bytes: what a process takes on the card before its first tensor; the allocator gets that much less.
        jobs: pictures that are painted later.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    memory_bytes: Annotated[ByteSize, Field(gt=0)] | None = None
    threads: PositiveInt | Literal["share", "host"] = "share"
    styles_dir: Path | None = None
    cuda_context_bytes: PositiveInt = 700 * MIB
    jobs: JobsSettings = JobsSettings()


class JobRunnerSettings(StrictModel):
    """The `user_config` of the JobRunner: how much of the service jobs may take.

    Attributes:
        most_pictures: jobs that one replica works on at a time, at most.
        most_pixels: no further job is begun while those at work have so many, counted as they are painted.
        stylizer_places: pictures of jobs in each Stylizer, for all replicas together; others are left for requests.
        poll_s: how often an idle replica looks for jobs.
        sweep_s: how often each replica looks for what has expired.
        timeout_s: of one attempt at a picture, the time that it waits behind requests included.
    """

    most_pictures: PositiveInt = 16
    most_pixels: PositiveInt = 64_000_000
    stylizer_places: PositiveInt = 8
    poll_s: PositiveFloat = 1
    sweep_s: PositiveFloat = 60
    timeout_s: PositiveFloat = 900


Model = TypeVar("Model", bound=StrictModel)


def load_settings(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Checks YAML values and returns them as settings.

    Raises:
        SettingsError: naming `where`, each wrong key, and the key that was probably meant.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [
            describe(f"{where}.{place}", detail["type"], detail["msg"], known)
            for detail in error.errors()
            for place, known in [find_key(model, detail["loc"])]
        ]
        raise SettingsError("; ".join(dict.fromkeys(problems))) from None


def find_key(model: type[StrictModel], location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Returns the path of a key that pydantic complains of, and the keys that there are beside it.

    Args:
        model: of the settings.
        location: as pydantic has it. Behind the key it names types inside the model, which nobody has written.
    """
    key, *rest = location
    field = model.model_fields.get(str(key))
    inner = field.annotation if field else None
    if rest and isinstance(inner, type) and issubclass(inner, StrictModel):
        place, known = find_key(inner, tuple(rest))
        return f"{key}.{place}", known
    return str(key), list(model.model_fields)


def describe(key: str, kind: str, message: str, known: list[str]) -> str:
    """Returns one sentence about one wrong key."""
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else f" (known: {', '.join(known)})")
