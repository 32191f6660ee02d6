"""The folder that a training leaves: ``model.json``, whole or not at all.

Its format is documented in docs/model.md and stable from here on: keys may be added, none changes its meaning.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.messages import ReleasedModel
from fedmq.errors import CommandError

MODEL = "model.json"

#: Files that we write: a folder with anything else in it is somebody's, and is not replaced.
OURS = {MODEL}

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
        **{key: fields[key] for key in ("federation", "epoch")},
    }


def check_out(folder: Path) -> None:
    """Raise `CommandError` unless a model can be written to ``folder``, before any work is done for it."""
    if folder.is_dir():
        if foreign := sorted({entry.name for entry in folder.iterdir()} - OURS):
            raise CommandError(
                f"{folder} holds {foreign[0]!r}, which fedmq did not write: name another folder for the model"
            )
    elif folder.exists() or folder.is_symlink():
        raise CommandError(f"{folder} is not a folder: name another one for the model")
    parent = next(parent for parent in folder.resolve().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CommandError(f"{folder} cannot be made: {parent} cannot be written to")


def write_model(folder: Path, model: ReleasedModel) -> Path:
    """Write ``model`` to ``folder``, in place of what was there, and return the path of its document.

    A reader sees the old folder or the new one, never a half of either, whatever is killed meanwhile.
    """
    check_out(folder)
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_durably(fresh / MODEL, json.dumps(document(model), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        fresh.chmod(0o755)
        if folder.exists():
            _exchange(fresh, folder)
        else:
            fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # the old folder, after an exchange
    return folder / MODEL


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
