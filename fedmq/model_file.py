"""The folder that a training leaves: ``model.json``, whole or not at all.

Its format is documented in docs/model.md and stable from here on: keys may be added, none changes its meaning.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from broker.messages import ReleasedModel
from fedmq.errors import CommandError, ModelNotWritten
from participant.released import GLOBAL, LOCAL

MODEL = "model.json"

#: Files that we write: a folder with anything else in it is somebody's, and is kept when it is replaced.
OURS = {MODEL}

#: The folder of what each site keeps, a folder for each: also ours, as long as there is nothing else in them.
SITES = "sites"
SITE_FILES = {GLOBAL, LOCAL}

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def document(model: ReleasedModel) -> dict[str, Any]:
    """Return ``model`` as the JSON document that is written."""
    fields = asdict(model)
    return {
        "format": 1,
        **{key: fields[key] for key in ("features", "classes", "standardisation", "weights", "intercept")},
        **{key: fields[key] for key in ("coefficients", "intercept_coefficient", "objective", "n_samples")},
        **{key: fields[key] for key in ("participants", "version", "strategy", "converged", "metrics")},
        **{key: fields[key] for key in ("convergence", "inference", "by_class", "notes", "path")},
        **{key: fields[key] for key in ("feature_schema", "fill")},
        **{key: fields[key] for key in ("federation", "epoch")},
    }


def check_out(folder: Path, *, inputs: Sequence[Path] = ()) -> None:
    """Raise `CommandError` unless ``folder`` can be replaced by a model's, before any work is done for it.

    Whatever is in it makes way, so it must not hold where we stand, the user's home, or one of the ``inputs``.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise CommandError(f"{folder} is not a folder: name another one for the model")
    place = folder.resolve()
    for other in (Path.cwd(), Path.home(), *inputs):
        if place == other.resolve() or place in other.resolve().parents:
            raise CommandError(f"{folder} holds {other}, and would be replaced: name a folder of its own for the model")
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CommandError(f"{folder} cannot be made: {parent} cannot be written to")


class Written(NamedTuple):
    """Where the model's document is, and where the folder went that was there before, if anybody may miss it."""

    path: Path
    kept: Path | None


def write_model(folder: Path, model: ReleasedModel, *, sites: Path | None = None) -> Written:
    """Write ``model`` to ``folder`` in place of what was there; and beside it what is in ``sites``, a folder for each.

    A reader sees the old folder or the new one, never a half of either, whatever is killed meanwhile. An old
    folder with anything in it that fedmq did not write is kept beside the new one.
    """
    check_out(folder)
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    text = json.dumps(document(model), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return _replace(folder, text, sites)
    except OSError as error:
        raise ModelNotWritten(
            f"the model could not be written to {folder}: {error.strerror}; what was there is unharmed"
        ) from error


def _replace(folder: Path, text: str, sites: Path | None) -> Written:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    kept = None
    try:
        _write_durably(fresh / MODEL, text)
        if sites is not None:
            _copy_sites(sites, fresh / SITES)
        fresh.chmod(0o755)
        if folder.exists():
            _exchange(fresh, folder)  # from here on the fresh name holds the old folder
            if not _is_ours(fresh):
                kept = _unused(folder)
                fresh.rename(kept)
        else:
            fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Written(folder / MODEL, kept)


def _copy_sites(sites: Path, to: Path) -> None:
    to.mkdir()
    for site in sorted(sites.iterdir()):
        (to / site.name).mkdir()
        for name in sorted(SITE_FILES & {entry.name for entry in site.iterdir()}):
            _write_durably(to / site.name / name, (site / name).read_text(encoding="utf-8"))
    _sync(to)


def _is_ours(folder: Path) -> bool:
    """Whether there is nothing in ``folder`` that fedmq did not write."""
    return all(entry.name in OURS or _is_of_sites(entry) for entry in folder.iterdir())


def _is_of_sites(folder: Path) -> bool:
    sites = list(folder.iterdir()) if folder.name == SITES and folder.is_dir() else [folder]
    return all(site.is_dir() and {entry.name for entry in site.iterdir()} <= SITE_FILES for site in sites)


def _unused(folder: Path) -> Path:
    """Return a name beside ``folder`` that nothing has."""
    names = (folder.with_name(f"{folder.name}.old{number or ''}") for number in itertools.count())
    return next(name for name in names if not name.exists())


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(fresh: Path, old: Path) -> None:
    """Let two folders change names in one step, where the system can; else in two."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = (os.fsencode(fresh), os.fsencode(old))
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    # Some file systems and every other system: there is a moment without the folder, and never half of one.
    aside = old.with_name(f"{fresh.name}.old")
    old.rename(aside)
    fresh.rename(old)
    aside.rename(fresh)
