from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.web.clients import client_address

PROXIES = [ip_network(network) for network in ("127.0.0.0/8", "10.0.0.0/8", "::1/128", "fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:5123", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("testclient", "testclient"),
        (None, "unknown"),
    ],
)
def test_client_is_the_peer_where_no_proxy_is_trusted(peer: str | None, client: str) -> None:
    assert client_address(peer, [], []) == client
    assert client_address(peer, ["198.51.100.1", "10.0.0.1"], []) == client
    assert client_address(peer, ["198.51.100.1", "10.0.0.1"], PROXIES) == client


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ([], "127.0.0.1"),  # the proxy itself asks
        (["203.0.113.7"], "203.0.113.7"),
        (["  203.0.113.7\t"], "203.0.113.7"),
        (["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # the left one is the client's own invention
        (["198.51.100.1,203.0.113.7,10.0.0.2"], "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7, 10.0.0.2", "10.0.0.3"], "203.0.113.7"),
        (["10.9.9.9, 203.0.113.7"], "203.0.113.7"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # a client on the proxies' own network
        (["203.0.113.7:567"], "203.0.113.7"),
        (["[::1]:80"], "::/64"),
        (["[2001:db8::1]"], "2001:db8::/64"),
        (["[2001:db8::1]:80"], "2001:db8::/64"),
        (["2001:db8::1"], "2001:db8::/64"),
        (["203.0.113.7, [fd00::2]:80, ::1"], "203.0.113.7"),
        (["203.0.113.7, ::ffff:10.0.0.2"], "203.0.113.7"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["[::ffff:203.0.113.7]:80, 10.0.0.2:99"], "203.0.113.7"),
    ],
)
def test_client_is_the_rightmost_address_that_is_not_trusted(forwarded_for: list[str], client: str) -> None:
    assert client_address("127.0.0.1", forwarded_for, PROXIES) == client
    assert client_address("::ffff:127.0.0.1", forwarded_for, PROXIES) == client


MALFORMED = [
    "",
    " ",
    "unknown",
    "_hidden",
    "1.2.3",
    "1.2.3.4.5",
    "1.2.3.256",
    "01.2.3.4",
    "16909060",
    "1.2.3.4:",
    "1.2.3.4:http",
    "1.2.3.4:٣",
    "1.2.3.4/8",
    "1.2.3.4 5.6.7.8",
    "[::1",
    "::1]",
    "[::1]80",
    "[::1]:",
    "[]",
    '"[::1]:80"',
    "12345::",
    "for=1.2.3.4",
]


@pytest.mark.parametrize("entry", MALFORMED)
def test_search_ends_before_an_entry_that_is_no_address(entry: str) -> None:
    assert client_address("127.0.0.1", [f"198.51.100.1,{entry}"], PROXIES) == "127.0.0.1"
    assert client_address("127.0.0.1", [f"198.51.100.1,{entry}, 10.0.0.2"], PROXIES) == "10.0.0.2"
    assert client_address("127.0.0.1", [f"{entry}, 203.0.113.7, 10.0.0.2"], PROXIES) == "203.0.113.7"


invented = st.text(max_size=30) | st.sampled_from(
    ["10.0.0.1", "127.0.0.1", "198.51.100.1", "::1", "1.2.3.4:5", *MALFORMED]
)


@given(lines=st.lists(invented, max_size=6))
def test_nothing_that_a_client_writes_makes_it_another(lines: list[str]) -> None:
    assert client_address("203.0.113.7", lines, PROXIES) == "203.0.113.7"
    assert client_address("127.0.0.1", [*lines, "203.0.113.7, 10.0.0.2"], PROXIES) == "203.0.113.7"
    appended = ",".join([*lines, "203.0.113.7", "10.0.0.2"])
    assert client_address("127.0.0.1", [appended], PROXIES) == "203.0.113.7"


def test_addresses_of_one_household_are_one_client() -> None:
    clients = {client_address(f"2001:db8:1:2::{host:x}", [], []) for host in range(1, 100)}
    assert clients == {"2001:db8:1:2::/64"}
    assert client_address("2001:db8:1:3::1", [], []) not in clients
