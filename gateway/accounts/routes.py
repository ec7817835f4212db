"""The account routes: register, login, me. They answer with tokens."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import asyncpg
import msgspec
from aiohttp import web

from gateway.accounts.identity import Identity
from gateway.accounts.login_attempts import LoginAttempts
from gateway.accounts.passwords import Passwords
from gateway.accounts.registrations import Registrations
from gateway.http.addresses import Addresses
from gateway.http.bodies import QUERY_TIMEOUT_S, answer, read_members
from gateway.http.problems import Problem
from gateway.http.slow_bodies import SlowBodies
from infra.logs import get_logger
from infra.metrics.definitions import GATEWAY_FAILED_LOGINS
from infra.postgres.pool import UNAVAILABLE
from infra.settings import SigningSettings
from sale.accounts.credentials import clean_email, clean_name, known_email, password_spellings
from sale.accounts.tokens import sign
from sale.tables.queries import SQL

any_password = partial(password_spellings, minimum=0)  # at login a short password is simply wrong
T = TypeVar("T")
_failed_logins = GATEWAY_FAILED_LOGINS.make()


class Registration(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    email: str
    password: str


class Login(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    password: str


class Accounts:
    """One instance per worker. Queries have a time limit; without the database the answer is 503."""

    def __init__(
        self,
        settings: SigningSettings,
        identity: Identity,
        addresses: Addresses,
        bodies: SlowBodies,
        pool: asyncpg.Pool,
        passwords: Passwords,
        attempts: LoginAttempts,
        registrations: Registrations,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._addresses = addresses
        self._bodies = bodies
        self._pool = pool
        self._passwords = passwords
        self._attempts = attempts
        self._registrations = registrations
        self._log = get_logger()

    async def register(self, request: web.Request) -> web.Response:
        wish = await read_members(request, self._bodies, Registration)
        name, email = _read(clean_name, wish.name), _read(clean_email, wish.email)
        secret, address = _read(password_spellings, wish.password)[0], self._addresses.of(request)
        async with self._registrations.hold(address):
            user_id = await self._create(name, email, await self._passwords.hash(secret, address))
        return answer(self._signed_in(user_id, name, email, "user"), 201)

    async def _create(self, name: str, email: str, hashed: str) -> int:
        try:
            user_id = await self._pool.fetchval(SQL.create_user, name, email, hashed, "user", timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        if user_id is None:
            raise Problem("email_taken")
        return int(user_id)

    async def login(self, request: web.Request) -> web.Response:
        """An unknown user costs the same work, and gets the same bytes, as a wrong password."""
        wish = await read_members(request, self._bodies, Login)
        email, spellings = _read(known_email, wish.email), _read(any_password, wish.password)
        address = self._addresses.of(request)
        attempt = await self._attempts.begin(email, address)
        try:
            row = await self._pool.fetchrow(SQL.user_by_email, email, timeout=QUERY_TIMEOUT_S)
            right = await self._passwords.matches(spellings, row["password_hash"] if row else None, address)
        except UNAVAILABLE:
            await self._attempts.given_back(attempt)
            raise Problem("unavailable") from None
        except Problem:
            await self._attempts.given_back(attempt)
            raise
        if row is None or not right:
            _failed_logins.inc()
            self._log.warning("failed login", address=address, user=row["id"] if row else None)
            await self._attempts.failed(attempt)
            raise Problem("invalid_credentials")
        await self._attempts.succeeded(attempt)
        return answer(self._signed_in(row["id"], row["name"], row["email"], row["role"]))

    async def me(self, request: web.Request) -> web.Response:
        user = self._identity.user_of(request)
        try:
            row = await self._pool.fetchrow(SQL.user_by_id, user.id, timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        if row is None:
            raise Problem("unauthorized")
        return answer({"user": {"id": row["id"], "name": row["name"], "email": row["email"]}})

    def _signed_in(self, user_id: int, name: str, email: str, role: str) -> dict[str, object]:
        return {
            "token": sign(user_id, role, self._settings),
            "user": {"id": user_id, "name": name, "email": email},
        }


def _read(judge: Callable[[str], T], text: str) -> T:
    """The result of a function of sale/accounts/credentials.py. Raises Problem 400."""
    try:
        return judge(text)
    except ValueError as error:
        raise Problem("invalid_request", str(error)) from None
