"""User ids in, signed access tokens out. The one place that says what a token claims."""

import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

import msgspec

from .settings import SigningSettings

ALGORITHM = "HS256"
ISSUER = "backend-of-thrones"
AUDIENCE = "backend-of-thrones-api"
LIFETIME_S = 86_400


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What our tokens say; times are seconds since the epoch."""

    sub: str
    iss: str
    aud: str
    iat: int
    exp: int
    role: str


_claims = msgspec.json.Decoder(Claims)


class OwnTokens:
    """Recognises tokens exactly as `sign` makes them, in a sixth of PyJWT's time: of a crowd, each comes once."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def claims_of(self, token: str) -> Claims | None:
        """The claims of a token that is ours and in force; None where that is not certain, which is PyJWT's to judge."""
        body, _, signature = token.encode().rpartition(b".")
        head, _, claims = body.partition(b".")
        if head != HEAD or not hmac.compare_digest(_base64(hmac.digest(self._secret, body, "sha256")), signature):
            return None
        try:
            said = _claims.decode(urlsafe_b64decode(claims + b"=="))
        except ValueError:  # msgspec's errors and base64's are ValueErrors
            return None
        in_force = said.iat <= time.time() < said.exp
        return said if in_force and (said.iss, said.aud) == (ISSUER, AUDIENCE) else None


def sign(user_id: int, role: str, settings: SigningSettings) -> str:
    """A token of one user, good for a day from now."""
    return next(iter(sign_all([user_id], role, settings)))


def sign_all(user_ids: Iterable[int], role: str, settings: SigningSettings) -> Iterable[str]:
    """Tokens of users of one role, in the order of their ids; a few µs each, where PyJWT would take about 30."""
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
