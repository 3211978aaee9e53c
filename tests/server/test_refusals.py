"""What can't work is said in one sentence before anything is changed, and nothing half done stays behind."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError, UnreachableError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.conftest import Servers
from tests.server.kit import Properties, declared, sink_at
from tests.server.machine import Machine
from tests.server.names import PLAIN_SERVER, certificate

provider = ServerForwarderProvider()
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqlcAtKaY6ZrPs0XEoFjMQwLKUURu6m2HHlkRaplhwW"


@pytest.fixture
def props(machine: Machine, sink: MailSink) -> Properties:
    """What would work."""
    return declared(machine, sink=sink)


def refused(props: Properties) -> str:
    """Return why an installation is refused."""
    with pytest.raises(ServerError) as raised:
        provider.create(props)
    said = str(raised.value)
    assert TOKEN not in said
    return said


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    """After each refusal the server is as it was."""
    yield
    places = (
        "/opt/callfire-mail /etc/callfire-mail /var/lib/callfire-mail* /var/lib/private/callfire* /tmp/callfire-mail*"
    )
    assert machine.run(f"ls -d {places} /etc/systemd/system/callfire* /run/systemd/system/callfire*", check=False) == ""
    assert "callfire" not in machine.run("systemctl list-units --all --no-legend --plain")


def with_access(props: Properties, **changes: Any) -> Properties:
    """The same with another way to log in."""
    return props | {"access": props["access"] | changes}


def test_another_host_key(props: Properties, machine: Machine) -> None:
    """Nothing is sent to a server whose key is not the known one, nor to one that is not known at all."""
    for name, how in ((machine.ip, "the one that is known"), ("192.0.2.1", "known yet")):
        said = refused(with_access(props, known_hosts=[f"{name} {OTHER_KEY}"]))
        assert f"its host key is not {how}" in said
        assert f"ssh-keyscan -p 22 {machine.ip}" in said


def test_a_login_that_is_refused(props: Properties) -> None:
    """With what to do about it."""
    assert "the login as nobody-here was refused" in refused(with_access(props, user="nobody-here"))


@pytest.mark.parametrize("content", [None, "no key"])
def test_a_private_key_that_is_none(props: Properties, tmp_path: Any, content: str | None) -> None:
    """A file that is not there, or holds something else."""
    key = tmp_path / "id"
    if content:
        key.write_text(content)
    assert str(key) in refused(with_access(props, key_file=str(key)))


def test_nobody_answers(props: Properties, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried for a while, since a machine that was just made needs some; then said."""
    monkeypatch.setattr("hosting.ssh.CONNECT_WITHIN", 1.0)
    with pytest.raises(UnreachableError, match=r"port 2222 does not answer .*Check the address"):
        provider.create(with_access(props, port=2222))


def test_a_user_without_sudo(props: Properties, machine: Machine) -> None:
    """One who is not in sudoers, and one who would be asked for a password."""
    machine.run(
        "useradd -m -s /bin/bash plain && install -d -o plain -m 700 /home/plain/.ssh"
        " && install -o plain -m 600 ~root/.ssh/authorized_keys /home/plain/.ssh/authorized_keys"
    )
    said = refused(with_access(props, user="plain"))
    assert "plain may not use sudo without a password" in said
    assert "plain ALL=(ALL) NOPASSWD:ALL" in said
    machine.run("echo 'plain ALL=(ALL) ALL' > /etc/sudoers.d/plain")
    assert "plain may not use sudo without a password" in refused(with_access(props, user="plain"))


def test_no_python(props: Properties) -> None:
    """An interpreter that is not there: what was asked for is named, and not another one."""
    said = refused(with_access(props, python="/usr/bin/python3.99"))
    assert "there is no /usr/bin/python3.99: install it with `sudo apt install python3.99`, or correct server" in said


def test_a_full_disk(props: Properties, machine: Machine) -> None:
    """Said beforehand where it can be foreseen; taken back where it can't."""
    machine.run("mount -t tmpfs -o size=50m tmpfs /opt")
    try:
        assert "400 MB must be free in /opt, and there are 52 MB: make room" in refused(props)
    finally:
        machine.run("umount /opt")
    machine.run(
        "mkdir -p /opt/callfire-mail/production && mount -t tmpfs -o size=50m tmpfs /opt/callfire-mail/production"
    )
    try:
        assert "No space left on device" in refused(props)
    finally:
        machine.run("umount /opt/callfire-mail/production && rm -r /opt/callfire-mail")


SPEAKS_NO_HTTP = shlex.join(["-c", PLAIN_SERVER, "8711", "220 mail.example.com ESMTP\r\n"])


@pytest.mark.parametrize(
    ("port", "purpose", "program"),
    [
        (8710, "takes postbacks", "-m http.server 8710"),
        (8711, "is the admin port", "-m http.server 8711"),
        (8711, "is the admin port", SPEAKS_NO_HTTP),
    ],
)
def test_a_port_that_is_in_use(props: Properties, machine: Machine, port: int, purpose: str, program: str) -> None:
    """By whom is said, whatever he speaks."""
    machine.run(f"systemd-run --unit taken --service-type=exec python3 {program}")
    try:
        machine.run(f"until ss -ltn | grep -q :{port}; do sleep 0.05; done")
        assert f"port {port} {purpose}, and python3 has it: stop that, or choose another port" in refused(props)
    finally:
        machine.run("systemctl stop taken")


