"""docker-compose.yml is valid, complete, and as closed as it says."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from servers import compose
from servers.compose import ROOT, Service

from aggregator.settings import AggregatorSettings
from participant.settings import ParticipantSettings

if TYPE_CHECKING:
    from pathlib import Path

    from broker.settings import ServiceSettings

FILE = compose.compose()
SERVICES = compose.services()
OURS = {name: service for name, service in SERVICES.items() if service.is_ours}
PARTICIPANTS = ["cleveland", "hungarian", "switzerland", "va"]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_of_ours = pytest.mark.parametrize("service", OURS.values(), ids=OURS)


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match is not None
    return int(match[1])


def settings(service: Service) -> ServiceSettings:
    """Load the settings of a service as its command does: from its file, below its environment."""
    kind: type[ServiceSettings] = {"aggregator": AggregatorSettings, "participant": ParticipantSettings}[
        service.entry["command"][0]
    ]
    command = service.entry["command"]
    [config] = [mount for mount in service.mounts if mount.target == command[command.index("--config") + 1]]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FEDMQ_")]:
            patch.delenv(name)
        for name, value in service.entry.get("environment", {}).items():
            patch.setenv(name, value)
        return kind.load(ROOT / config.source, {})


# --- the file ---------------------------------------------------------------------------------

#: Every key that we use, and what it holds: a slip of the pen is none of them.
KEYS = {
    "build": str,
    "cap_drop": list,
    "command": list,
    "depends_on": dict,
    "environment": dict,
    "healthcheck": dict,
    "hostname": str,
    "image": str,
    "init": bool,
    "logging": dict,
    "networks": list,
    "ports": list,
    "read_only": bool,
    "restart": str,
    "secrets": list,
    "security_opt": list,
    "stop_grace_period": str,
    "tmpfs": list,
    "user": str,
    "volumes": list,
}


def test_it_follows_the_compose_specification() -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("the compose specification's schema comes with the package check-jsonschema")
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(FILE)


@each_service
def test_every_key_is_one_that_is_meant(service: Service) -> None:
    for key, value in service.entry.items():
        assert isinstance(value, KEYS[key]), key
    assert all(isinstance(value, str) for value in service.entry.get("environment", {}).values())


def test_there_is_one_service_for_each_part() -> None:
    assert list(SERVICES) == ["rabbitmq", "aggregator", *PARTICIPANTS, "prometheus", "grafana"]
    assert list(OURS) == ["aggregator", *PARTICIPANTS]


def test_everything_named_is_declared_and_everything_declared_is_used() -> None:
    entries = [service.entry for service in SERVICES.values()]
    assert {name for entry in entries for name in entry["networks"]} == set(FILE["networks"])
    assert {each["source"] for entry in entries for each in entry.get("secrets", [])} == set(FILE["secrets"])
    volumes = [mount.source for service in SERVICES.values() for mount in service.mounts if not mount.is_path]
    assert sorted(volumes) == sorted(FILE["volumes"]), "each volume belongs to one service"
    for service in SERVICES.values():
        for other, condition in service.entry.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other].entry


@each_service
def test_every_mounted_path_exists_or_is_a_secret_that_is_made(service: Service, tmp_path: Path) -> None:
    made = compose.make_secrets().write_secrets(tmp_path / "secrets", "heart", PARTICIPANTS)
    generated = {f"./{compose.SECRETS}/{path.name}" for path in made}
    for mount in service.mounts:
        if mount.is_path:
            assert mount.source in generated or (ROOT / mount.source).exists(), mount.source
            assert mount.read_only, mount.source


def test_one_service_builds_the_image_that_all_of_ours_run() -> None:
    """Compose builds it once so; several builds of one name at the same time get in each other's way."""
    assert [name for name, service in SERVICES.items() if "build" in service.entry] == ["aggregator"]
    assert len({service.entry["image"] for service in OURS.values()}) == 1


# --- how closed it is -------------------------------------------------------------------------


@each_service
def test_nobody_keeps_capabilities_or_gains_privileges(service: Service) -> None:
    assert service.entry["cap_drop"] == ["ALL"]
    assert service.entry["security_opt"] == ["no-new-privileges:true"]
    assert service.entry.get("user") != "root"
    assert service.entry["restart"] == "unless-stopped"


