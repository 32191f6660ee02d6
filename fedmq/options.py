"""Every setting as a flag: the commands of the services have an option for each field of their settings.

The options are made when a command is used or its help is asked for: ``fedmq --help`` need not load the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click

#: Settings that also have a shorter flag.
SHORTER = {"feature_schema": "--schema"}


class SettingsCommand(click.Command):
    """A command whose options include the fields of settings; what was given is in ``context.obj``.

    ``settings`` returns them when they are needed; only the names in ``only`` count, where that is given. ``first``
    returns other settings, whose options come before.
    """

    def __init__(
        self,
        *args: Any,
        settings: Callable[[], Any],
        only: Collection[str] | None = None,
        first: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._only = only
        self._first = first
        self._made: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the declared options and those of the settings."""
        if self._made is None:
            fields = self._settings().model_fields
            chosen = {name: field for name, field in fields.items() if self._only is None or name in self._only}
            before = {} if self._first is None else self._first().model_fields
            self._made = [_option(name, field) for name, field in {**before, **chosen}.items()]
        *own, last = super().get_params(ctx)  # the last one is --help
        return [*own, *self._made, last]


def _option(name: str, field: Any) -> click.Option:
    flag = name.replace("_", "-")
    is_bool = field.annotation is bool
    return click.Option(
        [f"--{flag}/--no-{flag}" if is_bool else f"--{flag}", *([SHORTER[name]] if name in SHORTER else [])],
        # Values stay text: the settings check them, with the same sentences as for files and the environment.
        default=None,
        metavar=None if is_bool else "VALUE",
        help=field.description,
        expose_value=False,
        callback=_keep,
    )


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None:
        context.ensure_object(dict)[option.name] = value
