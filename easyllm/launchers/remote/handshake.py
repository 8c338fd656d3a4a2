"""How the machine that owns a run and an agent prove to each other that they know its secret.

The secret itself is never sent. Each proves that it knows the secret by a hash of random numbers
from both (HMAC, RFC 2104). Every later message has such a hash too (``Channel.sign``), so an agent
runs only the commands of its run's owner.
"""

from __future__ import annotations

import hmac
import os
import secrets
from typing import Any

from easyllm.errors import UserError
from easyllm.launchers.remote.protocol import Channel

SECRET = "EASYLLM_SECRET"
"""Variable with the user's own secret, the same on all machines of a run."""

SMALL = 4096
"""Most bytes of a message from a process that has not proved yet that it knows the secret."""


def with_secret(job: str) -> str:
    """The secret of a run: its job, and the user's secret if there is one."""
    return f"{job}\n{secret}" if (secret := os.environ.get(SECRET)) else job


def introduce(channel: Channel, token: str, facts: dict[str, Any], place: str) -> None:
    """An agent's part, with the process that answers at ``place``. Raises UserError if that process
    does not know ``token``."""
    own = secrets.token_hex(16)
    channel.send({**facts, "nonce": own})
    answer = channel.receive(largest=SMALL) or {}
    other = str(answer.get("nonce"))
    if not _right(answer.get("proof"), token, "owner", own, other):
        raise UserError(
            f"the process at {place} does not know the secret of this run: another run listens "
            f"there, or a stranger. Its machines must give the same job and the same {SECRET}"
        )
    channel.send({"proof": _proof(token, "agent", own, other)})
    channel.sign(_key(token, own, other), own="agent", other="owner")


def admit(channel: Channel, token: str) -> dict[str, Any] | None:
    """The owner's part; returns the facts that an agent sends about itself, or None for a
    stranger."""
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
