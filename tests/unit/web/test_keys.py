import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.errors import SettingsError, Unauthorized
from serve_app.frames import Client
from serve_app.settings import IngressSettings
from serve_app.web import keys
from serve_app.web.keys import (
    Key,
    KeyFile,
    KeyRing,
    Keys,
    KeysOff,
    is_private,
    load_keys,
    new_key,
    parse_keys,
    read_key_file,
    sent_key,
)

PUBLIC, PRIVATE = "0.0.0.0", "127.0.0.1"
ADDRESS = "192.0.2.1"
ALICE = "ag_the-key-of-alice"
BOB = "ag_the-key-of-bob"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def line(name: str, key: str, share: str = "") -> str:
    return f"{name}:sha256:{digest(key).hex()}{share}"


def client_of(known: Keys, key: str | None = None) -> Client:
    return known.identify([] if key is None else [f"Bearer {key}"], [], ADDRESS)


def refusal(known: Keys, authorization: list[str], api_key: list[str]) -> str:
    with pytest.raises(Unauthorized) as caught:
        known.identify(authorization, api_key, ADDRESS)
    return caught.value.detail


RING = KeyRing([Key("alice", digest(ALICE), 0.5), Key("bob", digest(BOB))])


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        ([f"Bearer {ALICE}"], []),
        ([f"bearer {ALICE}"], []),
        ([f"BEARER   {ALICE} "], []),
        ([], [ALICE]),
        ([], [f" {ALICE}"]),
        ([f"Bearer {ALICE}"], [ALICE]),
        ([f"Bearer {ALICE}", f"Bearer {ALICE}"], [ALICE, ALICE]),
    ],
)
def test_client_with_a_key_goes_by_the_name_and_share_of_the_key(authorization: list[str], api_key: list[str]) -> None:
    assert RING.identify(authorization, api_key, ADDRESS) == Client("key:alice", 0.5)


def test_every_key_is_known_wherever_it_stands() -> None:
    assert [client_of(RING, key).name for key in (ALICE, BOB)] == ["key:alice", "key:bob"]


def test_key_that_is_not_ascii_is_known_by_its_bytes() -> None:
    """A header's bytes are decoded as latin-1, whatever the client encoded."""
    ring = KeyRing([Key("alice", digest("schlüssel"))])
    assert client_of(ring, "schlüssel".encode().decode("latin-1")).name == "key:alice"


@pytest.mark.parametrize(
    "key",
    ["ag_unknown", ALICE[:-1], ALICE + "x", ALICE.upper(), digest(ALICE).hex(), line("alice", ALICE), "alice", "ÿ"],
)
def test_other_words_than_the_keys_are_refused(key: str) -> None:
    assert refusal(RING, [f"Bearer {key}"], []) == refusal(RING, [], [key]) == "The API key is not known here."


def test_request_without_a_key_is_told_how_to_send_one() -> None:
    assert refusal(RING, [], []) == keys.NO_KEY
    assert "`Authorization: Bearer KEY`" in keys.NO_KEY
    assert "`X-API-Key: KEY`" in keys.NO_KEY


@pytest.mark.parametrize(
    "line", ["", "Bearer", "Bearer ", f"Bearer {ALICE} {ALICE}", f"Bearer {ALICE}, Bearer {BOB}", f"Bearer{ALICE}"]
)
@pytest.mark.parametrize("anonymous_share", [0, 0.5])
def test_malformed_authorization_is_refused_even_where_no_key_is_needed(line: str, anonymous_share: float) -> None:
    ring = KeyRing([Key("alice", digest(ALICE))], anonymous_share)
    assert refusal(ring, [line], []) == refusal(ring, [line], [ALICE]) == keys.MALFORMED


@pytest.mark.parametrize("line", ["Basic YWxpY2U6c2VjcmV0", "Digest username=alice", ALICE, f"Token {ALICE}"])
def test_other_scheme_is_refused_with_the_one_that_is_wanted_and_is_not_repeated(line: str) -> None:
    detail = refusal(RING, [line], [])
    assert "`Bearer KEY`" in detail
    assert not any(word in detail for word in line.split())


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [([f"Bearer {ALICE}"], [BOB]), ([f"Bearer {ALICE}", f"Bearer {BOB}"], []), ([], [ALICE, BOB])],
)
def test_two_different_keys_are_refused(authorization: list[str], api_key: list[str]) -> None:
    assert refusal(RING, authorization, api_key) == "The request has several API keys; send one."


