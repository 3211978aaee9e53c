"""HTTPS: by the forwarder itself with a certificate that is given, and by Caddy with one that it gets by itself."""

import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider, listen_stream
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.authority import pebble
from tests.server.kit import Load, Properties, change_on_server, declared, read
from tests.server.machine import Machine

provider = ServerForwarderProvider()
DOMAIN = "texts.example.com"
SITE = "/etc/caddy/callfire-mail-production.caddy"
SELF_SIGNED = (
    f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={DOMAIN} -addext subjectAltName=DNS:{DOMAIN}"
    " -keyout /etc/ssl/texts.key -out /etc/ssl/texts.pem"
)


def test_a_certificate_that_is_given(machine: Machine, sink: MailSink, tmp_path: Path) -> None:
    """The forwarder speaks TLS on port 443; restarts under load lose nothing."""
    machine.run(SELF_SIGNED)
    paths = ["/etc/ssl/texts.pem", "/etc/ssl/texts.key"]
    props = declared(machine, sink=sink, tls="files", domain=DOMAIN, certificate=paths, listen="443")
    outputs = provider.create(props).outs
    assert outputs is not None
    authority = tmp_path / "authority.pem"
    authority.write_text(machine.run("cat /etc/ssl/texts.pem"))
    context = ssl.create_default_context(cafile=str(authority))
    with Load(lambda: (machine.ip, 443), tls=context, domain=DOMAIN) as load:
        for _ in range(10):
            machine.run("systemctl restart callfire-mail-production.service")
    load.check(sink)
    assert not provider.diff("id", read(provider, dict(outputs)), props).changes
    machine.run(SELF_SIGNED.replace(DOMAIN, "other.example.com"))
    with pytest.raises(ServerError, match=rf"nothing was changed:\n.*CallFire would refuse the certificate {paths[0]}"):
        provider.update("id", dict(outputs), props | {"tokens": [TOKEN, "0" * 32]})
    provider.delete("id", dict(outputs))


