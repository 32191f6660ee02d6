"""The aggregator's settings, and the rules that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from aggregator.state import Rules
from aggregator.store import KEPT_ROWS
from aggregator.strategies import StrategyOptions, make_strategy
from aggregator.strategies.fedprox import FedProx
from broker.messages import LocalWork
from broker.settings import Names, ServiceSettings, Weights

#: What `auto` stands for.
DEFAULT_STRATEGY = "incremental-newton"
#: And where the Hessian does not fit into a message.
WIDE_STRATEGY = "lbfgs"
#: The strategies that minimise F with what the penalty l1 adds.
L1_STRATEGIES = {"incremental-newton", "newton"}
#: What participants send that comes from local fits.
LOCAL_KINDS = {"weights", "delta", "control"}
#: Versions, and versions of staleness. An exact strategy says itself when it is there, and with a version at each
#: arrival a straggler's is hundreds of them behind, at no loss.
EXACT_LIMITS, APPROXIMATE_LIMITS = (100_000, 100_000), (500, 100)
#: A participant is silent after so many heartbeats missed, and a half.
SILENT_AFTER_HEARTBEATS = 3.5


class AggregatorSettings(ServiceSettings):
    """Who may take part, what is computed, when it is good enough."""

    participants: Names = Field(description="Who may take part, separated by commas; the first one's columns lead.")
    start_with: int | None = Field(None, ge=1, description="Participants needed to start; all of them by default.")
    senders: Literal["participant", "shared"] = Field(
        "participant",
        description="Whether each participant has a broker user of its own name, or all share ours (trials only).",
    )
    l2: float | None = Field(None, ge=0, description="Penalty; one over the number of training rows by default.")
    l1: float = Field(0.0, ge=0, description="Penalty on absolute values: lasso, or elastic net together with l2.")
    path: int | None = Field(None, ge=2, le=100, description="Fits for so many penalties l1 besides: the lasso path.")
    penalty: Literal["ridge", "firth"] = Field("ridge", description="firth: Firth's, in place of l2 and l1.")
    class_weights: Weights = Field((), description="How much rows of each class count, separated by commas.")
    missing: Literal["refuse", "mean"] = Field("refuse", description="Whether sites may have missing cells.")
    inference: Literal["none", "wald", "sandwich"] = Field("wald", description="Standard errors of the model.")
    exact_auc: bool = Field(True, description="Count rows between margins until the area under the ROC curve is exact.")
    evict_seconds: float | None = Field(
        None, gt=0, description="A site gone for so long counts no longer; by default what it contributed stays."
    )
    standardise: bool = Field(True, description="Standardise columns by the pooled mean and standard deviation.")
    seed: int = Field(0, ge=0, description="Seed of everything that is random in local fits.")
    strategy: str = Field("auto", description="How updates become the next model.")
    buffer_size: int | None = Field(None, ge=1, description="fedbuff, ca2fl: updates that make a version.")
    quorum: int | None = Field(
        None, ge=1, description="Rounds, fedbuff, ca2fl: updates that are enough at the deadline."
    )
    deadline_seconds: float | None = Field(None, gt=0, description="Rounds, fedbuff, ca2fl: how long a version waits.")
    mixing_rate: float | None = Field(None, description="fedasync: alpha.")
    server_learning_rate: float | None = Field(
        None, description="The server's step, of the strategies that have one: docs/strategies.md."
    )
    momentum: float | None = Field(
        None, description="fedavgm, fedadagrad, fedadam, fedyogi: what stays of the last step."
    )
    second_momentum: float | None = Field(None, description="fedadam, fedyogi: what stays of the squared changes.")
    adaptivity: float | None = Field(None, description="fedadagrad, fedadam, fedyogi: tau.")
    staleness: Literal["constant", "polynomial", "hinge"] | None = Field(None, description="How late updates count.")
    staleness_a: float | None = Field(None, description="Its parameter a.")
    staleness_b: int | None = Field(None, description="Its parameter b (hinge).")
    grace_seconds: float | None = Field(
        None, ge=0, description="Rounds, fedbuff, ca2fl: wait so long after the quorum."
    )
    cohort: int | None = Field(None, ge=1, description="Rounds: updates that make a version, of those asked.")
    over_selection: float | None = Field(None, ge=0, description="Rounds: share of the cohort that is asked besides.")
    proximal: float | None = Field(None, ge=0, description="fedprox: mu.")
    memory: int | None = Field(None, ge=1, description="lbfgs: steps remembered.")
    robust: Literal["mean", "median", "trimmed-mean", "multi-krum", "geometric-median"] | None = Field(
        None, description="How updates of weights or gradients are combined."
    )
    trim: float | None = Field(None, description="trimmed-mean: share taken off at each end.")
    byzantine: int | None = Field(None, description="multi-krum: how many sites may lie.")
    clip: float | None = Field(None, ge=0, description="Largest update, in median lengths of a version's; 0 for none.")
    adapt_steps: bool = Field(False, description="Give slow sites fewer local steps, so that all take as long.")
    solver: Literal["gradient-descent", "newton", "lbfgs"] = Field("gradient-descent", description="The local solver.")
    local_steps: int = Field(3, ge=1, description="Steps of the local solver for each update.")
    learning_rate: float | None = Field(
        None, gt=0, description="Of gradient descent; chosen from the moments by default."
    )
    batch_size: int | None = Field(None, ge=1, description="Rows in a step of gradient descent; all by default.")
    tolerance: float = Field(1e-4, ge=0, description="Relative fall of the loss that counts as progress.")
    patience: int = Field(50, ge=1, description="Versions without progress after which training stops.")
    max_versions: int | None = Field(
        None, ge=1, description="Versions after which it stops at the latest: 500; 100,000 of an exact strategy."
    )
    max_staleness: int | None = Field(
        None, ge=0, description="Versions; updates from older models are refused: 100; 100,000 of an exact strategy."
    )
    sweep_seconds: float = Field(60.0, gt=0, description="How long the last evaluation waits for everybody.")
    store: SecretStr = Field(
        SecretStr(""), description="`postgresql://user@host/database`; a file in state_dir by default."
    )
    store_password_file: Path | None = Field(
        None, description="File that holds the store's password, in place of one in its URL."
    )
    keep_ledger: int = Field(
        KEPT_ROWS, ge=1, description="Contributions kept in the ledger, and hashes of versions; older ones go."
    )
    exit_after_release: bool = Field(False, description="End when the model is released.")
    out: Path | None = Field(None, description="Folder to write each released model to.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.participants:
            raise ValueError("participants: name at least one")
        if len(set(self.participants)) != len(self.participants):
            raise ValueError("participants: a name stands twice")
        if self.start_with is not None and self.start_with > len(self.participants):
            raise ValueError("start_with is more than there are participants")
        return self

    @model_validator(mode="after")
    def _one_penalty(self) -> Self:
        if self.penalty == "firth":
            if self.strategy not in {"auto", "firth"}:
                raise ValueError("strategy: Firth's penalty has a strategy of its own; leave the setting out")
            if self.l2 or self.l1:
                raise ValueError("penalty: Firth's stands in place of l2 and l1; leave them out")
        elif self.strategy == "firth":
            raise ValueError("strategy: firth is for penalty firth; set that")
        if self.l1 and self.strategy not in {"auto", *L1_STRATEGIES}:
            raise ValueError(f"l1: it needs strategy {' or '.join(sorted(L1_STRATEGIES))}")
        return self

    def rules(self) -> Rules:
        """Return what the coordinator goes by; raises `StrategyError`."""
        is_auto = self.strategy == "auto"
        name = "firth" if self.penalty == "firth" else DEFAULT_STRATEGY if is_auto else self.strategy
        options = StrategyOptions(
            buffer_size=self.buffer_size,
            quorum=self.quorum,
            deadline_seconds=self.deadline_seconds,
            mixing_rate=self.mixing_rate,
            server_learning_rate=self.server_learning_rate,
            momentum=self.momentum,
            second_momentum=self.second_momentum,
            adaptivity=self.adaptivity,
            staleness=self.staleness,
            staleness_a=self.staleness_a,
            staleness_b=self.staleness_b,
            grace_seconds=self.grace_seconds,
            cohort=self.cohort,
            over_selection=self.over_selection,
            proximal=self.proximal,
            memory=self.memory,
            robust=self.robust,
            trim=self.trim,
            byzantine=self.byzantine,
            clip=self.clip,
        )
        strategy = make_strategy(name, options)
        # The other solvers find their own step lengths: nothing needs to be chosen from the moments.
        descends = self.solver == "gradient-descent" and strategy.kind in LOCAL_KINDS
        limits = EXACT_LIMITS if strategy.exact else APPROXIMATE_LIMITS
        steps_at_server = strategy.name == "fedsgd" and self.server_learning_rate is None
        proximal = strategy.proximal if isinstance(strategy, FedProx) else 0.0
        return Rules(
            federation=self.federation,
            participants=tuple(self.participants),
            start_with=self.start_with or len(self.participants),
            strategy=strategy,
            wide_strategy=make_strategy(WIDE_STRATEGY) if is_auto and name == DEFAULT_STRATEGY else None,
            work=LocalWork(self.solver, self.local_steps, self.learning_rate, self.batch_size, proximal),
            adapt_steps=self.adapt_steps,
            choose_learning_rate=(descends or steps_at_server) and self.learning_rate is None,
            l2=0.0 if self.penalty == "firth" else self.l2,
            l1=self.l1,
            path=self.path,
            penalty=self.penalty,
            class_weights=self.class_weights,
            missing=self.missing,
            inference=self.inference,
            exact_auc=self.exact_auc,
            evict_seconds=self.evict_seconds,
            standardise=self.standardise,
            seed=self.seed,
            tolerance=self.tolerance,
            patience=self.patience,
            max_versions=limits[0] if self.max_versions is None else self.max_versions,
            max_staleness=limits[1] if self.max_staleness is None else self.max_staleness,
            silence_seconds=SILENT_AFTER_HEARTBEATS * self.heartbeat_seconds,
            sweep_seconds=self.sweep_seconds,
        )
