"""Logs: one line per event on stderr, readable by people or by machines.

An event is a dotted name and fields, and every call writes them out: `log.info("delivery.sent text_id=%s", text_id)`.
For people that is the line; for machines the fields are taken from the same call. What other libraries log becomes the
message of an event that is called after them.
"""

import asyncio
import contextlib
import json
import logging
import re
import sys
import time
from functools import lru_cache
from typing import Any, Final, TextIO

from forwarder.settings import LogFormat

OWN: Final = "forwarder"
"""Loggers below this one log events."""

_QUIET: Final = ("uvicorn", "alembic", "httpx", "httpcore")
"""Libraries that tell only what goes wrong."""
_TIME: Final = "%Y-%m-%dT%H:%M:%S%z"
_FIELD: Final = re.compile(r"(?:(?P<name>[a-z_]+)=)?(?:%[srd]|(?<==)(?P<given>[^\s%]+))")
_LINE_ENDS: Final = str.maketrans({"\n": "\\n", "\r": "\\r"})


class TextLines(logging.Formatter):
    """`2026-11-24T05:02:35+0000 INFO    delivery.sent text_id=5707328001 attempts=1`; a traceback follows indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", _TIME)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """The second, which many lines share."""
        return _second(int(record.created), datefmt or _TIME)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, which is one line whatever the message holds."""
        if not _is_own(record):
            record.message = f"{record.name} message={record.message!r}"
        return super().formatMessage(record).translate(_LINE_ENDS)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback, indented, so that a line that begins at the margin is an event."""
        return "    " + super().formatException(ei).replace("\n", "\n    ")


class JsonLines(logging.Formatter):
    """`{"time": "…", "level": "info", "event": "delivery.sent", "text_id": 5707328001, "attempts": 1}`."""

    def __init__(self) -> None:
        super().__init__(datefmt=_TIME)

    def format(self, record: logging.LogRecord) -> str:
        """One object, on one line."""
        entry = {"time": self.formatTime(record, _TIME), "level": record.levelname.lower()} | _event(record)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class Lines(logging.StreamHandler[TextIO]):
    """What is logged in one turn of the event loop is written at once: a write for each line costs more than the line.

    Outside an event loop, and for what is worse than a warning, a line is written when it is logged.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, soon."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - logging's own way with a record that cannot be formatted
            self.handleError(record)
            return
        loop = _running_loop()
        if not self._lines and loop and record.levelno <= logging.WARNING:
            loop.call_soon(self.flush)
        self._lines.append(f"{line}\n")
        if not loop or record.levelno > logging.WARNING:
            self.flush()

    def flush(self) -> None:
        """Write what has been logged."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()


def set_up_logging(style: LogFormat = LogFormat.TEXT) -> None:
    """Send everything to stderr, one line per event."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line says them
    handler = Lines(sys.stderr)
    handler.setFormatter(JsonLines() if style is LogFormat.JSON else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@lru_cache(2)
def _second(moment: int, style: str) -> str:
    return time.strftime(style, time.localtime(moment))


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == OWN


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """Name and fields of an event; what is said without a name is its message."""
    if not _is_own(record):
        return {"event": record.name, "message": record.getMessage()}
    fields: dict[str, Any] = {}
    arguments = iter(record.args if isinstance(record.args, tuple) else ())

    def take(found: re.Match[str]) -> str:
        value = found["given"] or next(arguments)
        if not found["name"]:
            return str(value)
        fields[found["name"]] = value
        return ""

    event, _, message = _FIELD.sub(take, str(record.msg)).partition(" ")
    return {"event": event} | fields | ({"message": message.strip()} if message.strip() else {})