def test_empty_key_is_not_no_key() -> None:
    ring = KeyRing([Key("alice", digest(ALICE))], anonymous_share=0.5)
    assert refusal(ring, [], [""]) == refusal(ring, [], ["  "]) == keys.EMPTY_KEY
    assert sent_key([], []) is None


def test_key_is_compared_in_constant_time_with_every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "hmac", type("Recorder", (), {"compare_digest": staticmethod(compare)}))
    for key in (ALICE, BOB):
        compared.clear()
        client_of(RING, key)
        assert compared == [digest(ALICE), digest(BOB)]


def test_ring_without_keys_lets_nobody_in() -> None:
    assert refusal(KeyRing(), [], []) == keys.NO_KEY
    assert refusal(KeyRing(), [f"Bearer {ALICE}"], []) == keys.UNKNOWN_KEY


def test_clients_without_a_key_share_a_part_of_the_queue_where_they_are_let_in() -> None:
    ring = KeyRing([Key("alice", digest(ALICE))], anonymous_share=0.1)
    assert client_of(ring) == Client(ADDRESS, 0.1, "anonymous")
    assert client_of(ring, ALICE) == Client("key:alice")
    assert refusal(ring, [f"Bearer {BOB}"], []) == keys.UNKNOWN_KEY  # a wrong key is a mistake, not its absence


@pytest.mark.parametrize("sent", [[], [f"Bearer {ALICE}"], ["Basic YWxpY2U6c2VjcmV0"], ["nonsense"]])
def test_with_keys_off_a_client_is_its_address_whatever_it_sends(sent: list[str]) -> None:
    assert KeysOff().identify(sent, [ALICE, BOB], ADDRESS) == Client(ADDRESS)


# The lines of a key file


def test_lines_of_a_key_file_are_names_hashes_and_shares() -> None:
    text = f"""\
# who may paint
{line("alice", ALICE, ":0.5")}  # since May

  {line("Bob.2-b_c", BOB).replace("sha256:", "sha256:").upper().replace("BOB.2-B_C:SHA256", "Bob.2-b_c:sha256")}\r
"""
    assert parse_keys(text, "here") == (Key("alice", digest(ALICE), 0.5), Key("Bob.2-b_c", digest(BOB), 1.0))


@pytest.mark.parametrize(("share", "value"), [("", 1.0), (":1", 1.0), (":1.0", 1.0), (":.25", 0.25), (":0.001", 0.001)])
def test_share_of_a_key_is_a_part_of_one(share: str, value: float) -> None:
    assert parse_keys(line("alice", ALICE, share), "here")[0].share == value


HASH = digest(ALICE).hex()


@pytest.mark.parametrize(
    "wrong",
    [
        ALICE,
        f"alice:{ALICE}",
        f"alice:{HASH}",
        f"alice:sha256:{ALICE}",
        f"alice:sha256:{HASH[:-1]}",
        f"alice:sha256:{HASH}0",
        f"alice:sha256:{HASH[:-1]}g",
        f"alice:md5:{HASH}",
        f"alice:sha512:{HASH}",
        f":sha256:{HASH}",
        f"al ice:sha256:{HASH}",
        f"-alice:sha256:{HASH}",
        f"{'a' * 65}:sha256:{HASH}",
        f"älice:sha256:{HASH}",
        f"alice:sha256:{HASH}:",
        f"alice:sha256:{HASH}:half",
        f"alice:sha256:{HASH}:-1",
        f"alice:sha256:{HASH}:nan",
        f"alice:sha256:{HASH}:0.5:0.5",
        f"alice:sha256:{HASH}:0",
        f"alice:sha256:{HASH}:0.0",
        f"alice:sha256:{HASH}:1.01",
        f"alice:sha256:{HASH}:\N{ARABIC-INDIC DIGIT ONE}",
        line("alice", ALICE) + "\n" + line("bob", ALICE),
        line("alice", ALICE, ":0.5") + "\n" + line("alice", BOB, ":0.6"),
        line("alice", ALICE, ":0.5") + "\n" + line("alice", BOB),
    ],
)
def test_wrong_line_is_named_by_its_number_and_not_shown(wrong: str) -> None:
    before = f"# one\n\n{line('carol', 'ag_carol')}\n"
    with pytest.raises(SettingsError) as caught:
        parse_keys(before + wrong, "the key file /keys")
    message = str(caught.value)
    assert message.startswith(f"the key file /keys, line {4 + wrong.count(chr(10))}: ")
    assert not any(secret in message for secret in (ALICE, HASH[:16], "alice", "älice"))


