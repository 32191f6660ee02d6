"""The command ``fedmq``. What a command needs is imported when it runs: ``fedmq --help`` stays quick."""

from __future__ import annotations

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


def _aggregator_settings() -> Any:
    from aggregator.settings import AggregatorSettings

    return AggregatorSettings


def _participant_settings() -> Any:
    from participant.settings import ParticipantSettings

    return ParticipantSettings


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
    from fedmq.demo import run_demo

    run_demo(out, seed=seed, strategy=strategy)


@cli.command(
    cls=SettingsCommand,
    settings=_aggregator_settings,
    only=_TRAIN_SETTINGS,
    short_help="Train over CSV files on this machine.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A site's .csv file, or a folder of them; may be given again.",
)
@click.argument("more_data", nargs=-1, type=click.Path(path_type=Path))
@click.option("--label", required=True, help="The column of 0 and 1 to be predicted.")
@click.option("--split", help="The column that says train or test; test rows are only evaluated.")
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
@click.option("--json", "as_json", is_flag=True, help="Print the model's document in place of the summary.")
@click.pass_context
def train(
    context: click.Context,
    data: Sequence[Path],
    more_data: Sequence[Path],
    label: str,
    split: str | None,
    broker: str | None,
    out: Path,
    state: Path | None,
    slow: Sequence[str],
    fit_seconds: float,
    as_json: bool,
) -> None:
    """Train over the sites in DATA, in this process or over a broker, and write the model to OUT."""
    from fedmq.train import TrainRequest, run_train

    request = TrainRequest(
        data=[*data, *more_data],
        label=label,
        split=split,
        out=out,
        options=context.obj or {},
        broker=broker,
        state=state,
        slow=tuple(slow),
        least_fit_seconds=fit_seconds,
    )
    run_train(request, as_json=as_json)


@cli.command(cls=SettingsCommand, settings=_aggregator_settings, short_help="Serve a federation as its aggregator.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.pass_context
def aggregator(context: click.Context, config: Path | None) -> None:
    """Serve a federation as its aggregator until stopped; SIGTERM ends in order."""
    settings = _aggregator_settings().load(config, context.obj or {})
    from fedmq.services import serve_aggregator

    _run(serve_aggregator(settings))


@cli.command(cls=SettingsCommand, settings=_participant_settings, short_help="Serve a federation as one of its sites.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.pass_context
def participant(context: click.Context, config: Path | None) -> None:
    """Serve a federation as one of its sites until stopped; SIGTERM ends in order."""
    settings = _participant_settings().load(config, context.obj or {})
    from fedmq.services import serve_participant

    _run(serve_participant(settings))


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
