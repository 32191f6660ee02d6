"""How a plan is made: from the first hellos, then from the merged moments; and who fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator.state import Member, Rules
from broker.messages import Frame, Hello, Plan
from logistic.moments import Moments, merge_all

#: Column names shown of those that do not fit.
SHOWN = 5


def enrol(known: Member | None, hello: Hello, plan: Plan | None) -> Member:
    """Return the member that ``hello`` makes: one known again keeps its history, one without its disk counts anew."""
    features = hello.features if plan is None else ()
    barred = "" if plan is None else mismatch(hello.features, plan.features)
    fresh = Member(
        hello.participant, hello.incarnation, hello.n_rows, hello.n_test_rows, features=features, barred=barred
    )
    if known is None:
        return fresh
    if known.incarnation == hello.incarnation:
        return replace(known, n_rows=hello.n_rows, n_test_rows=hello.n_test_rows, features=features, barred=barred)
    return replace(
        fresh,
        pending=known.pending,
        included=known.included,
        last_base_version=known.last_base_version,
        loss=known.loss,
        **_numbers(known, hello.incarnation),
    )


def _numbers(known: Member, incarnation: str) -> dict[str, Any]:
    """Return where the numbering of another ``incarnation`` stands, and what is remembered of those before it.

    An earlier one may come back: a queue brings its hello again, or a disk is restored. Were it to start at nothing,
    what it had sent before would count a second time.
    """
    former = {**known.former, known.incarnation: known.received} if known.received else {**known.former}
    received = former.pop(incarnation, 0)
    waits = known.pending == f"{known.name}:{incarnation}:{received}"
    return {"received": received, "settled": received - 1 if waits else received, "former": former}


def mismatch(features: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Return why columns do not fit, or nothing; their order does not matter."""
    missing = sorted(set(expected) - set(features))
    unknown = sorted(set(features) - set(expected))
    if not missing and not unknown:
        return ""
    parts = [
        f"{what}: {', '.join(names[:SHOWN])}" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    return f"its columns are not the plan's ({'; '.join(parts)})"


def first_plan(rules: Rules, enrolled: Sequence[Member]) -> tuple[Plan, dict[str, Member]]:
    """Return the plan that the first of ``enrolled`` leads, and all of them, barred where their columns do not fit."""
    features = enrolled[0].features
    members = {
        member.name: replace(member, features=(), barred=mismatch(member.features, features)) for member in enrolled
    }
    n_rows = sum(member.n_rows for member in members.values() if not member.barred)
    plan = Plan(
        federation=rules.federation,
        revision=1,
        features=features,
        l2=1.0 / max(1, n_rows) if rules.l2 is None else rules.l2,
        strategy=rules.strategy.name,
        kind=rules.strategy.kind,
        work=rules.work,
        seed=rules.seed,
        frame=None,
    )
    return plan, members


def frozen_plan(plan: Plan, rules: Rules, moments: Mapping[str, Moments]) -> Plan:
    """Return ``plan`` with what follows from the merged ``moments``: the frame, and the learning rate."""
    merged = merge_all(moments[name] for name in sorted(moments))
    work = plan.work
    if rules.choose_learning_rate:
        rate = learning_rate(merged, plan.l2, standardised=rules.standardise)
        work = replace(work, learning_rate=rate)
    frame = Frame(mean=merged.mean, scale=merged.std()) if rules.standardise else None
    return replace(plan, revision=plan.revision + 1, frame=frame, work=work)


def learning_rate(moments: Moments, l2: float, *, standardised: bool) -> float:
    """One over a bound on the curvature of the pooled loss: 1 / (trace(Z'Z / n) / 4 + l2), the intercept's 1 included.

    It is the same for everybody. Rates of their own, each over its own curvature, would make the participants'
    steps unequal and move the fixed point.
    """
    second = np.count_nonzero(moments.m2) if standardised else float(np.sum(moments.mean**2 + moments.m2 / moments.n))
    return 1.0 / ((second + 1.0) / 4.0 + l2)
