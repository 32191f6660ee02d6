"""How a plan is made: from the first hellos, then from the merged moments; and who fits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator.state import WIDEST_HESSIAN, Member, Rules, State
from broker.messages import MAX_BODY_BYTES, Array, Frame, Hello, InferenceKind, Plan, Sizes
from broker.schema import Schema, difference, model_columns, unknown_levels, with_levels, without_columns
from logistic.moments import Moments, merge_all

#: Bytes of names and scalars beside the arrays of an update, at most.
MARGIN_BYTES = 4096

#: Bytes of an evaluation besides its matrices, at most.
ROOM_FOR_SCORES = 256 * 1024

#: Columns up to which their means fit into the plan beside their scales and names.
WIDEST_CENTRED = 400_000

#: Column names shown of those that do not fit.
SHOWN = 5


def enrol(known: Member | None, hello: Hello, plan: Plan | None) -> Member:
    """Return the member that ``hello`` makes: one known again keeps its history, one without its disk counts anew."""
    barred = "" if plan is None else mismatch(hello, plan)
    fresh = Member(
        hello.participant,
        hello.incarnation,
        hello.n_rows,
        hello.n_test_rows,
        barred=barred,
        classes=hello.classes,
        n_samples=hello.n_samples,
        fingerprint=hello.fingerprint,
        hello=hello if plan is None else None,
    )
    if known is None:
        return fresh
    if known.incarnation == hello.incarnation:
        return replace(
            known,
            n_rows=hello.n_rows,
            n_test_rows=hello.n_test_rows,
            barred=barred,
            classes=hello.classes,
            n_samples=hello.n_samples,
            fingerprint=hello.fingerprint,
            hello=fresh.hello,
            evicted=False,
        )
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
    former = known.with_former(known.incarnation, known.received) if known.received else {**known.former}
    received = former.pop(incarnation, 0)
    waits = known.pending == f"{known.name}:{incarnation}:{received}"
    return {"received": received, "settled": received - 1 if waits else received, "former": former}


def mismatch(hello: Hello, plan: Plan) -> str:
    """Return why a site does not fit ``plan``, or nothing; the order of its columns does not matter."""
    if hello.classes != plan.classes:
        return f"its classes are {_listed(hello.classes)}, the plan's {_listed(plan.classes)}"
    if plan.feature_schema is None:
        if hello.feature_schema is not None:
            return "it has a schema, and the plan has none: start every site with the schema's file"
        return _other_columns(hello.features, plan.features)
    if hello.feature_schema is None:
        return "it has no schema, and the plan has one: start it with the schema's file"
    if words := difference(plan.feature_schema, hello.feature_schema):
        return f"its schema is not the plan's: {words}; give every site the same file"
    return unknown_levels(plan.feature_schema, hello.levels)


def _other_columns(features: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if features == expected:  # a million of them are compared in no time, and sorted in a second
        return ""
    missing = sorted(set(expected) - set(features))
    unknown = sorted(set(features) - set(expected))
    if not missing and not unknown:
        return ""
    parts = [
        f"{what}: {', '.join(names[:SHOWN])}" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    return f"its columns are not the plan's ({'; '.join(parts)})"


def _listed(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes))


def first_plan(rules: Rules, enrolled: Sequence[Member]) -> tuple[Plan, dict[str, Member]]:
    """Return the plan that the first of ``enrolled`` leads, and all of them, barred where their tables do not fit."""
    hellos = {member.name: member.hello for member in enrolled if member.hello is not None}
    leading = hellos[enrolled[0].name]
    plan = Plan(
        federation=rules.federation,
        revision=1,
        features=leading.features,
        l2=0.0,
        strategy=rules.strategy.name,
        kind=rules.strategy.kind,
        work=rules.work,
        seed=rules.seed,
        frame=None,
        classes=leading.classes,
        class_weights=rules.class_weights,
        penalty=rules.penalty,
        l1=rules.l1,
        missing=rules.missing,
    )
    if leading.feature_schema is not None:
        plan = _with_schema(plan, leading.feature_schema, hellos.values())
    members = {
        member.name: replace(member, hello=None, barred=mismatch(hellos[member.name], plan)) for member in enrolled
    }
    return _with_strategy(replace(plan, l2=chosen_l2(rules, members)), rules), members


def _with_schema(plan: Plan, leading: Schema, hellos: Iterable[Hello]) -> Plan:
    """Return ``plan`` with the levels of all whose schema is the ``leading`` one, and the columns that follow."""
    fitting = [
        hello for hello in hellos if hello.feature_schema is not None and not difference(leading, hello.feature_schema)
    ]
    schema = with_levels(leading, [hello.levels for hello in fitting])
    return replace(
        plan,
        features=model_columns(schema),
        feature_schema=schema,
        missing="mean" if schema.fills_with_mean else "refuse",
    )


def chosen_l2(rules: Rules, members: Mapping[str, Member]) -> float:
    """Return the penalty: as given, or one over the weight of all training rows."""
    weight = sum(member.weight for member in members.values() if member.takes_part)
    return rules.l2 if rules.l2 is not None else 1.0 / max(1.0, weight)


def _with_strategy(plan: Plan, rules: Rules) -> Plan:
    """Return ``plan`` with what depends on its number of parameters."""
    wide = plan.sizes.parameters > WIDEST_HESSIAN
    strategy = rules.wide_strategy if wide and rules.wide_strategy is not None else rules.strategy
    return replace(plan, strategy=strategy.name, kind=strategy.kind, inference=inference_of(rules, plan.sizes))


def inference_of(rules: Rules, sizes: Sizes) -> InferenceKind:
    """Return the inference that was asked for, or none where its matrices do not fit into a message.

    Without a penalty they are asked for anyway: they tell whether there is an optimum at all.
    """
    asked: InferenceKind = "wald" if rules.inference == "none" and rules.l2 == 0.0 else rules.inference
    n_matrices = {"none": 0, "wald": 1, "sandwich": 2}[asked]
    return asked if fits_into_message(sizes, n_matrices) else "none"


def arrays_fit_into_message(length: int, n_arrays: int) -> bool:
    """Whether so many arrays of one number for each of ``length`` do."""
    return 8 * n_arrays * length <= MAX_BODY_BYTES - MARGIN_BYTES


def fits_into_message(sizes: Sizes, n_matrices: int) -> bool:
    """Whether so many matrices of all parameters do, with room for everything else."""
    return 8 * n_matrices * sizes.packed <= MAX_BODY_BYTES - ROOM_FOR_SCORES


def without_empty(plan: Plan, moments: Mapping[str, Moments]) -> tuple[Plan, dict[str, Moments]]:
    """Return ``plan`` and ``moments`` without the columns of rare levels that no row has after all."""
    if plan.feature_schema is None:
        return plan, dict(moments)
    merged = merge_all(moments[name] for name in sorted(moments))
    empty = [name for name, mean, m2 in zip(plan.features, merged.mean, merged.m2, strict=True) if mean == m2 == 0.0]
    schema = without_columns(plan.feature_schema, empty)
    features = model_columns(schema)
    keep = np.isin(plan.features, features)
    kept = {
        name: Moments(each.n, each.mean[keep], each.m2[keep], None if each.observed is None else each.observed[keep])
        for name, each in moments.items()
    }
    return replace(plan, features=features, feature_schema=schema), kept


def frozen_plan(plan: Plan, rules: Rules, moments: Mapping[str, Moments]) -> Plan:
    """Return ``plan`` with what follows from the merged ``moments``: frame, fill and learning rate."""
    merged = merge_all(moments[name] for name in sorted(moments))
    work = plan.work
    if rules.choose_learning_rate:
        rate = learning_rate(merged, plan.l2, plan.sizes.n_outputs, standardised=rules.standardise)
        work = replace(work, learning_rate=rate)
    centre = merged.mean if len(plan.features) <= WIDEST_CENTRED else None
    frame = Frame(mean=centre, scale=merged.std()) if rules.standardise else None
    fill = merged.mean if plan.missing == "mean" else None
    return replace(plan, revision=plan.revision + 1, frame=frame, fill=fill, work=work)


def penalty_scale(state: State) -> Array:
    """Return D, (n_parameters,): by what l2 is multiplied for each parameter in the frame that was frozen first.

    Rows that came later change the pooled standard deviations, and contributions stay in the frame in
    which they were made: D_jj = (sd_new / sd_frozen)^2 makes the penalty that of the new one. Intercepts have none.
    """
    plan = _planned(state)
    each = np.ones((plan.sizes.n_outputs, len(plan.features) + 1))
    each[:, :-1] = rescaling(state) ** 2
    each[:, -1] = 0.0
    return each.ravel()


def rescaling(state: State) -> Array:
    """Return sd_new / sd_frozen of each column, (n_features,): ones as long as nobody came and no rows changed."""
    plan = _planned(state)
    return np.ones(len(plan.features)) if plan.frame is None else pooled_moments(state).std() / plan.frame.scale


def pooled_moments(state: State) -> Moments:
    """Return the moments of the rows of all who take part and have sent theirs."""
    present = [name for name in sorted(state.moments) if state.members[name].takes_part]
    return merge_all(state.moments[name] for name in present or sorted(state.moments))


def penalty(state: State, weights: Array) -> float:
    """Return (l2 / 2) w' D w + l1 |sqrt(D) w|, the penalty of ``weights`` in nats per row."""
    plan = _planned(state)
    if plan.penalty == "firth":
        return 0.0
    scale = penalty_scale(state)
    return 0.5 * plan.l2 * float(scale @ weights**2) + plan.l1 * float(np.sqrt(scale) @ np.abs(weights))


def _planned(state: State) -> Plan:
    assert state.plan is not None, "no weights before there is a plan"
    return state.plan


def learning_rate(moments: Moments, l2: float, n_outputs: int = 1, *, standardised: bool) -> float:
    """One over a bound on the curvature of the pooled loss: 1 / (trace(Z'Z / n) / 4 + l2), the intercept's 1 included.

    Of more than two classes it is a half in place of the quarter.

    It is the same for everybody. Rates of their own, each over its own curvature, would make the participants'
    steps unequal and move the fixed point.
    """
    second = np.count_nonzero(moments.m2) if standardised else float(np.sum(moments.mean**2 + moments.m2 / moments.n))
    return 1.0 / ((second + 1.0) / (4.0 if n_outputs == 1 else 2.0) + l2)
