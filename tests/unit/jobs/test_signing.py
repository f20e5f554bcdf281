"""The secret of webhooks: where it comes from, and what clients get of it."""

import base64
import logging
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from serve_app.errors import SettingsError
from serve_app.jobs.signing import client_secret, new_secret, parse_secret, read_secret

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


def test_it_is_read_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    monkeypatch.setenv("HOOKS", f" {SECRET} ")
    assert read_secret(f"file:{file}") == read_secret("env:HOOKS") == bytes(range(24))
    assert read_secret("off") is None


def test_a_file_that_others_may_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o644)
    read_secret(f"file:{file}")
    assert "chmod 600" in caplog.text
    caplog.clear()
    file.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        read_secret(f"file:{file}")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not set"),
        ("", "does not begin with whsec_"),
        (SECRET.removeprefix("whsec_"), "does not begin with whsec_"),
        ("whsec_", "has 0 bytes"),
        ("whsec_" + base64.b64encode(bytes(23)).decode(), "has 23 bytes, which is under 24"),
        ("whsec_hunter2hunter2hunter2hunter2!", "is not in base64"),
        (SECRET + SECRET, "is not in base64"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    monkeypatch.delenv("HOOKS", raising=False)
    if content is not None:
        monkeypatch.setenv("HOOKS", content)
    with pytest.raises(SettingsError) as caught:
        read_secret("env:HOOKS")
    assert str(caught.value).startswith("jobs.webhooks.secret: ")
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"\xff\xfe", "not text"), (b"x", "whsec_")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=said) as caught:
        read_secret(f"file:{file}")
    assert str(file) in str(caught.value)


def test_clients_have_secrets_of_their_own_that_the_library_takes() -> None:
    secrets = {client: client_secret(bytes(range(24)), client) for client in ("key:ann", "key:bob", "192.0.2.1")}
    assert len(set(secrets.values())) == 3
    assert client_secret(bytes(range(24)), "key:ann") == secrets["key:ann"]
    assert client_secret(bytes(24), "key:ann") != secrets["key:ann"]
    assert all(len(parse_secret(secret)) == 32 for secret in secrets.values())
    Webhook(secrets["key:ann"])


def test_new_secrets_are_random_and_may_be_used() -> None:
    assert new_secret() != new_secret()
    assert len(parse_secret(new_secret())) == 32
