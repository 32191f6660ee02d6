"""What befalls the whole of a federation, or one of its services, at a time of the world's choice."""

from __future__ import annotations

import asyncio

from broker.topology import models_queue, plans_queue, presence_queue, released_queue, updates_queue
from fedmq.chaos.life import Life
from fedmq.chaos.stage import Stage
from fedmq.chaos.world import FEDERATION, Incident

#: What a life notes by itself, when it is there to be befallen.
NOTED_BY_THE_LIFE = {"kill", "host-lost", "leaves", "outbox-lost"}


def befall(stage: Stage, incident: Incident, life: Life | None) -> None:
    """Let ``incident`` happen now, to ``life`` where it is about a service; it ends with the faults at the latest."""
    if incident.kind not in NOTED_BY_THE_LIFE:
        stage.fault(incident.who, incident.kind, f"for {incident.seconds:.2f} s")
    now = stage.now()
    ends_at = max(now, min(now + incident.seconds, stage.world.faults.until))
    _befalls_broker(stage, incident, ends_at)
    _befalls_disk(stage, incident, ends_at)
    if life is not None:
        _befalls_service(stage, incident, life, ends_at)


def _befalls_broker(stage: Stage, incident: Incident, ends_at: float) -> None:
    loop, broker = asyncio.get_running_loop(), stage.broker
    match incident.kind:
        case "cut":
            broker.cut(incident.who)
            loop.call_at(ends_at, broker.heal, incident.who)
        case "cut-all" | "broker-restarted" | "broker-disk-lost":
            broker.cut(None)
            if incident.kind != "cut-all":
                broker.forget(disk=incident.kind == "broker-disk-lost")
            loop.call_at(ends_at, broker.heal, None)
        case "publishers-blocked":
            broker.block()
            loop.call_at(ends_at, broker.unblock)
        case "queue-deleted":
            broker.delete(_queue(incident.who))
        case "consumer-cancelled":
            broker.cancel(_queue(incident.who))
        case _:
            pass


def _befalls_disk(stage: Stage, incident: Incident, ends_at: float) -> None:
    loop, who = asyncio.get_running_loop(), incident.who
    match incident.kind:
        case "other-rows":
            stage.rows[who].which = 1
        case "store-full":
            stage.full.add(who)
            loop.call_at(ends_at, stage.full.discard, who)
        case "outbox-full":
            outbox = stage.outboxes[who]
            outbox.is_full = True
            loop.call_at(ends_at, setattr, outbox, "is_full", False)
        case _:
            pass


def _befalls_service(stage: Stage, incident: Incident, life: Life, ends_at: float) -> None:
    who, seconds, uniform = incident.who, incident.seconds, life.rng.uniform
    match incident.kind:
        case "kill":
            life.die("kill", down=seconds)
        case "host-lost":
            life.die("host-lost", down=seconds, noticed_after=uniform(0.0, 20.0))
        case "leaves":
            life.leave(seconds)
        case "half-open":
            stage.broker.half_open(who, client_after=uniform(0.0, 30.0), broker_after=uniform(0.0, 30.0))
        case "frozen":
            life.frozen_until = ends_at
            stage.broker.half_open(who, client_after=ends_at - stage.now(), broker_after=uniform(0.0, seconds))
        case "outbox-lost":
            life.die("outbox-lost", down=seconds)
            stage.new_outbox(who)
        case _:
            pass


def _queue(who: str) -> str:
    kind, _, name = who.partition(".")
    names = {
        "updates": updates_queue(FEDERATION),
        "presence": presence_queue(FEDERATION),
        "released": released_queue(FEDERATION),
        "models": models_queue(FEDERATION, name),
        "plans": plans_queue(FEDERATION, name),
    }
    return names[kind]
