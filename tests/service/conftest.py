from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from service import ANIMEGAN, LOCAL_CONFIG, Service, changed_config, free_port, running
from shared import SHARED

from serve_app.engine.checkpoints import read_checkpoint, save_style
from serve_app.engine.generator import Generator
from serve_app.styles.catalogue import Style


@pytest.fixture(scope="session")
def metrics_address() -> str:
    """Where the service of this folder answers its metrics."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, metrics_address: str) -> Iterator[Service]:
    """One service for all tests of this folder: configs/local.yaml with batches, a short queue and a second style.

    It logs as configs/prod.yaml says.

    A third style is damaged.

    X-Forwarded-For identifies the clients.
    """
    from seeding import seeded_state

    folder = tmp_path_factory.mktemp("service")
    config = folder / "config.yaml"
    address = changed_config(
        LOCAL_CONFIG,
        config,
        Ingress={"user_config": {"queue_time_s": 4, "queue_least_pictures": 20, "trusted_proxies": ["127.0.0.0/8"]}},
    )
    host, port = metrics_address.split(":")
    document = yaml.safe_load(config.read_text()) | {
        "metrics": {"host": host, "port": int(port)},
        "logging_config": {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False},
    }
    config.write_text(yaml.safe_dump(document))
    styles = folder / "styles"
    checkpoint = SHARED / "weights" / "hayao_99.pt"
    weights = (
        read_checkpoint(checkpoint.read_bytes(), checkpoint.name) if checkpoint.exists() else seeded_state(Generator())
    )
    # Another resize mode than the shipped style's, which rounds sides to multiples of 4.
    second = Style(
        name="second", title="Second", resize="align", eps=1e-5, licence="test", source="test", credit="test"
    )
    save_style(weights, second, styles / "second.safetensors")
    (styles / "damaged.safetensors").write_bytes((styles / "second.safetensors").read_bytes()[:-1] + b"?")
    environment = {"ANIMEGAN_STYLES_DIR": str(styles)}
    with running([*ANIMEGAN, "run", str(config)], address, Path(folder / "log"), env=environment) as started:
        yield started
