"""What a sandbox starts from and what it keeps: seeds and the state file, both JSON documents of the same form."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from sandbox.errors import InvalidInputError, SandboxError
from sandbox.journal import Topic
from sandbox.simulation import Simulation

SEEDS = Path(__file__).parent / "seeds"
SAVE_AFTER = 0.2
"""Seconds that changes are gathered before the state file is written; a crash loses no more."""

_LOG = logging.getLogger("sandbox")
_KEPT = {Topic.ACCOUNTS, Topic.SUBSCRIPTIONS}


def load_seed(seed: str | Path | Mapping[str, object] | None) -> Mapping[str, object]:
    """A seed from a document, a JSON file or the name of one that the sandbox carries.

    Raises:
        InvalidInputError: there is no such seed, or it is not JSON.
    """
    if seed is None or isinstance(seed, Mapping):
        return seed or {}
    carried = {path.stem: path for path in SEEDS.glob("*.json")}
    path = carried.get(str(seed), Path(seed))
    if not path.is_file():
        raise InvalidInputError(f"no seed {seed}: neither a JSON file nor one of {', '.join(sorted(carried))}")
    return _read(path, "seed")


class StateFile:
    """Keeps accounts, subscriptions, quirks and ids. What happened - events, postbacks, mails - is not kept.

    Args:
        path: of the file. It holds passwords and endpoint URLs, so only its owner may read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.asynccontextmanager
    async def open(self, simulation: Simulation) -> AsyncIterator[None]:
        """Restore what the file holds, then keep it up to date until the end.

        Raises:
            SandboxError: the file cannot be read or written, or does not hold what it should.
        """
        if self._path.exists():
            simulation.restore(_read(self._path, "state file"))
        self._save(simulation)
        saving = asyncio.create_task(self._keep(simulation))
        try:
            yield
        finally:
            saving.cancel()
            await asyncio.wait([saving])
            self._save(simulation)

    async def _keep(self, simulation: Simulation) -> None:
        with simulation.feed.listening() as listener:
            async for changed in listener.changes():
                if changed & _KEPT:
                    await asyncio.sleep(SAVE_AFTER)
                    try:
                        self._save(simulation)
                    except SandboxError as error:
                        _LOG.error("state.unsaved reason=%s", error)

    def _save(self, simulation: Simulation) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(simulation.state(), file, indent=1)
            new.replace(self._path)
        except OSError as error:
            raise SandboxError(f"Cannot write the state file {self._path}: {error.strerror}.") from error


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SandboxError(f"Cannot read the {what} {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInputError(f"The {what} {path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"The {what} {path} must be a JSON object.")
    return document
