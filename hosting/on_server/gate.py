"""Is it healthy: the questions that a forwarder must answer before anybody relies on it."""

import contextlib
import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus

from hosting.on_server import systemd
from hosting.on_server.places import FailedError

HEALTHY_WITHIN = 30.0  # seconds
POLL = 0.05  # seconds
# A text that was sent, not received: it is authenticated and parsed like every other, and becomes no mail.
TEST_POSTBACK = (
    b'<?xml version="1.0" encoding="UTF-8"?><n:TextNotification xmlns="http://api.callfire.com/data"'
    b' xmlns:n="http://api.callfire.com/notification/xsd"><n:SubscriptionId>0</n:SubscriptionId><Text id="0">'
    b"<FromNumber>0</FromNumber><ToNumber>0</ToNumber><Inbound>false</Inbound><Message>test</Message></Text>"
    b"</n:TextNotification>"
)


@dataclass(frozen=True)
class Gate:
    """A forwarder's doors.

    Args:
        unit: the name of its units.
        listen: `PORT`, `ADDRESS:PORT` or the path of a Unix socket: where it takes postbacks.
        admin_port: where it tells how it is.
        token: a token that it takes.
        tls: whether it speaks TLS itself.
    """

    unit: str
    listen: str
    admin_port: int
    token: str
    tls: bool

    def wait(self, seconds: float = HEALTHY_WITHIN) -> None:
        """Return when it is healthy.

        Raises:
            FailedError: it isn't within this time, or ended; the message says which question failed.
        """
        deadline = time.monotonic() + seconds
        while True:
            trouble = self.trouble()
            if not trouble:
                return
            if not systemd.active(f"{self.unit}.service") or time.monotonic() > deadline:
                raise FailedError(trouble)
            time.sleep(POLL)

    def trouble(self) -> str:
        """Return what is wrong; nothing when it is healthy."""
        for question in (self.ready, self.answers, self.parses):
            try:
                found = question()
            except (OSError, ValueError, http.client.HTTPException) as error:
                found = f"{question.__name__}: {error}"
            if found:
                return found
        return ""

    def ready(self) -> str:
        """/readyz on the admin port: can it write postbacks down?"""
        status, said = ask(admin(self.admin_port), "GET", "/readyz")
        return "" if status == HTTPStatus.OK else f"/readyz answered {status}: {said[:300]}"

    def answers(self) -> str:
        """/healthz on the public port."""
        status, said = ask(self.public(), "GET", "/healthz")
        return "" if status == HTTPStatus.OK else f"/healthz answered {status}: {said[:300]}"

    def parses(self) -> str:
        """A test postback is understood, and makes no mail."""
        status, said = ask(self.public(), "POST", f"/postback/{self.token}", TEST_POSTBACK)
        if status != HTTPStatus.OK:
            return f"the test postback was answered {status}: {said[:300]}"
        return "" if json.loads(said).get("ignored") == 1 else f"the test postback was not understood: {said[:300]}"

    def public(self) -> http.client.HTTPConnection:
        """Return a connection to the public port."""
        if self.listen.startswith("/"):
            connection: http.client.HTTPConnection = http.client.HTTPConnection("localhost", timeout=5)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(5)
            connection.sock.connect(self.listen)
        else:
            host, _, port = self.listen.rpartition(":")
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104 - what a unit may say
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            connection.connect()
        if self.tls:
            connection.sock = unverified().wrap_socket(connection.sock)
        return connection


def unverified() -> ssl.SSLContext:
    """Return TLS as one speaks it with oneself: the name is another, and who answers is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def admin(port: int) -> http.client.HTTPConnection:
    """Return a connection to the admin port."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=5)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Return status and body of one request."""
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "text/xml"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
