"""Bearer tokens in, `AuthenticatedUser` out, without I/O. A token is checked once, then remembered until it expires."""

import time
from typing import NamedTuple

import jwt
import msgspec
from aiohttp import web
from cachetools import FIFOCache
from jwt.types import Options

from gateway.http.problems import Problem
from infra.settings import SigningSettings
from sale.accounts.tokens import ALGORITHM, AUDIENCE, ISSUER, Claims, OwnTokens
from schemas.ids import UserId

REMEMBERED = 50_000  # verified tokens per worker, about 0.5 KB each
TOKEN_MAX_CHARACTERS = 4_096
# The claims that PyJWT checks; `Claims` checks the others.
JWT_OPTIONS: Options = {
    "require": ["iss", "aud"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_sub": False,
}
OWN_HEADERS = frozenset({"alg", "typ"})  # our tokens name no key: `kid`, `jku` and `jwk` would be an attack


class AuthenticatedUser(NamedTuple):
    id: UserId
    role: str
    expires_at: float


class Identity:
    """Authenticates requests. One instance per worker; it caches verified tokens and drops the oldest first."""

    def __init__(self, settings: SigningSettings) -> None:
        self._secret = settings.jwt_secret.get_secret_value()
        self._own = OwnTokens(self._secret)
        self._known: FIFOCache[str, AuthenticatedUser] = FIFOCache(REMEMBERED)

    def user_of(self, request: web.Request) -> AuthenticatedUser:
        """Raises Problem 401, the same for every cause."""
        header = request.headers.get("Authorization", "")
        user = self._known.get(header)
        if user is not None and user.expires_at > time.time():
            return user
        return self._verify(header)

    def _verify(self, header: str) -> AuthenticatedUser:
        self._known.pop(header, None)
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.isascii() or len(token) > TOKEN_MAX_CHARACTERS:
            raise Problem("unauthorized")
        user = self._decode(token)
        self._known[header] = user
        return user

    def _decode(self, token: str) -> AuthenticatedUser:
        claims = self._own.claims_of(token) or self._foreign_claims(token)
        if not claims.in_force(time.time()):
            raise Problem("unauthorized")
        return AuthenticatedUser(UserId(int(claims.sub)), claims.role, float(claims.exp))

    def _foreign_claims(self, token: str) -> Claims:
        """The claims of a token that is signed with our secret but not made by us, as external load tests make them."""
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options=JWT_OPTIONS,
            )
            if not decoded["header"].keys() <= OWN_HEADERS:
                raise Problem("unauthorized")
            return msgspec.convert(decoded["payload"], Claims)
        except (jwt.PyJWTError, ValueError, RecursionError):  # RecursionError: a header of deeply nested JSON
            raise Problem("unauthorized") from None