def test_the_ports_of_another_stack(props: Properties, machine: Machine, sink: MailSink) -> None:
    """Whose they are is said, and not how a program is called; nobody is told to stop it."""
    outputs = dict(provider.create(props).outs or {})
    try:
        said = refused(declared(machine, sink=sink, name="office", tokens=["0" * 32]))
    finally:
        provider.delete("id", outputs)
    for port, purpose in ((8710, "takes postbacks"), (8711, "is the admin port")):
        of = "the forwarder callfire-mail-production has it"
        assert f"port {port} {purpose}, and {of}: choose another port\n" in f"{said}\n"


@pytest.mark.parametrize("port", [80, 443, 2019])
def test_the_ports_of_caddy(machine: Machine, sink: MailSink, port: int) -> None:
    """They are not for the forwarder behind it, before anybody listens there."""
    admin = {"FORWARDER_ADMIN_PORT": str(port)}
    said = refused(declared(machine, sink=sink, tls="acme", domain="texts.example.com", listen="", settings=admin))
    assert f"forwarderAdminPort {port} is Caddy's own with tls `acme`: choose another port" in said


@pytest.mark.parametrize(
    ("name", "days", "why"),
    [
        ("other.example.com", 2, "Hostname mismatch, certificate is not valid for 'texts.example.com'"),
        ("texts.example.com", -1, "certificate has expired"),
    ],
)
def test_a_certificate_that_would_be_refused(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine, sink: MailSink, tmp_path: Path, name: str, days: int, why: str
) -> None:
    """Another's, or one that counts no longer, whoever signed it."""
    authority = certificate(tmp_path, "authority")
    file = certificate(tmp_path, name, days=days, authority=authority)
    (machine.root / "etc/ssl/texts.pem").write_bytes(file.read_bytes())
    paths = ["/etc/ssl/texts.pem"] * 2
    said = refused(
        declared(machine, sink=sink, tls="files", domain="texts.example.com", certificate=paths, listen="443")
    )
    assert f"CallFire would refuse the certificate /etc/ssl/texts.pem ({why}): put one there that counts now" in said


def test_what_tls_needs(machine: Machine, sink: MailSink) -> None:
    """A certificate that is not there; Caddy where there is none."""
    files = declared(
        machine, sink=sink, tls="files", certificate=["/etc/ssl/none.pem", "/etc/ssl/none.key"], listen="443"
    )
    said = refused(files)
    assert "/etc/ssl/none.pem is not there" in said
    assert "/etc/ssl/none.key is not there" in said
    acme = declared(machine, sink=sink, tls="acme", domain="texts.example.com", listen="")
    assert "needs Caddy on the server: install it with `sudo apt install caddy`" in refused(acme)


def test_caddy_where_the_archive_has_none(machine: Machine, sink: MailSink) -> None:
    """On Ubuntu 22.04 the usual command would not help: Caddy's own archive is named."""
    acme = declared(machine, sink=sink, tls="acme", domain="texts.example.com", listen="")
    says = 'ID=ubuntu\\nVERSION_ID=\\"22.04\\"\\nPRETTY_NAME=\\"Ubuntu 22.04.5 LTS\\"\\n'
    machine.run(f"printf '{says}' > /run/os-release && mount --bind /run/os-release /etc/os-release")
    try:
        said = refused(acme)
    finally:
        machine.run("umount /etc/os-release; rm /run/os-release")
    assert "Ubuntu 22.04 has none, so install it from Caddy's own archive (https://caddyserver.com/docs/install" in said
    assert "apt install" not in said


def test_settings_that_the_forwarder_refuses(machine: Machine, sink: MailSink) -> None:
    """The first installation is tried, refused with its own words, and taken back."""
    said = refused(declared(machine, sink=sink, settings={"FORWARDER_MAIL_FROM": "nobody"}))
    assert "mailFrom" in said
    assert "was refused before it took over" in said


def test_every_mistake_of_a_declaration_is_named(props: Properties) -> None:
    """All at once, each by the name of its property."""
    wrong = props | {"name": "Not A Name", "hosts": ["a b", "c", "c"], "tls": "acme", "domain": ""}
    failures = provider.check({}, wrong).failures
    assert [failure.property for failure in failures] == ["name", "hosts", "hosts", "", "tls", "domain"]
    assert provider.check({}, props).failures == []


@pytest.mark.parametrize("purpose", ["preflight", "check", "command", "status"])
def test_a_name_that_is_another_stacks(props: Properties, purpose: str) -> None:
    """What another stack's units are called for a while would be cleaned up by that stack, with its outbox."""
    [failure] = provider.check({}, props | {"name": f"blue-{purpose}"}).failures
    said = f"`blue-{purpose}` is what the {purpose} of a stack `blue` is called on a server: choose another"
    assert (failure.property, failure.reason) == ("name", said)
    assert provider.check({}, props | {"name": purpose}).failures == []


def test_a_server_that_is_too_old(servers: Servers) -> None:
    """Debian 11: its Python at first, then itself."""
    old = servers("old", "bullseye")
    with sink_at(old) as sink:
        props = declared(old, sink=sink)
        said = refused(props)
        assert "Python 3.11 or newer is needed, and python3 is 3.9." in said
        assert "name it in serverPython" in said
    assert old.run("ls -d /opt/* /etc/callfire-mail /tmp/callfire*", check=False) == ""
