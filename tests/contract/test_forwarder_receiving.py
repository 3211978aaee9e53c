"""What may be posted at a real forwarder: everything. What it answers, what it keeps, and that it goes on."""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forwarder.errors import Unavailable
from forwarder.outbox import Posting, Routed
from forwarder.receiver import MAX_BODY, RETRY_AFTER, Receiver
from forwarder.server import HEAD_BYTES, Server, listen
from tests.forwarder_kit import (
    TOKEN,
    Answer,
    MailSink,
    RunningForwarder,
    environment,
    http,
    mail_sink,
    running,
    text_postback,
)

PREVIOUS = "fedcba9876543210fedcba9876543210"
_HEADERS = {
    "From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "MIME-Version",
    "Content-Type", "Content-Transfer-Encoding", "X-CallFire-Text-Id", "X-CallFire-Subscription-Id",
    "X-CallFire-Recovered", "X-Peer", "X-MailFrom", "X-RcptTo",
}  # fmt: skip


@pytest.fixture(scope="module")
def sink() -> Iterator[MailSink]:
    """A mail server that takes everything."""
    with mail_sink() as server:
        yield server


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory, sink: MailSink) -> Iterator[RunningForwarder]:
    """A forwarder with a current and a previous token."""
    state = tmp_path_factory.mktemp("state")
    with running(environment(state, sink.port, tokens=f"{TOKEN},{PREVIOUS}")) as process:
        yield process


def _raw(forwarder: RunningForwarder, request: bytes, seconds: float = 10.0) -> bytes:
    """What comes back for these bytes, until the server closes or says nothing more."""
    port = int(forwarder.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def test_every_valid_token_may_post(forwarder: RunningForwarder) -> None:
    """The current one and the previous one, so that a rotation loses nothing."""
    assert forwarder.post(text_postback(1), token=PREVIOUS).status == 200
    assert forwarder.post(text_postback(1)).status == 200
    assert forwarder.post(text_postback(1), token=TOKEN[:-1]).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_posts_are_taken_and_a_wrong_token_hides_even_that(forwarder: RunningForwarder, method: str) -> None:
    """405 with what is allowed, for who has a token; 404 for who has not."""
    answer = http(f"{forwarder.url}/postback/{TOKEN}", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert http(f"{forwarder.url}/postback/{'x' * 32}", method=method).status == 404


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/xml; charset=UTF-8", 200), ("application/json", 200), ("application/soap+xml;action=x", 200), ("", 200),
        ("application/vnd.callfire+xml", 200), ("TEXT/XML", 200), ("image/png", 415), ("multipart/form-data", 415),
        ("application/zip", 415),
    ],
)  # fmt: skip
def test_what_says_it_is_something_else_is_refused(forwarder: RunningForwarder, content_type: str, status: int) -> None:
    """415 says what would be right; XML and JSON of every name are taken, whatever they then hold."""
    answer = forwarder.post(text_postback(1), content_type)
    assert answer.status == status
    assert status == 200 or answer.headers["accept-post"] == "text/xml, application/json"


def test_a_compressed_body_is_refused(forwarder: RunningForwarder) -> None:
    """Nothing is unpacked, so nothing can be a bomb."""
    url = f"{forwarder.url}/postback/{TOKEN}"
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/xml"}
    assert http(url, b"\x1f\x8b", headers).status == 415


