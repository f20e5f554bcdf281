"""Whose a request is, as far as it can be known: by address, seen through the proxies that are trusted."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

HOUSEHOLD = 64  # bits of an IPv6 address that tell households apart; the rest is each one's to choose


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """The nearest address that is no trusted proxy's, an IPv6 one as its /64.

    Each proxy writes at the right whom it was called by, and a client may have written anything before that. The walk
    therefore goes from the peer leftwards, and ends at the first address that is not trusted, or before the first entry
    that is not an address.

    Args:
        peer: the other end of the connection; a name that is no address is the answer itself, and None is `unknown`.
        forwarded_for: the X-Forwarded-For lines in their order, each one or more addresses with or without port.
        trusted: networks whose proxies are believed.
    """
    if peer is None:
        return "unknown"
    address = parse_address(peer)
    if address is None:
        return peer
    for entry in reversed(",".join(forwarded_for).split(",")):
        if not any(address in network for network in trusted):
            break
        before = parse_address(entry)
        if before is None:
            break
        address = before
    return household(address)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as written in X-Forwarded-For: `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]`, `[::1]:80`."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or (port and port[0] != ":"):
            return None
    elif host.count(":") == 1:
        host, colon, digits = host.partition(":")
        port = colon + digits
    if port and not (port[1:].isascii() and port[1:].isdigit()):
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def household(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), HOUSEHOLD), strict=False))
