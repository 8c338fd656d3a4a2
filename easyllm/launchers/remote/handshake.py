"""How the machine that owns a run and an agent show each other that they know its secret.

The secret itself is never sent. Each proves that it knows it by a hash of what both have drawn
(HMAC, RFC 2104), and what they tell each other from then on bears such a hash too
(``Channel.sign``): an agent runs what the owner of its run says, and nobody else.
"""

from __future__ import annotations

import hmac
import os
import secrets
from typing import Any

from easyllm.errors import UserError
from easyllm.launchers.remote.protocol import Channel

SECRET = "EASYLLM_SECRET"
"""Variable with a secret of the user's own, the same on all machines of a run."""

SMALL = 4096
"""Bytes of a message, at most, from who has proved nothing yet."""


def with_secret(job: str) -> str:
    """What the machines of a run must know: its job, and the user's secret where there is one."""
    return f"{job}\n{secret}" if (secret := os.environ.get(SECRET)) else job


def introduce(channel: Channel, token: str, facts: dict[str, Any], place: str) -> None:
    """An agent's part, towards who answers at ``place``. Raises UserError where that does not
    know ``token``."""
    own = secrets.token_hex(16)
    channel.send({**facts, "nonce": own})
    answer = channel.receive(largest=SMALL) or {}
    other = str(answer.get("nonce"))
    if not _right(answer.get("proof"), token, "owner", own, other):
        raise UserError(
            f"who answers at {place} does not know the secret of this run: another run listens "
            f"there, or a stranger. Its machines must give the same job and the same {SECRET}"
        )
    channel.send({"proof": _proof(token, "agent", own, other)})
    channel.sign(_key(token, own, other), own="agent", other="owner")


def admit(channel: Channel, token: str) -> dict[str, Any] | None:
    """The owner's part: the facts that an agent tells of itself; None for a stranger."""
    facts = channel.receive(largest=SMALL) or {}
    other, own = str(facts.get("nonce")), secrets.token_hex(16)
    channel.send({"nonce": own, "proof": _proof(token, "owner", other, own)})
    answer = channel.receive(largest=SMALL) or {}
    if not _right(answer.get("proof"), token, "agent", other, own):
        return None
    channel.sign(_key(token, other, own), own="owner", other="agent")
    return facts


def _proof(token: str, who: str, agent: str, owner: str) -> str:
    return hmac.new(token.encode(), f"{who}:{agent}:{owner}".encode(), "sha256").hexdigest()


def _right(proof: Any, token: str, who: str, agent: str, owner: str) -> bool:
    return hmac.compare_digest(str(proof).encode(), _proof(token, who, agent, owner).encode())


def _key(token: str, agent: str, owner: str) -> bytes:
    return bytes.fromhex(_proof(token, "session", agent, owner))
