"""Settings: from a file, the environment and flags; wrong ones end in a sentence that shows no value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import pytest
from pydantic import Field, model_validator

from broker import codec
from broker.errors import BrokerError
from broker.settings import MAX_INT, Classes, Name, Names, ServiceSettings, SettingsError, Weights
from broker.url import Address, parse_url

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "canary-7731"


class Settings(ServiceSettings):
    """A service's settings: one that must be given, lists, and a switch."""

    name: Name = Field()
    participants: Names = Field(default=[])
    classes: Classes = Field(default=(0, 1))
    weights: Weights = Field(default=())
    seed: int = Field(0, ge=0)
    standardise: bool = Field(default=True)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without settings in the environment."""
    import os  # noqa: PLC0415 - only here

    for key in list(os.environ):
        if key.startswith("FEDMQ_"):
            monkeypatch.delenv(key)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Name a file for settings that is not there yet."""
    return tmp_path / "fedmq.toml"


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Load settings that have a name, unless it is said otherwise."""
    return Settings.load(config, {"name": "h1", **flags})


# --- where values come from ------------------------------------------------------------------


def test_without_anything_the_defaults_count() -> None:
    settings = load()
    assert (settings.federation, settings.heartbeat_seconds, settings.metrics_host) == ("federation", 10.0, "127.0.0.1")


def test_flags_win_over_the_environment_which_wins_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("seed = 1\nfederation = 'file'\nlog_level = 'debug'\n")
    monkeypatch.setenv("FEDMQ_SEED", "2")
    monkeypatch.setenv("FEDMQ_FEDERATION", "environment")
    settings = load(config, seed="3")
    assert (settings.seed, settings.federation, settings.log_level) == (3, "environment", "debug")


def test_what_else_begins_with_our_prefix_in_the_environment_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_SOMETHING_ELSE", "1")
    assert load().name == "h1"


@pytest.mark.parametrize("given", ["a, b ,c", "a,b,c,", ["a", "b", "c"]])
def test_names_are_listed_with_commas_or_as_a_list(given: Any) -> None:
    assert load(participants=given).participants == ["a", "b", "c"]


def test_a_list_in_the_environment_has_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_PARTICIPANTS", "a,b")
    assert load().participants == ["a", "b"]


@pytest.mark.parametrize("given", ["0,1,2", " 0, 1 ,2", [0, 1, 2], (0, 1, 2)])
def test_classes_are_listed_with_commas_or_as_a_list(given: Any) -> None:
    assert load(classes=given).classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("given", "weights"),
    [("1,2.5", (1.0, 2.5)), (" 1 , 2.5, ", (1.0, 2.5)), ([1, 2.5], (1.0, 2.5)), ("", ()), ("1e-3", (0.001,))],
)
def test_weights_are_listed_with_commas_or_as_a_list(given: Any, weights: tuple[float, ...]) -> None:
    assert load(weights=given).weights == weights


def test_classes_and_weights_come_from_the_environment_and_a_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("weights = [1, 2.5, 3]\n")
    monkeypatch.setenv("FEDMQ_CLASSES", "1,2,5")
    settings = load(config)
    assert (settings.classes, settings.weights) == ((1, 2, 5), (1.0, 2.5, 3.0))


# --- what is wrong with them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"seed": f"{PASSWORD}"}, "the settings: seed: Input should be a valid integer"),
        ({"seed": "-1"}, "the settings: seed: Input should be greater than or equal to 0"),
        ({"seed": str(2**53 + 1)}, "the settings: seed: a whole number is at most 2^53"),
        ({"heartbeat_seconds": "inf"}, "heartbeat_seconds: Input should be a finite number"),
        ({"heartbeat_seconds": "nan"}, "heartbeat_seconds: Input should be a finite number"),
        ({"heartbeat_seconds": "0"}, "heartbeat_seconds: Input should be greater than 0"),
        ({"metrics_port": "70000"}, "metrics_port: Input should be less than or equal to 65535"),
        ({"log_level": PASSWORD}, "log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ({"standardise": PASSWORD}, "standardise: Input should be a valid boolean"),
        ({"name": f"{PASSWORD}.*"}, "name: use letters, digits, '-' and '_', at most 63"),
        ({"participants": f"a,{PASSWORD}.#"}, "participants.1: use letters, digits"),
        ({"classes": PASSWORD}, "the settings: classes: whole numbers separated by commas"),
        ({"classes": "0,1,"}, "the settings: classes: whole numbers separated by commas"),
        ({"classes": "0,1.5"}, "the settings: classes: whole numbers separated by commas"),
        ({"classes": ""}, "the settings: classes: whole numbers separated by commas"),
        ({"classes": [0, PASSWORD]}, "the settings: classes.1: Input should be a valid integer"),
        ({"weights": f"1,{PASSWORD}"}, "the settings: weights: numbers separated by commas"),
        ({"weights": "1,0"}, "the settings: weights.1: Input should be greater than 0"),
        ({"weights": "-2,1"}, "the settings: weights.0: Input should be greater than 0"),
        ({"weights": "1,inf"}, "the settings: weights.1: Input should be a finite number"),
        ({"weights": "1,nan"}, "the settings: weights.1: Input should be a finite number"),
        ({"weights": [1, PASSWORD]}, "the settings: weights.1: Input should be a valid number"),
        ({"participants": "a,all"}, "participants.1: nobody can be called 'all': it addresses somebody else"),
        ({"colour": PASSWORD}, "there is no setting 'colour'"),
    ],
)
def test_a_wrong_value_is_told_by_its_place_and_not_shown(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(**flags)
    assert sentence in str(raised.value)
    assert PASSWORD not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_setting_says_the_three_ways_to_give_it() -> None:
    with pytest.raises(SettingsError, match="name is missing: set it in the file, as --name, or as FEDMQ_NAME"):
        Settings.load(None, {})


class Together(Settings):
    """Settings of which two may not come together."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.seed > len(self.participants):
            raise ValueError("more seeds than participants")
        return self


