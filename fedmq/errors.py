"""Errors of the commands, and which exit code each kind of error has.

====  =====================================================================================
code  means
====  =====================================================================================
0     done
1     something broke that the user could not have known: a bug, a full disk, a lost store; a promise, in `fedmq chaos`
2     the input is wrong: an option, a setting, a table, an unreachable broker, a password
3     training has ended, and there is no model to be had from these rows as it was asked for
130   interrupted by the user
====  =====================================================================================
"""

from __future__ import annotations

from aggregator.errors import AggregatorError, NoFinalModel, StoreError
from broker.errors import BrokerError
from logistic.errors import LogisticError
from monitoring.errors import MonitoringError
from participant.errors import OutboxError, ParticipantError

FAILED = 1
WRONG_INPUT = 2
NO_MODEL = 3
INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked to; the message says why and what to do."""


class ProcessFailed(CommandError):
    """One of the processes of a training ended, and would end again."""


class PromiseBroken(CommandError):
    """A run of `fedmq chaos` has broken a promise of ours."""


class ModelNotWritten(CommandError):
    """The model is trained and could not be written."""


#: Errors whose message is meant for the user.
OURS = (CommandError, AggregatorError, BrokerError, LogisticError, MonitoringError, ParticipantError)


def exit_code(error: BaseException) -> int:
    """Return the exit code for one of our errors."""
    if isinstance(error, NoFinalModel):
        return NO_MODEL
    return (
        FAILED
        if isinstance(error, StoreError | OutboxError | ProcessFailed | PromiseBroken | ModelNotWritten)
        else WRONG_INPUT
    )


def ours_in(error: BaseException) -> BaseException | None:
    """Return the first of our errors in ``error``, looking into groups, or None."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := ours_in(inner))), None)
    return error if isinstance(error, OURS) else None
