"""A federation of processes on this machine: the aggregator and each site are services of their own over a real broker.

Whoever ends before the training does is started again, with its state: that is what a service manager does for the real
ones, and what makes a kill -9 of any of them a matter of half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from aggregator.errors import NoFinalModel
from aggregator.settings import AggregatorSettings
from broker.codec import decode
from broker.errors import RemoteMessageError
from broker.messages import GlobalModel, ReleasedModel
from broker.settings import ServiceSettings
from broker.topology import MODELS, RELEASED, Binding, Queue, Topology, aggregator_topology, released_key, routing_key
from broker.transport import Consumer
from fedmq.errors import NO_MODEL, WRONG_INPUT, ProcessFailed
from fedmq.own_models import OwnModels
from fedmq.services import rabbitmq_transport
from fedmq.sites import Site
from fedmq.watch import OnProgress, SiteProgress, TrainingProgress
from participant.settings import ParticipantSettings, TableSettings

#: Seconds within which the broker must answer a training command.
CONNECT_SECONDS = 10.0
#: Seconds after which the queues of a training that nobody uses any longer are removed.
EXPIRY_SECONDS = 600.0
#: Starts of one process again, before something is taken to be wrong that a start does not mend.
MAX_RESTARTS = 20
RESTART_SECONDS = 0.5
#: Seconds that processes have to end by themselves once the model is released.
ENDING_SECONDS = 15.0
#: Seconds between two looks for a file.
LOOK_SECONDS = 0.1

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """What makes a training on one machine a trial of something: slow sites, and where to keep what happened."""

    slow: Mapping[str, float]
    least_fit_seconds: float
    state: Path
    own_models: OwnModels | None = None


async def train_over_broker(
    sites: Sequence[Site],
    settings: AggregatorSettings,
    *,
    tables: TableSettings,
    trial: Trial,
    on_progress: OnProgress,
) -> ReleasedModel:
    """Return the model that a federation of processes releases.

    Raises
    ------
    ConnectionTimeout, CredentialsRefused
        When the broker does not let us in within ten seconds.
    ProcessFailed
        When one of the processes ends for a reason that another start would not mend.
    """
    trial.state.mkdir(parents=True, exist_ok=True)
    transport = rabbitmq_transport(settings, connect_timeout_seconds=CONNECT_SECONDS)
    async with transport:
        federation = f"train-{token_hex(6)}"
        common: dict[str, Any] = {
            "federation": federation,
            "state_dir": trial.state,
            "shutdown_grace_seconds": 2.0,
            "queue_expiry_seconds": EXPIRY_SECONDS,
            "log_level": "info",
            "metrics_port": 0,
        }
        # Declared here first, so that no process has to wait for another.
        await transport.declare(aggregator_topology(federation, expires_seconds=EXPIRY_SECONDS))
        await transport.declare(_watching(federation))
        released = await transport.consume(_release_queue(federation), prefetch=1)
        models = await transport.consume(_progress_queue(federation), prefetch=1)
        aggregator = settings.model_copy(update={**common, "senders": "shared", "exit_after_release": True})
        services: dict[str, tuple[str, ServiceSettings]] = {"aggregator": ("aggregator", aggregator)}
        for site in sites:
            own = ParticipantSettings(
                name=site.name,
                data=str(site.path.absolute()),
                **_of_tables(tables),
                broker=settings.broker,
                aggregator_user=transport.user,
                heartbeat_seconds=settings.heartbeat_seconds,
                least_fit_seconds=trial.least_fit_seconds,
                slowdown=trial.slow.get(site.name, 1.0),
                exit_when_released=True,
                **common,
                **({} if trial.own_models is None else trial.own_models.settings(site.name)),
            )
            services[f"site {site.name}"] = ("participant", own)
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            keepers = {
                name: tasks.create_task(_keep(command, name, service, trial.state, done))
                for name, (command, service) in services.items()
            }
            watching = tasks.create_task(_watch(models, on_progress))
            model = await _first_release(released, federation)
            done.set()
            watching.cancel()
            if trial.own_models is not None:
                await _have_made(trial.own_models, {site.name: keepers[f"site {site.name}"] for site in sites})
            await asyncio.wait(keepers.values(), timeout=ENDING_SECONDS)
            for keeper in keepers.values():
                keeper.cancel()
        return model


def _of_tables(tables: TableSettings) -> dict[str, Any]:
    """Return what was said of ``tables``, for processes that may run elsewhere."""
    said = tables.model_dump(exclude_unset=True, exclude_none=True)
    return said | ({} if tables.feature_schema is None else {"feature_schema": tables.feature_schema.absolute()})


def _watching(federation: str) -> Topology:
    """Queues of the command itself: models to show progress by, and a copy of the release; the kept ones stay."""
    progress = Binding(MODELS, routing_key(federation, "model", "all"))
    release = Binding(RELEASED, released_key(federation))
    return Topology(
        queues=(
            Queue(_progress_queue(federation), (progress,), "classic", max_length=1, expires_seconds=EXPIRY_SECONDS),
            Queue(_release_queue(federation), (release,), expires_seconds=EXPIRY_SECONDS),
        )
    )


def _progress_queue(federation: str) -> str:
    return f"fedmq.{federation}.train.progress"


def _release_queue(federation: str) -> str:
    return f"fedmq.{federation}.train.released"


async def _first_release(consumer: Consumer, federation: str) -> ReleasedModel:
    while True:
        delivery = await consumer.take()
        with contextlib.suppress(RemoteMessageError):
            message = decode(delivery.body)
            if isinstance(message, ReleasedModel) and message.federation == federation:
                await delivery.ack()
                return message
        await delivery.reject()


async def _have_made(own_models: OwnModels, sites: Mapping[str, asyncio.Task[None]]) -> None:
    """Wait until each site has made its own models, however long it takes, or has ended without.

    One that was killed goes on with the release that it had kept. If it had not come so far, it finds it in its queue;
    but its plan may have gone with the aggregator, and so it is not waited for.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + ENDING_SECONDS

    for site, keeper in sites.items():
        while not keeper.done() and not own_models.is_made(site):
            if now() > deadline and not own_models.has_release(site):
                break
            await asyncio.sleep(LOOK_SECONDS)


