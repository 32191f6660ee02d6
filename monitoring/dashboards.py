"""The Grafana dashboard, generated: ``python -m monitoring.dashboards`` writes the committed JSON.

It is read from the top. First row: is it stuck or just slow, and who is waited for. Then whether it
learns, then each participant, then the machinery underneath. Every panel's description says what good and
bad look like, since whoever opens it at night has not built it.

Every query names the federation by a template variable, one at a time, and survives two aggregators (one of
them in waiting): gauges are taken as a maximum, counters as a sum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    StackingMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = Path(__file__).parent / "grafana" / "dashboards" / "fedmq.json"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_F = 'federation=~"$federation"'
_HEIGHT = 8  # grid cells; the grid is 24 wide

_Panel = TypeVar("_Panel", stat.Panel, table.Panel, timeseries.Panel, heatmap.Panel, statetimeline.Panel)


def _query(expr: str, legend: str = "", *, instant: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).legend_format(legend).datasource(_SOURCE)
    return query.instant() if instant else query.range()


def _panel(panel: _Panel, title: str, description: str, unit: str, width: int) -> _Panel:
    """Give ``panel`` what each panel has."""
    described = panel.title(title).description(description).unit(unit)
    return described.datasource(_SOURCE).span(width).height(_HEIGHT)


def _lines(title: str, description: str, unit: str, width: int = 8) -> timeseries.Panel:
    panel = timeseries.Panel().line_width(1).fill_opacity(5).show_points(VisibilityMode.AUTO)
    return _panel(panel, title, description, unit, width)


def _number(title: str, description: str, unit: str, width: int) -> stat.Panel:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = stat.Panel().graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.NONE)
    panel = panel.reduce_options(newest)
    return _panel(panel, title, description, unit, width).height(5)


def _quantiles(panel: timeseries.Panel, family: str, by: str = "") -> timeseries.Panel:
    """Draw median and 95th percentile of a histogram, for each label named in ``by``."""
    for quantile in (0.5, 0.95):
        buckets = f"sum by (le{by and ', '}{by}) (rate({family}_bucket{{{_F}}}[$__rate_interval]))"
        legend = f"{by and '{{' + by + '}} '}p{quantile * 100:.0f}"
        panel = panel.with_target(_query(f"histogram_quantile({quantile}, {buckets})", legend))
    # Rounds may be rare; a window of at least two minutes keeps the line from breaking up.
    return panel.interval("2m")


def _yes_no(yes: str, no: str, *, yes_color: str, no_color: str) -> ValueMap:
    return ValueMap(
        {
            "1": ValueMappingResult(text=yes, color=yes_color, index=0),
            "0": ValueMappingResult(text=no, color=no_color, index=1),
        }
    )


def _is_it_stuck() -> Iterator[stat.Panel | table.Panel | timeseries.Panel]:
    yield (
        _number(
            "Phase",
            "What the federation is doing: enrolling, moments (standardisation), training, verifying or converged. "
            "Converged is the end until new rows or a new participant reopen training: then no new version is right.",
            "none",
            5,
        )
        .text_mode(BigValueTextMode.NAME)
        .with_target(_query(f"max by (federation, phase) (fedmq_phase{{{_F}}}) == 1", "{{phase}}", instant=True))
    )
    yield _number(
        "Model version",
        "The newest published version. It goes up by one for each new global model; while training it "
        "never stands still for longer than a few usual rounds.",
        "none",
        4,
    ).with_target(_query(f"max by (federation) (fedmq_model_version{{{_F}}})", instant=True))
    yield (
        _number(
            "Since the last version",
            "Stuck or just slow? Compare the two: time since the newest version, and the usual round of the last day. "
            "Within a few usual rounds it is slow; beyond five of them, while training, it is stuck (an alert).",
            "s",
            7,
        )
        .with_target(
            _query(f"time() - max by (federation) (fedmq_last_version_timestamp_seconds{{{_F}}})", "now", instant=True)
        )
        .with_target(
            _query(
                f"sum by (federation) (increase(fedmq_round_seconds_sum{{{_F}}}[1d]))"
                f" / sum by (federation) (increase(fedmq_round_seconds_count{{{_F}}}[1d]))",
                "usual round",
                instant=True,
            )
        )
    )
    yield _number(
        "Awaited now",
        "Participants of whom a contribution is asked and from whom none has come. Training does not wait for them; "
        "the table below names them. 0 and no new version: the aggregator is the one to look at.",
        "none",
        4,
    ).with_target(_query(f"sum by (federation) (fedmq_participant_awaited{{{_F}}})", instant=True))
    yield (
        _number(
            "Aggregator at the broker",
            "Whether the aggregator is connected. Without the broker everything waits and nothing is lost.",
            "none",
            4,
        )
        .mappings([_yes_no("connected", "cut off", yes_color="green", no_color="red")])
        .color_mode(BigValueColorMode.VALUE)
        .with_target(_query(f"max by (federation) (fedmq_broker_connected{{{_F}}})", instant=True))
    )
    yield _who_is_waited_for()
    yield _stacked(
        _lines(
            "Participants by state",
            "Live: heard within its time. Silent: not heard, and expected. Left: said goodbye in order. "
            "A silent participant keeps its place and takes up where it was when it comes back.",
            "none",
            10,
        )
    ).with_target(_query(f"max by (state) (fedmq_participants{{{_F}}})", "{{state}}"))


def _stacked(panel: timeseries.Panel) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(StackingMode.NORMAL).group("A")
    return panel.stacking(stacking).fill_opacity(40)


def _who_is_waited_for() -> table.Panel:
    """Build one row for each participant, the latest ones on top."""
    panel = _panel(
        table.Panel(),
        "Who is waited for",
        "Awaited and silent: call the site. Awaited, heard a moment ago and many versions behind: its fit is "
        "slow (see Local fit). Not awaited: it has delivered all that was asked of it.",
        "none",
        14,
    )
    columns = (
        f"max by (participant) (fedmq_participant_awaited{{{_F}}})",
        f"time() - max by (participant) (fedmq_participant_last_heard_timestamp_seconds{{{_F}}})",
        f"max by (participant) (fedmq_participant_versions_behind{{{_F}}})",
    )
    for expr in columns:
        panel = panel.with_target(_query(expr, instant=True).format(PromQueryFormat.TABLE))
    names = {
        "participant": "Participant",
        "Value #A": "Awaited",
        "Value #B": "Last heard",
        "Value #C": "Versions behind",
    }
    answer = _yes_no("awaited", "no", yes_color="orange", no_color="text")
    return (
        panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names})
        )
        .override_by_name("Awaited", [DynamicConfigValue("mappings", [answer])])
        .override_by_name("Last heard", [DynamicConfigValue("unit", "s"), DynamicConfigValue("decimals", 0)])
        .sort_by([common.TableSortByFieldState().display_name("Versions behind").desc(desc=True)])
    )


def _is_it_learning() -> Iterator[timeseries.Panel | heatmap.Panel]:
    yield _lines(
        "Loss",
        "Federated regularised mean training loss: down and then level. A rise after new rows or a new participant "
        "is right; a rise without either means that the steps are too long.",
        "suffix: nats",
    ).with_target(_query(f"max by (federation) (fedmq_loss_nats{{{_F}}})", "{{federation}}"))
    yield _quantiles(
        _lines(
            "Round latency",
            "Interval between two model versions. Steady: the federation is as fast as it is. Rising: fewer or "
            "slower contributions; see Local fit and the table of who is waited for.",
            "s",
        ),
        "fedmq_round_seconds",
    )
    yield (
        _panel(
            heatmap.Panel(),
            "Staleness",
            "How many versions old updates were when they came. Low rows: everybody keeps up. A band that climbs: a "
            "participant falls behind. Above 20 versions an update counts for almost nothing.",
            "none",
            8,
        )
        .y_axis(heatmap.YAxisConfig().unit("suffix: versions"))
        .interval("2m")
        .with_target(
            _query(
                f"sum by (le) (increase(fedmq_staleness_versions_bucket{{{_F}}}[$__rate_interval]))", "{{le}}"
            ).format(PromQueryFormat.HEATMAP)
        )
    )


def _each_participant() -> Iterator[timeseries.Panel | statetimeline.Panel]:
    yield _stacked(
        _lines(
            "Updates by participant and outcome",
            "Updates a minute, by what became of them. Accepted is what should be seen. Duplicates after a "
            "reconnection are harmless; forged or malformed ones are not: look at that participant's user and version.",
            "suffix: /min",
            12,
        ).draw_style(GraphDrawStyle.BARS)
    ).with_target(
        _query(
            f"60 * sum by (participant, outcome) (rate(fedmq_updates_total{{{_F}}}[$__rate_interval]))",
            "{{participant}} {{outcome}}",
        )
    )
    yield _quantiles(
        _lines(
            "Local fit",
            "How long one fit takes at each site. A site whose fit is longer than many rounds is always behind, and "
            "nothing is wrong with it: give it fewer local steps.",
            "s",
            12,
        ),
        "fedmq_participant_fit_seconds",
        by="participant",
    )
    yield (
        _lines(
            "Newest version at each site",
            "The model each participant works from, beside the newest one. A flat line below the others: models do not "
            "arrive there (see Broker connected), or a fit does not end.",
            "none",
        )
        .with_target(_query(f"max by (federation) (fedmq_model_version{{{_F}}})", "published"))
        .with_target(_query(f"max by (participant) (fedmq_participant_model_version{{{_F}}})", "{{participant}}"))
    )
    yield _lines(
        "Contributions by outcome",
        "What the sites see, a minute: confirmed by the broker, settled by the aggregator, resent. Confirmed and not "
        "settled means that the aggregator does not take them.",
        "suffix: /min",
    ).with_target(
        _query(
            "60 * sum by (participant, outcome) "
            f"(rate(fedmq_participant_contributions_total{{{_F}}}[$__rate_interval]))",
            "{{participant}} {{outcome}}",
        )
    )
    yield (
        _panel(
            statetimeline.Panel().mappings([_yes_no("connected", "cut off", yes_color="green", no_color="red")]),
            "Broker connected",
            "Who was connected when. One site in red: its network, user or certificate. All at once: the broker.",
            "none",
            8,
        )
        .show_value(VisibilityMode.NEVER)
        .with_target(_query(f"max by (federation) (fedmq_broker_connected{{{_F}}})", "aggregator"))
        .with_target(_query(f"max by (participant) (fedmq_participant_broker_connected{{{_F}}})", "{{participant}}"))
    )
    yield (
        _panel(
            statetimeline.Panel().mappings([_yes_no("refused", "as read", yes_color="red", no_color="green")]),
            "Rows at each site",
            "Red: a site's rows have changed and cannot be read, and the former ones stand. Its log says why "
            "(rows_refused); they are taken as soon as they are mended.",
            "none",
            8,
        )
        .show_value(VisibilityMode.NEVER)
        .with_target(_query(f"max by (participant) (fedmq_participant_rows_refused{{{_F}}})", "{{participant}}"))
    )


def _machinery() -> Iterator[timeseries.Panel]:
    yield (
        _lines(
            "Aggregators",
            "1 at the one that serves, 0 at those that wait for their turn. Nobody at 1 for a minute is an alert. "
            "The term goes up by one when another one takes over, or the same is started again: it should rarely move.",
            "none",
        )
        .with_target(_query(f"max by (instance) (fedmq_aggregator_serving{{{_F}}})", "serving {{instance}}"))
        .with_target(_query(f"max by (federation) (fedmq_aggregator_epoch{{{_F}}})", "term"))
    )
    yield (
        _lines(
            "Bytes at the aggregator",
            "Message bodies in and out, by kind. Level with the pace of versions; a jump without one is somebody "
            "sending again and again.",
            "binBps",
        )
        .with_target(_rate("fedmq_received_bytes_total", "kind", "in {{kind}}"))
        .with_target(_rate("fedmq_published_bytes_total", "kind", "out {{kind}}"))
    )
    yield (
        _lines(
            "Bytes at the participants",
            "Message bodies in and out, by site. What leaves a site is bounded by its own policy.",
            "binBps",
        )
        .with_target(_rate("fedmq_participant_received_bytes_total", "participant", "in {{participant}}"))
        .with_target(_rate("fedmq_participant_sent_bytes_total", "participant", "out {{participant}}"))
    )
    yield (
        _lines(
            "Waiting for the broker",
            "Stored and not yet confirmed, at the aggregator and at each site. It returns to 0 between rounds. Rising "
            "everywhere: the broker is away or blocks publishers (disk or memory alarm).",
            "none",
        )
        .with_target(_query(f"max by (federation) (fedmq_outgoing_waiting{{{_F}}})", "aggregator"))
        .with_target(_query(f"max by (participant) (fedmq_participant_outbox_waiting{{{_F}}})", "{{participant}}"))
    )
    yield _quantiles(
        _lines(
            "Commit",
            "Time to make one step durable. Milliseconds on a local disk; hundreds of them make the aggregator slow.",
            "s",
        ),
        "fedmq_commit_seconds",
    )
    yield (
        _lines(
            "Refused messages",
            "Messages that could not be used, a minute, by reason: at the aggregator (dead letters) and at the sites. "
            "It should be 0; the dead-letter queue keeps them for reading.",
            "suffix: /min",
        )
        .with_target(
            _query(
                f"60 * sum by (reason) (rate(fedmq_dead_letters_total{{{_F}}}[$__rate_interval]))",
                "aggregator {{reason}}",
            )
        )
        .with_target(
            _query(
                "60 * sum by (participant, reason) "
                f"(rate(fedmq_participant_refused_messages_total{{{_F}}}[$__rate_interval]))",
                "{{participant}} {{reason}}",
            )
        )
    )
    yield _lines(
        "Released models",
        "Models that went out to downstream subscribers, since the aggregator was started.",
        "none",
    ).with_target(_query(f"sum by (federation) (fedmq_released_total{{{_F}}})", "{{federation}}"))


def _rate(family: str, by: str, legend: str) -> prometheus.Dataquery:
    return _query(f"sum by ({by}) (rate({family}{{{_F}}}[$__rate_interval]))", legend)


def _variables(board: dashboard.Dashboard) -> dashboard.Dashboard:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    federation = (
        dashboard.QueryVariable("federation")
        .label("Federation")
        .query("label_values(fedmq_broker_connected, federation)")
        .datasource(_SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=False)
    )
    return board.with_variable(source).with_variable(federation)


def build() -> str:
    """Return the dashboard as JSON text, the same at every call."""
    board = _variables(
        dashboard.Dashboard("fedmq")
        .uid("fedmq")
        .description("Federated training: is it stuck or just slow, who is waited for, does it learn?")
        .tags(["fedmq"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
    )
    for title, panels in (
        ("Is it stuck or just slow?", _is_it_stuck()),
        ("Is it learning?", _is_it_learning()),
        ("Each participant", _each_participant()),
        ("Machinery", _machinery()),
    ):
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(panel)
    built = board.build()
    for number, built_panel in enumerate(built.panels or [], start=1):
        built_panel.id_val = number
        for target, letter in zip(getattr(built_panel, "targets", None) or [], "ABCDE", strict=False):
            target.ref_id = letter
    return json.dumps(built, cls=JSONEncoder, indent=2) + "\n"


def panel_queries(dashboard_json: str, *, federation: str = ".*", rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Return the title and expression of every query, with the template variables filled in.

    Parameters
    ----------
    dashboard_json : the text of a dashboard.
    federation : a regular expression for the label.
    rate_interval : what Grafana would put for ``$__rate_interval``: at least two scrapes long.
    """
    panels: list[dict[str, Any]] = json.loads(dashboard_json)["panels"]
    return [
        (
            panel["title"],
            target["expr"].replace("$federation", federation).replace("$__rate_interval", rate_interval),
        )
        for panel in panels
        for target in panel.get("targets", [])
    ]


def write(path: Path = PATH) -> None:
    """Write the dashboard to ``path``, by default where it is committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(build(), encoding="utf-8")


if __name__ == "__main__":
    write()
