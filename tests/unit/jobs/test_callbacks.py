"""Which URLs a client may want to be called, and which addresses are."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from serve_app.errors import BadOption
from serve_app.jobs.callbacks import check_callback_url, is_allowed
from serve_app.settings import WebhookSettings

ON = WebhookSettings(secret="env:SECRET")


@pytest.mark.parametrize(
    ("url", "called"),
    [
        ("https://example.org/hook?a=b&c=%2F", "https://example.org/hook?a=b&c=%2F"),
        ("HTTPS://EXAMPLE.org", "https://example.org/"),
        ("https://example.org:8443/", "https://example.org:8443/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://93.184.216.34/", "https://93.184.216.34/"),
        ("https://[2606:2800:220:1::1]/", "https://[2606:2800:220:1::1]/"),
        ("https://example.org/?to=a@b", "https://example.org/?to=a@b"),
        ("https://example.org/" + "a" * (2048 - 20), "https://example.org/" + "a" * (2048 - 20)),
        ("https://localhost/", "https://localhost/"),  # names are judged when they are resolved
    ],
)
def test_https_urls_are_taken_as_they_will_be_called(url: str, called: str) -> None:
    assert check_callback_url(url, ON) == called
    assert check_callback_url(called, ON) == called


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "/hook",
        "//example.org/hook",
        "https:",
        "https://",
        "https:///hook",
        "https:example.org",
        "https:/example.org",
        "https:\\\\example.org",
        "https://example.org\\@10.0.0.1/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://example.org/",
        "https://ann@example.org/",
        "https://ann:secret@example.org/",
        "https://@example.org/",
        "https://exa mple.org/",
        " https://example.org/",
        "https://example.org/\n",
        "https://example.org/a b",
        "https://example.org/\x00",
        "https://example.org:0/",
        "https://example.org:70000/",
        "https://example.org:http/",
        "https://?x",
        "https://#x",
        "https://example.org/" + "a" * 2029,
        "https://example.org/" + "ä" * 700,  # longer as it is sent
    ],
)
def test_what_is_no_https_url_of_a_host_is_refused(url: str) -> None:
    with pytest.raises(BadOption) as caught:
        check_callback_url(url, ON)
    assert str(caught.value).startswith("callback_url: ")
    assert "secret" not in str(caught.value)


def test_http_is_taken_where_the_setting_allows_it() -> None:
    settings = ON.model_copy(update={"allow_http": True})
    assert check_callback_url("http://example.org/", settings) == "http://example.org/"
    with pytest.raises(BadOption):
        check_callback_url("ftp://example.org/", settings)


def test_a_service_without_a_secret_says_so() -> None:
    with pytest.raises(BadOption, match="this service sends no webhooks"):
        check_callback_url("https://example.org/", WebhookSettings())


PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:224.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::10.0.0.1",
    "100::1",
    "2001::1",
    "2001:0:a00:1::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    address = ip_address(text)
    assert not is_allowed(address, ())
    assert not is_allowed(address, (ip_network("10.99.0.0/16"), ip_network("fd99::/64")))
    with pytest.raises(BadOption, match="not called"):
        check_callback_url(f"https://[{text}]/" if address.version == 6 else f"https://{text}/", ON)


@pytest.mark.parametrize("text", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::1111", "2a00::1"])
def test_a_public_address_is_allowed(text: str) -> None:
    assert is_allowed(ip_address(text), ())


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "::ffff:0:0/96"),
        ("fd12:3456::1", "fd12:3456::/32"),
        ("127.0.0.1", "127.0.0.0/8"),
    ],
)
def test_a_network_that_the_settings_name_is_allowed(text: str, network: str) -> None:
    assert is_allowed(ip_address(text), (ip_network(network),))


DISGUISES = ["2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.0.1."]
WIDE = ["\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"]  # digits and full stops of East Asian typefaces


@pytest.mark.parametrize("host", DISGUISES + WIDE)
def test_an_address_in_disguise_is_seen_through(host: str) -> None:
    with pytest.raises(BadOption, match="not called"):
        check_callback_url(f"https://{host}/", ON)
    settings: Any = ON.model_copy(update={"allow_networks": (ip_network("127.0.0.0/8"),)})
    assert check_callback_url(f"https://{host}/", settings) == "https://127.0.0.1/"
