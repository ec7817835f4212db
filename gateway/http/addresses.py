"""The client address of a request: the peer, or what a trusted proxy reports. No other X-Forwarded-For is read."""

import ipaddress

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Addresses:
    def __init__(self, trusted_proxies: tuple[str, ...]) -> None:
        self._trusted: list[Network] = [ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def of(self, request: web.Request) -> str:
        """The first hop, from the right, that is not one of our trusted proxies. For IPv6 it is the /64 network: one customer
        has a whole /64."""
        parsed = _parsed(self._hop(request)) or _parsed(request.remote or "")
        return "unknown" if parsed is None else _counted_as(parsed)

    def of_peer(self, address: str) -> str | None:
        """The client of a connection; None for a trusted proxy, which carries many clients."""
        parsed = _parsed(address)
        return None if parsed is None or self._is_trusted(address) else _counted_as(parsed)

    def _hop(self, request: web.Request) -> str:
        address = request.remote or "unknown"
        hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        while hops and self._is_trusted(address):
            address = hops.pop()
        return address

    def _is_trusted(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._trusted)


def _counted_as(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
