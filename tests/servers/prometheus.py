"""A private Prometheus for tests: a free port, a folder of its own, and the process ends with the context.

Prometheus chooses the port itself (``:0``) and writes it to its log, so that nobody can take the port
between the search for a free one and its use.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

from monitoring import dashboards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05

_Answer = TypeVar("_Answer")

_LISTENING = re.compile(r'msg="Listening on".*?address=(\S+)')


def require_programs() -> None:
    """Skip the test, visibly, where Prometheus is not installed; in CI that is a failure."""
    missing = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    if not missing:
        return
    sentence = f"{' and '.join(missing)} cannot be found on PATH; install the package prometheus"
    if os.environ.get("CI") or os.environ.get("FEDMQ_REQUIRE_SERVERS") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)


def eventually(ask: Callable[[], _Answer], *, seconds: float = START_SECONDS) -> _Answer:
    """Ask until the answer is true and return it, or the last one when the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return answer


class Prometheus:
    """A Prometheus that scrapes ``targets`` and evaluates ``rules``, four times a second by default.

    Parameters
    ----------
    targets : job name -> addresses such as ``127.0.0.1:9464``.
    folder : for its configuration, log and data.
    rules : the text of a rules file.
    interval : between two scrapes, and between two evaluations.
    """

    def __init__(
        self, targets: Mapping[str, Sequence[str]], folder: Path, *, rules: str = "groups: []", interval: str = "250ms"
    ) -> None:
        require_programs()
        self._folder = folder
        self._log = folder / "prometheus.log"
        (folder / "rules.yml").write_text(rules, encoding="utf-8")
        # JSON is YAML.
        configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")

    def __enter__(self) -> Self:
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an instant query; an expression that Prometheus refuses is an error."""
        answer: dict[str, Any] = self._get("/api/v1/query", query=expr)
        if answer["resultType"] == "vector":
            series: list[dict[str, Any]] = answer["result"]
            return series
        return [{"metric": {}, "value": answer["result"]}]

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return every rule by its name, with ``state``, ``health``, ``lastError`` and ``alerts``."""
        groups: list[dict[str, Any]] = self._get("/api/v1/rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode()
            raise AssertionError(f"Prometheus refused {path} {parameters}: {reason}") from None

    def _wait_until_ready(self) -> None:
        if not eventually(self._is_ready):
            raise AssertionError(f"Prometheus was not ready in {START_SECONDS:g} s; its log:\n{self._log.read_text()}")

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended by itself; its log:\n{self._log.read_text()}")
        if (listening := _LISTENING.search(self._log.read_text())) is None:
            return False
        self.address = listening[1]
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=1):
                return True
        except OSError:
            return False

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def check_panels(prometheus: Prometheus, *, federation: str = ".*", rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Run every query of the committed dashboard; return title and expression of those without data.

    A query that only answers NaN has no data: it draws nothing.

    Parameters
    ----------
    prometheus : it has scraped a federation, real or not.
    federation : a regular expression for the label.
    rate_interval : at least two scrapes, and short enough that something happened in it.
    """
    queries = dashboards.panel_queries(
        dashboards.PATH.read_text(encoding="utf-8"), federation=federation, rate_interval=rate_interval
    )
    return [
        (title, expr)
        for title, expr in queries
        if all(math.isnan(float(series["value"][1])) for series in prometheus.query(expr))
    ]