@each_service
def test_every_service_has_a_healthcheck(service: Service) -> None:
    check = service.entry["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) <= seconds(check["interval"])


def test_only_broker_prometheus_and_grafana_publish_a_port_and_only_on_this_machine() -> None:
    published = {name: service.entry["ports"] for name, service in SERVICES.items() if "ports" in service.entry}
    assert published == {
        "rabbitmq": ["127.0.0.1:15672:15672"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


@each_of_ours
def test_our_services_can_write_to_their_volume_and_reach_nobody_outside(service: Service) -> None:
    assert service.entry["read_only"]
    assert service.entry["tmpfs"] == ["/tmp"]  # noqa: S108 - inside the container
    assert service.entry["networks"] == ["federation"]
    assert FILE["networks"]["federation"]["internal"]
    assert [mount.source for mount in service.mounts if not mount.read_only] == [service.name]
    assert service.entry["init"], "a signal that comes before Python is ready ends the process"


@each_of_ours
def test_our_services_see_only_their_own_password_and_rows(service: Service) -> None:
    seen = {mount.source for mount in service.mounts if mount.is_path and not mount.source.endswith(".toml")}
    own = {f"./{compose.SECRETS}/{service.name}.password"}
    if service.name in PARTICIPANTS:
        own.add(f"./examples/heart_disease/site-{service.name}.csv")
    assert seen == own


# --- what the services are told ---------------------------------------------------------------


@each_of_ours
def test_the_settings_of_our_services_load(service: Service) -> None:
    loaded = settings(service)
    assert loaded.federation == "heart"
    assert loaded.broker.get_secret_value() == f"amqp://{service.name}@rabbitmq:5672/fedmq"
    assert (loaded.metrics_host, loaded.metrics_port) == ("0.0.0.0", 9464)  # noqa: S104 - inside its network
    assert f"127.0.0.1:{loaded.metrics_port}/readyz" in service.entry["healthcheck"]["test"][-1]
    targets = {mount.target for mount in service.mounts}
    assert str(loaded.broker_password_file) in targets
    assert str(loaded.state_dir) in targets, "what must outlive the container is in a volume"
    assert seconds(service.entry["stop_grace_period"]) >= 2 * loaded.shutdown_grace_seconds
    if isinstance(loaded, ParticipantSettings):
        assert loaded.name == service.name
        assert str(loaded.data) in targets


def test_the_aggregator_expects_the_participants_that_there_are() -> None:
    loaded = settings(SERVICES["aggregator"])
    assert isinstance(loaded, AggregatorSettings)
    assert loaded.participants == PARTICIPANTS
    assert loaded.rules().start_with == len(PARTICIPANTS)
    assert loaded.senders == "participant"
    # The folder is replaced as a whole, so it cannot be the volume itself.
    assert loaded.out is not None
    assert loaded.out.parent == loaded.state_dir


@each_of_ours
def test_no_password_stands_in_a_file_of_the_repository(service: Service) -> None:
    for mount in service.mounts:
        if mount.source.endswith(".toml"):
            told = tomllib.loads((ROOT / mount.source).read_text(encoding="utf-8"))
            assert "@" not in re.sub(r"//\w+@", "//", told.get("broker", ""))
    assert not re.search(r"amqps?://[^@\s]*:[^@\s]*@", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_prometheus_scrapes_exactly_the_services_that_serve_metrics() -> None:
    scraped: dict[str, Any] = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    found = {
        job["job_name"]: [target for static in job["static_configs"] for target in static["targets"]]
        for job in scraped["scrape_configs"]
    }
    ports = {name: settings(service).metrics_port for name, service in OURS.items()}
    assert found == {
        "aggregator": [f"aggregator:{ports['aggregator']}"],
        "participant": [f"{name}:{ports[name]}" for name in PARTICIPANTS],
        "rabbitmq": ["rabbitmq:15692"],
    }
    plugins = (ROOT / "deploy" / "rabbitmq" / "enabled_plugins").read_text()
    assert re.fullmatch(r"\[rabbitmq_management,rabbitmq_prometheus\]\.\n", plugins)


def test_grafana_is_given_its_data_source_and_its_dashboards() -> None:
    provisioning = ROOT / "monitoring" / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "fedmq.yml").read_text())["providers"]
    targets = {mount.target: mount.source for mount in SERVICES["grafana"].mounts}
    assert source["url"] == "http://prometheus:9090"
    assert provider["options"]["path"] in targets
    home = SERVICES["grafana"].entry["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert (ROOT / targets[folder] / name).is_file()


def test_the_broker_loads_the_definitions_that_are_made() -> None:
    conf = (ROOT / "deploy" / "rabbitmq" / "rabbitmq.conf").read_text()
    [path] = re.findall(r"^load_definitions = (\S+)$", conf, re.MULTILINE)
    assert path in {mount.target for mount in SERVICES["rabbitmq"].mounts}
    assert SERVICES["rabbitmq"].entry["hostname"] == "rabbitmq"
