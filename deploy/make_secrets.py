#!/usr/bin/env python3
"""Write the passwords of a federation and the broker's definitions: ``python deploy/make_secrets.py``.

The federation and its participants are those of ``aggregator.toml``. Python's standard library is enough.

What is written to ``deploy/secrets``::

    <user>.password     one line; aggregator, each participant, downstream, operator
    definitions.json    vhost, users with salted hashes of these passwords, exchanges, permissions

Who may read them: the folder is closed to everybody but you (mode 700), the files in it are readable (444).
Compose mounts each secret as the file that it is, with its mode, and our containers run as other users than
you: with mode 600 they could not read it. On the host nobody gets past the folder.

What each user may do, as RabbitMQ checks it (a queue is declared with *configure*, bound with *write* on itself
and *read* on the exchange; topic permissions hold for the routing keys of publications and bindings):

- a participant: its own two queues; send under its own name; bind the models and plans for all and for itself;
- the aggregator: the exchanges and its own queues; send plans, models and releases of its federation, no
  updates, but the probes by which it learns whether it is the one that serves;
- downstream: queues that begin with ``downstream.``, bound to released models;
- operator: look at everything in the management pages, and read dead letters.

A participant needs *write* on the dead-letter exchange to declare a queue that names it; a topic permission
keeps it from sending anything there. What permissions cannot prevent: queues and exchanges share their names, so
a participant may declare an exchange called like its queue, bind the updates exchange behind it, and send through
it under any routing key. The broker still holds it to its user name, and the aggregator refuses a message whose
user is not the one in its routing key. Where not even that shall arrive, declare the participants' queues here and
take *configure* away.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

VHOST = "fedmq"
EXCHANGES = ("fedmq.updates", "fedmq.models", "fedmq.released", "fedmq.dead")

#: An empty expression would be read as ``^$``, which an empty routing key matches. Nothing matches this one.
NEVER = "(?!)"

PASSWORD_BYTES = 32
SALT_BYTES = 4  # RabbitMQ's format: salt, then SHA-256 of salt and password, in base64


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Return ``password`` as RabbitMQ keeps it (rabbit_password_hashing_sha256)."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def any_of(*names: str) -> str:
    """Return the regular expression for exactly these names."""
    return f"^({'|'.join(re.escape(name) for name in names)})$"


def keys(federation: str, kinds: str, whom: str) -> str:
    """Return the regular expression for routing keys; ``kinds`` and ``whom`` are expressions."""
    return rf"^{re.escape(federation)}\.({kinds})\.{whom}$"


def participant_permissions(federation: str, name: str) -> dict[str, Any]:
    """Return what one participant may do."""
    queues = [f"fedmq.{federation}.{kind}.{name}" for kind in ("models", "plans")]
    own = re.escape(name)
    return {
        "configure": any_of(*queues),
        "write": any_of("fedmq.updates", "fedmq.dead", *queues),
        "read": any_of("fedmq.models", *queues),
        "topics": {
            "fedmq.updates": {
                "write": keys(federation, "hello|update|evaluation|heartbeat|goodbye", own),
                "read": NEVER,
            },
            "fedmq.models": {"write": NEVER, "read": keys(federation, "model|plan", f"(all|{own})")},
            "fedmq.dead": {"write": NEVER, "read": NEVER},
        },
    }


def aggregator_permissions(federation: str) -> dict[str, Any]:
    """Return what the aggregator may do."""
    queues = [f"fedmq.{federation}.{kind}" for kind in ("updates", "presence", "released")]
    released = rf"^{re.escape(federation)}\.released$"
    return {
        "configure": any_of(*EXCHANGES, *queues),
        "write": any_of("fedmq.updates", "fedmq.models", "fedmq.released", "fedmq.dead", *queues),
        "read": any_of("fedmq.updates", "fedmq.released", "fedmq.dead", *queues),
        "topics": {
            "fedmq.updates": {
                "write": keys(federation, "probe", "aggregator"),
                "read": keys(federation, "hello|update|evaluation|heartbeat|goodbye|probe", r"\*"),
            },
            "fedmq.models": {"write": keys(federation, "model|plan", "[A-Za-z0-9_-]+"), "read": NEVER},
            "fedmq.released": {"write": released, "read": released},
            "fedmq.dead": {
                "write": NEVER,
                "read": keys("*", "hello|update|evaluation|goodbye|heartbeat|plan|model", r"\*"),
            },
        },
    }


def downstream_permissions() -> dict[str, Any]:
    """Return what downstream systems may do: they share this user, and name their queues."""
    own = r"downstream\..+"
    return {
        "configure": f"^{own}$",
        "write": f"^{own}$",
        "read": rf"^({own}|fedmq\.released)$",
        "topics": {"fedmq.released": {"write": NEVER, "read": ".*"}},
    }


def operator_permissions() -> dict[str, Any]:
    """Return what a person who looks after the broker may do with messages: read the dead ones."""
    return {"configure": NEVER, "write": NEVER, "read": any_of("fedmq.dead"), "topics": {}}


def permissions(federation: str, participants: list[str]) -> dict[str, dict[str, Any]]:
    """Return every user of the broker, with what it may do.

    Raises
    ------
    ValueError
        When a participant is called like one of the other users.
    """
    others = {
        "aggregator": aggregator_permissions(federation),
        "downstream": downstream_permissions(),
        "operator": operator_permissions(),
    }
    if taken := sorted(others.keys() & set(participants)):
        raise ValueError(f"a participant cannot be called {taken[0]!r}: that is another user of the broker")
    return {**others, **{name: participant_permissions(federation, name) for name in participants}}


def definitions(federation: str, participants: list[str], passwords: dict[str, str]) -> dict[str, Any]:
    """Return what the broker imports when it starts; there is no user guest in it, so there is none at all."""
    allowed = permissions(federation, participants)
    return {
        "vhosts": [{"name": VHOST}],
        "users": [
            {
                "name": user,
                "password_hash": hash_password(passwords[user]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["monitoring"] if user == "operator" else [],
                "limits": {},
            }
            for user in allowed
        ],
        "permissions": [
            {"user": user, "vhost": VHOST, **{verb: granted[verb] for verb in ("configure", "write", "read")}}
            for user, granted in allowed.items()
        ],
        "topic_permissions": [
            {"user": user, "vhost": VHOST, "exchange": exchange, **patterns}
            for user, granted in allowed.items()
            for exchange, patterns in granted["topics"].items()
        ],
        # Here as well as in the aggregator, so that whoever starts first finds them: downstream systems may bind
        # before the first federation runs, and may not declare an exchange themselves.
        "exchanges": [
            {
                "name": name,
                "vhost": VHOST,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in EXCHANGES
        ],
    }


def write_secrets(folder: Path, federation: str, participants: list[str], *, force: bool = False) -> list[Path]:
    """Write all files to ``folder`` and return them.

    Raises
    ------
    FileExistsError
        When there is something already and ``force`` is not given: the running services know those passwords.
    """
    if not force and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} has secrets already. --force replaces them all; the broker and every service is then to be "
            "started anew (docker compose up --force-recreate)"
        )
    passwords = {user: secrets.token_urlsafe(PASSWORD_BYTES) for user in permissions(federation, participants)}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    told = json.dumps(definitions(federation, participants, passwords), indent=1) + "\n"
    written = [_write(folder / f"{user}.password", f"{password}\n") for user, password in passwords.items()]
    return [*written, _write(folder / "definitions.json", told)]


def _write(path: Path, text: str) -> Path:
    # A new file in place of the old one: writing into it would change what running containers have mounted.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o444)
    return fresh.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Write the passwords of a federation and the broker's definitions.")
    parser.add_argument("--config", type=Path, default=HERE / "aggregator.toml", help="names the participants")
    parser.add_argument("--out", type=Path, default=HERE / "secrets", help="folder for the secrets")
    parser.add_argument("--force", action="store_true", help="replace the secrets that are there")
    given = parser.parse_args(arguments)
    try:
        config = tomllib.loads(given.config.read_text(encoding="utf-8"))
        written = write_secrets(given.out, config["federation"], config["participants"], force=given.force)
    except KeyError as error:
        sys.stderr.write(f"{given.config} does not set {error.args[0]}\n")
        return 2
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{len(written)} files are in {given.out}: keep them out of backups and repositories\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
