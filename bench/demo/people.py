"""The buyers: a few register and log in over HTTP, the others get tokens in bulk. They are the same in every demo."""

import aiohttp
import asyncpg
import stamina

from infra.settings import SigningSettings
from sale.operations.operations import bulk_tokens

NAMED = ("Arya Stark", "Tyrion Lannister", "Brienne of Tarth")
PHRASE = "valar morghulis"  # of the three above: this stack is on loopback, and theirs to buy with alone


async def tokens(
    session: aiohttp.ClientSession, base_url: str, pool: asyncpg.Pool, settings: SigningSettings, people: int
) -> list[str]:
    """One token a buyer. Raises aiohttp.ClientError when registering or logging in is refused for good."""
    named = [await _register_and_log_in(session, base_url, name) for name in NAMED]
    return named + await bulk_tokens(pool, people - len(named), settings)


def _come_back_later(error: Exception) -> bool:
    """A machine with much else to do hashes passwords slowly. Both requests may be repeated, after a 504 too."""
    return isinstance(error, aiohttp.ClientResponseError) and error.status in (429, 503, 504)


@stamina.retry(on=_come_back_later, attempts=None, timeout=60.0, wait_initial=1.0, wait_max=5.0)
async def _register_and_log_in(session: aiohttp.ClientSession, base_url: str, name: str) -> str:
    email = f"{name.split()[0].lower()}@demo.invalid"
    credentials = {"email": email, "password": PHRASE}
    async with session.post(f"{base_url}/api/auth/register", json={"name": name, **credentials}) as response:
        if response.status != 409:  # 409: registered by an earlier demo
            response.raise_for_status()
    async with session.post(f"{base_url}/api/auth/login", json=credentials) as response:
        response.raise_for_status()
        return str((await response.json())["token"])