def test_one_name_may_have_several_keys_of_the_same_share() -> None:
    both = parse_keys(line("alice", ALICE, ":0.5") + "\n" + line("alice", BOB, ":.50"), "here")
    ring = KeyRing(both)
    assert client_of(ring, ALICE) == client_of(ring, BOB) == Client("key:alice", 0.5)


def test_new_key_is_known_by_its_line() -> None:
    made = [new_key("alice", 0.5), new_key("bob"), new_key("bob")]
    assert len({key for key, _ in made}) == 3
    for (key, text), client in zip(made, [Client("key:alice", 0.5), Client("key:bob"), Client("key:bob")], strict=True):
        assert key.startswith("ag_")
        assert len(key) == 3 + 43  # 32 bytes in base 64
        assert key not in text
        assert client_of(KeyRing(parse_keys(text, "here")), key) == client


@pytest.mark.parametrize(
    ("name", "share"), [("", None), ("a b", None), ("a:b", None), ("a\nb", None), ("a", 0), ("a", 1.5), ("a", -1)]
)
def test_new_key_of_a_name_or_share_that_no_line_can_have_is_refused(name: str, share: float | None) -> None:
    with pytest.raises(SettingsError, match="a key's name has 1 to 64 letters"):
        new_key(name, share)


# The key file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(line("alice", ALICE) + "\n")
    path.chmod(0o600)
    return path


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def rewrite(path: Path, text: str) -> None:
    """As editors do: a new file in place of the old one."""
    new = path.with_name("new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)


def test_key_file_with_a_byte_order_mark_is_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + line("alice", ALICE).encode())
    assert read_key_file(file) == (Key("alice", digest(ALICE)),)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_key_file_that_is_closed_to_other_users_is_read_in_silence(
    file: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file.chmod(mode)
    read_key_file(file)
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602, 0o604, 0o666])
def test_key_file_that_is_open_to_other_users_is_read_with_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file.chmod(mode)
    assert read_key_file(file)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{file} is open to other users (mode {mode:04o})" in record.message


def test_changed_key_file_counts_within_a_second(file: Path) -> None:
    clock = Clock()
    known = KeyFile(file, 0, clock)
    rewrite(file, line("bob", BOB))
    assert client_of(known, ALICE).name == "key:alice"  # it was looked at just now
    clock.now += 1
    assert client_of(known, BOB).name == "key:bob"
    assert refusal(known, [f"Bearer {ALICE}"], []) == keys.UNKNOWN_KEY


def test_key_file_that_is_written_in_place_counts_even_if_it_keeps_its_time(file: Path) -> None:
    clock = Clock()
    known = KeyFile(file, 0, clock)
    before = file.stat()
    with file.open("a") as appended:
        appended.write(line("bob", BOB))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += 1
    assert [client_of(known, key).name for key in (ALICE, BOB)] == ["key:alice", "key:bob"]


