"""The services of docker-compose.yml as processes, over a broker with the permissions that come with it.

Each one is started from its entry in the compose file: its command, environment, configuration file, mounts
and secrets, in the environment that the image sets. Only what a container changes is translated: host names,
ports, and where a path leads to.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from aio_pika.exceptions import AuthenticationError, ChannelPreconditionFailed, ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused
from servers import compose
from servers.compose import ROOT
from servers.federation import Federation, ServiceProcess, wait_until
from servers.processes import free_port
from servers.rabbitmq import RabbitMQ, find_rabbitmq4

from broker.codec import encode
from broker.messages import Goodbye
from broker.rabbitmq import RabbitMQTransport
from broker.topology import aggregator_topology, participant_topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aio_pika.abc import AbstractChannel
    from servers.rabbitmq import Programs

pytestmark = [pytest.mark.acceptance, pytest.mark.rabbitmq, pytest.mark.timeout(240)]

SERVICES = compose.services()
OURS = [service for service in SERVICES.values() if service.is_ours]
PARTICIPANTS = [service.name for service in OURS if service.entry["command"][0] == "participant"]
SERVED = [service.name for service in OURS]
HEART = "heart"


@dataclass(frozen=True)
class Broker:
    """The broker of the compose file: a node with its configuration and the definitions that were made."""

    node: RabbitMQ
    secrets: Path

    def url(self, user: str) -> str:
        password = (self.secrets / f"{user}.password").read_text().strip()
        return f"amqp://{user}:{password}@127.0.0.1:{self.node.port}/fedmq"


@pytest.fixture(scope="module")
def broker(rabbitmq_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    secrets = tmp_path_factory.mktemp("deploy") / "secrets"
    script = compose.make_secrets()
    assert script.main(["--out", str(secrets)]) == 0
    plugins = (ROOT / "deploy" / "rabbitmq" / "enabled_plugins").read_text()
    # The compose file runs RabbitMQ 4; where there is one, it is taken.
    node = RabbitMQ(find_rabbitmq4() or rabbitmq_programs, plugins=tuple(re.findall(r"\w+", plugins)))
    node.config = _broker_configuration(f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {free_port()}")
    definitions = json.loads((secrets / "definitions.json").read_text())
    node.files["definitions.json"] = json.dumps(_with_administrator(node, definitions, script)).encode()
    with node:
        yield Broker(node, secrets)


def _broker_configuration(ports: str) -> str:
    """Return rabbitmq.conf, with the path of the definitions translated and without what depends on the disk."""
    [secret] = [mount for mount in SERVICES["rabbitmq"].mounts if mount.target.startswith("/run/secrets/")]
    text = (ROOT / "deploy" / "rabbitmq" / "rabbitmq.conf").read_text()
    text = text.replace(secret.target, "{folder}/definitions.json")
    return re.sub(r"^(disk_free_limit|log)\b.*$", "", text, flags=re.MULTILINE) + ports


def _with_administrator(node: RabbitMQ, definitions: dict[str, Any], script: Any) -> dict[str, Any]:
    """Add the tests' own administrator: a broker that loads definitions makes no default user."""
    administrator = {
        "name": "test-admin",
        "password_hash": script.hash_password(node._admin_password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"],
        "limits": {},
    }
    return {**definitions, "users": [*definitions["users"], administrator]}


# --- the services -----------------------------------------------------------------------------


class Container:
    """What a container is to a service, done to a process: names, ports and paths lead somewhere else."""

    def __init__(self, service: compose.Service, broker: Broker, folder: Path) -> None:
        self._service = service
        self._folder = folder / service.name
        self._folder.mkdir()
        self._port = free_port()
        self._words = {
            "rabbitmq:5672": f"127.0.0.1:{broker.node.port}",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - what the container listens on
            "9464": str(self._port),
        }
        self.volume = self._folder / "volume"
        self.volume.mkdir()
        # The longest first: one may lie in another.
        for mount in sorted(service.mounts, key=lambda mount: -len(mount.target)):
            self._words[mount.target] = str(self._source(mount, broker))

    def _source(self, mount: compose.Mount, broker: Broker) -> Path:
        if not mount.is_path:
            return self.volume
        source = ROOT / mount.source
        if source.is_relative_to(ROOT / compose.SECRETS):
            return broker.secrets / source.name
        if source.suffix == ".toml":
            # Written in `process`, when all words are known.
            return self._folder / source.name
        return source

    def translate(self, text: str) -> str:
        pattern = "|".join(re.escape(word) for word in self._words)
        return re.sub(pattern, lambda match: self._words[match.group()], text)

    def process(self) -> ServiceProcess:
        assert compose.image_entrypoint() == ["fedmq"]
        for mount in self._service.mounts:
            if mount.source.endswith(".toml"):
                own = self._folder / Path(mount.source).name
                own.write_text(self.translate((ROOT / mount.source).read_text()))
        environment = {**compose.image_environment(), **self._service.entry.get("environment", {})}
        del environment["PATH"]
        return ServiceProcess(
            self._service.name,
            [self.translate(word) for word in self._service.entry["command"]],
            {name: self.translate(value) for name, value in environment.items()},
            self._folder,
            self._port,
        )

    def healthcheck(self) -> list[str]:
        kind, program, *arguments = self._service.entry["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        return [sys.executable, *map(self.translate, arguments)]


class Deployment(Federation):
    """All our services of the compose file."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.containers = {service.name: Container(service, broker, folder) for service in OURS}
        super().__init__([container.process() for container in self.containers.values()])


@pytest.fixture(scope="module")
def downstream(broker: Broker) -> Iterator[subprocess.Popen[str]]:
    """Give a system that waits for a model before anything of ours runs, as the user that is there for such."""
    rows = ROOT / "examples" / "heart_disease" / "site-va.csv"
    script = ROOT / "examples" / "score_released.py"
    process = subprocess.Popen(
        [sys.executable, "-I", str(script), broker.url("downstream"), str(rows)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for a model\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def deployment(
    broker: Broker, downstream: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Start everything at the same moment."""
    with Deployment(broker, tmp_path_factory.mktemp("containers")) as running:
        yield running


def test_every_service_becomes_ready_and_its_healthcheck_says_so(deployment: Deployment) -> None:
    for name, container in deployment.containers.items():
        assert deployment[name].get("/readyz")[0] == 200
        assert deployment[name].get("/healthz")[0] == 200
        assert deployment[name].run(container.healthcheck()) == 0
        assert "_created" not in deployment[name].get("/metrics")[1]


def test_the_federation_trains_and_the_model_is_written_and_released(
    downstream: subprocess.Popen[str], deployment: Deployment
) -> None:
    path = deployment.containers["aggregator"].volume / "model" / "model.json"
    wait_until(path.exists, f"the model is written:\n{deployment['aggregator'].log()}", 90)
    model = json.loads(path.read_text())
    assert model["converged"]
    assert model["federation"] == HEART
    assert [each["name"] for each in model["participants"]] == PARTICIPANTS
    assert all(each["updates_included"] > 0 for each in model["participants"])

    scores, told = downstream.communicate(timeout=60)
    assert downstream.returncode == 0, told
    assert f"model of {HEART}, version {model['version']}" in told
    assert len(scores.splitlines()) == 130


@pytest.mark.fault("B19")
def test_who_sends_by_a_detour_under_the_name_of_another_is_found_out(broker: Broker, deployment: Deployment) -> None:
    """Permissions do not prevent an exchange called like an own queue; the user in the message still tells."""

    def shown(series: str, label: str) -> float:
        metrics = deployment["aggregator"].get("/metrics")[1]
        [value] = re.findall(rf'^{series}\{{[^}}]*="{label}"\}} (\S+)$', metrics, re.MULTILINE)
        return float(value)

    before = shown("fedmq_dead_letters_total", "forged")
    asyncio.run(_detour(broker.url("cleveland")))
    wait_until(
        lambda: shown("fedmq_dead_letters_total", "forged") == before + 2, "both messages are refused as forged", 30
    )
    assert shown("fedmq_participants", "left") == 0
    assert shown("fedmq_participants", "live") == len(PARTICIPANTS)


async def _detour(url: str) -> None:
    goodbye = encode(Goodbye(HEART, "va", "0"))
    async with _channel(url) as channel:
        own = await channel.declare_exchange("fedmq.heart.models.cleveland", "topic", durable=False, auto_delete=False)
        updates = await channel.get_exchange("fedmq.updates")
        await updates.bind(own, "#")
        for user_id in ("cleveland", None):
            await own.publish(aio_pika.Message(goodbye, user_id=user_id), "heart.goodbye.va")
        await own.delete()


def test_every_service_ends_in_order_when_it_is_told_to(deployment: Deployment) -> None:
    """The last one with these services."""
    for running in deployment.services.values():
        running.send(signal.SIGTERM)
    assert {name: running.ended() for name, running in deployment.services.items()} == dict.fromkeys(SERVED, 0)
    for name, container in deployment.containers.items():
        assert deployment[name].run(container.healthcheck()) != 0


# --- permissions ------------------------------------------------------------------------------


@asynccontextmanager
async def _channel(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel(on_return_raises=True)


@pytest.fixture
def declared(broker: Broker) -> Broker:
    """Give the broker after each service has declared its own, with its own user."""

    async def declare() -> None:
        async with RabbitMQTransport([broker.url("aggregator")]) as aggregator:
            await aggregator.declare(aggregator_topology(HEART))
        for name in PARTICIPANTS:
            async with RabbitMQTransport([broker.url(name)]) as participant:
                await participant.declare(participant_topology(HEART, name))

    asyncio.run(declare())
    return broker


async def _publish(channel: AbstractChannel, exchange: str, key: str, user: str | None = None) -> None:
    # An exchange that is not asked for: to look it up passively needs no permission and proves nothing.
    target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    await target.publish(aio_pika.Message(b"", user_id=user), key)


async def _bind(channel: AbstractChannel, queue: str, exchange: str, key: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)


async def _consume(channel: AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).consume(print)


async def _fetch(channel: AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).get(fail=False)


async def _purge(channel: AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).purge()


async def _delete(channel: AbstractChannel, queue: str) -> None:
    await channel.queue_delete(queue)


async def _delete_exchange(channel: AbstractChannel, exchange: str) -> None:
    await channel.exchange_delete(exchange)


async def _declare(channel: AbstractChannel, queue: str) -> None:
    await channel.declare_queue(queue, durable=True)


async def _declare_exchange(channel: AbstractChannel, exchange: str) -> None:
    await channel.declare_exchange(exchange, "topic", durable=True)


async def _dead_letter_to(channel: AbstractChannel, queue: str, exchange: str) -> None:
    # One that is there has its arguments already, and may be deleted by its owner.
    await channel.queue_delete(queue)
    await channel.declare_queue(queue, durable=True, arguments={"x-dead-letter-exchange": exchange})


#: What a participant, cleveland, tries against the others.
PARTICIPANT_TRIES = [
    *[(_publish, "fedmq.updates", f"heart.{kind}.va") for kind in ("hello", "update", "evaluation", "heartbeat")],
    (_publish, "fedmq.updates", "heart.goodbye.va"),
    (_publish, "fedmq.updates", "another.update.cleveland"),
    (_publish, "fedmq.models", "heart.model.all"),
    (_publish, "fedmq.models", "heart.plan.va"),
    (_publish, "fedmq.models", "heart.model.cleveland"),
    (_publish, "fedmq.released", "heart.released"),
    (_publish, "fedmq.dead", "heart.update.cleveland"),
    (_publish, "fedmq.dead", ""),
    (_publish, "", "fedmq.heart.updates"),
    (_publish, "", "fedmq.heart.models.va"),
    (_publish, "", "fedmq.heart.models.cleveland"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.models", "heart.model.va"),
    (_bind, "fedmq.heart.plans.cleveland", "fedmq.models", "heart.plan.va"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.models", "heart.model.*"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.models", "#"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.updates", "heart.update.*"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.updates", "heart.update.cleveland"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.released", "heart.released"),
    (_bind, "fedmq.heart.models.cleveland", "fedmq.dead", "#"),
    (_bind, "fedmq.heart.models.va", "fedmq.models", "heart.model.all"),
    *[
        (action, queue)
        for action in (_consume, _fetch, _purge, _delete)
        for queue in (
            "fedmq.heart.updates",
            "fedmq.heart.presence",
            "fedmq.heart.released",
            "fedmq.heart.models.va",
            "fedmq.heart.plans.va",
            "fedmq.dead",
        )
    ],
    (_declare, "cleveland"),
    (_declare, "amq.gen-cleveland"),
    (_declare, "fedmq.another.models.cleveland"),
    (_declare, "downstream.cleveland"),
    (_dead_letter_to, "fedmq.heart.models.cleveland", "fedmq.models"),
    (_dead_letter_to, "fedmq.heart.models.cleveland", "fedmq.released"),
    *[(action, name) for action in (_declare_exchange, _delete_exchange) for name in ("fedmq.updates", "fedmq.models")],
]
AGGREGATOR_TRIES = [
    (_publish, "fedmq.updates", "heart.update.va"),
    (_publish, "fedmq.models", "another.model.all"),
    (_publish, "fedmq.released", "another.released"),
    (_publish, "", "fedmq.heart.updates"),
    (_bind, "fedmq.heart.updates", "fedmq.updates", "#"),
    (_fetch, "fedmq.heart.models.va"),
    (_declare, "fedmq.another.updates"),
]
DOWNSTREAM_TRIES = [
    (_publish, "fedmq.released", "heart.released"),
    (_publish, "fedmq.updates", "heart.update.va"),
    (_publish, "", "fedmq.heart.released"),
    (_bind, "downstream.scores", "fedmq.models", "#"),
    (_bind, "downstream.scores", "fedmq.updates", "#"),
    (_fetch, "fedmq.heart.released"),
    (_fetch, "fedmq.heart.updates"),
    (_purge, "fedmq.heart.released"),
    (_delete, "fedmq.heart.released"),
    (_declare, "scores"),
    (_declare_exchange, "fedmq.released"),
    (_delete_exchange, "fedmq.released"),
]
OPERATOR_TRIES = [
    (_publish, "fedmq.updates", "heart.update.va"),
    (_publish, "", "fedmq.heart.updates"),
    (_fetch, "fedmq.heart.updates"),
    (_declare, "operator"),
    (_delete, "fedmq.dead"),
]
TRIES = {
    "cleveland": PARTICIPANT_TRIES,
    "aggregator": AGGREGATOR_TRIES,
    "downstream": DOWNSTREAM_TRIES,
    "operator": OPERATOR_TRIES,
}


@pytest.mark.parametrize("user", TRIES)
@pytest.mark.fault("B33", "B34", "B35", "B36")
async def test_what_a_user_is_not_there_for_is_refused(declared: Broker, user: str) -> None:
    connection = await aio_pika.connect(declared.url(user))
    async with connection:
        for action, *words in TRIES[user]:
            # Every refusal closes the channel.
            channel = await connection.channel(on_return_raises=True)
            try:
                await action(channel, *words)
            except ChannelAccessRefused:
                continue
            pytest.fail(f"{user} may {action.__name__.strip('_')} {' '.join(words)}")


@pytest.mark.parametrize("user_id", ["va", "aggregator", "nobody"])
@pytest.mark.fault("B19")
async def test_a_message_cannot_bear_another_user_than_the_one_who_sends_it(declared: Broker, user_id: str) -> None:
    async with _channel(declared.url("cleveland")) as channel:
        await _publish(channel, "fedmq.updates", "heart.heartbeat.cleveland", "cleveland")
        with pytest.raises(ChannelPreconditionFailed):
            await _publish(channel, "fedmq.updates", "heart.heartbeat.cleveland", user_id)


@pytest.mark.parametrize("vhost", ["/", "fedmq"])
async def test_there_is_no_guest(broker: Broker, vhost: str) -> None:
    for url in (f"amqp://guest:guest@127.0.0.1:{broker.node.port}/{vhost}", broker.url("va").replace("va:", "va2:")):
        with pytest.raises((AuthenticationError, ProbableAuthenticationError)):
            await aio_pika.connect(url)


def test_the_operator_may_look_and_not_touch(declared: Broker) -> None:
    password = (declared.secrets / "operator.password").read_text().strip()

    def ask(method: str, path: str, body: bytes | None = None) -> int:
        token = base64.b64encode(f"operator:{password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{declared.node.management_port}/api/{path}",
            method=method,
            data=body,
            headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    look = json.dumps({"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64"}).encode()
    assert ask("GET", "queues") == 200
    assert ask("GET", "connections") == 200
    assert ask("POST", "queues/fedmq/fedmq.dead/get", look) == 200
    assert ask("POST", "queues/fedmq/fedmq.heart.updates/get", look) in {400, 401, 403}
    assert ask("GET", "definitions") in {401, 403}, "it has the hashes of all passwords"
    assert ask("PUT", "users/operator", b'{"password": "x", "tags": "administrator"}') in {401, 403}