@pytest.fixture(scope="module")
def authority(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A certificate authority that the server trusts: its directory and root."""
    with pebble(machine, tmp_path_factory.mktemp("pebble")) as found:
        yield found


@pytest.fixture(scope="module")
def caddy(machine: Machine, authority: tuple[str, Path]) -> None:
    """Caddy as Debian has it, on the server."""
    try:
        machine.call("hostnet", "apt-get", "update", "-qq")
        machine.install("caddy")
    except AssertionError as error:
        pytest.skip(f"Caddy can't be installed: {error}")


def behind_caddy(machine: Machine, sink: MailSink, directory: str, **changes: Any) -> Properties:
    """What the program declares."""
    usual = {"tls": "acme", "domain": DOMAIN, "acme_directory": directory, "listen": ""}
    return declared(machine, sink=sink, **(usual | changes))


@pytest.mark.usefixtures("caddy")
def test_a_certificate_that_caddy_gets(
    machine: Machine, sink: MailSink, authority: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """HTTPS with a trusted certificate when `up` is done; only postbacks and /healthz come through."""
    directory, root = authority
    machine.run("echo 'http://127.0.0.1:8099 {\n respond hello\n}' > /etc/caddy/Caddyfile; systemctl restart caddy")
    props = behind_caddy(machine, sink, directory)
    outputs = provider.create(props).outs
    assert outputs is not None
    assert f"waiting for a certificate of {DOMAIN}" in capsys.readouterr().out
    context = ssl.create_default_context(cafile=str(root))
    with Load(lambda: (machine.ip, 443), first=2_000_000, tls=context, domain=DOMAIN) as load:
        for _ in range(5):
            machine.run("systemctl restart callfire-mail-production.service")
    load.check(sink)
    for path, status in (("/healthz", "200"), ("/readyz", "404"), ("/", "404"), ("/metrics", "404")):
        asked = f"curl -s -o /dev/null -w %{{http_code}} --cacert {root} --resolve {DOMAIN}:443:{machine.ip}"
        got = subprocess.run([*asked.split(), f"https://{DOMAIN}{path}"], capture_output=True, text=True, check=True)
        assert got.stdout == status, path
    assert machine.run("journalctl -u caddy --no-pager").count(TOKEN) == 0
    assert not provider.diff("id", read(provider, dict(outputs)), props).changes
    machine.run("sed -i 's#/healthz#/*#' /etc/caddy/callfire-mail-production.caddy")
    seen = read(provider, dict(outputs))
    assert "/postback/* /*" in seen["servers"][machine.ip]["site"]
    provider.update("id", seen, props)
    assert not provider.diff("id", read(provider, dict(outputs)), props).changes
    provider.delete("id", dict(outputs))
    assert machine.run("ls /etc/caddy") == "Caddyfile"
    assert machine.run(
        "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8099').read())\""
    ) == ("b'hello'")


@pytest.mark.usefixtures("caddy")
def test_the_former_domain_answers_until_callfire_knows_the_new_one(
    machine: Machine,
    sink: MailSink,
    authority: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """While a certificate of the new one never comes, when it came, and until the next change: no post is lost."""
    directory, root = authority
    props = behind_caddy(machine, sink, directory)
    outputs = dict(provider.create(props).outs or {})
    context = ssl.create_default_context(cafile=str(root))
    with monkeypatch.context() as impatient:
        change_on_server(impatient, tmp_path, "caddy.py", "CERTIFICATE_WITHIN = 90.0", "CERTIFICATE_WITHIN = 5.0")
        nowhere = behind_caddy(machine, sink, directory.replace("14000", "14999"), domain="new.example.com")
        with (
            Load(lambda: (machine.ip, 443), first=3_000_000, threads=1, tls=context, domain=DOMAIN) as load,
            pytest.raises(ServerError, match=r"there is no certificate for new\.example\.com after"),
        ):
            provider.update("id", outputs, nowhere)
        load.check(sink)
    assert not provider.diff("id", read(provider, outputs), props).changes
    machine.run(f"sed -i 's#reverse_proxy unix/[^ ]*#reverse_proxy 127.0.0.1:8710#' {SITE}")  # as a former release did
    moved = behind_caddy(machine, sink, directory, domain="new.example.com")
    outputs = dict(provider.update("id", outputs, moved).outs or {})
    assert not provider.diff("id", read(provider, outputs), moved).changes
    with Load(lambda: (machine.ip, 443), first=4_000_000, threads=1, tls=context, domain=DOMAIN) as former:
        pass
    later = moved | {"tokens": ["0" * 32]}
    with Load(lambda: (machine.ip, 443), first=5_000_000, threads=1, tls=context, domain="new.example.com") as new:
        outputs = dict(provider.update("id", outputs, later).outs or {})
    former.check(sink)
    new.check(sink)
    assert not provider.diff("id", read(provider, outputs), later).changes
    assert machine.run("ls /etc/caddy").split() == ["Caddyfile", "callfire-mail-production.caddy"]
    provider.delete("id", outputs)
    assert machine.run("ls /etc/caddy") == "Caddyfile"


@pytest.mark.usefixtures("caddy")
def test_another_port_behind_caddy_loses_nothing(
    machine: Machine, sink: MailSink, authority: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """There and back: the port that takes postbacks elsewhere is none here, and the admin port is another matter."""
    directory, root = authority
    ports = [
        {"listen": listen_stream("acme", "127.0.0.1", number), "settings": {"FORWARDER_ADMIN_PORT": str(number + 1)}}
        for number in (8710, 8720)
    ]
    props, moved = (behind_caddy(machine, sink, directory, **changes) for changes in ports)
    outputs = dict(provider.create(props).outs or {})
    capsys.readouterr()
    context = ssl.create_default_context(cafile=str(root))
    with Load(lambda: (machine.ip, 443), first=6_000_000, tls=context, domain=DOMAIN) as load:
        for _ in range(2):
            outputs = dict(provider.update("id", outputs, moved).outs or {})
            load.wait_for(50)
            outputs = dict(provider.update("id", outputs, props).outs or {})
            load.wait_for(50)
    load.check(sink)
    assert "waiting for a certificate" not in capsys.readouterr().out
    assert not provider.diff("id", read(provider, outputs), props).changes
    provider.delete("id", outputs)
    assert machine.run("ls /run/callfire-mail-*.sock", check=False) == ""


@pytest.mark.usefixtures("caddy")
def test_a_domain_that_caddy_serves_for_another(machine: Machine, sink: MailSink, authority: tuple[str, Path]) -> None:
    """A stack, or a site of the operator's: whose it is is said before anything is changed."""
    machine.run("echo 'https://own.example.com {\n respond hello\n}' >> /etc/caddy/Caddyfile")
    outputs = dict(provider.create(behind_caddy(machine, sink, authority[0])).outs or {})
    usual = {"name": "office", "tls": "acme", "listen": "", "tokens": ["0" * 32]}
    served = {
        DOMAIN: f"stack production there ({SITE})",
        "own.example.com": "another site of Caddy's there (/etc/caddy/",
    }
    try:
        for domain, whose in served.items():
            office = declared(machine, sink=sink, domain=domain, settings={"FORWARDER_ADMIN_PORT": "8721"}, **usual)
            with pytest.raises(ServerError, match=re.escape(f"{domain} is served by {whose}")) as raised:
                provider.create(office)
            assert "nothing was changed" in str(raised.value)
    finally:
        provider.delete("id", outputs)
        machine.run("sed -i '/own.example.com/,$d' /etc/caddy/Caddyfile")


@pytest.mark.usefixtures("caddy")
def test_a_certificate_that_never_comes(
    machine: Machine, sink: MailSink, authority: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said with Caddy's own reason, and the first installation is taken back."""
    directory = authority[0].replace("14000", "14999")
    with pytest.raises(ServerError, match=f"there is no certificate for {DOMAIN} after") as raised:
        provider.create(behind_caddy(machine, sink, directory))
    said = str(raised.value)
    assert re.search(r"after 90 seconds: Caddy says: .*connection refused.*\. Its DNS name must point to this", said)
    assert "{" not in said
    assert machine.run("ls -d /opt/callfire-mail /etc/callfire-mail /etc/caddy/callfire*", check=False) == ""