async def _watch(models: Consumer, on_progress: OnProgress) -> None:
    while True:
        delivery = await models.take()
        with contextlib.suppress(RemoteMessageError):
            message = decode(delivery.body)
            if isinstance(message, GlobalModel):
                sites = {name: SiteProgress(name) for name in message.roster}
                on_progress(TrainingProgress(message.phase, message.version, message.loss, sites))
        await delivery.ack()


# --- keeping processes ------------------------------------------------------------------------


async def _keep(command: str, name: str, settings: ServiceSettings, folder: Path, released: asyncio.Event) -> None:
    """Run a service until the model is released; start it again when it ends before, for whatever reason."""
    log = folder / f"{name.replace(' ', '-')}.log"
    for _ in range(MAX_RESTARTS):
        async with _process(command, settings, log) as process:
            code = await process.wait()
        if code == 0 and released.is_set():
            return
        if code == WRONG_INPUT:
            raise ProcessFailed(f"{name} ended: {_last_line(log)}")
        if code == NO_MODEL:
            raise NoFinalModel(_last_line(log))
        await asyncio.sleep(RESTART_SECONDS)
        if code == 0 and released.is_set():  # it heard of the release before we did
            return
    raise ProcessFailed(f"{name} ended {MAX_RESTARTS} times, the last time with: {_last_line(log)}")


@contextlib.asynccontextmanager
async def _process(command: str, settings: ServiceSettings, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a broker.py in the folder where the user stands is none of ours
            "-m",
            "fedmq",
            command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**_foreign_environment(), **_environment(settings)},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    pid_file = log.with_suffix(".pid")
    pid_file.write_text(f"{process.pid}\n", encoding="ascii")
    try:
        yield process
    finally:
        await _end(process)
        pid_file.unlink(missing_ok=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(ENDING_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _end_with_parent() -> None:
    """Be told to end when the training command is killed: nobody else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _foreign_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}


def _environment(settings: ServiceSettings) -> dict[str, str]:
    """Return ``settings`` as environment variables: other users of the machine cannot read them there."""
    found = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        found[f"FEDMQ_{name.upper()}"] = text
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("fedmq: ") if lines else "it said nothing"
