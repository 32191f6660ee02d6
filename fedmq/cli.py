"""The command ``fedmq``. What a command needs is imported when it runs: ``fedmq --help`` stays quick."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import click

from fedmq import __version__
from fedmq.options import SettingsCommand

_TRAIN_SETTINGS = (
    "strategy",
    "l2",
    "l1",
    "path",
    "penalty",
    "class_weights",
    "inference",
    "exact_auc",
    "standardise",
    "seed",
    "buffer_size",
    "quorum",
    "deadline_seconds",
    "mixing_rate",
    "server_learning_rate",
    "momentum",
    "second_momentum",
    "adaptivity",
    "grace_seconds",
    "cohort",
    "over_selection",
    "proximal",
    "memory",
    "robust",
    "trim",
    "byzantine",
    "clip",
    "adapt_steps",
    "staleness",
    "staleness_a",
    "staleness_b",
    "solver",
    "local_steps",
    "learning_rate",
    "batch_size",
    "tolerance",
    "patience",
    "max_versions",
    "max_staleness",
    "sweep_seconds",
    "heartbeat_seconds",
)

#: What says where the rows are that a schema is for, and how they are written.
_SOURCE_SETTINGS = ("delimiter", "decimal", "query", "database", "database_file", "min_cell")


def _aggregator_settings() -> Any:
    from aggregator.settings import AggregatorSettings

    return AggregatorSettings


def _participant_settings() -> Any:
    from participant.settings import ParticipantSettings

    return ParticipantSettings


def _table_settings() -> Any:
    from participant.settings import TableSettings

    return TableSettings


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, invoke_without_command=True
)
@click.version_option(__version__, prog_name="fedmq")
@click.pass_context
def cli(context: click.Context) -> None:
    """Federated logistic regression over a message queue: the rows stay where they are."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(short_help="Train on four real hospitals, one of them slow.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fedmq-demo"),
    show_default=True,
    help="Folder for the model.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the local fits.")
@click.option("--strategy", default="auto", show_default=True, help="How updates become the next model.")
def demo(out: Path, seed: int, strategy: str) -> None:
    """Train on four real hospitals, one of them ten times slower, and compare with pooled training."""
    _keep_fits_apart()
    from fedmq.demo import run_demo

    run_demo(out, seed=seed, strategy=strategy)


@cli.command(
    cls=SettingsCommand,
    settings=_aggregator_settings,
    only=_TRAIN_SETTINGS,
    first=_table_settings,
    short_help="Train over .csv, .npz and .parquet files on this machine.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A site's .csv, .npz or .parquet file, or a folder of them; may be given again.",
)
@click.argument("more_data", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--broker", envvar="FEDMQ_BROKER", help="AMQP URL: run the aggregator and each site as processes over this broker."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the model; one that we wrote is replaced."
)
@click.option(
    "--state", type=click.Path(path_type=Path), help="With --broker: keep ledger, outboxes and logs in this folder."
)
@click.option(
    "--slow", multiple=True, metavar="SITE=FACTOR", help="For trials: make the fits of a site so many times slower."
)
@click.option(
    "--fit-seconds", type=click.FloatRange(min=0), default=0.0, help="For trials: make each fit take at least so long."
)
@click.option("--site-intercepts", is_flag=True, help="Let each site refit the intercept of the model for itself too.")
@click.option(
    "--local-models", is_flag=True, help="Let each site fine-tune the model for itself too, and compare the two."
)
@click.option("--json", "as_json", is_flag=True, help="Print the model's document in place of the summary.")
@click.pass_context
def train(
    context: click.Context,
    data: Sequence[Path],
    more_data: Sequence[Path],
    broker: str | None,
    out: Path,
    state: Path | None,
    slow: Sequence[str],
    fit_seconds: float,
    site_intercepts: bool,
    local_models: bool,
    as_json: bool,
) -> None:
    """Train over the sites in DATA, in this process or over a broker, and write the model to OUT."""
    _keep_fits_apart()
    from broker.settings import checked
    from fedmq.train import TrainRequest, run_train

    given = context.obj or {}
    of_tables = {name: value for name, value in given.items() if name in _table_settings().model_fields}

    request = TrainRequest(
        data=[*data, *more_data],
        tables=checked(_table_settings(), of_tables),
        out=out,
        options={name: value for name, value in given.items() if name not in of_tables or name == "missing"},
        broker=broker,
        state=state,
        slow=tuple(slow),
        least_fit_seconds=fit_seconds,
    )
    run_train(request, as_json=as_json, site_intercepts=site_intercepts, local_models=local_models)


