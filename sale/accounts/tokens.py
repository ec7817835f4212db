"""Signs and reads access tokens. This module alone defines their claims."""

import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from infra.settings import SigningSettings

ALGORITHM = "HS256"
ISSUER = "backend-of-thrones"
AUDIENCE = "backend-of-thrones-api"
LIFETIME_S = 86_400
CLOCK_LEEWAY_S = 5  # the clock of the signing machine may be ahead of ours

# Seconds since the epoch, with or without fractions (RFC 7519, NumericDate), up to what a float represents exactly.
_Within = Meta(ge=0, le=2**53)
NumericDate = Annotated[int, _Within] | Annotated[float, _Within]
Role = Literal["user", "operator"]


class Claims(msgspec.Struct, frozen=True):
    """The claims we read. A token with other values of them is not ours."""

    sub: Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,17}\Z")]
    iat: NumericDate
    exp: NumericDate
    role: Role
    nbf: NumericDate | UnsetType = UNSET

    def in_force(self, now_s: float) -> bool:
        latest_s = now_s + CLOCK_LEEWAY_S
        return self.iat <= latest_s and now_s < self.exp and (self.nbf is UNSET or self.nbf <= latest_s)


class OwnClaims(Claims, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All claims of our own tokens."""

    iss: Literal["backend-of-thrones"]
    aud: Literal["backend-of-thrones-api"]


_own_claims = msgspec.json.Decoder(OwnClaims)


class OwnTokens:
    """Verifies tokens exactly as `sign` makes them, six times as fast as PyJWT: in a crowd each token comes once."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def claims_of(self, token: str) -> Claims | None:
        """The claims of a valid token of ours; None if that is not certain, and then PyJWT decides."""
        body, _, signature = token.encode().rpartition(b".")
        head, _, claims = body.partition(b".")
        if head != HEAD or not hmac.compare_digest(_base64(hmac.digest(self._secret, body, "sha256")), signature):
            return None
        try:
            said = _own_claims.decode(urlsafe_b64decode(claims + b"=="))
        except ValueError:  # errors of msgspec and base64 are ValueErrors
            return None
        return said if said.in_force(time.time()) else None


def sign(user_id: int, role: str, settings: SigningSettings) -> str:
    """A token of one user, valid for a day."""
    return next(iter(sign_all([user_id], role, settings)))


def sign_all(user_ids: Iterable[int], role: str, settings: SigningSettings) -> Iterable[str]:
    """Tokens of users with one role, in the order of the ids; a few µs each, where PyJWT takes about 30."""
    signer = hmac.new(settings.jwt_secret.get_secret_value().encode(), digestmod="sha256")
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + LIFETIME_S, "role": role}
    for user_id in user_ids:
        body = HEAD + b"." + _part({"sub": str(user_id), **claims})
        signature = signer.copy()
        signature.update(body)
        yield (body + b"." + _base64(signature.digest())).decode()


def _part(value: dict[str, object]) -> bytes:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


HEAD = _part({"alg": ALGORITHM, "typ": "JWT"})
