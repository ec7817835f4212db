"""Where a request comes from: the peer, or what a trusted proxy says; anybody else's X-Forwarded-For is not read."""

import ipaddress

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Addresses:
    def __init__(self, trusted_proxies: tuple[str, ...]) -> None:
        self._trusted: list[Network] = [ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def of(self, request: web.Request) -> str:
        """From the right, the first hop that is not a trusted proxy of ours."""
        address = request.remote or "unknown"
        hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        while hops and self._is_trusted(address):
            address = hops.pop()
        return address if _parsed(address) else request.remote or "unknown"

    def _is_trusted(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._trusted)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
