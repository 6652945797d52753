"""Signatures of Standard Webhooks: the specification's own example, and two secrets while one replaces the other."""

from __future__ import annotations

import base64
import hashlib
import hmac

from birdwire.gateway.notifications.signatures import SECRET_BYTES, new_secret, signed
from birdwire.store.tables.outbox import new_event_id

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = 1_614_265_330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""The example of the specification, with the signature that it gives."""


def test_the_example_of_the_specification_is_signed_as_it_states() -> None:
    """Id, time in seconds and body, joined by full stops; the key is what follows the prefix, in base64."""
    assert signed([SECRET], EVENT, AT, BODY) == (
        ("webhook-id", EVENT),
        ("webhook-timestamp", str(AT)),
        ("webhook-signature", SIGNATURE),
    )
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    by_hand = hmac.new(key, b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + BODY, hashlib.sha256).digest()
    assert f"v1,{base64.b64encode(by_hand).decode()}" == SIGNATURE


def test_a_new_secret_has_32_random_bytes() -> None:
    """In base64, after the prefix by which a receiver's library knows it."""
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == SECRET_BYTES


def test_during_a_rotation_both_secrets_sign_the_newest_first() -> None:
    """A receiver accepts a delivery if any of the signatures is right, so it can change its secret at any time."""
    new = new_secret()
    both = dict(signed([new, SECRET], EVENT, AT, BODY))["webhook-signature"].split(" ")
    assert both == [dict(signed([new], EVENT, AT, BODY))["webhook-signature"], SIGNATURE]


def test_another_id_time_or_body_has_another_signature() -> None:
    """Nothing of the three can be changed on the way, nor moved to the next: an id has no full stop."""
    others = [
        signed([SECRET], "msg_2", AT, BODY),
        signed([SECRET], EVENT, AT + 1, BODY),
        signed([SECRET], EVENT, AT, BODY + b" "),
    ]
    assert SIGNATURE not in [dict(headers)["webhook-signature"] for headers in others]
    assert "." not in new_event_id()
