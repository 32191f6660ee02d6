"""docker-compose.yml, Dockerfile and deploy/make_secrets.py, as data for tests."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
SECRETS = "deploy/secrets"


def make_secrets() -> ModuleType:
    """Import ``deploy/make_secrets.py``: a script, and no part of any package."""
    spec = importlib.util.spec_from_file_location("make_secrets", ROOT / "deploy" / "make_secrets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Mount:
    """Something of the host in a container."""

    source: str
    target: str
    read_only: bool

    @property
    def is_path(self) -> bool:
        """Whether the source is a file or folder; else it is a named volume."""
        return self.source.startswith(".")


@dataclass(frozen=True)
class Service:
    """One entry of the compose file."""

    name: str
    entry: dict[str, Any]

    @cached_property
    def mounts(self) -> list[Mount]:
        """Volumes, and secrets where they appear in the container."""
        return [*map(_volume, self.entry.get("volumes", [])), *self._secrets()]

    def _secrets(self) -> list[Mount]:
        files = compose()["secrets"]
        return [
            Mount(files[each["source"]]["file"], f"/run/secrets/{each['target']}", read_only=True)
            for each in self.entry.get("secrets", [])
        ]

    @property
    def is_ours(self) -> bool:
        """Whether it runs our image."""
        return str(self.entry["image"]).startswith("fedmq:")


def _volume(text: str) -> Mount:
    source, target, *mode = text.split(":")
    return Mount(source, target, mode == ["ro"])


def compose() -> dict[str, Any]:
    """Return the compose file."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return found


def services() -> dict[str, Service]:
    """Return every service of the compose file by its name."""
    return {name: Service(name, entry) for name, entry in compose()["services"].items()}


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments on one line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def final_stage() -> list[tuple[str, str]]:
    """Return the instructions that the image is made by."""
    instructions = dockerfile()
    last = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def image_entrypoint() -> list[str]:
    """Return what the image runs."""
    found: list[str] = json.loads(dict(final_stage())["ENTRYPOINT"])
    return found


def image_environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    settings = [rest.split() for word, rest in final_stage() if word == "ENV"]
    return dict(setting.split("=", 1) for line in settings for setting in line)
