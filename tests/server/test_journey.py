"""`pulumi up` with the real CLI: from an empty server to mails, rotation, drift as a person sees it, and away again."""

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journey.checkout import Checkout
from tests.pulumi_kit import backend
from tests.server.handbook import commands
from tests.server.kit import ip6_of
from tests.server.machine import Machine, eventually
from tests.server.stack import PASSWORD, CallFire, Stack, settings
from tests.server.test_refusals import OTHER_KEY


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
    pulumi_cli: Path,
    machine: Machine,
    callfire: CallFire,
) -> Stack:
    """A stack `production` whose settings are complete."""
    environment = backend(tmp_path_factory.mktemp("pulumi"), pulumi_cli)
    stack = Stack(Checkout(tmp_path_factory.mktemp("checkout"), free_ports(4)), "production", environment)
    stack.file.unlink()  # the example
    type_the_handbook(stack, machine, callfire)
    for name, value in settings(machine, callfire).items():  # what a throw-away server has otherwise
        stack.pulumi("config", "set", name, str(value))
    return stack


def type_the_handbook(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """Type the settings of docs/server.md, word for word but for the addresses and names of this server."""
    names = {
        "texts.example.com": machine.ip,
        "smtp.example.com": machine.gateway,
        "serverUser root": "serverUser deploy",
    }
    typed = {"smtpPassword": "", "callfire:login": "sandbox", "callfire:password": PASSWORD}
    lines = [line for line in commands("From an empty server to production in ten minutes") if " config set " in line]
    assert len(lines) == 12
    stack.pulumi("stack", "init", stack.name)
    for line in lines:
        for name, here in names.items():
            line = re.sub(rf"(?<!@){re.escape(name)}", here, line)  # noqa: PLW2901 - one word after the other
        program, *words = shlex.split(line)
        assert program == "pulumi"
        if not {"smtpUsername", "smtpPassword"} & set(words):  # this mail server has no log-in
            stack.pulumi(*words, typed=typed.get(words[-1], ""))


def tokens(stack: Stack) -> list[str]:
    """Every postback token that the stack's forwarder accepts, in plain text, the current one first."""
    shown = json.loads(stack.pulumi("stack", "export", "--show-secrets"))
    resources = shown["deployment"]["resources"]
    [forwarder] = [resource for resource in resources if "ServerForwarder" in resource["type"]]
    found: list[str] = json.loads(forwarder["outputs"]["tokens"]["plaintext"])
    return found


def test_the_settings_are_proven_before_the_first_up(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """Everything that is wrong is told at once, and no secret with it; when all is well, what was found."""
    host_keys = ",".join(machine.known_hosts)
    wrong = {"smtpPort": "1", "serverHostKeys": f"{machine.ip} {OTHER_KEY}", "callfire:password": "wrong"}
    for name, value in wrong.items():
        stack.pulumi("config", "set", *(["--secret"] if "password" in name else []), name, value)
    said = stack.check(1)
    for finding in ("WRONG  CallFire", "WRONG  mail server", f"WRONG  server {machine.ip}"):
        assert finding in said
    right = {"smtpPort": str(callfire.smtp_port), "serverHostKeys": host_keys, "callfire:password": PASSWORD}
    for name, value in right.items():
        stack.pulumi("config", "set", *(["--secret"] if "password" in name else []), name, value)
    said += stack.check(0)
    for finding in ("ok     CallFire", "ok     mail server", f"ok     server {machine.ip}: Python 3."):
        assert finding in said
    stack.pulumi("config", "set", "mailTo", "nobody")
    stack.pulumi("config", "set", "smtpSecurity", "ssl")
    broken = stack.check(1)
    assert "mailTo: " in broken
    assert "smtpSecurity: " in broken
    assert f"ok     server {machine.ip}: Python 3." in broken  # it depends on neither
    stack.pulumi("config", "set", "mailTo", "office@example.com")
    stack.pulumi("config", "set", "smtpSecurity", "none")
    assert PASSWORD not in said + broken


def test_from_an_empty_server_to_mails(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """One `up`: it says what it does, and a text becomes a mail; the token is shown nowhere."""
    printed = stack.up()
    assert f"production on {machine.ip}: installing release" in printed
    assert f"ok     server {machine.ip}: Python 3." in stack.check(0)  # its ports are in use, by itself
    tunnel = f"ssh -N -L 8711:127.0.0.1:8711 -i {machine.key} deploy@{machine.ip}"
    assert stack.pulumi("stack", "output", "status").strip() == tunnel
    callfire.arrives("Hello, World!")
    assert f"ok     server {machine.ip}: Python 3." in stack.check(0)  # these ports are its own
    [token] = tokens(stack)
    assert token not in printed + stack.exported()


def test_a_second_up_changes_nothing(stack: Stack, callfire: CallFire) -> None:
    """Neither on the server nor at CallFire; nor does a refresh find anything."""
    before = callfire.ask("/control/requests")["counts"]
    assert "4 unchanged" in stack.up("--expect-no-changes")
    assert callfire.ask("/control/requests")["counts"] == before
    stack.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    [token] = tokens(stack)
    assert token not in stack.exported()


def test_the_key_as_a_secret_and_the_host_keys_as_they_are_printed(stack: Stack, machine: Machine) -> None:
    """As in CI: the private key, which is shown nowhere, typed into the stack; what `ssh-keyscan` prints, whole."""
    key = Path(machine.key).read_text()
    hidden = [line for line in key.splitlines() if not line.startswith("-")]
    scanned = subprocess.run(["ssh-keyscan", machine.ip], stdout=-1, stderr=subprocess.STDOUT, text=True, check=True)
    assert "serverKey" in stack.pulumi("config", "set", "serverKey", typed=key) + stack.check(1)  # in plain text
    stack.pulumi("config", "rm", "serverKeyFile")
    stack.pulumi("config", "set", "--secret", "serverKey", typed=key)
    stack.pulumi("config", "set", "serverHostKeys", typed=scanned.stdout)
    pid = machine.run("systemctl show -P MainPID callfire-mail-production.service")
    said = stack.check(0) + stack.pulumi("preview", "--diff") + stack.up("--diff") + stack.exported()
    stack.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    said += stack.exported() + stack.pulumi("preview", "--diff") + stack.up("--expect-no-changes")
    logged = subprocess.run(
        ["pulumi", "refresh", "--yes", "--skip-preview", "--logtostderr", "-v=3", "--non-interactive"],
        cwd=stack.checkout.folder,
        env=stack.environment | {"PULUMI_STACK": stack.name},
        capture_output=True,
        text=True,
        check=True,
    )
    said += logged.stdout + logged.stderr + stack.file.read_text()
    assert sum(line in said for line in hidden) == 0
    assert machine.run("systemctl show -P MainPID callfire-mail-production.service") == pid
    journal = machine.run("journalctl --no-pager; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert sum(line in journal for line in hidden) == 0


def test_the_server_by_its_ipv6_address(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """The same server under another address: it stays, CallFire posts there, and the tunnel's command is ssh's own."""
    ip6 = ip6_of(machine)
    scanned = subprocess.run(["ssh-keyscan", machine.ip, ip6], capture_output=True, text=True, check=True).stdout
    told = {"serverHosts": ip6, "serverHostKeys": scanned, "listenOn": "::", "publicUrl": f"http://[{ip6}]:8710"}
    for name, value in told.items():
        stack.pulumi("config", "set", name, typed=value)
    assert f"production on {machine.ip}: is still listed, by another name" in stack.up()
    [subscription] = callfire.ask("/control/subscriptions")["subscriptions"]
    assert subscription["endpoint"].startswith(f"http://[{ip6}]:8710/postback/")
    callfire.arrives("over IPv6")
    program, *words = shlex.split(stack.pulumi("stack", "output", "status"))
    options = ["-i", machine.key, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    options += ["-o", f"UserKnownHostsFile={machine.root.parent / 'known_hosts'}"]
    tried = [program, *options, *[word for word in words if word != "-N"], "true"]
    subprocess.run(tried, capture_output=True, text=True, check=True)
    for name, value in settings(machine, callfire).items():
        stack.pulumi("config", "set", name, str(value))
    stack.up()
    callfire.arrives("over IPv4 again")


def test_drift_shows_as_a_readable_difference(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """A unit that was edited by hand, line by line; a secret as changed; `up` mends both."""
    machine.run("sed -i s/MemoryMax=512M/MemoryMax=1G/ /etc/systemd/system/callfire-mail-production.service")
    machine.run("echo -n changed-by-hand-changed > /etc/callfire-mail/production/FORWARDER_TOKENS")
    shown = stack.pulumi("preview", "--refresh", "--diff")
    assert "MemoryMax=1G" in shown
    assert "MemoryMax=512M" in shown
    assert "changed on the server" in shown
    assert "changed-by-hand-changed" not in shown
    stack.up("--refresh")
    callfire.arrives("mended")
    for token in tokens(stack):
        assert token not in stack.exported() + shown


def test_a_token_rotation_loses_no_text(stack: Stack, callfire: CallFire) -> None:
    """One setting: the forwarder learns the new token, CallFire is told, and every text of a flood is mailed once.

    So it is when the version jumps, and when it is taken back.
    """
    former = tokens(stack)
    stop = threading.Event()
    sent: list[str] = []

    def flood() -> None:
        while not stop.wait(0.05):  # the mailbox keeps the last 5,000
            sent.append(f"flood {len(sent)}")
            callfire.send_text(sent[-1])

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        configure, up = commands("Rotating the token")
        assert up == "pulumi up"
        stack.pulumi(*shlex.split(configure)[1:])
        printed = stack.up()
        for version in ("5", "1"):
            stack.pulumi("config", "set", "postbackTokenVersion", version)
            printed += stack.pulumi("preview", "--diff") + stack.up()
    finally:
        stop.set()
        thread.join()
    now = tokens(stack)
    assert len(set(now)) == 4
    assert now[3:] == former
    [endpoint] = [found["endpoint"] for found in callfire.ask("/control/subscriptions")["subscriptions"]]
    assert endpoint.endswith(f"/postback/{now[0]}")
    assert not any(token in printed + stack.exported() for token in now)
    eventually(lambda: set(sent) <= set(callfire.mails()), "every text of the flood is mailed")
    assert {message: count for message, count in callfire.mails().items() if count != 1} == {}
    assert len(sent) > 20
    stack.up("--expect-no-changes")


def test_a_second_environment_beside_it(stack: Stack, machine: Machine, callfire: CallFire, tmp_path: Path) -> None:
    """`staging` on the same server and the same account: neither sees a text, a resource or a restart of the other."""
    other = Stack(
        stack.checkout, "staging", stack.environment | {"PULUMI_CONFIG_PASSPHRASE": "a passphrase of its own"}
    )
    pid = machine.run("systemctl show -P MainPID callfire-mail-production.service")
    told = settings(
        machine,
        callfire,
        numbers="18186469992",
        forwarderPort=8720,
        forwarderAdminPort=8721,
        publicUrl=f"http://{machine.ip}:8720",
        mailTo="staging@example.com",
    )
    other.start(told, {"callfire:login": "sandbox", "callfire:password": PASSWORD})
    other.up()
    callfire.arrives("for staging", to="18186469992")
    callfire.arrives("for production")
    assert callfire.recipients("for staging") == ["staging@example.com"]
    assert callfire.recipients("for production") == ["office@example.com"]
    stack.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    other.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    ids = {
        found["filter"]["to_number"]: found["id"] for found in callfire.ask("/control/subscriptions")["subscriptions"]
    }
    for one, number, holder in ((stack, "18186469992", "staging"), (other, "18186469991", "production")):
        assert "2 of them are in a stack already" in one.provider("import", status=1)
        assert "Nothing would be deleted" in one.provider("sweep", "--unowned", "--foreign")
        assert f"stays: {holder}: " in one.provider("sweep", ids[number], "--yes")
    assert len(callfire.ask("/control/subscriptions")["subscriptions"]) == 2
    other.pulumi("destroy", "--yes", "--skip-preview")
    assert pid == machine.run("systemctl show -P MainPID callfire-mail-production.service")
    assert "staging" not in machine.run("ls /etc/systemd/system /etc/callfire-mail /opt/callfire-mail /var/lib/private")
    assert len(callfire.ask("/control/subscriptions")["subscriptions"]) == 1
    callfire.arrives("still there")


def test_destroy_takes_the_subscription_back_first_and_leaves_nothing(
    stack: Stack, machine: Machine, callfire: CallFire
) -> None:
    """No subscription, no service, no file."""
    printed = stack.pulumi("destroy", "--yes", "--skip-preview")
    subscription, forwarder = (printed.index(f"{name} deleted") for name in ("texts-to-18186469991", "forwarder"))
    assert subscription < forwarder
    assert callfire.ask("/control/subscriptions")["subscriptions"] == []
    assert machine.run("ls -d /etc/callfire-mail /opt/callfire-mail /var/lib/callfire-mail*", check=False) == ""
    assert "callfire" not in machine.run("systemctl list-units --all --no-legend; ls /etc/systemd/system")


def test_purge_takes_what_was_not_delivered_too(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """Switched on without a restart; the destroy removes outbox and backups, and says what was in them."""
    stack.up()
    (stack.checkout.folder / "forwarder" / "__init__.py").write_text('"""Another release."""\n')
    stack.pulumi("config", "set", "smtpPort", "1")
    stack.up()
    assert "before-" in machine.run("ls /var/backups/callfire-mail-production")
    pid = machine.run("systemctl show -P MainPID callfire-mail-production.service")
    stack.pulumi("config", "set", "purge", "true")
    assert "1 updated" in stack.up()
    assert machine.run("systemctl show -P MainPID callfire-mail-production.service") == pid
    callfire.send_text("never delivered")
    status = "/opt/callfire-mail/production/forwarder status --json"
    eventually(lambda: json.loads(machine.run(status))["queued"] == 1, "the text is in the outbox")
    printed = stack.pulumi("destroy", "--yes", "--skip-preview")
    assert "removed what was not delivered (1 waiting) with the outbox and its copies" in printed
    places = "/var/lib/callfire-mail* /var/lib/private/callfire-mail* /var/backups/callfire-mail* /opt/callfire-mail"
    assert machine.run(f"ls -d {places}", check=False) == ""