@cli.command(cls=SettingsCommand, settings=_aggregator_settings, short_help="Serve a federation as its aggregator.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--check-store", is_flag=True, help="Only check what is kept: read it all, make the last model again.")
@click.option("--json", "as_json", is_flag=True, help="With --check-store: print the report as a document.")
@click.pass_context
def aggregator(context: click.Context, config: Path | None, check_store: bool, as_json: bool) -> None:
    """Serve a federation as its aggregator until stopped; SIGTERM ends in order."""
    settings = _aggregator_settings().load(config, context.obj or {})
    if check_store:
        from fedmq.check_store import run_check

        run_check(settings, as_json=as_json)
        return
    from fedmq.services import serve_aggregator

    _run(serve_aggregator(settings))


@cli.command(cls=SettingsCommand, settings=_participant_settings, short_help="Serve a federation as one of its sites.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.pass_context
def participant(context: click.Context, config: Path | None) -> None:
    """Serve a federation as one of its sites until stopped; SIGTERM ends in order."""
    if _says_threads(config, context.obj or {}):
        _keep_fits_apart()  # our threads, each on all cores, would wait for one another too
    settings = _participant_settings().load(config, context.obj or {})
    from fedmq.services import serve_participant

    _run(serve_participant(settings))


@cli.command(short_help="Say where a service stands: is it stuck, or just slow?")
@click.argument("address", default="127.0.0.1:9464")
@click.option("--json", "as_json", is_flag=True, help="Print the service's own document.")
def status(address: str, *, as_json: bool) -> None:
    """Say where the service at ADDRESS stands: the HOST:PORT of its metrics, 127.0.0.1:9464 by default."""
    from fedmq.status import run_status

    run_status(address, as_json=as_json)


@cli.command(short_help="Cut one table into sites, for trials and teaching.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--by", metavar="COLUMN", help="A site for each value of this column, which the sites' files leave out.")
@click.option("--keep", is_flag=True, help="With --by: leave the column in the sites' files.")
@click.option("--sites", type=click.IntRange(1, 1000), metavar="N", help="So many sites; rows are dealt at random.")
@click.option(
    "--dirichlet",
    type=float,
    metavar="A",
    help="With --sites: shares of the labels are drawn from Dirichlet(A); the smaller A, the more the sites differ.",
)
@click.option("--label", metavar="COLUMN", help="The label, whose shares are printed.  [default: y]")
@click.option("--seed", type=click.IntRange(min=0), help="With --sites: the same seed is the same cut.  [default: 0]")
@click.option("--delimiter", help="What is between the cells of a .csv file, such as ';' or tab.  [default: a comma]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the sites' files; a new one.")
def split(file: Path, out: Path, **options: Any) -> None:
    """Cut FILE, a .csv, .npz or .parquet file, into a file for each site; each row goes to exactly one, as it is."""
    from fedmq.split import SplitRequest, run_split

    run_split(SplitRequest(file, out, **options))


@cli.group(invoke_without_command=True, short_help="Draft a feature schema from a table; check a table against one.")
@click.pass_context
def schema(context: click.Context) -> None:
    """Draft a feature schema from a table, and check a table against one; neither uses a network."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@schema.command(
    cls=SettingsCommand,
    settings=_participant_settings,
    only=(*_SOURCE_SETTINGS, "label"),
    short_help="Write the first draft of a schema.",
)
@click.argument("data", default="")
@click.option("--columns", metavar="NAMES", help="Names of the columns of a .csv file without a header line.")
@click.option("--out", type=click.Path(path_type=Path), help="A new file for the draft, in place of standard output.")
@click.pass_context
def infer(context: click.Context, data: str, columns: str | None, out: Path | None) -> None:
    """Write the first draft of a schema for the table DATA, or for what a database answers."""
    from fedmq.schema import SourceRequest, run_infer

    run_infer(SourceRequest(data, context.obj or {}), columns=columns, out=out)


@schema.command(
    cls=SettingsCommand,
    settings=_participant_settings,
    only=("feature_schema", *_SOURCE_SETTINGS),
    short_help="Say what would become of a table under a schema.",
)
@click.argument("data", default="")
@click.option("--json", "as_json", is_flag=True, help="Print the report as a document.")
@click.pass_context
def check(context: click.Context, data: str, as_json: bool) -> None:
    """Say what would become of the table DATA under a schema, and end with 2 if it would be refused."""
    from fedmq.schema import SourceRequest, run_check

    run_check(SourceRequest(data, context.obj or {}), as_json=as_json)


@cli.command(short_help="Try strategies side by side on a virtual clock.")
@click.argument("scenario", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for summary.json, traces.csv and gap.svg.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="In place of the scenario's seeds.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time; one on each core by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary's document in place of the tables.")
def simulate(scenario: str | None, out: Path | None, seeds: Sequence[int], jobs: int | None, *, as_json: bool) -> None:
    """Run SCENARIO, a TOML file or one that comes with fedmq, on a virtual clock; without it, list those."""
    _keep_fits_apart()
    from fedmq.simulation.command import list_scenarios, run_simulate

    if scenario is None:
        list_scenarios()
    else:
        run_simulate(scenario, out=out, as_json=as_json, seeds=seeds, jobs=jobs)


@cli.command(short_help="Let everything go wrong on a virtual clock, and check what is promised.")
@click.option("--seeds", default="0-99", show_default=True, metavar="A-B", help="The first and the last seed.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time; one on each core by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as a document.")
@click.option("--broken", metavar="NAME", help="Break a promise on purpose, to see that it is noticed.")
@click.option("--trace", is_flag=True, help="Print everything that was seen, run by run.")
def chaos(seeds: str, jobs: int | None, broken: str | None, *, as_json: bool, trace: bool) -> None:
    """Run federations that suffer every fault, a seed each, and end with 1 if a promise is broken."""
    _keep_fits_apart()
    from fedmq.chaos.command import run_chaos

    run_chaos(seeds, jobs=jobs, as_json=as_json, broken=broken, trace=trace)


def _says_threads(config: Path | None, flags: dict[str, Any]) -> bool:
    """Whether anything sets `threads`; asked before the settings are loaded, for numpy comes with them."""
    if "threads" in flags or "FEDMQ_THREADS" in os.environ:
        return True
    try:
        return config is not None and "threads" in config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False  # told when the settings are loaded


def _keep_fits_apart() -> None:
    """Let each fit use one core: several at once, each on all cores, wait for one another many times longer."""
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    import asyncio

    asyncio.run(coroutine)


def main() -> None:
    """Run the command line; end with the exit codes of `fedmq.errors`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; the services have a way of their own
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as ending:
        sys.exit(ending.exit_code)
    except click.ClickException as error:
        _say(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _say(f"`{error.ctx.command_path} --help` shows what there is", prefix="")
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(130)
    except Exception as error:
        from fedmq.errors import exit_code, ours_in

        ours = ours_in(error)
        if ours is None:
            raise
        _say(str(ours))
        sys.exit(exit_code(ours))


def _say(sentence: str, *, prefix: str = "fedmq: ") -> None:
    click.echo(f"{prefix}{sentence}", err=True)
