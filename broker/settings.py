"""How a service reaches its broker: settings that both services share.

Values come, the later ones winning, from the defaults, a TOML file, environment variables that begin with FEDMQ_,
and flags. An unknown key in a file is an error, and no error ever shows a value: it may be a secret.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator

from broker.errors import BrokerError
from broker.topology import RESERVED, is_name
from broker.url import Address, parse_url


class SettingsError(BrokerError):
    """A setting is unknown, missing, or has a value that means nothing."""


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("use letters, digits, '-' and '_', at most 63, the first a letter or digit")
    return value


def _listed(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _classes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise ValueError("whole numbers separated by commas") from None


def _weights(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise ValueError("numbers separated by commas") from None


#: A positive number for each class.
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_weights)]

#: Labels, in order.
Classes = Annotated[tuple[int, ...], BeforeValidator(_classes)]

#: The largest whole number that a message holds, as in `broker.codec`.
MAX_INT = 2**53

#: Of the environment variables that set something.
PREFIX = "FEDMQ_"


def _participant_name(value: str) -> str:
    if value in RESERVED:
        raise ValueError(f"nobody can be called {value!r}: it addresses somebody else")
    return _name(value)


Model = TypeVar("Model", bound=BaseModel)
Name = Annotated[str, BeforeValidator(_name)]
ParticipantName = Annotated[str, BeforeValidator(_participant_name)]
Names = Annotated[list[ParticipantName], BeforeValidator(_listed)]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServiceSettings(BaseModel):
    """What every service needs to know."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    federation: Name = Field("federation", description="Name of the federation: the first word of every routing key.")
    broker: SecretStr = Field(
        SecretStr("amqp://guest:guest@127.0.0.1:5672/"),
        description="AMQP URL of the broker; several of one cluster separated by commas.",
    )
    broker_password_file: Path | None = Field(
        None, description="File that holds the broker password, in place of one in the URL."
    )
    ca_file: Path | None = Field(None, description="Certificates that the broker's is checked against (amqps).")
    cert_file: Path | None = Field(None, description="Our client certificate (amqps).")
    key_file: Path | None = Field(None, description="The key of our client certificate.")
    state_dir: Path = Field(Path("state"), description="Folder for what must outlive this process.")
    heartbeat_seconds: float = Field(10.0, gt=0, description="Seconds between heartbeats.")
    queue_expiry_seconds: float | None = Field(
        None, gt=0, description="Trials: remove our queues when nobody has used them for so long."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of /metrics, /healthz, /readyz and /status.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Their port; 0 takes a free one.")
    log_level: LogLevel = Field("info", description="Least level of log lines.")
    shutdown_grace_seconds: float = Field(10.0, ge=0, description="How long the work in hand may take to end.")

    @field_validator("*")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        # A plan with a larger one would be no message: everybody would wait for it for ever.
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise ValueError("a whole number is at most 2^53")
        return value

    @classmethod
    def load(cls, config: Path | None, flags: dict[str, Any]) -> Self:
        """Return the settings from ``config``, the environment and ``flags``; raises `SettingsError`."""
        origin = str(config) if config else "the settings"
        from_file = _read(config)
        unknown = sorted(set(from_file) - set(cls.model_fields))
        if unknown:
            raise SettingsError(
                f"{origin}: there is no setting {unknown[0]!r}; there are {', '.join(sorted(cls.model_fields))}"
            )
        return checked(cls, {**from_file, **cls._from_environment(), **flags}, origin)

    @classmethod
    def _from_environment(cls) -> dict[str, Any]:
        """Return what the environment sets: given as arguments it comes above the file and below the flags."""
        names = {f"{PREFIX}{name.upper()}": name for name in cls.model_fields}
        return {names[key]: value for key, value in os.environ.items() if key in names}

    def broker_urls(self) -> list[str]:
        """Return the URLs, with the password from its file where there is one; never to be printed.

        Raises
        ------
        SettingsError
            One of them is no URL of a broker, or there is nothing to log in with.
        """
        urls = [url.strip() for url in self.broker.get_secret_value().split(",")]
        addresses = [_address(url) for url in urls]
        if self.broker_password_file is not None:
            password = read_secret(self.broker_password_file, "the broker password")
            return [_with_password(url, password) for url in urls]
        if self.cert_file is None and (without := [each for each in addresses if each.password is None]):
            raise SettingsError(
                f"broker: no password for {without[0].where}: put it in the URL or a broker_password_file, "
                "or give a cert_file"
            )
        return urls


def checked(kind: type[Model], given: dict[str, Any], origin: str = "the settings") -> Model:
    """Return settings of ``kind`` as they are ``given``; raises `SettingsError`, which says where they come from."""
    try:
        return kind(**given)
    except ValidationError as error:
        raise SettingsError(f"{origin}: {_first_defect(error)}") from None


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{config} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not TOML: {error}") from None


def _first_defect(error: ValidationError) -> str:
    """Return one sentence about the first thing that is wrong; the value is not in it."""
    defect = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in defect["loc"])
    if defect["type"] == "missing":
        return f"{place} is missing: set it in the file, as --{place.replace('_', '-')}, or as FEDMQ_{place.upper()}"
    if defect["type"] == "extra_forbidden":
        return f"there is no setting {place!r}"
    words = defect["msg"].removeprefix("Value error, ")
    return f"{place}: {words}" if place else words  # of several settings the words say which


def _address(url: str) -> Address:
    try:
        return parse_url(url)
    except ValueError as error:  # its sentence shows no password
        raise SettingsError(f"broker: {error}") from None


def read_secret(path: Path, what: str) -> str:
    """Return the secret in the file at ``path``; raises `SettingsError` that calls it ``what``."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{what} cannot be read from {path}: check the path and its permissions") from None


def _with_password(url: str, password: str) -> str:
    from urllib.parse import quote, urlsplit, urlunsplit  # noqa: PLC0415 - only here

    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]  # percent-encoded already
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
