"""URLs that are told of the ends of jobs, and the addresses that may be called: none of the service's own network."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated

from pydantic import AnyUrl, TypeAdapter, UrlConstraints, ValidationError

from serve_app.errors import BadOption
from serve_app.settings import WebhookSettings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_LENGTH = 2048
# Browsers also read URLs that lack slashes, or hold backslashes or line ends; whoever writes those means another.
ABSOLUTE = re.compile(r"https?://[^/?#\\@\s]+([/?#][^\\\s\x00-\x1f\x7f]*)?", re.IGNORECASE)
URL = TypeAdapter(
    Annotated[AnyUrl, UrlConstraints(max_length=MAX_LENGTH, allowed_schemes=["http", "https"], host_required=True)]
)
PUBLIC_IPV6 = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
NOT_PUBLIC = (  # though `is_global` may say so, depending on the release of Python
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/32"),  # Teredo
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),  # for documentation
)


def check_callback_url(url: str, settings: WebhookSettings) -> str:
    """Checks a URL that a client wants to be called, as far as that can be done without resolving its name.

    Returns:
        The URL as it will be called: with the host in ASCII, and addresses in their usual form.

    Raises:
        BadOption: if this service does not call it.
    """
    if settings.secret == "off":  # noqa: S105 # nosec B105 # where the secret is, or that there is none
        raise BadOption("callback_url: this service sends no webhooks.")
    schemes = "http or https" if settings.allow_http else "https"
    if not ABSOLUTE.fullmatch(url):
        raise BadOption(f"callback_url: must be an absolute {schemes} URL with a host, without a name and a password.")
    try:
        parsed = URL.validate_python(url)
    except ValidationError as error:
        raise BadOption(f"callback_url: {error.errors()[0]['msg']}.") from None
    if parsed.scheme == "http" and not settings.allow_http:
        raise BadOption("callback_url: must be an https URL.")
    if parsed.port == 0 or len(str(parsed)) > MAX_LENGTH:
        raise BadOption(f"callback_url: must have a port above 0, and at most {MAX_LENGTH} characters.")
    address = literal_address(parsed.host or "")
    if address is not None and not is_allowed(address, settings.allow_networks):
        raise BadOption("callback_url: addresses of this kind are not called by this service.")
    return str(parsed)


def literal_address(host: str) -> Address | None:
    """Returns the address that a host of a URL is; None if it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Returns whether an address may be called.

    Args:
        address: an IPv4 address inside an IPv6 one is judged as what it is.
        networks: that may be called though they are not public.
    """
    target = without_translation(address)
    if any(each in network for network in networks for each in (address, target)):
        return True
    if any(target in network for network in NOT_PUBLIC) or target.is_multicast or not target.is_global:
        return False
    return not target.is_reserved if isinstance(target, IPv4Address) else target in PUBLIC_IPV6


def without_translation(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 one is translated to, by the socket or by a gateway."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
