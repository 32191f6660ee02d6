"""`fedmq chaos`: a thousand federations that suffer every fault break no promise, and each broken product is found."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from broker import failpoints
from fedmq.chaos.broken import VARIANTS
from fedmq.chaos.world import CHANCES, KINDS, MEMBERSHIP

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

RUNS = 1000


def chaos(*arguments: str, seed_of_hashes: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedmq", "chaos", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONHASHSEED": seed_of_hashes, "PATH": "/usr/bin:/bin"},
    )


@cache
def a_thousand() -> dict[str, Any]:
    ended = chaos("--seeds", f"0-{RUNS - 1}", "--json")
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


@pytest.mark.fault("F26", "F27", "F32", "F33", "F34", "F35", "F36")
def test_a_thousand_runs_lose_nothing_count_nothing_twice_and_do_not_hang() -> None:
    verdict = a_thousand()
    assert verdict["runs"] == RUNS
    assert verdict["failing"] == []
    assert [verdict[name] for name in ("lost", "twice", "unexpected", "hangs")] == [0, 0, 0, 0]
    refused = sum(verdict["refused"].values())
    judged = verdict["aggregated"] + verdict["answered"] + refused + verdict["void"]
    assert verdict["attempted"] == judged + verdict["unheard"]
    assert verdict["aggregated"] > 10 * RUNS
    assert verdict["compared"] > 0.9 * RUNS
    assert verdict["takeovers"] > RUNS


def test_every_kind_of_fault_and_a_death_at_every_place_occurs_among_them() -> None:
    deaths = {f"kill at {point}" for point in (*failpoints.PARTICIPANT, *failpoints.AGGREGATOR)}
    assert {*CHANCES, *KINDS, *MEMBERSHIP, *deaths} - a_thousand()["faults"].keys() == set()


def test_the_same_seeds_are_the_same_runs_to_the_last_byte_in_any_process() -> None:
    digests = {
        json.loads(chaos("--seeds", "0-39", "--json", "--jobs", jobs, seed_of_hashes=hashes).stdout)["digest"]
        for jobs, hashes in (("1", "1"), ("2", "2"), ("2", "3"))
    }
    assert len(digests) == 1


def test_a_trace_tells_of_a_run_what_was_seen() -> None:
    ended = chaos("--seeds", "5-5", "--trace")
    assert ended.returncode == 0
    for words in ("puts site-1:site-1-1:1 (moments from version 0)", "takes over with epoch", "version 1:", "FAULT"):
        assert words in ended.stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_product_is_found_within_500_seeds_and_one_command_shows_it_again(variant: str) -> None:
    for seeds in ("0-9", "10-49", "50-149", "150-299", "300-499"):
        ended = chaos("--seeds", seeds, "--broken", variant)
        if ended.returncode:
            break
    assert ended.returncode == 1
    [again, *_] = [line.strip() for line in ended.stderr.splitlines() if line.strip().startswith("fedmq chaos")]
    shown = chaos(*again.split()[2:])
    assert shown.returncode == 1
    assert "seed" in shown.stderr
    assert "broke a promise" in shown.stderr


@pytest.mark.parametrize("wrong", [("--seeds", "9-1"), ("--seeds", "x"), ("--broken", "everything")])
def test_what_cannot_be_run_is_said_in_a_sentence(wrong: tuple[str, str]) -> None:
    ended = chaos(*wrong)
    assert ended.returncode == 2
    assert ended.stderr.startswith("fedmq: ")
    assert "Traceback" not in ended.stderr
