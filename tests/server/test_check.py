"""`python -m stacks check` of a stack on a server: names, ports, certificates and ways, as they really are."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.journey.checkout import ROOT, Checkout
from tests.pulumi_kit import backend
from tests.server.authority import pebble
from tests.server.kit import ip6_of
from tests.server.machine import Machine
from tests.server.names import PLAIN_SERVER, TLS_SERVER, certificate, listening, with_names
from tests.server.postgresql import postgresql
from tests.server.stack import PASSWORD, CallFire, Stack, settings

DOMAIN = "texts.example.com"
SERVER = "server.example.com"
FILES: dict[str, Any] = {
    "tls": "files",
    "domain": DOMAIN,
    "forwarderPort": 443,
    "tlsCertificate": "/etc/ssl/texts.pem",
    "tlsKey": "/etc/ssl/texts.pem",
}
NOT_YET = "certificate: none yet; the forwarder shows yours after `pulumi up`"


@dataclass
class Checked:
    """A stack `production` whose settings are right but for what a test changes."""

    stack: Stack
    machine: Machine
    callfire: CallFire
    folder: Path
    ipv6: str
    names: dict[str, list[str]] = field(default_factory=dict)

    def check(self, status: int, *words: str, dns: bool = False, trust: Path | None = None, **changes: Any) -> str:
        """Return what the command prints with these settings and names."""
        told = settings(self.machine, self.callfire, **{"serverHosts": SERVER, "publicUrl": "", **changes})
        key = self.machine.known_hosts[0].removeprefix(self.machine.ip)
        names = (SERVER, self.machine.ip, self.ipv6, "127.0.0.1")
        told["callfire-mail:serverHostKeys"] = ",".join(f"{name}{key}" for name in names)
        kept = yaml.safe_load(self.stack.file.read_text())
        secrets = {name: value for name, value in kept["config"].items() if isinstance(value, dict)}
        self.stack.file.write_text(yaml.safe_dump(kept | {"config": told | secrets}))
        environment = self.stack.environment | ({"SSL_CERT_FILE": str(trust)} if trust else {})
        python = str(ROOT / ".venv" / "bin" / "python")
        done = subprocess.run(
            [*with_names(self.names, self.folder, dns=dns), python, "-m", "stacks", "check", *words],
            cwd=self.stack.checkout.folder,
            env=environment | {"PULUMI_STACK": self.stack.name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def ipv6(machine: Machine) -> str:
    """The server's IPv6 address."""
    return ip6_of(machine)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority's certificate and key."""
    return certificate(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]], pulumi_cli: Path) -> Stack:
    """A stack with its secrets."""
    environment = backend(tmp_path_factory.mktemp("pulumi"), pulumi_cli)
    stack = Stack(Checkout(tmp_path_factory.mktemp("checkout"), free_ports(4)), "production", environment)
    stack.start({}, {"callfire:login": "sandbox", "callfire:password": PASSWORD})
    return stack


@pytest.fixture
def checked(  # noqa: PLR0913, PLR0917 - fixtures
    stack: Stack, machine: Machine, callfire: CallFire, ipv6: str, authority: Path, tmp_path: Path
) -> Checked:
    """That stack, with names that point to the server."""
    shown = certificate(tmp_path, DOMAIN, authority=authority)
    (machine.root / "etc/ssl/texts.pem").write_bytes(shown.read_bytes())
    names = {DOMAIN: [machine.ip], SERVER: [machine.ip, ipv6]}
    return Checked(stack, machine, callfire, tmp_path, ipv6, names)


