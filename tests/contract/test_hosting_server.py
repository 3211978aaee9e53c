"""Hosting on servers where none answers: what is said of it."""

from collections.abc import Callable
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError

provider = ServerForwarderProvider()


@pytest.fixture
def props(free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is written down of a forwarder on two servers at which nobody listens."""
    monkeypatch.setattr("hosting.ssh.CONNECT_WITHIN", 0)
    access = {"user": "", "port": free_ports(1)[0], "known_hosts": [], "key_file": "", "jump": "", "python": "python3"}
    return {
        "name": "production",
        "hosts": ["127.0.0.1", "127.0.0.2"],
        "access": access,
        "key": "",
        "release": "none",
        "listen": "127.0.0.1:8710",
        "settings": {"FORWARDER_ADMIN_PORT": "8711"},
        "secrets": {"FORWARDER_DATABASE_URL": "tell-nobody"},
        "certificate": [],
        "domain": "",
        "tls": "none",
        "purge": False,
    }


def test_a_server_that_is_waited_for_is_named(
    props: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, with the reason: one that was just made takes a while, and silence looks like a hang."""
    monkeypatch.setattr("hosting.ssh.CONNECT_WITHIN", 1.5)
    with pytest.raises(ServerError):
        provider.delete("production", props | {"hosts": ["127.0.0.1"]})
    assert capsys.readouterr().out == "production on 127.0.0.1: waiting for SSH to 127.0.0.1 (Connection refused)\n"


def test_all_that_could_not_be_removed_is_named(props: dict[str, Any]) -> None:
    """One dead server hides no other; what to do depends on whether any is left."""
    with pytest.raises(ServerError) as raised:
        provider.delete("production", props)
    port = props["access"]["port"]
    lines = str(raised.value).splitlines()
    assert lines[0] == "The forwarder could not be removed everywhere:"
    for host, line in zip(props["hosts"], lines[1:3], strict=True):
        assert line.startswith(f"  {host}: SSH to {host}: port {port} does not answer (Connection refused).")
    assert lines[3:] == ["If that is gone for good, forget the forwarder with `pulumi state delete`."]
    alone = props | {"hosts": ["127.0.0.1"], "secrets": {}}
    with pytest.raises(ServerError, match="with `pulumi state delete`; its outbox went with it"):
        provider.delete("production", alone)
