"""Recognising our own tokens: never more than PyJWT would accept, whatever is done to one."""

import base64
import hmac
import json
import time
from contextlib import suppress
from typing import Any

import jwt
import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.accounts.identity import Identity
from gateway.http.problems import Problem
from infra.settings import SigningSettings
from sale.accounts.tokens import ALGORITHM, AUDIENCE, ISSUER, OwnTokens, sign

SECRET = "a-secret-of-the-tests-that-is-long-enough"
SETTINGS = SigningSettings(thrones_profile="development", jwt_secret=SecretStr(SECRET))
OWN = OwnTokens(SECRET)


def _pyjwt(token: str) -> dict[str, Any] | None:
    try:
        claims: dict[str, Any] = jwt.decode(token, SECRET, algorithms=[ALGORITHM], issuer=ISSUER, audience=AUDIENCE)
    except (jwt.PyJWTError, ValueError):
        return None
    return claims


def _made(**changes: object) -> str:
    """Signed by us, but with other claims; None takes one out."""
    now = int(time.time())
    claims = {"sub": "7", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 60, "role": "user"} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, SECRET, ALGORITHM)


@pytest.mark.parametrize("role", ["user", "operator"])
def test_what_we_sign_we_recognise_as_pyjwt_does(role: str) -> None:
    token = sign(42, role, SETTINGS)
    claims = OWN.claims_of(token)
    assert claims is not None
    assert _pyjwt(token) == msgspec.to_builtins(claims)
    assert OwnTokens(SECRET + "!").claims_of(token) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"iat": 2**40},
        {"exp": 10**400},
        {"exp": 2**64},
        {"exp": True},
        {"iat": -1},
        {"sub": "9" * 19},
        {"sub": "0"},
        {"sub": "7\n"},
        {"role": "king"},
        {"iss": "else"},
        {"aud": "else"},
        {"aud": [AUDIENCE]},
        {"sub": None},
        {"role": None},
        {"nbf": 2**40},
        {"exp": "soon"},
        {"role": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_is_not_exactly_ours_and_in_force_is_left_to_pyjwt(changes: dict[str, object]) -> None:
    assert OWN.claims_of(_made()) is not None
    assert OWN.claims_of(_made(**changes)) is None


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS512"}, {"kid": "1"}, {"typ": "at+jwt"}], ids=lambda header: str(header)
)
def test_any_other_header_is_left_to_pyjwt(header: dict[str, str]) -> None:
    head, rest = sign(42, "user", SETTINGS).split(".", 1)
    changed = json.loads(base64.urlsafe_b64decode(head + "==")) | header
    assert (
        OWN.claims_of(base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=") + "." + rest) is None
    )


@given(position=st.integers(0, 400), character=st.characters(codec="ascii"))
def test_a_token_changed_anywhere_is_never_recognised_unless_it_says_the_same(position: int, character: str) -> None:
    token = sign(42, "user", SETTINGS)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    assert OWN.claims_of(changed) is None or (changed == token and _pyjwt(changed) is not None)


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200))
def test_anything_at_all_is_answered(token: str) -> None:
    assert OWN.claims_of(token) is None


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=5), children, max_size=2),
    max_leaves=4,
)
_claim = st.sampled_from(["sub", "iss", "aud", "iat", "exp", "nbf", "role", "jti", "else"])
_header = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "cty", "jwk"])


@given(st.dictionaries(_claim, _json, max_size=3), st.dictionaries(_header, _json, max_size=2))
def test_whatever_a_signed_token_says_there_is_a_user_or_401(claims: dict[str, Any], header: dict[str, Any]) -> None:
    """Never another exception, and never a user whose token has expired."""
    now = int(time.time())
    right = {"sub": "7", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 60, "role": "user"}
    body = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": ALGORITHM, "typ": "JWT"} | header, right | claims)
    )
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), body, "sha256")).rstrip(b"=")
    token = f"Bearer {(body + b'.' + signature).decode()}"
    identity, request = Identity(SETTINGS), make_mocked_request("GET", "/", headers={"Authorization": token})
    for _ in range(2):  # the second time it may be remembered
        user = None
        with suppress(Problem):
            user = identity.user_of(request)
        assert user is None or (user.expires_at > time.time() and user.role in ("user", "operator") and user.id > 0)
