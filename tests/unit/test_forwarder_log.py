"""Log lines: one per event, for people or for machines, from the same call."""

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from forwarder.log import JsonLines, Lines, TextLines


def _record(message: str, *args: object, name: str = "forwarder.sender", error: bool = False) -> logging.LogRecord:
    info: Any = None
    if error:
        try:
            int("broken")
        except ValueError as caught:
            info = (ValueError, caught, caught.__traceback__)
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, info)


@pytest.mark.parametrize(
    ("arguments", "event"),
    [
        (
            ("delivery.%s text_id=%s from=%s answer=%r", "sent", 7, "•••1212", "250 a=b"),
            {"event": "delivery.sent", "text_id": 7, "from": "•••1212", "answer": "250 a=b"},
        ),
        (("mail.unavailable %s", "no route x=1"), {"event": "mail.unavailable", "message": "no route x=1"}),
        (("forwarder.stopped",), {"event": "forwarder.stopped"}),
    ],
)
def test_machines_get_the_fields_of_the_call(arguments: tuple[Any, ...], event: dict[str, Any]) -> None:
    """Names and types as they were given, whatever the values hold."""
    line = json.loads(JsonLines().format(_record(*arguments)))
    assert line.pop("time")
    assert line == {"level": "warning"} | event


def test_other_libraries_log_in_the_same_style() -> None:
    """Their words are the message of an event that is called after them."""
    record = _record("Invalid HTTP request\nreceived: %s", "x", name="uvicorn.error")
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["message"]) == ("uvicorn.error", "Invalid HTTP request\nreceived: x")
    assert TextLines().format(record).endswith(" WARNING uvicorn.error message='Invalid HTTP request\\nreceived: x'")


def test_an_event_is_one_line() -> None:
    """No value can begin another line; a traceback is indented for people and a field for machines."""
    assert "\n" not in TextLines().format(_record("mail.unavailable %s", "a\r\nb"))
    text = TextLines().format(_record("sender.failed", error=True))
    assert all(line.startswith("    ") for line in text.splitlines()[1:])
    line = JsonLines().format(_record("sender.failed", error=True))
    assert len(line.splitlines()) == 1
    assert "ValueError: invalid literal" in json.loads(line)["traceback"]


def test_what_is_logged_in_one_turn_of_the_loop_is_written_at_once() -> None:
    """A write for each line would cost more than the line; an error is written when it happens, with all before it."""
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    handler = Lines(Stream())
    handler.setFormatter(logging.Formatter("%(message)s"))

    async def main() -> None:
        handler.handle(_record("one"))
        handler.handle(_record("two"))
        assert written == []
        await asyncio.sleep(0)
        assert written == ["one\ntwo\n"]
        handler.handle(_record("three"))
        record = _record("four")
        record.levelno = logging.ERROR
        handler.handle(record)
        assert written[1:] == ["three\nfour\n"]

    asyncio.run(main())
    handler.handle(_record("outside a loop"))
    assert written[2:] == ["outside a loop\n"]
