"""Buckets of S3 for tests: a server of Moto's, and the environment in which a user of it would be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_service() -> Iterator[str]:
    """Runs a server; yields its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def new_bucket(address: str, patch: pytest.MonkeyPatch, endpoint: str = "AWS_ENDPOINT_URL") -> str:
    """Puts keys and endpoint where a user puts them, and returns the name of a new bucket."""
    import s3fs

    patch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv(endpoint, address)
    name = f"bucket-{os.urandom(4).hex()}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return name