@contextmanager
def firewall(machine: Machine, rule: str) -> Iterator[None]:
    """Let the server's firewall follow a rule, for the time of a block."""
    if not shutil.which("nft"):
        pytest.skip("a firewall needs nft (tests/debian-packages.txt)")
    nft = ["ip", "netns", "exec", machine.call("netns"), "nft"]
    chain = "add table inet test; add chain inet test input { type filter hook input priority 0; }"
    subprocess.run([*nft, f"{chain}; add rule inet test input {rule}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*nft, "delete table inet test"], check=True)


def test_before_the_first_up_nobody_listens_and_nothing_is_wrong(checked: Checked) -> None:
    """All is looked at; what is not there yet is told as that."""
    mail_server = f"{checked.machine.gateway}:{checked.callfire.smtp_port}"
    said = checked.check(0, **FILES)
    assert said.splitlines() == [
        "ok     settings: hosting server",
        f"ok     CallFire: {checked.callfire.url}, logged in as sandbox, 0 subscriptions",
        f"ok     mail server: {mail_server}, none, it takes mail without a log-in",
        f"ok     server {SERVER}: Python 3.11, x86_64",
        f"ok     DNS name {DOMAIN}: {checked.machine.ip}",
        "ok     port 443: free: nobody listens yet (or a firewall rejects it)",
        f"ok     {NOT_YET}",
    ]
    answer = json.loads(checked.check(0, "--json", **FILES))
    assert answer["ok"]
    assert answer["findings"][4] == {
        "what": f"DNS name {DOMAIN}",
        "wrong": [],
        "right": checked.machine.ip,
        "untried": "",
    }


def test_a_name_that_does_not_resolve(checked: Checked) -> None:
    """Without a record there is one to be made; without a name server nobody knows."""
    del checked.names[DOMAIN]
    said = checked.check(1, **FILES)
    assert "it does not resolve: make an A (and AAAA) record that points to the server" in said
    assert "-      ports and certificate: not looked at, the DNS name first" in said
    assert "it can't be looked up (Temporary failure in name resolution)" in checked.check(1, dns=True, **FILES)
    assert not json.loads(checked.check(1, "--json", **FILES))["ok"]


def test_a_name_that_points_elsewhere_even_with_one_address(checked: Checked) -> None:
    """Who connects chooses among the addresses, so each of them counts."""
    gateway, ipv6 = checked.machine.gateway, checked.ipv6
    checked.names[DOMAIN] = [gateway]
    said = checked.check(1, **FILES)
    assert f"its A record is {gateway}, and the server is {checked.machine.ip}: correct it" in said
    elsewhere = f"{ipv6[:-1]}1"
    checked.names[DOMAIN] = [checked.machine.ip, elsewhere]
    said = checked.check(1, **FILES)
    assert f"its AAAA record is {elsewhere}, and the server is {ipv6}: correct it" in said
    assert "its A record" not in said


def test_ipv6_alone_and_both(checked: Checked, authority: Path) -> None:
    """Logged in to, and knocked at, over IPv6; a port that is open at one address alone is told."""
    shown = certificate(checked.folder, DOMAIN, authority=authority)
    checked.names = {DOMAIN: [checked.ipv6], SERVER: [checked.ipv6]}
    with listening(checked.machine, 8443, TLS_SERVER, shown):
        said = checked.check(1, trust=authority, **FILES | {"forwarderPort": 8443})  # the port is not free there
        assert f"DNS name {DOMAIN}: {checked.ipv6}\nok     port 8443: open\nok     certificate: trusted" in said
        checked.names = {name: [checked.machine.ip, checked.ipv6] for name in (DOMAIN, SERVER)}
        said = checked.check(1, trust=authority, **FILES | {"forwarderPort": 8443})
        assert f"port 8443: open at {checked.machine.ip}; open at {checked.ipv6}" in said
        with firewall(checked.machine, "meta nfproto ipv6 tcp dport 8443 reject with tcp reset"):
            said = checked.check(1, trust=authority, **FILES | {"forwarderPort": 8443})
        assert f"refused at {checked.ipv6}, but open at {checked.machine.ip}: remove that address" in said
        with firewall(checked.machine, "meta nfproto ipv6 tcp dport 8443 drop"):
            said = checked.check(1, trust=authority, **FILES | {"forwarderPort": 8443})
        assert f"no answer at {checked.ipv6}: open it in the firewall" in said
        assert "ok     certificate: trusted" in said


def test_a_port_that_a_firewall_drops(checked: Checked) -> None:
    """Silence is no sign of a server that waits for its first `up`."""
    with firewall(checked.machine, "tcp dport 443 drop"):
        said = checked.check(1, **FILES)
    assert "WRONG  port 443\n         no answer: open it in the firewall of the server and of its provider" in said
    assert "-      certificate: not looked at, port 443 first" in said


def test_what_is_shown_in_place_of_a_trusted_certificate(checked: Checked, authority: Path) -> None:
    """Self-signed, expired, another's, none at all: each in words that say which."""
    folder, port = checked.folder, 8443
    changes = FILES | {"forwarderPort": port}
    shown = {
        "not trusted (self-signed certificate)": certificate(folder, DOMAIN),
        "not trusted (certificate has expired)": certificate(folder, DOMAIN, days=-1, authority=authority),
        f"not trusted (Hostname mismatch, certificate is not valid for '{DOMAIN}')": certificate(
            folder, "other.example.com", authority=authority
        ),
    }
    for words, file in shown.items():
        with listening(checked.machine, port, TLS_SERVER, file):
            assert f"{DOMAIN} shows is {words}: CallFire would refuse it" in checked.check(
                1, trust=authority, **changes
            )
    with listening(checked.machine, port, PLAIN_SERVER, "220 mail.example.com\r\n"):
        assert f"port {port} speaks no TLS: something else listens there" in checked.check(1, **changes)
    with listening(checked.machine, port, PLAIN_SERVER, ""):
        assert f"port {port} is open, but shows none (no answer)" in checked.check(1, **changes)


def test_what_the_server_reaches_need_not_answer_here(checked: Checked) -> None:
    """Mail server and database are tried from here, and from the server, where it counts."""
    there = {"smtpHost": "127.0.0.1", "smtpPort": 8587, **FILES}
    said = checked.check(1, **there)
    assert "-      mail server: not looked at, it does not answer on this machine; below, the server tries it" in said
    assert "the mail server 127.0.0.1:8587 does not answer there (Connection refused)" in said
    with listening(checked.machine, 8587, PLAIN_SERVER, ""):
        assert f"ok     server {SERVER}" in checked.check(0, **there)


def test_a_deployment_that_is_under_way_is_not_waited_for(checked: Checked) -> None:
    """It may take minutes, and what is seen meanwhile will not last."""
    lock = "/run/callfire-mail-production.lock"
    checked.machine.run(f"systemd-run --quiet --unit deployment flock {lock} sleep infinity")
    try:
        checked.machine.run(f"until ! flock --nonblock --shared {lock} true; do sleep 0.05; done")
        said = checked.check(1, **FILES)
    finally:
        checked.machine.run(f"systemctl stop deployment; rm {lock}")
    assert f"WRONG  server {SERVER}\n         {SERVER}: a deployment is under way there: look again when" in said
    assert f"ok     server {SERVER}" in checked.check(0, **FILES)


def test_a_server_behind_a_jump_host_is_not_compared_with_the_name(checked: Checked) -> None:
    """Its address as the jump host knows it says nothing of the public one."""
    jump = {"serverJump": f"deploy@{checked.machine.ip}:22", **FILES}
    del checked.names[SERVER]
    said = checked.check(0, **jump, serverHosts="127.0.0.1")
    assert f"ok     DNS name {DOMAIN}: {checked.machine.ip}" in said
    assert "ok     server 127.0.0.1: Python 3.11" in said


def test_several_servers_and_their_database(checked: Checked) -> None:
    """Each server is asked, whatever is wrong with another; the database is opened from here."""
    password = "tell-nobody"
    several: dict[str, Any] = {
        "serverHosts": f"{SERVER},other.example.com",
        "tls": "none",
        "publicUrl": f"http://{DOMAIN}:8710",
    }
    with postgresql(checked.machine.gateway) as open_to_all:
        url = open_to_all.replace("callfire@", f"callfire:{password}@")
        checked.stack.pulumi("config", "set", "--secret", "databaseUrl", typed=url)
        said = checked.check(1, **several)
        assert "ok     database: PostgreSQL, empty; its tables will be made at the first start" in said
        assert f"ok     server {SERVER}: Python 3.11" in said
        assert "WRONG  server other.example.com\n" in said
        assert f"ok     DNS name {DOMAIN}: {checked.machine.ip}\nok     port 8710: free" in said
        assert "certificate" not in said  # this proxy has none
        checked.stack.pulumi("config", "set", "--secret", "databaseUrl", typed=url.replace("/outbox", "/another"))
        said += checked.check(1, **several)
        assert "WRONG  database\n" in said
        assert 'database "another" does not exist' in said
    said += checked.check(1, **several)
    assert "-      database: not looked at, it does not answer on this machine" in said
    assert f"the database {checked.machine.gateway}:15432 does not answer there (Connection refused)" in said
    checked.stack.pulumi("config", "rm", "databaseUrl")
    assert password not in said


def test_a_certificate_of_ones_own_after_the_first_up(checked: Checked, authority: Path) -> None:
    """The forwarder shows it; to whom its authority is unknown, it is not trusted. One that is put there later is told.

    It would be shown after the next restart.
    """
    files = FILES | {"serverHosts": checked.machine.ip}
    assert NOT_YET in checked.check(0, **files)
    checked.stack.up()
    try:
        said = checked.check(0, trust=authority, **files)
        assert "ok     port 443: open\nok     certificate: trusted, until " in said
        assert "not trusted (unable to get local issuer certificate)" in checked.check(1, **files)
        other = certificate(checked.folder, "other.example.com", authority=authority)
        (checked.machine.root / "etc/ssl/texts.pem").write_bytes(other.read_bytes())
        said = checked.check(1, trust=authority, **files)
        assert "ok     certificate: trusted, until " in said
        assert "CallFire would refuse the certificate /etc/ssl/texts.pem (Hostname mismatch" in said
    finally:
        checked.stack.pulumi("destroy", "--yes", "--skip-preview")


def test_caddy_before_the_first_up_and_after_it(checked: Checked) -> None:
    """With tls `acme`: no certificate is wrong at first, and a trusted one is right later."""
    machine = checked.machine
    acme: dict[str, Any] = {"tls": "acme", "domain": DOMAIN, "serverHosts": machine.ip}
    assert "tls `acme` needs Caddy on the server: install it with `sudo apt install caddy`" in checked.check(1, **acme)
    try:
        machine.call("hostnet", "apt-get", "update", "-qq")
        machine.install("caddy")
    except AssertionError as error:
        pytest.skip(f"Caddy can't be installed: {error}")
    with pebble(machine, checked.folder) as (directory, root):
        said = checked.check(0, **acme, acmeDirectory=directory, trust=root)
        free = "ok     port 443: free: nobody listens yet (or a firewall rejects it)"
        not_yet = "ok     certificate: none yet; it comes with `pulumi up`"
        assert f"ok     port 80: open\n{free}\n{not_yet}" in said
        with firewall(machine, "tcp dport 80 drop"):
            said = checked.check(1, **acme, acmeDirectory=directory, trust=root)
            assert "WRONG  port 80\n" in said
            assert "port 443: free" in said
        checked.stack.up()
        said = checked.check(0, **acme, acmeDirectory=directory, trust=root)
        assert "ok     port 443: open\nok     certificate: trusted, until " in said
        assert "not trusted (unable to get local issuer certificate)" in checked.check(
            1, **acme, acmeDirectory=directory
        )
        checked.names["more.example.com"] = [machine.ip]
        said = checked.check(0, **acme | {"domain": "more.example.com"}, acmeDirectory=directory, trust=root)
        assert f"ok     port 443: open\n{not_yet}" in said
        assert "logged in as sandbox, 1 subscription\nok " in said  # its own, though it is at the former domain
        checked.stack.pulumi("destroy", "--yes", "--skip-preview")