def test_settings_that_are_wrong_together_say_so() -> None:
    with pytest.raises(SettingsError) as raised:
        Together.load(None, {"name": "h1", "seed": 13})
    assert str(raised.value) == "the settings: more seeds than participants"


def test_an_unknown_key_in_a_file_is_an_error_that_names_those_there_are(config: Path) -> None:
    config.write_text(f"sead = '{PASSWORD}'\n")
    with pytest.raises(SettingsError) as raised:
        load(config)
    assert str(raised.value).startswith(
        f"{config}: there is no setting 'sead'; there are broker, broker_password_file,"
    )
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"name = \xff\xfe", "is not UTF-8 text"),
        (b"broker = canary-7731", "is not TOML: Invalid value (at line 1, column 10)"),
        (b"broker = 'canary-7731", "is not TOML"),
        (b"seed = 'canary-7731'", "seed: Input should be a valid integer"),
        (b"[broker]\nurl = 'canary-7731'", "broker: Input should be a valid string"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_quoted(config: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load(config)
    assert str(raised.value).startswith(str(config))
    assert sentence in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_folder_is_no_file_with_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_the_largest_whole_number_is_the_largest_that_a_message_holds() -> None:
    assert load(seed=str(2**53)).seed == MAX_INT == codec.MAX_INT


def test_a_settings_error_is_told_by_the_commands() -> None:
    assert issubclass(SettingsError, BrokerError)


# --- the broker -------------------------------------------------------------------------------


def test_a_password_is_in_no_text_of_the_settings() -> None:
    settings = load(broker=f"amqp://u:{PASSWORD}@h/")
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.broker_urls() == [f"amqp://u:{PASSWORD}@h/"]


def test_the_nodes_of_a_cluster_are_separated_by_commas() -> None:
    assert load(broker="amqp://u:p@one/, amqp://u:p@two/").broker_urls() == ["amqp://u:p@one/", "amqp://u:p@two/"]


@pytest.mark.parametrize(
    ("user", "password"),
    [("u", "plain"), ("u", "p@ss/w:rd#?%"), ("hospital%401", "plain"), ("u", "größe"), ("u:old", "new")],
)
def test_a_password_from_a_file_gets_into_the_url_whatever_is_in_it(tmp_path: Path, user: str, password: str) -> None:
    file = tmp_path / "password"
    file.write_text(f"{password}\n", encoding="utf-8")
    [url] = load(broker=f"amqp://{user}@[::1]:5673/vhost", broker_password_file=str(file)).broker_urls()
    name = user.partition(":")[0].replace("%40", "@")
    assert parse_url(url) == Address(tls=False, host="::1", port=5673, vhost="vhost", user=name, password=password)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_a_password_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    settings = load(broker="amqp://u@h/", broker_password_file=str(file))
    with pytest.raises(SettingsError, match=f"cannot be read from {file}: check the path and its permissions"):
        settings.broker_urls()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "it begins with amqp:// or amqps://"),
        (f"http://u:{PASSWORD}@h/", "it begins with amqp:// or amqps://"),
        (f"amqp://u:{PASSWORD}@/", "the host is missing"),
        (f"amqp://u:{PASSWORD}@[::1/", "special characters"),
        (f"amqp://u:{PASSWORD}@h:port/", "special characters"),
        (f"amqp://u:{PASSWORD}@one/,two", "it begins with amqp:// or amqps://"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True], ids=["password in the URL", "password in a file"])
def test_what_is_no_url_of_a_broker_is_a_settings_error(
    tmp_path: Path, url: str, sentence: str, *, from_file: bool
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    settings = load(broker=url, **({"broker_password_file": str(tmp_path / "password")} if from_file else {}))
    with pytest.raises(SettingsError) as raised:
        settings.broker_urls()
    assert str(raised.value).startswith("broker: ")
    assert sentence in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_broker_without_password_and_certificate_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="no password for h:5672: put it in the URL or a broker_password_file"):
        load(broker="amqp://u@h/").broker_urls()


def test_with_a_certificate_no_password_is_needed(tmp_path: Path) -> None:
    settings = load(broker="amqps://h/", cert_file=str(tmp_path / "our.pem"))
    assert settings.broker_urls() == ["amqps://h/"]
