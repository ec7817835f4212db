"""Bearer tokens in, `User` out, without I/O: signature and claims are checked once a token, then remembered until it expires."""

import time
from typing import NamedTuple

import jwt
from aiohttp import web

from infra.settings import SigningSettings
from infra.tokens import ALGORITHM, AUDIENCE, ISSUER, OwnTokens
from schemas.ids import UserId

from .problems import Problem

REMEMBERED = 50_000  # verified tokens a worker, about 0.5 KB each
TOKEN_MAX_CHARACTERS = 4_096
CLAIMS = ["exp", "iat", "iss", "aud", "sub", "role"]
OWN_HEADERS = frozenset({"alg", "typ"})  # a token of ours names no key: `kid`, `jku` and `jwk` are somebody's trick
ROLES = frozenset({"user", "operator"})


class User(NamedTuple):
    id: UserId
    role: str
    expires_at: float


class Identity:
    """Who asks. One instance a worker; it remembers verified tokens, oldest out first."""

    def __init__(self, settings: SigningSettings) -> None:
        self._secret = settings.jwt_secret.get_secret_value()
        self._own = OwnTokens(self._secret)
        self._known: dict[str, User] = {}

    def user_of(self, request: web.Request) -> User:
        """Raises Problem 401, the same for whatever is wrong."""
        header = request.headers.get("Authorization", "")
        user = self._known.get(header)
        if user is not None and user.expires_at > time.time():
            return user
        return self._verify(header)

    def _verify(self, header: str) -> User:
        self._known.pop(header, None)
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.isascii() or len(token) > TOKEN_MAX_CHARACTERS:
            raise Problem("unauthorized")
        user = self._decode(token)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[header] = user
        return user

    def _decode(self, token: str) -> User:
        own = self._own.claims_of(token)
        if own is not None:
            return _user(own.sub, own.role, own.exp)
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": CLAIMS},
            )
        except (jwt.PyJWTError, ValueError, RecursionError):  # RecursionError: a header of deeply nested JSON
            raise Problem("unauthorized") from None
        claims = decoded["payload"]
        if not decoded["header"].keys() <= OWN_HEADERS:
            raise Problem("unauthorized")
        return _user(claims["sub"], claims["role"], claims["exp"])


def _user(subject: str, role: object, expires_at: float) -> User:
    if not (isinstance(role, str) and role in ROLES and _is_user_id(subject)):
        raise Problem("unauthorized")
    return User(UserId(int(subject)), role, float(expires_at))


def _is_user_id(subject: str) -> bool:
    return subject.isascii() and subject.isdecimal() and len(subject) < 19 and int(subject) > 0
