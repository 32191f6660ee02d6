"""What deploy/make_secrets.py writes: nobody may do more than the topology needs, and nobody less."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from servers.compose import ROOT, make_secrets

from broker.topology import READ_WHEN_DEAD, aggregator_topology, participant_topology, released_key, routing_key

if TYPE_CHECKING:
    from pathlib import Path

    from broker.topology import Topology

script: Any = make_secrets()

FEDERATION = "heart"
NAMES = ["cleveland", "va", "va-2"]
UPDATE_KINDS = ("hello", "update", "evaluation", "heartbeat", "goodbye")


def write(folder: Path) -> dict[str, Any]:
    script.write_secrets(folder, FEDERATION, NAMES)
    found: dict[str, Any] = json.loads((folder / "definitions.json").read_text())
    return found


class Broker:
    """Answers as RabbitMQ does: expressions are searched in names, and topics checked where they are set."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._permissions = {each["user"]: each for each in definitions["permissions"]}
        self._topics = {(each["user"], each["exchange"]): each for each in definitions["topic_permissions"]}

    def allows(self, user: str, verb: str, name: str) -> bool:
        return re.search(self._permissions[user][verb] or "^$", name) is not None

    def allows_topic(self, user: str, verb: str, exchange: str, key: str) -> bool:
        topic = self._topics.get((user, exchange))
        return topic is None or re.search(topic[verb] or "^$", key) is not None

    def may_publish(self, user: str, exchange: str, key: str) -> bool:
        return self.allows(user, "write", exchange) and self.allows_topic(user, "write", exchange, key)

    def may_bind(self, user: str, queue: str, exchange: str, key: str) -> bool:
        return (
            self.allows(user, "write", queue)
            and self.allows(user, "read", exchange)
            and self.allows_topic(user, "read", exchange, key)
        )

    def may_declare(self, user: str, topology: Topology) -> bool:
        exchanges = all(self.allows(user, "configure", each.name) for each in topology.exchanges if not each.passive)
        return exchanges and all(
            self.allows(user, "configure", queue.name)
            and self.allows(user, "read", queue.name)
            and (queue.dead_letter_exchange is None or self.allows(user, "write", queue.dead_letter_exchange))
            and all(self.may_bind(user, queue.name, bound.exchange, bound.pattern) for bound in queue.bindings)
            for queue in topology.queues
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Broker:
    return Broker(write(tmp_path_factory.mktemp("secrets") / "made"))


# --- permissions ------------------------------------------------------------------------------


def test_each_service_may_declare_its_topology(broker: Broker) -> None:
    assert broker.may_declare("aggregator", aggregator_topology(FEDERATION))
    for name in NAMES:
        assert broker.may_declare(name, participant_topology(FEDERATION, name))


def test_nobody_may_declare_the_topology_of_another(broker: Broker) -> None:
    users = ["aggregator", "downstream", "operator", *NAMES]
    for user in users:
        for name in NAMES:
            assert broker.may_declare(user, participant_topology(FEDERATION, name)) == (user == name)
        assert broker.may_declare(user, aggregator_topology(FEDERATION)) == (user == "aggregator")
        assert not broker.may_declare(user, aggregator_topology("another"))


def test_a_participant_sends_under_its_own_name_only(broker: Broker) -> None:
    for sender in NAMES:
        for name in NAMES:
            for kind in UPDATE_KINDS:
                allowed = broker.may_publish(sender, "fedmq.updates", routing_key(FEDERATION, kind, name))
                assert allowed == (sender == name)
        for key in ("heart.plan.va", "another.update.va", "heart.update", "", "heart.update.va.va", "heartxupdate.va"):
            assert not broker.may_publish(sender, "fedmq.updates", key)


def test_nobody_but_the_aggregator_sends_models_and_releases_and_it_sends_no_updates(broker: Broker) -> None:
    for user in ("aggregator", "downstream", "operator", *NAMES):
        is_aggregator = user == "aggregator"
        assert broker.may_publish(user, "fedmq.models", "heart.model.all") == is_aggregator
        assert broker.may_publish(user, "fedmq.models", "heart.plan.va-2") == is_aggregator
        assert broker.may_publish(user, "fedmq.released", released_key(FEDERATION)) == is_aggregator
        assert not broker.may_publish(user, "fedmq.released", "another.released")
        assert not broker.may_publish(user, "amq.default", "fedmq.heart.updates")
        assert not any(broker.may_publish(user, "fedmq.dead", key) for key in ("", "heart.update.va"))
    assert not broker.may_publish("aggregator", "fedmq.updates", "heart.update.va")


def test_the_aggregator_keeps_dead_letters_of_the_kinds_that_people_read(broker: Broker) -> None:
    for kind in READ_WHEN_DEAD:
        assert broker.may_bind("aggregator", "fedmq.dead", "fedmq.dead", routing_key("*", kind, "*"))
    for key in ("#", "*.probe.*", "*.*.*", "", "heart.update.*"):
        assert not broker.may_bind("aggregator", "fedmq.dead", "fedmq.dead", key)


def test_a_participant_binds_what_is_for_all_and_for_itself(broker: Broker) -> None:
    own = "fedmq.heart.models.va"
    for key in ("heart.model.all", "heart.model.va", "heart.plan.all", "heart.plan.va"):
        assert broker.may_bind("va", own, "fedmq.models", key)
    for key in ("heart.model.va-2", "heart.model.*", "heart.*.va", "heart.#", "#", "*.model.all", "another.model.all"):
        assert not broker.may_bind("va", own, "fedmq.models", key)
    for exchange in ("fedmq.updates", "fedmq.released", "fedmq.dead"):
        assert not broker.may_bind("va", own, exchange, "#")


@pytest.mark.parametrize("verb", ["configure", "write", "read"])
def test_a_participant_touches_no_queue_but_its_own_two(broker: Broker, verb: str) -> None:
    for name in (
        "fedmq.heart.updates",
        "fedmq.heart.presence",
        "fedmq.heart.released",
        "fedmq.heart.models.va-2",
        "fedmq.heart.modelsxva",
        "fedmq.another.models.va",
        "downstream.va",
        "va",
        "",
    ):
        assert not broker.allows("va", verb, name)
    assert not broker.allows("va", "read", "fedmq.dead")
    assert not broker.allows("va", "configure", "fedmq.models")


def test_downstream_reads_released_models_by_queues_of_its_own(broker: Broker) -> None:
    assert broker.allows("downstream", "configure", "downstream.scores")
    assert broker.may_bind("downstream", "downstream.scores", "fedmq.released", "#")
    for queue, exchange in (("downstream.scores", "fedmq.models"), ("fedmq.heart.released", "fedmq.released")):
        assert not broker.may_bind("downstream", queue, exchange, "#")
    for name in ("fedmq.released", "fedmq.heart.released", "downstream", "xdownstream.x"):
        assert not broker.allows("downstream", "configure", name)


def test_the_operator_reads_dead_letters_and_changes_nothing(broker: Broker) -> None:
    assert broker.allows("operator", "read", "fedmq.dead")
    for name in ("", "fedmq.dead", "fedmq.updates", "fedmq.heart.updates"):
        assert not broker.allows("operator", "configure", name)
        assert not broker.allows("operator", "write", name)


def test_special_characters_of_names_are_escaped() -> None:
    granted = script.participant_permissions("a.b", "c.d")
    assert re.search(granted["topics"]["fedmq.updates"]["write"], "a.b.update.c.d")
    assert not re.search(granted["topics"]["fedmq.updates"]["write"], "axb.update.cxd")
    assert re.search(granted["configure"], "fedmq.a.b.models.c.d")
    assert not re.search(granted["configure"], "fedmq.axb.models.c.d")


# --- files ------------------------------------------------------------------------------------


def test_passwords_match_their_hashes_and_are_all_different(tmp_path: Path) -> None:
    users = {each["name"]: each for each in write(tmp_path / "made")["users"]}
    assert sorted(users) == ["aggregator", "cleveland", "downstream", "operator", "va", "va-2"]
    passwords = {name: (tmp_path / "made" / f"{name}.password").read_text().rstrip("\n") for name in users}
    assert len(set(passwords.values())) == len(passwords)
    for name, user in users.items():
        assert len(passwords[name]) >= 40
        assert user["hashing_algorithm"] == "rabbit_password_hashing_sha256"
        both = base64.b64decode(user["password_hash"])
        assert hashlib.sha256(both[:4] + passwords[name].encode()).digest() == both[4:]
        assert user["tags"] == (["monitoring"] if name == "operator" else [])


def test_a_hash_is_the_one_that_rabbitmq_documents() -> None:
    """https://www.rabbitmq.com/docs/passwords#computing-password-hash."""
    assert (
        script.hash_password("test12", bytes.fromhex("908DC60A")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    )


def test_no_password_is_in_the_definitions_and_there_is_no_guest(tmp_path: Path) -> None:
    write(tmp_path / "made")
    told = (tmp_path / "made" / "definitions.json").read_text()
    for path in (tmp_path / "made").glob("*.password"):
        assert path.read_text().strip() not in told
    assert "guest" not in told


def test_the_folder_is_closed_and_its_files_can_be_read_in_containers(tmp_path: Path) -> None:
    write(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()} == {0o444}


def test_secrets_that_are_there_are_not_replaced_unless_forced(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="--force"):
        write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    script.write_secrets(folder, FEDERATION, NAMES, force=True)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_a_participant_cannot_be_another_user_of_the_broker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'operator'"):
        script.write_secrets(tmp_path / "made", FEDERATION, ["va", "operator"])
    assert not (tmp_path / "made").exists()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-W", "error", str(ROOT / "deploy" / "make_secrets.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_reads_the_names_from_the_aggregators_configuration(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "made"))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads((tmp_path / "made" / "definitions.json").read_text())
    users = {each["name"] for each in told["users"]}
    assert users == {"aggregator", "downstream", "operator", "cleveland", "hungarian", "switzerland", "va"}
    again = run("--out", str(tmp_path / "made"))
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("--out", str(tmp_path / "made"), "--force").returncode == 0


def test_the_command_says_what_is_wrong_with_a_configuration(tmp_path: Path) -> None:
    config = tmp_path / "aggregator.toml"
    config.write_text('federation = "heart"\n')
    done = run("--out", str(tmp_path / "made"), "--config", str(config))
    assert (done.returncode, done.stderr) == (2, f"{config} does not set participants\n")
    assert run("--config", str(tmp_path / "none.toml")).returncode == 2


def test_git_ignores_the_secrets() -> None:
    assert (ROOT / "deploy" / ".gitignore").read_text() == "secrets/\n"
