"""``fedmq train``: from files on one machine to a model, embedded or over a broker."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from aggregator.settings import AggregatorSettings
from broker.messages import ReleasedModel
from fedmq.embedded import train_embedded
from fedmq.errors import CommandError
from fedmq.model_file import check_out, document, write_model
from fedmq.own_models import OwnModels
from fedmq.processes import Trial, train_over_broker
from fedmq.show import ProgressLines, print_summary
from fedmq.sites import Site, find_sites
from fedmq.watch import OnProgress
from monitoring.logs import configure_logging
from participant.settings import TableSettings


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What ``fedmq train`` was asked for: ``tables`` is how to read the data, ``options`` are for the aggregator.

    ``own_models`` : what each site makes of its own once the model is released, and where; None nothing.
    """

    data: Sequence[Path]
    tables: TableSettings
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    broker: str | None = None
    state: Path | None = None
    slow: tuple[str, ...] = ()
    least_fit_seconds: float = 0.0
    own_models: OwnModels | None = None


def run_train(
    request: TrainRequest, *, as_json: bool, site_intercepts: bool = False, local_models: bool = False
) -> None:
    """Train, write the model, and print its summary or document; progress goes to standard error.

    With ``site_intercepts`` or ``local_models`` each site makes models of its own, which are written beside the model.
    """
    configure_logging(level="error")
    check_out(request.out, inputs=request.data)
    with tempfile.TemporaryDirectory(prefix="fedmq-") as folder:
        if site_intercepts or local_models:
            request = replace(request, own_models=OwnModels(Path(folder), site_intercepts, local_models))
        with ProgressLines() as progress:
            model = train(request, on_progress=progress)
        own = request.own_models
        written = write_model(request.out, model, sites=None if own is None else own.folder)
        made = {} if own is None else {site.name: own.document(site.name) for site in model.participants}
    if as_json:
        click.echo(json.dumps(document(model), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_summary(model, written, made)


def train(request: TrainRequest, *, on_progress: OnProgress) -> ReleasedModel:
    """Return the model; raises errors of `fedmq.errors.OURS` before anything is started or written."""
    if request.state is not None and request.broker is None:
        raise CommandError("--state keeps what services over a broker leave behind: give --broker with it")
    reading = request.tables.reading()
    sites = find_sites(request.data, reading.what, reading.dialect)
    settings = train_settings(sites, request.options, request.broker)
    slow = _slow(request.slow, sites)
    if request.broker is None:
        return asyncio.run(
            train_embedded(
                sites,
                settings,
                tables=request.tables,
                slow=slow,
                least_fit_seconds=request.least_fit_seconds,
                on_progress=on_progress,
                own_models=request.own_models,
            )
        )
    keep = tempfile.TemporaryDirectory(prefix="fedmq-") if request.state is None else nullcontext(request.state)
    with keep as state:
        trial = Trial(slow, request.least_fit_seconds, Path(state).absolute(), request.own_models)
        return asyncio.run(
            train_over_broker(sites, settings, tables=request.tables, trial=trial, on_progress=on_progress)
        )


def train_settings(sites: Sequence[Site], options: Mapping[str, Any], broker: str | None = None) -> AggregatorSettings:
    """Return the aggregator's settings for a training on one machine."""
    given = dict(options)
    if broker is not None:
        given["broker"] = broker
    settings = AggregatorSettings.load(
        None,
        {**given, "participants": [site.name for site in sites], "exit_after_release": True, "senders": "participant"},
    )
    settings.rules()  # a wrong strategy or option ends here, before anything is started
    return settings


def _slow(given: Sequence[str], sites: Sequence[Site]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, factor = text.partition("=")
        if name not in {site.name for site in sites}:
            raise CommandError(f"--slow: there is no site {name!r}; there are {', '.join(site.name for site in sites)}")
        try:
            found[name] = float(factor)
        except ValueError:
            raise CommandError(f"--slow: {text!r} is not SITE=FACTOR, such as {sites[0].name}=10") from None
        if not 1 <= found[name] < float("inf"):
            raise CommandError(f"--slow: the factor of {name!r} is at least 1")
    return found
