"""Identifies the client of a request by its address, looking through trusted proxies."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from serve_app.settings import LogClients

IPV6_PREFIX = 64  # bits: providers assign each customer a /64 or more, and hosts choose the rest freely
TRUNCATED_PREFIX = {4: 24, 6: 48}  # bits of an address that are logged, by its version, where it is truncated


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """Returns the nearest address that is not a trusted proxy's; an IPv6 address as its /64.

    Args:
        peer: the other end of the connection. A name that is not an address is returned as it is; None is `unknown`.
        forwarded_for: the X-Forwarded-For lines in order, each holding one or more addresses with or without port.
        trusted: networks of proxies whose entries are believed.
    """
    if peer is None:
        return "unknown"
    address = nearest_address(peer, forwarded_for, trusted)
    return peer if address is None else client_network(address)


def logged_address(
    peer: str | None,
    forwarded_for: Sequence[str],
    trusted: Sequence[IPv4Network | IPv6Network],
    log_clients: LogClients,
) -> str | None:
    """Returns what the log may say of a client: its address, the network around it, or None.

    Args:
        peer: the other end of the connection.
        forwarded_for: the X-Forwarded-For lines in order.
        trusted: networks of proxies whose entries are believed.
        log_clients: the setting. Truncated are the last 8 bits of IPv4 and the last 80 of IPv6.
    """
    if log_clients == "off" or peer is None:
        return None
    address = nearest_address(peer, forwarded_for, trusted)
    if address is None or log_clients == "full":
        return None if address is None else str(address)
    return str(ip_network(f"{address}/{TRUNCATED_PREFIX[address.version]}", strict=False))


def nearest_address(
    peer: str, forwarded_for: Sequence[str], trusted: Sequence[IPv4Network | IPv6Network]
) -> IPv4Address | IPv6Address | None:
    """Returns the nearest address that is not a trusted proxy's; None if the peer has none.

    Each proxy appends the address that called it, and a client may have sent anything before that. So entries are read
    from the right, starting at the peer, until the first address that is not trusted or the first entry that is not an
    address.
    """
    address = parse_address(peer)
    if address is None:
        return None
    for entry in reversed(",".join(forwarded_for).split(",")):
        if not any(address in network for network in trusted):
            break
        before = parse_address(entry)
        if before is None:
            break
        address = before
    return address


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parses an address as written in X-Forwarded-For: `1.2.3.4`, `1.2.3.4:567`, `::1`, `[::1]`, `[::1]:80`."""
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


def client_network(address: IPv4Address | IPv6Address) -> str:
    """Returns an IPv4 address as it is, and an IPv6 one as the network that one customer holds."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