def test_key_file_is_read_again_when_its_mode_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Or one that could not be read would stay so when it has been given to the right user."""
    clock = Clock()
    known = KeyFile(file, 0, clock)
    file.chmod(0o644)
    clock.now += 1
    assert client_of(known, ALICE).name == "key:alice"
    assert "is open to other users (mode 0644)" in caplog.text


def test_unchanged_key_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    known = KeyFile(file, 0, clock)
    monkeypatch.setattr(keys, "read_key_file", lambda path: pytest.fail("it was read"))
    for _ in range(3):
        clock.now += 1
        client_of(known, ALICE)


def test_emptied_key_file_lets_nobody_in(file: Path) -> None:
    clock = Clock()
    known = KeyFile(file, 0, clock)
    rewrite(file, "# nobody\n")
    clock.now += 1
    assert refusal(known, [f"Bearer {ALICE}"], []) == keys.UNKNOWN_KEY


def test_key_file_that_becomes_wrong_keeps_its_keys_and_says_so_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    known = KeyFile(file, 0, clock)
    changes: list[Callable[[], None]] = [lambda: rewrite(file, f"bob:{BOB}"), file.unlink]
    for change in changes:
        caplog.clear()
        change()
        for _ in range(3):
            clock.now += 1
            assert client_of(known, ALICE).name == "key:alice"
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "the keys that were read before stay valid" in record.message
        assert BOB not in record.message
    rewrite(file, line("bob", BOB))
    clock.now += 1
    assert client_of(known, BOB).name == "key:bob"


def test_anonymous_share_outlives_a_change_of_the_file(file: Path) -> None:
    clock = Clock()
    known = KeyFile(file, 0.25, clock)
    rewrite(file, line("bob", BOB))
    clock.now += 1
    assert client_of(known) == Client(ADDRESS, 0.25, "anonymous")


# The setting


def settings(said: object, **others: object) -> IngressSettings:
    return IngressSettings.model_validate({"keys": said, **others})


def test_keys_of_a_file_are_asked_for(file: Path) -> None:
    for host in (PUBLIC, PRIVATE):
        known = load_keys(settings(f"file:{file}", anonymous_share=0.5), host)
        assert client_of(known, ALICE).name == "key:alice"
        assert client_of(known).share == 0.5


@pytest.mark.parametrize("separator", ["\n", ";", " ; "])
def test_keys_of_the_environment_are_asked_for(monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    monkeypatch.setenv("ANIMEGAN_KEYS", line("alice", ALICE) + separator + line("bob", BOB, ":0.5") + ";")
    known = load_keys(settings("env:ANIMEGAN_KEYS"), PUBLIC)
    assert [client_of(known, key) for key in (ALICE, BOB)] == [Client("key:alice"), Client("key:bob", 0.5)]
    assert refusal(known, [], []) == keys.NO_KEY


def load_failure(said: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_keys(settings(said), PUBLIC)
    message = str(caught.value)
    assert message.startswith("Ingress.user_config.keys: ")
    return message.removeprefix("Ingress.user_config.keys: ")


def test_key_file_that_cannot_be_read_or_is_empty_is_refused_at_the_start(tmp_path: Path, file: Path) -> None:
    assert (
        load_failure(f"file:{tmp_path}/no") == f"the key file {tmp_path}/no cannot be read: No such file or directory"
    )
    assert load_failure(f"file:{tmp_path}") == f"the key file {tmp_path} cannot be read: Is a directory"
    file.write_text("# later\n")
    assert load_failure(f"file:{file}") == f"the key file {file} holds no key; `animegan keys new NAME` makes one"
    file.write_bytes(b"\xff\xfe" + ALICE.encode())
    assert load_failure(f"file:{file}") == f"the key file {file} cannot be read: it is not text"
    file.write_text(ALICE)
    assert load_failure(f"file:{file}").startswith(f"the key file {file}, line 1: not name:sha256:HEX")


def test_variable_that_is_missing_empty_or_wrong_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = "the variable ANIMEGAN_KEYS holds no key; `animegan keys new NAME` makes one"
    monkeypatch.delenv("ANIMEGAN_KEYS", raising=False)
    assert load_failure("env:ANIMEGAN_KEYS") == nothing
    monkeypatch.setenv("ANIMEGAN_KEYS", " ; ")
    assert load_failure("env:ANIMEGAN_KEYS") == nothing
    monkeypatch.setenv("ANIMEGAN_KEYS", ALICE)
    assert load_failure("env:ANIMEGAN_KEYS").startswith("the variable ANIMEGAN_KEYS, line 1: not name:sha256:HEX")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "10.0.0.1", "2001:db8::1", "paint.example"])
def test_service_that_other_machines_reach_does_not_start_before_keys_are_said(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^Ingress\.user_config\.keys: not given, .* or off to let anybody paint$"):
        load_keys(IngressSettings(), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", None])
def test_service_that_only_this_machine_reaches_needs_no_word_on_keys(
    host: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    for said in (None, "off"):
        assert isinstance(load_keys(settings(said), host), KeysOff)
    assert is_private(host)
    assert not caplog.records


def test_keys_that_are_off_where_other_machines_reach_the_service_are_a_word_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(load_keys(settings("off"), PUBLIC), KeysOff)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == "keys: off, and the service listens on 0.0.0.0: anybody who reaches it may paint"


def test_no_key_is_ever_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    known = KeyFile(file, 0, clock)
    client_of(known, ALICE)
    assert BOB not in refusal(known, [f"Bearer {BOB}"], [BOB])
    for text in (BOB, f"bob:{BOB}", line("bob", BOB)):
        rewrite(file, text)
        clock.now += 1
        client_of(known, BOB if text == line("bob", BOB) else ALICE)
    assert len(caplog.records) == 3
    assert not any(secret in caplog.text for secret in (ALICE, BOB, digest(BOB).hex()))