def test_a_body_up_to_the_limit_is_taken_and_a_larger_one_is_413(forwarder: RunningForwarder) -> None:
    """With a length or in chunks; the sender gets to read the answer."""
    assert forwarder.post(b"x" * MAX_BODY).json["quarantined"] == 1
    for size in (MAX_BODY + 1, 3 * MAX_BODY):
        answer = forwarder.post(b"x" * size)
        assert answer.status == 413
        assert str(MAX_BODY) in answer.json["status"]
    connection = HTTPConnection(*_address(forwarder), timeout=30)
    chunks = (b"x" * 65536 for _ in range(2 * MAX_BODY // 65536))
    connection.request("POST", f"/postback/{TOKEN}", chunks, {"Content-Type": "text/xml"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def _address(forwarder: RunningForwarder) -> tuple[str, int]:
    host, _, port = forwarder.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def test_many_posts_go_over_one_connection(forwarder: RunningForwarder) -> None:
    """Keep-alive, as CallFire asks for, also behind an answer that is not 200."""
    connection = HTTPConnection(*_address(forwarder), timeout=30)
    for n in range(10):
        path = f"/postback/{TOKEN}" if n % 2 else "/nothing"
        connection.request("POST", path, text_postback(50 + n), {"Content-Type": "text/xml"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == (200 if n % 2 else 404)
    connection.close()


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /postback/%ff%00 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /postback/../postback/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST /postback/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /postback/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /postback/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /postback/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (2 * HEAD_BYTES) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(20000)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_any_request_at_all_is_survived(forwarder: RunningForwarder, request_line: bytes) -> None:
    """What is no HTTP, or a path nobody has, gets 4xx or nothing; the next request is answered as ever."""
    assert _status(_raw(forwarder, request_line)) < 500
    assert http(f"{forwarder.url}/healthz").status == 200


def _hostile() -> Iterator[tuple[str, bytes]]:  # noqa: C901, PLR0915 - a list, with loops to keep it short
    """At least 200 bodies, each made to break something."""
    data, note = "http://api.callfire.com/data", "http://api.callfire.com/notification/xsd"
    xml = text_postback(7_000_000).decode()
    rest = xml.partition("?>")[2]
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    yield "billion laughs", f'<!DOCTYPE x [<!ENTITY l0 "ha">{entities}]>{rest.replace("Hello", "&l9;")}'.encode()
    quadratic = f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]>' + rest.replace("Hello, World!", "&a;" * 20_000)
    yield "quadratic blow-up", quadratic.encode()
    for target in (
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "php://filter",
        "expect://id",
        "netdoc:///etc",
        "/dev/random",
    ):
        yield (
            f"external {target}",
            f'<!DOCTYPE x [<!ENTITY e SYSTEM "{target}">]>{rest.replace("Hello", "&e;")}'.encode(),
        )
        yield f"parameter {target}", f'<!DOCTYPE x [<!ENTITY % e SYSTEM "{target}"> %e;]>{rest}'.encode()
        yield f"dtd {target}", f'<!DOCTYPE n:TextNotification SYSTEM "{target}">{rest}'.encode()
        yield f"stylesheet {target}", f'<?xml-stylesheet href="{target}"?>{rest}'.encode()
        include = f'<x xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="{target}"/>{rest}</x>'
        yield f"xinclude {target}", include.encode()
    for depth in (100, 300, 20_000):
        yield f"{depth} deep", b"<a>" * depth + b"</a>" * depth
        yield f"{depth} deep unclosed", b"<a>" * depth
        yield f"{depth} deep json", b"[" * depth + b"]" * depth
        yield f"{depth} deep json object", b'{"TextNotification":' * depth + b"1" + b"}" * depth
    for encoding in (
        "utf-8",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "latin-1",
        "cp1252",
        "utf-7",
        "cp037",
        "ascii",
    ):
        yield f"in {encoding}", rest.replace("Hello", "Gruss").encode(encoding)
        for declared in ("utf-8", "utf-16", "iso-8859-1", "nonsense", "us-ascii"):
            yield f"{encoding} said {declared}", f'<?xml version="1.0" encoding="{declared}"?>{rest}'.encode(encoding)
    for name, code in {
        "NUL": "\0",
        "CR": "\r",
        "LF": "\n",
        "CRLF": "\r\n",
        "ESC": "\x1b",
        "NEL": "\x85",
        "LS": "\u2028",
        "RLO": "\u202e",
        "FFFE": "\ufffe",
    }.items():
        yield f"raw {name}", rest.replace("Hello", f"a{code}b").encode("utf-8", "surrogatepass")
    injection = "1\r\nBcc: victim@example.com\r\n\r\nbody"
    for field in ("FromNumber", "ToNumber", "Created", "Message", "State", "FinalResult"):
        for spelled in (
            injection,
            injection.replace("\r", "&#13;").replace("\n", "&#10;"),
            injection.replace("\r\n", "&#x2028;"),
            f"<![CDATA[{injection}]]>",
        ):
            yield f"CRLF in {field}", re.sub(f"<{field}>[^<]*", f"<{field}>{spelled}", rest).encode()
        values = {"@id": "7000001", "FromNumber": "1", "ToNumber": "2", "Created": "3", "Message": "m"} | {
            field: injection
        }
        yield f"CRLF in {field} of JSON", json.dumps({"TextNotification": {"Text": values}}).encode()
    for value in ("", "-1", "0", "9" * 400, "1e9", "0x10", "NaN", " 7 ", "7;DROP TABLE text", "\u0667", "7\0"):
        yield f"id {value[:12]}", re.sub(r'id="\d+"', f'id="{value}"', rest).encode()
        yield (
            f"json id {value[:12]}",
            json.dumps(
                {"TextNotification": {"Text": {"@id": value, "FromNumber": 1, "ToNumber": 1, "Created": 1}}}
            ).encode(),
        )
    odd: object
    for odd in (
        None,
        [],
        {},
        [[]],
        [None],
        1,
        "x",
        True,
        1e308,
        {"Text": None},
        {"Text": []},
        {"Text": [[{}]]},
        {"Text": {"TextRecord": 5}},
    ):
        yield f"json {odd!r}", json.dumps({"TextNotification": odd}).encode()
        yield f"json list {odd!r}", json.dumps([odd, {"TextNotification": odd}]).encode()
    yield "json numbers", b'{"TextNotification":{"Text":{"@id":' + b"9" * 5000 + b"}}}"
    yield (
        "json surrogate",
        b'{"TextNotification":{"Text":{"@id":"7000002","FromNumber":"\\ud800","ToNumber":"2","Created":"3"}}}',
    )
    yield "many events", f"<x>{rest * 1001}</x>".encode()
    yield "many attributes", b"<x " + b" ".join(b'a%d=""' % n for n in range(20_000)) + b"/>"
    yield "same attribute", b'<x a="1" a="2"/>'
    yield "long name", b"<" + b"x" * 500_000 + b"/>"
    yield "long number", rest.replace("18185551212", "1" * 500_000).encode()
    yield "long message", rest.replace("Hello", "x" * 900_000).encode()
    yield (
        "nested notifications",
        rest.replace("<Text ", f'<x xmlns="{note}">{rest}</x><Text xmlns="{data}" ', 1).encode(),
    )
    yield "namespace swap", rest.replace(data, "urn:x").encode()
    yield "prefix unbound", rest.replace(' xmlns:n="', ' xmlns:m="').encode()
    yield "comment bomb", b"<!--" + b"-" * 500_000
    yield "cdata unclosed", rest.replace("Hello", "<![CDATA[").encode()
    yield "two roots", (rest + rest).encode()
    yield "html", b"<!doctype html><title>x</title><p>y"
    yield "form", b"a=1&b=2"
    yield "empty", b""
    yield "spaces", b" \r\n\t" * 1000
    yield "zeros", bytes(1000)
    generator = random.Random(7)  # noqa: S311 - the same ones every time
    for n in range(40):
        body = bytearray(xml.encode())
        for _ in range(1 + n // 4):
            body[generator.randrange(len(body))] = generator.randrange(256)
        yield f"damaged {n}", bytes(body)
    for n in range(0, len(xml), len(xml) // 30):
        yield f"cut at {n}", xml[:n].encode()


def test_no_hostile_body_is_answered_5xx_or_leaves_a_trace_in_a_header(
    forwarder: RunningForwarder, sink: MailSink
) -> None:
    """More than 200 of them, four times over: 200 each, the memory stays, and every mail has the headers it should."""
    bodies = list(_hostile())
    assert len(bodies) >= 200
    connection = HTTPConnection(*_address(forwarder), timeout=60)
    process = psutil.Process(forwarder.process.pid)
    memory = []
    for _ in range(4):
        for name, body in bodies:
            kind = "application/json" if "json" in name else "text/xml"
            connection.request("POST", f"/postback/{TOKEN}", body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, (name, content)
            assert json.loads(content)["status"] == "ok"
        memory.append(process.memory_info().rss)
    connection.close()
    assert memory[3] - memory[1] < 30_000_000, memory
    forwarder.post(text_postback(7_999_999))
    deadline = time.monotonic() + 30
    while not any(mail.text_id == 7_999_999 for mail in sink.mails):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the mails before it may be of any number
    for mail in sink.mails:
        assert set(mail.parsed.keys()) <= _HEADERS, mail.content[:2000]
        assert mail.recipient == "office@example.com"
        assert mail.parsed["Bcc"] is None
    assert "Traceback" not in forwarder.log


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=2000), kind=st.sampled_from(["text/xml", "application/json", "text/plain", ""]))
def test_any_bytes_are_answered_200(forwarder: RunningForwarder, body: bytes, kind: str) -> None:
    """Whoever has the token is answered, whatever was said."""
    assert forwarder.post(body, kind).status == 200


# The rest needs a receiver with little patience, or an outbox that cannot.


def _serve(use: Callable[[str, int], Awaitable[None]], receiver: Receiver, **constants: float) -> None:
    """Run `use` with the address of a real server in front of `receiver`."""

    async def main() -> None:
        server = Server(receiver, listen("127.0.0.1", 0, "FORWARDER_PORT"))
        serving = asyncio.create_task(server.run_until_stopped())
        host, port = server.sockets[0].getsockname()
        try:
            await use(host, port)
        finally:
            server.should_exit = True
            await serving

    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(f"forwarder.server.{name}", value)
        asyncio.run(main())


def _receiver(store: Callable[[Posting], Awaitable[None]] | None = None, **options: Any) -> Receiver:
    async def stored(_: Posting) -> None:
        return None

    return Receiver([TOKEN], lambda text: Routed(text, "default", ()), store or stored, time.time, **options)


async def _post(host: str, port: int, body: bytes = b"") -> Answer:
    url = f"http://{host}:{port}/postback/{TOKEN}"
    return await asyncio.get_running_loop().run_in_executor(None, lambda: http(url, body, {"Content-Type": "text/xml"}))


def test_a_body_that_does_not_arrive_is_408() -> None:
    """Whoever sends it drop by drop, or nothing of it, is told so and hung up on."""

    async def use(host: str, port: int) -> None:
        for begun in (b"", b"<x"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(
                b"POST /postback/%b HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" % TOKEN.encode() + begun
            )
            answer = await asyncio.wait_for(reader.read(), 10)
            assert _status(answer) == 408
            writer.close()

    _serve(use, _receiver(read_seconds=0.1))


def test_a_head_that_does_not_arrive_is_hung_up_on() -> None:
    """On a new connection and between two requests; a head that is complete in time is not."""

    async def use(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /healthz HT")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /hea")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    _serve(use, _receiver(), HEAD_SECONDS=0.1)


def test_more_connections_than_there_is_room_for_are_told_to_come_again() -> None:
    """503 with a time, and hung up on; when others have gone, it is taken."""

    async def use(host: str, port: int) -> None:
        others = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            others.append(writer)
        refused = await _post(host, port)
        assert (refused.status, refused.headers["retry-after"]) == (503, str(RETRY_AFTER))
        for writer in others:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while (await _post(host, port, text_postback(1))).status != 200:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)

    _serve(use, _receiver(), MAX_CONNECTIONS=3)


def test_only_what_could_not_be_stored_is_503_with_a_time_to_come_again() -> None:
    """And then nothing is acknowledged; the next post may succeed."""
    away = True

    async def store(_: Posting) -> None:
        if away:
            raise Unavailable("the disk is full")

    async def use(host: str, port: int) -> None:
        nonlocal away
        answer = await _post(host, port, text_postback(1))
        assert (answer.status, answer.headers["retry-after"]) == (503, str(RETRY_AFTER))
        assert "disk" not in answer.body.decode()
        away = False
        assert (await _post(host, port, text_postback(1))).status == 200

    _serve(use, _receiver(store))


def test_a_route_that_fails_leaves_the_text_in_quarantine() -> None:
    """A mistake of ours is kept for a person, not given back to CallFire as 500."""
    kept: list[Posting] = []

    async def store(posting: Posting) -> None:
        kept.append(posting)

    def route(_: Any) -> Routed:
        raise LookupError("no such thing")

    async def use(host: str, port: int) -> None:
        assert (await _post(host, port, text_postback(1))).json["quarantined"] == 1

    _serve(use, Receiver([TOKEN], route, store, time.time))
    assert kept[0].quarantined[0].body == text_postback(1)
    assert "no such thing" in kept[0].quarantined[0].reason


def test_a_disk_that_is_full_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """On a real, small file system: 503 while it is full, and what was answered 200 is delivered when there is room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        with mail_sink() as sink:
            sink.stop()
            with running(environment(folder / "state", sink.port)) as forwarder:
                taken: set[int] = set()
                for n in range(1, 1000):
                    answer = forwarder.post(text_postback(n, "x" * 10_000))
                    if answer.status != 200:
                        break
                    taken.add(n)
                assert taken
                assert (answer.status, answer.headers["retry-after"]) == (503, str(RETRY_AFTER))
                found = forwarder.get("/readyz")
                assert (found.status, found.json["ready"]) == (503, False)
                assert "full" in found.json["database"]
                subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
                assert forwarder.get("/readyz").status == 200
                sink.start()
                sink.wait_for(len(taken))
                deadline = time.monotonic() + 20
                while forwarder.post(text_postback(9999)).status != 200:
                    assert time.monotonic() < deadline
                sink.wait_for(len(taken) + 1)
                assert forwarder.stop() == 0
            assert {n for n, _ in sink.times()} == taken | {9999}
            assert set(sink.times().values()) == {1}
    finally:
        subprocess.run(["umount", folder], check=True)
