"""The ways in: each kind of key, what makes a host key known, other ports, a jump host, IPv6."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider, claim, examine, listen_stream
from hosting.ssh import Access, ServerError
from stacks.settings import host_keys
from tests.forwarder_kit import TOKEN, http, text_postback
from tests.server.conftest import Servers
from tests.server.kit import declared, differing, ip6_of, read, sink_at
from tests.server.machine import Machine, eventually
from tests.server.test_tls import DOMAIN, SELF_SIGNED

provider = ServerForwarderProvider()
PASSPHRASE = "correct horse battery staple"
LOG_IN = """
import asyncio, json, sys
from hosting.server import claim, examine
from hosting.ssh import Access
told = json.load(sys.stdin)
access = Access(**told["access"])
words = {"listen": "8710", "admin_port": 8711, "domain": "", "certificate": [], "caddy": False}
words |= {"reach": [], "ours": claim([])}
print(asyncio.run(examine("production", told["host"], access, **words))[0]["python"])
"""


@pytest.fixture(scope="module")
def ip6(machine: Machine) -> str:
    """Its IPv6 address."""
    return ip6_of(machine)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `~/.ssh` of a user who has neither key nor agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    return folder


def log_in(machine: Machine, host: str = "", **access: Any) -> list[str]:
    """Log in as a user with sudo, with the machine's key and pins unless told otherwise; return what it lacks."""
    told = {"user": "deploy", "key_file": machine.key, "known_hosts": tuple(machine.known_hosts), **access}
    words: dict[str, Any] = {"listen": "8710", "admin_port": 8711, "domain": "", "certificate": [], "caddy": False}
    words |= {"reach": [], "ours": claim([])}
    return asyncio.run(examine("production", host or machine.ip, Access(**told), **words))[1]


def refused(machine: Machine, host: str = "", **access: Any) -> str:
    """Return why the log-in is refused."""
    with pytest.raises(ServerError) as raised:
        log_in(machine, host, **access)
    return str(raised.value)


def encrypted(machine: Machine, folder: Path, *words: str) -> Path:
    """Return a copy of the machine's key that has a passphrase."""
    key = folder / "encrypted"
    shutil.copy(machine.key, key)
    key.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, *words, "-f", key], check=True, capture_output=True
    )
    return key


