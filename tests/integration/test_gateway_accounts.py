"""Accounts and tokens through a real worker: who gets in, who does not, and that all refusals look alike."""

import asyncio
import base64
import math
import time
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import bcrypt
import jwt
import pytest

from infra.settings import SigningSettings

from .gateway_fixtures import SECRET, Answer, GatewayClient, forged, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]


NO_TIMES: tuple[Any, ...] = (
    10**400, -(10**400), -1, 2**63, 2**53 + 2, 1e300, math.nan, math.inf, -math.inf, "1", "soon", True, [], {}, {"a": {}},
)  # fmt: skip
NO_TEXTS: tuple[Any, ...] = (10**400, -1, 1.5, math.nan, True, [], [7], {}, {"a": []}, "7\n", "７", "\ud800", "")


async def register(gateway: GatewayClient, **changes: str) -> Answer:
    body = {"name": "Arya", "email": f"{uuid4().hex}@winterfell.example", "password": "valar morghulis"} | changes
    return await gateway.ask("POST", "/api/auth/register", json=body)


async def login(gateway: GatewayClient, email: str, password: str, **headers: str) -> Answer:
    return await gateway.ask("POST", "/api/auth/login", json={"email": email, "password": password}, headers=headers)


async def test_a_registered_user_logs_in_and_buys(gateway: GatewayClient) -> None:
    """The token of registering and that of logging in both name the user; the email is one in any case of letters."""
    email = f"{uuid4().hex}@Winterfell.example"
    created = await register(gateway, email=email)
    assert created.status == 201
    user = created.json["user"]
    assert user == {"id": user["id"], "name": "Arya", "email": email.lower()}
    signed_in = await login(gateway, email.upper(), "valar morghulis")
    assert (signed_in.status, signed_in.json["user"]) == (200, user)
    for token in (created.json["token"], signed_in.json["token"]):
        claims = jwt.decode(token, SECRET, ["HS256"], audience="backend-of-thrones-api", issuer="backend-of-thrones")
        assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == (str(user["id"]), "user", 86_400)
        me = await gateway.ask("GET", "/api/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert me.json == {"user": user}
    assert (await register(gateway, email=email)).is_problem(409, "email_taken")


@pytest.mark.parametrize("password", ["short77", "x" * 73, "ä" * 37, "nul\0 in the middle", "\ud800 surrogate"])
async def test_a_password_that_bcrypt_cannot_take_whole_is_refused(gateway: GatewayClient, password: str) -> None:
    """8 to 72 bytes without NUL; never a 500."""
    assert (await register(gateway, password=password)).is_problem(400, "invalid_request")


async def test_registrations_that_make_no_sense_are_refused(gateway: GatewayClient) -> None:
    """No name, no email, members twice or foreign: 400."""
    for changes in ({"name": " "}, {"name": "a\r\nb"}, {"name": "x" * 101}, {"email": "nobody"}, {"email": "a@b\r\n"}):
        assert (await register(gateway, **changes)).is_problem(400, "invalid_request"), changes
    assert (await register(gateway, role="operator")).is_problem(400, "invalid_request")
    headers = {"Content-Type": "application/json"}
    for body in (b"{}", b'{"email":"a@b.c","email":"a@b.d","password":"longenough"}', b"[" * 5_000):
        answer = await gateway.ask("POST", "/api/auth/login", data=body, headers=headers)
        assert answer.is_problem(400, "invalid_request")


async def test_an_unknown_user_and_a_wrong_password_cannot_be_told_apart(
    gateway: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same status, same bytes, and bcrypt is called once for either."""
    email = (await register(gateway)).json["user"]["email"]
    check = MagicMock(wraps=bcrypt.checkpw)
    monkeypatch.setattr(bcrypt, "checkpw", check)
    wrong = await login(gateway, email, "not this one")
    unknown = await login(gateway, f"{uuid4().hex}@x.example", "not this one")
    assert wrong.is_problem(401, "unauthorized")
    assert wrong.words == unknown.words
    assert wrong.headers["WWW-Authenticate"] == unknown.headers["WWW-Authenticate"] == "Bearer"
    assert [call.args[1][:7] for call in check.call_args_list] == [b"$2b$10$"] * 2


async def test_the_sixth_failed_login_of_an_account_is_refused(gateway: GatewayClient) -> None:
    """Also when the address seems to change: nobody is a trusted proxy unless configured."""
    await _forget_addresses(gateway)
    email = (await register(gateway)).json["user"]["email"]
    for n in range(5):
        assert (await login(gateway, email, "wrong password")).is_problem(401, "unauthorized"), n
    for n in range(3):
        answer = await login(gateway, email, "valar morghulis", **{"X-Forwarded-For": f"10.0.0.{n}"})
        assert answer.is_problem(429, "rate_limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    await _forget_addresses(gateway)


async def test_a_parallel_flood_does_not_slip_past_the_count(gateway: GatewayClient) -> None:
    """Twelve wrong logins at once: at most five are looked at."""
    await _forget_addresses(gateway)
    email = (await register(gateway)).json["user"]["email"]
    answers = await asyncio.gather(*(login(gateway, email, "wrong password") for _ in range(12)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses.count(401) <= 5
    assert statuses.count(429) >= 7
    await _forget_addresses(gateway)


async def test_the_twenty_first_failed_login_from_an_address_is_refused(settings: SigningSettings) -> None:
    """Counted by the address that a trusted proxy names, whichever accounts are tried."""
    async with gateway_on(settings, trusted_proxies=("127.0.0.0/8",)) as gateway:
        address = {"X-Forwarded-For": f"1.2.3.4, 203.0.113.{int(time.time()) % 250}"}
        for n in range(20):
            assert (await login(gateway, f"{uuid4().hex}@x.example", "wrong password", **address)).status == 401, n
        spoofed = {"X-Forwarded-For": "9.9.9.9, " + address["X-Forwarded-For"]}
        assert (await login(gateway, f"{uuid4().hex}@x.example", "wrong password", **spoofed)).status == 429
        other = await login(
            gateway, f"{uuid4().hex}@x.example", "wrong password", **{"X-Forwarded-For": "198.51.100.9"}
        )
        assert other.status == 401
        await _forget_addresses(gateway)


async def test_guessing_from_elsewhere_keeps_nobody_out_where_he_has_logged_in_before(
    settings: SigningSettings,
) -> None:
    """Login throttling is no lock: a known address has its own count for the account, and that one holds as well."""
    async with gateway_on(settings, trusted_proxies=("127.0.0.0/8",)) as gateway:
        await _forget_addresses(gateway)
        email = (await register(gateway)).json["user"]["email"]
        home, elsewhere, abroad = ({"X-Forwarded-For": f"198.51.100.{n}"} for n in (1, 2, 3))
        assert (await login(gateway, email, "valar morghulis", **home)).status == 200
        for n in range(8):
            assert (await login(gateway, email, "wrong password", **elsewhere)).status == (401 if n < 5 else 429), n
        assert (await login(gateway, email, "valar morghulis", **abroad)).is_problem(429, "rate_limited")
        assert (await login(gateway, email, "valar morghulis", **home)).status == 200
        for n in range(6):
            assert (await login(gateway, email, "wrong password", **home)).status == (401 if n < 5 else 429), n
        await _forget_addresses(gateway)


async def test_a_flood_of_registrations_from_one_address_is_refused_and_keeps_nobody_from_logging_in(
    settings: SigningSettings,
) -> None:
    """48 at a time, for a while: others register, and every login is answered, from the flood's own address too."""
    async with gateway_on(settings, trusted_proxies=("127.0.0.0/8",)) as gateway:
        await _forget_addresses(gateway)
        email = (await register(gateway)).json["user"]["email"]
        flood = [asyncio.create_task(_register_for_ever(gateway)) for _ in range(48)]
        try:
            await asyncio.sleep(0.5)
            for n in range(12):
                address = {"X-Forwarded-For": f"198.51.100.{n % 3}"}
                assert (await login(gateway, email, "valar morghulis", **address)).status == 200, n
        finally:
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)


async def _register_for_ever(gateway: GatewayClient) -> None:
    while True:
        body = {"name": "Flood", "email": f"{uuid4().hex}@winterfell.example", "password": "valar morghulis"}
        headers = {"X-Forwarded-For": "198.51.100.0"}
        answer = await gateway.ask("POST", "/api/auth/register", json=body, headers=headers)
        assert answer.status in (201, 503), answer.body
        await asyncio.sleep(0.02)


async def test_registrations_of_an_address_are_limited_by_the_minute(settings: SigningSettings) -> None:
    """Counted by the address that a trusted proxy names, over all workers; 429 says when to come back; login is not counted."""
    limited = {"registrations_per_minute_per_address": 3, "trusted_proxies": ("127.0.0.0/8",)}
    async with gateway_on(settings, **limited) as gateway, gateway_on(settings, **limited) as another:
        await _forget_addresses(gateway)

        async def ask(worker: GatewayClient, address: str, name: str = "Arya") -> Answer:
            body = {"name": name, "email": f"{uuid4().hex}@winterfell.example", "password": "valar morghulis"}
            headers = {"X-Forwarded-For": f"9.9.9.9, {address}"}
            return await worker.ask("POST", "/api/auth/register", json=body, headers=headers)

        assert (await ask(gateway, "203.0.113.1", name="")).is_problem(400, "invalid_request")
        made = [await ask(worker, "203.0.113.1") for worker in (gateway, another, gateway)]
        assert [answer.status for answer in made] == [201] * 3
        refused = await ask(another, "203.0.113.1")
        assert refused.is_problem(429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert (await ask(gateway, "203.0.113.2")).status == 201
        for answer in made:
            email = answer.json["user"]["email"]
            signed_in = await login(gateway, email, "valar morghulis", **{"X-Forwarded-For": "203.0.113.1"})
            assert signed_in.status == 200
        assert [(await ask(gateway, f"2001:db8::{n}")).status for n in range(1, 5)] == [201, 201, 201, 429]
        await _forget_addresses(gateway)


async def test_a_user_without_a_usable_password_cannot_log_in(gateway: GatewayClient) -> None:
    """Bulk users have a hash that no password matches."""
    email = f"{uuid4().hex}@x.example"
    await gateway.to.pool.execute("INSERT INTO users (name, email, password_hash) VALUES ('bulk', $1, '!')", email)
    assert (await login(gateway, email, "!!!!!!!!")).is_problem(401, "unauthorized")


async def test_every_bad_token_gets_the_same_answer(gateway: GatewayClient) -> None:
    """Missing, malformed, unsigned, forged, expired, foreign: 401 with one body, and nothing is reserved."""
    product = await gateway.product(3)
    good = forged()
    head, payload, signature = good.split(".")
    rs256 = base64.urlsafe_b64encode(b'{"alg":"RS256","typ":"JWT"}').rstrip(b"=").decode()
    claims = jwt.decode(good, options={"verify_signature": False})
    now = int(time.time())
    changes: list[dict[str, Any]] = [
        {"exp": now - 0.5},
        {"exp": now - 1},
        {"exp": None},
        {"nbf": now + 60},
        {"iat": None},
        {"iat": now + 60},
        {"iss": "somebody"},
        {"iss": None},
        {"aud": "something"},
        {"aud": None},
        {"sub": None},
        {"sub": "0"},
        {"sub": "-1"},
        {"sub": "1e3"},
        {"sub": "9" * 30},
        {"sub": "x"},
        {"role": None},
        {"role": "king"},
        {"role": ["user"]},
        *({name: value} for name in ("exp", "iat", "nbf") for value in NO_TIMES),
        *({name: value} for name in ("sub", "role", "iss", "aud") for value in NO_TEXTS),
    ]
    bad = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {good}",
        f"Bearer {good} more",
        "Bearer a.b.c",
        "Bearer " + "x" * 5_000,
        f"Bearer {head}.{payload}.",
        f"Bearer {head}.{payload}",
        f"Bearer {head}.{payload}.{'A' + signature[1:] if signature[0] != 'A' else 'B' + signature[1:]}",
        f"Bearer {jwt.encode(claims, None, 'none')}",
        f"Bearer {rs256}.{payload}.{signature}",
        f"Bearer {jwt.encode(claims, SECRET * 3, 'HS512')}",
        *(f"Bearer {forged(changed)}" for changed in changes),
        f"Bearer {forged(key='another secret of more than thirty-two bytes')}",
        *(f"Bearer {forged(headers={name: 'x'})}" for name in ("kid", "jku", "jwk", "x5u", "zip", "cty")),
    ]
    bodies = set()
    for header in bad:
        headers = {} if header is None else {"Authorization": header}
        answer = await gateway.ask("POST", "/api/order/buy-flash", json={"productId": product}, headers=headers)
        assert answer.is_problem(401, "unauthorized"), header
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        bodies.add(answer.words)
    assert len(bodies) == 1
    for method, path in (("GET", "/api/auth/me"), ("GET", "/api/orders"), ("POST", "/api/auth/ticket")):
        assert (await gateway.ask(method, path)).is_problem(401, "unauthorized")
    assert (await gateway.ask("GET", "/api/order/x/status")).is_problem(401, "unauthorized")
    assert await gateway.available(product) == 3
    answer = await gateway.ask(
        "POST", "/api/order/buy-flash", json={"productId": product}, headers={"Authorization": f"bearer {good}"}
    )
    assert answer.status == 202


@pytest.mark.parametrize("moment", [3, 4.5])
async def test_a_clock_that_is_a_little_ahead_makes_no_token_invalid(gateway: GatewayClient, moment: float) -> None:
    """5 s of leeway for `iat` and `nbf`, in whole seconds or not; `exp` is to the second."""
    ahead = time.time() + moment
    for changes in ({"iat": int(ahead)}, {"iat": ahead}, {"nbf": ahead}):
        headers = {"Authorization": f"Bearer {forged(changes)}"}
        assert (await gateway.ask("GET", "/api/orders", headers=headers)).status == 200, changes


async def test_a_remembered_token_still_expires(gateway: GatewayClient) -> None:
    """What was verified is forgotten at `exp`, to the second."""
    headers = {"Authorization": f"Bearer {forged({'exp': int(time.time()) + 2})}"}
    assert (await gateway.ask("GET", "/api/orders", headers=headers)).status == 200
    await asyncio.sleep(2.1)
    assert (await gateway.ask("GET", "/api/orders", headers=headers)).is_problem(401, "unauthorized")


async def _forget_addresses(gateway: GatewayClient) -> None:
    for kind in ("login", "register"):
        async for key in gateway.to.redis.scan_iter(f"{kind}:address:*"):
            await gateway.to.redis.delete(key)


async def test_nobody_logs_in_by_an_address_that_only_becomes_somebodys(gateway: GatewayClient) -> None:
    """U+212A, the Kelvin sign, is a `k` in lower case."""
    email = f"k{uuid4().hex}@winterfell.example"
    assert (await register(gateway, email=email)).status == 201
    for other in ("\N{KELVIN SIGN}" + email[1:], "\N{FULLWIDTH LATIN SMALL LETTER K}" + email[1:]):
        assert (await login(gateway, other, "valar morghulis")).is_problem(400, "invalid_request")
        assert (await register(gateway, email=other)).is_problem(400, "invalid_request")
    assert (await register(gateway, email="..x@-.-")).is_problem(400, "invalid_request")
    assert (await login(gateway, "..x@-.-", "valar morghulis")).is_problem(401, "unauthorized")


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👩\u200d🚀", "Jean\u00a0Valjean", "山田\u3000太郎"])
async def test_people_have_names_in_every_script(gateway: GatewayClient, name: str) -> None:
    created = await register(gateway, name=name)
    assert (created.status, created.json["user"]["name"]) == (201, name)
    assert (await register(gateway, name=f"{name}\N{RIGHT-TO-LEFT OVERRIDE}")).is_problem(400, "invalid_request")


async def test_a_password_is_the_same_whichever_keyboard_it_was_typed_on(gateway: GatewayClient) -> None:
    """Composed on one, decomposed on another; and one that was hashed as it was typed, before, still logs in."""
    composed, decomposed = "Caf\u00e9 am Eck", "Cafe\u0301 am\u00a0Eck"
    for first, then in ((composed, decomposed), (decomposed, composed)):
        email = (await register(gateway, password=first)).json["user"]["email"]
        assert [(await login(gateway, email, typed)).status for typed in (then, first, "Cafe am Eck")] == [
            200,
            200,
            401,
        ]
    old = bcrypt.hashpw(decomposed.encode(), bcrypt.gensalt(10)).decode()
    await gateway.to.pool.execute("UPDATE users SET password_hash = $1 WHERE email = $2", old, email)
    assert [(await login(gateway, email, typed)).status for typed in (decomposed, composed)] == [200, 401]
