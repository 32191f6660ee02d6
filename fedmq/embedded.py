"""A whole federation in one process: the services of production on a broker in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing

from prometheus_client import CollectorRegistry

from aggregator.events import Observe
from aggregator.settings import AggregatorSettings
from aggregator.state import State
from aggregator.store.memory import MemoryStore
from broker.memory import MemoryBroker
from broker.messages import ReleasedModel
from fedmq.own_models import OwnModels
from fedmq.services import (
    aggregator_reporter,
    aggregator_service,
    new_incarnation,
    participant_reporter,
    participant_service,
)
from fedmq.sites import Site
from fedmq.watch import OnProgress, SiteProgress, TrainingProgress
from monitoring.http import Health
from participant.outbox import Outbox
from participant.settings import ParticipantSettings, TableSettings

#: The aggregator's user on the broker in memory; no site can be called so.
AGGREGATOR = "aggregator"


async def train_embedded(
    sites: Sequence[Site],
    settings: AggregatorSettings,
    *,
    slow: Mapping[str, float],
    least_fit_seconds: float,
    on_progress: OnProgress,
    own_models: OwnModels | None = None,
    tables: TableSettings | None = None,
) -> ReleasedModel:
    """Return the model that the federation of ``sites`` releases.

    Parameters
    ----------
    tables : how the sites' tables were read; None as by default.
    slow : for some sites, how many times slower their fits are made.
    least_fit_seconds : how long a fit takes at least.
    own_models : what each site makes of its own once the model is released; None nothing.
    """
    broker = MemoryBroker()
    released: list[ReleasedModel] = []
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        store = stack.enter_context(closing(MemoryStore(keep_ledger=settings.keep_ledger)))
        reporter = aggregator_reporter(
            settings,
            CollectorRegistry(),
            Health(),
            on_step=lambda state, observed: on_progress(progress_of(state, observed)),
            on_release=released.append,
        )
        transport = await stack.enter_async_context(broker.transport(AGGREGATOR))
        aggregator = aggregator_service(settings, transport, store, reporter)
        tasks.create_task(aggregator.run(), name="aggregator")
        for site in sites:
            own = ParticipantSettings(
                federation=settings.federation,
                name=site.name,
                data=str(site.path),
                min_cell=TableSettings().min_cell if tables is None else tables.min_cell,
                aggregator_user=AGGREGATOR,
                heartbeat_seconds=settings.heartbeat_seconds,
                least_fit_seconds=least_fit_seconds,
                slowdown=slow.get(site.name, 1.0),
                exit_when_released=True,
                **({} if own_models is None else own_models.settings(site.name)),
            )
            outbox = stack.enter_context(closing(Outbox(":memory:", owner=site.name, incarnation=new_incarnation())))
            link = await stack.enter_async_context(broker.transport(site.name))
            told = participant_reporter(own, CollectorRegistry(), Health())
            participant = participant_service(own, site.table, link, outbox, told)
            tasks.create_task(participant.run(), name=site.name)
    return released[-1]


def progress_of(state: State, observed: Sequence[Observe]) -> TrainingProgress:
    """Return what people watch of ``state`` after what was just ``observed``."""
    made = next((o.fields for o in reversed(observed) if o.event == "version_made"), None)
    came = {o.fields["participant"]: o.fields["staleness"] for o in observed if o.event == "contribution_examined"}
    return TrainingProgress(
        phase=state.progress.phase,
        version=state.progress.version,
        loss=state.progress.loss,
        sites={
            name: SiteProgress(
                name=name,
                included=member.included,
                staleness=came.get(name),
                in_last_version=made is not None and name in made["staleness"],
                late=made is not None and name in made["late"],
            )
            for name, member in state.members.items()
        },
    )