@pytest.fixture
def agent(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that holds nothing."""
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as started:
        try:
            eventually(socket.exists, "the agent listens")
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            yield
        finally:
            started.terminate()


def test_the_key_itself(machine: Machine, home: Path) -> None:
    """As CI has it, with and without the line's end that a secret store may drop, or with a carriage return."""
    key = Path(machine.key).read_text()
    for spelled in (key, key.strip(), key.replace("\n", "\r\n")):
        assert log_in(machine, key=spelled, key_file="") == []
    assert "the private key in serverKey is no private key" in refused(machine, key=key[: len(key) // 2], key_file="")


def test_a_key_of_the_agent(machine: Machine, agent: None, tmp_path: Path) -> None:
    """Also one with a passphrase, which is what a key with one is told to be: loaded there."""
    assert "the login as deploy was refused" in refused(machine, key_file="")
    askpass = tmp_path / "askpass"
    askpass.write_text(f"#!/bin/sh\necho '{PASSPHRASE}'\n")
    askpass.chmod(0o700)
    subprocess.run(
        ["ssh-add", "-q", encrypted(machine, tmp_path)],
        env=os.environ | {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"},
        check=True,
        capture_output=True,
    )
    assert log_in(machine, key_file="") == []


@pytest.mark.parametrize("words", [(), ("-m", "PEM")], ids=["OpenSSH", "PEM"])
def test_a_key_with_a_passphrase(machine: Machine, home: Path, words: tuple[str, ...]) -> None:
    """Is said to have one, wherever it was declared; among the usual files it counts as none."""
    if words:  # a kind that has that format
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "rsa", "-N", PASSPHRASE, *words, "-f", home / "encrypted"], check=True
        )
        key = home / "encrypted"
    else:
        key = encrypted(machine, home)
    assert f"the private key {key} has a passphrase: load it into the agent" in refused(machine, key_file=str(key))
    assert "the private key in serverKey has a passphrase" in refused(machine, key=key.read_text(), key_file="")
    key.rename(home / "id_rsa" if words else home / "id_ed25519")
    assert "the login as deploy was refused" in refused(machine, key_file="")


def test_the_usual_files(machine: Machine, home: Path) -> None:
    """A key in `~/.ssh/id_ed25519` and a server in `~/.ssh/known_hosts`: nothing needs to be declared."""
    (home / "known_hosts").write_text("\n".join(machine.known_hosts))
    assert "the login as deploy was refused" in refused(machine, key_file="", known_hosts=())
    shutil.copy(machine.key, home / "id_ed25519")
    assert log_in(machine, key_file="", known_hosts=()) == []


def new_key(folder: Path, kind: str = "ed25519") -> Path:
    """Return a new private key; the public one is beside it."""
    key = folder / f"new-{kind}"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
    return key


def public(key: Path) -> str:
    """Return kind and key of a private key's public one."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def test_known_hosts_of_the_user(machine: Machine, home: Path) -> None:
    """Known in plain or hashed, beside lines that can't be read; or else refused, whatever ssh's configuration allows.

    That is: not in the file, without a file, changed, of another kind, revoked.
    """
    file = home / "known_hosts"
    (home / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n")
    assert "its host key is not known yet" in refused(machine, known_hosts=())
    file.write_text("nonsense\n@nonsense x y\n|1|x x\n" + "\n".join(machine.known_hosts))
    assert log_in(machine, known_hosts=()) == []
    file.write_text("\n".join(machine.known_hosts) + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert machine.ip not in file.read_text()
    assert log_in(machine, known_hosts=()) == []
    wrong = {
        "unknown": machine.known_hosts[0].replace(machine.ip, "192.0.2.1"),
        "changed": f"{machine.ip} {public(new_key(home))}",
        "of another kind": f"{machine.ip} {public(new_key(home, 'ecdsa'))}",
        "revoked": f"{machine.known_hosts[0]}\n@revoked {machine.known_hosts[0]}",
    }
    for what, lines in wrong.items():
        file.write_text(f"{lines}\n")
        said = refused(machine, known_hosts=())
        assert f"its host key is not {'known yet' if what == 'unknown' else 'the one that is known'}" in said, what
        assert f"ssh-keyscan -p 22 {machine.ip}" in said, what


def test_a_host_key_that_an_authority_has_signed(machine: Machine, home: Path) -> None:
    """`@cert-authority`, in known_hosts or pinned; another authority's word counts for nothing."""
    authority, other = new_key(home), new_key(home, "ecdsa")
    server_key = machine.root / "etc/ssh/ssh_host_ed25519_key.pub"
    sign: list[str | Path] = ["ssh-keygen", "-q", "-s", authority, "-h", "-I", "test", "-n", machine.ip, server_key]
    subprocess.run(sign, check=True, capture_output=True)
    configuration = machine.root / "etc/ssh/sshd_config.d/certificate.conf"
    configuration.write_text("HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\n")
    machine.run("systemctl restart ssh")
    try:
        for key, trusted in ((authority, True), (other, False)):
            line = f"@cert-authority 10.77.* {public(key)}"
            (home / "known_hosts").write_text(f"{line}\n")
            for pins in ((line,), ()):
                if trusted:
                    assert log_in(machine, known_hosts=pins) == []
                else:
                    assert "its host key is not the one that is known" in refused(machine, known_hosts=pins)
    finally:
        configuration.unlink()
        machine.run("systemctl restart ssh")


@pytest.fixture(scope="module")
def second_port(machine: Machine) -> Iterator[int]:
    """Another port of its sshd."""
    machine.run("systemd-run --quiet --unit sshd-2222 /usr/sbin/sshd -D -p 2222")
    try:
        machine.run("until ss -ltn | grep -q :2222; do sleep 0.05; done")
        yield 2222
    finally:
        machine.run("systemctl stop sshd-2222")


def keyscan(host: str, port: int) -> str:
    """Return what `ssh-keyscan` prints, comments and all."""
    scan = ["ssh-keyscan", "-p", str(port), host]
    return subprocess.run(scan, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def test_host_keys_as_ssh_keyscan_prints_them(machine: Machine, ip6: str, second_port: int, home: Path) -> None:
    """Pasted whole, for any port and both kinds of address."""
    for host in (machine.ip, ip6):
        for port in (22, second_port):
            scanned = keyscan(host, port)
            pins = host_keys(scanned)
            assert pins[0].split()[0] == (host if port == 22 else f"[{host}]:{port}")
            assert log_in(machine, host, port=port, known_hosts=tuple(pins)) == []
            (home / "known_hosts").write_text(scanned)
            assert log_in(machine, host, port=port, known_hosts=()) == []


CUT_FIRST = """\
if mkdir /run/sshd-cut 2>/dev/null; then exit; fi
exec /usr/sbin/sshd -i -h /etc/ssh/ssh_host_ed25519_key -h /run/sshd-ecdsa
"""


def test_a_first_connection_that_is_cut(machine: Machine, home: Path) -> None:
    """Of a server whose preferred key is not the one that is known: asked again, it shows that one, or is refused."""
    machine.run("ssh-keygen -q -t ecdsa -N '' -f /run/sshd-ecdsa")
    known = machine.run("cat /run/sshd-ecdsa.pub")
    words = f"--accept --inetd -l 2224 sh -c {shlex.quote(CUT_FIRST)}"
    machine.run(f"systemd-run --quiet --unit sshd-cut systemd-socket-activate {words}")
    try:
        machine.run("until ss -ltn | grep -q :2224; do sleep 0.05; done")
        pin = f"[{machine.ip}]:2224"
        assert log_in(machine, port=2224, known_hosts=(f"{pin} {known}",)) == []
        for kind in ("ecdsa", "rsa"):
            machine.run("rmdir /run/sshd-cut")
            other = public(new_key(home, kind))
            assert "its host key is not the one that is known" in refused(
                machine, port=2224, known_hosts=(f"{pin} {other}",)
            )
            assert machine.run("ls -d /run/sshd-cut") == "/run/sshd-cut"
    finally:
        machine.run("systemctl stop sshd-cut; rm -r /run/sshd-*")


@pytest.fixture(scope="module")
def behind(servers: Servers, machine: Machine) -> tuple[Machine, str]:
    """A server that `machine` alone reaches, by a cable of their own; and its address there."""
    other = servers("behind")
    return other, machine.link(other)


def test_a_jump_host_that_is_another_machine(machine: Machine, behind: tuple[Machine, str], home: Path) -> None:
    """Both host keys are verified, and whose is wrong is said; so is who does not answer."""
    other, address = behind
    jump = f"deploy@{machine.ip}:22"
    there = other.known_hosts[0].replace(other.ip, address)
    here, wrong = machine.known_hosts[0], public(new_key(home))
    assert log_in(machine, address, jump=jump, known_hosts=(here, there)) == []
    said = refused(machine, address, jump=jump, known_hosts=(f"{machine.ip} {wrong}", there))
    assert said.startswith(f"SSH to {machine.ip}: its host key is not the one that is known")
    said = refused(machine, address, jump=jump, known_hosts=(here, f"{address} {wrong}"))
    assert said.startswith(f"SSH to {address}: its host key is not the one that is known")
    assert f"`ssh-keyscan -p 22 {address}` (on the jump host)" in said


def test_nobody_answers_behind_a_jump_host(
    machine: Machine, behind: tuple[Machine, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not is said: the server, or the jump host."""
    other, address = behind
    monkeypatch.setattr("hosting.ssh.CONNECT_WITHIN", 1.0)
    pins = (machine.known_hosts[0], other.known_hosts[0].replace(other.ip, address))
    said = refused(machine, address, jump=f"deploy@{machine.ip}:22", port=2022, known_hosts=pins)
    assert said.startswith(f"SSH to {address}: port 2022 does not answer")
    said = refused(machine, address, jump=f"deploy@{machine.ip}:2022", known_hosts=pins)
    assert said.startswith(f"SSH to {machine.ip}: port 2022 does not answer")


def test_a_jump_host_by_its_ipv6_address(machine: Machine, ip6: str) -> None:
    """In brackets, as ssh takes it."""
    inner = machine.known_hosts[0].replace(machine.ip, "::1")
    pins = (*machine.known_hosts, inner)
    assert log_in(machine, "::1", jump=f"deploy@[{ip6}]:22", known_hosts=pins) == []
    assert log_in(machine, "::1", jump=f"deploy@[{ip6}]", known_hosts=pins) == []


@pytest.mark.parametrize("family", ["0.0.0.0", "::"])  # noqa: S104 - in a machine of its own
def test_a_name_with_an_address_of_each_family(machine: Machine, ip6: str, tmp_path: Path, family: str) -> None:
    """Whichever of the two answers, in whichever order they are tried."""
    machine.run(f"systemd-run --quiet --unit sshd-one /usr/sbin/sshd -D -p 2223 -o ListenAddress='{family}'")
    try:
        machine.run("until ss -ltn | grep -q :2223; do sleep 0.05; done")
        for order in ((machine.ip, ip6), (ip6, machine.ip)):
            hosts = tmp_path / "hosts"
            hosts.write_text("".join(f"{address} both.example.com\n" for address in order))
            pin = machine.known_hosts[0].replace(machine.ip, "[both.example.com]:2223")
            access = {"user": "deploy", "key_file": machine.key, "known_hosts": [pin], "port": 2223}
            words = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
            done = subprocess.run(
                [*words, sys.executable, "-c", LOG_IN],
                input=json.dumps({"host": "both.example.com", "access": access}),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout.startswith("3."), done.stderr
    finally:
        machine.run("systemctl stop sshd-one")


def post(host: str, ident: int, port: int = 8710) -> int:
    """Post a text to a server by this address."""
    address = f"[{host}]" if ":" in host else host
    return http(f"http://{address}:{port}/postback/{TOKEN}", text_postback(ident), {"Content-Type": "text/xml"}).status


def test_a_server_by_its_ipv6_address(machine: Machine, ip6: str) -> None:
    """Declared, installed, listening there alone, as declared, and removed."""
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink, hosts=[ip6], listen=listen_stream("none", ip6, 8710))
        assert provider.check({}, props).failures == []
        outputs = dict(provider.create(props).outs or {})
        assert post(ip6, 1) == 200
        assert sink.wait_for(1)[0].text_id == 1
        with pytest.raises(OSError, match="refused"):
            post(machine.ip, 2)
        assert differing(read(provider, outputs), props) == {}
        provider.delete("id", outputs)
        assert machine.run("ls -d /opt/callfire-mail /etc/callfire-mail /var/lib/callfire*", check=False) == ""


def test_a_server_under_another_name_stays(machine: Machine, ip6: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that becomes a name, or IPv6, is the same server: not cleared as one that is no longer listed."""
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink, listen=listen_stream("none", "::", 8710))
        outputs = dict(provider.create(props).outs or {})
        assert post(machine.ip, 1) == 200
        pid = machine.run("systemctl show -P MainPID callfire-mail-production")
        renamed = props | {"hosts": [ip6], "servers": {ip6: props["servers"][machine.ip]}}
        outputs = dict(provider.update("id", outputs, renamed).outs or {})
        assert f"production on {machine.ip}: is still listed, by another name" in capsys.readouterr().out
        assert machine.run("systemctl show -P MainPID callfire-mail-production") == pid
        assert post(ip6, 2) == 200
        assert differing(read(provider, outputs), renamed) == {}
        sink.wait_for(2)
        provider.delete("id", outputs)


def test_https_on_both_families(machine: Machine, ip6: str, tmp_path: Path) -> None:
    """With a certificate that is given, port 443 is open on every address."""
    machine.run(SELF_SIGNED)
    authority = tmp_path / "authority.pem"
    authority.write_text(machine.run("cat /etc/ssl/texts.pem"))
    paths = ["/etc/ssl/texts.pem", "/etc/ssl/texts.key"]
    listen = listen_stream("files", "127.0.0.1", 443)
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink, tls="files", domain=DOMAIN, certificate=paths, listen=listen)
        outputs = dict(provider.create(props).outs or {})
        for address in (machine.ip, f"[{ip6}]"):
            asked = ["curl", "--silent", "--cacert", str(authority), "--resolve", f"{DOMAIN}:443:{address}"]
            asked += ["--write-out", "%{remote_ip} %{http_code}", "--output", os.devnull, f"https://{DOMAIN}/healthz"]
            said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            assert said == f"{address.strip('[]')} 200"
        provider.delete("id", outputs)
