"""A forwarder on a server: installed, upgraded, restarted and rolled back under load, mended, moved on, removed."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink, http
from tests.server.handbook import commands
from tests.server.kit import (
    Load,
    Properties,
    broken_release,
    change_on_server,
    declared,
    differing,
    edit,
    post,
    read,
)
from tests.server.machine import Machine, eventually

UNIT = "callfire-mail-production"


@pytest.fixture(scope="module")
def provider() -> ServerForwarderProvider:
    """What the engine calls."""
    return ServerForwarderProvider()


@pytest.fixture(scope="module")
def props(machine: Machine, sink: MailSink) -> Properties:
    """What the program declares."""
    return declared(machine, sink=sink)


@pytest.fixture(scope="module")
def created(provider: ServerForwarderProvider, props: Properties) -> Properties:
    """The outputs of a fresh installation. Each test leaves it as it found it."""
    outputs = provider.create(props).outs
    assert outputs is not None
    return dict(outputs)


@pytest.fixture
def load(machine: Machine, created: Properties, sink: MailSink) -> Load:
    """Posts for the time of a block."""
    return Load(lambda: (machine.ip, 8710), first=1_000_000 * (len(sink.mails) + 1))


TEXTS = """
import sqlite3
outbox = sqlite3.connect("/var/lib/callfire-mail-production/outbox.db")
for row in outbox.execute("SELECT id FROM text WHERE id IN (6, 7, 8) ORDER BY id"):
    print(*row)
"""


def main_pid(machine: Machine) -> str:
    """The process that serves."""
    return machine.run(f"systemctl show -P MainPID {UNIT}.service")


def test_a_fresh_installation_serves(machine: Machine, created: Properties, sink: MailSink) -> None:
    """A text that is posted becomes a mail; only postbacks and /healthz are reachable from outside."""
    assert post(machine, 1) == 200
    assert sink.wait_for(1)[0].text_id == 1
    assert http(f"http://{machine.ip}:8710/healthz").status == 200
    assert http(f"http://{machine.ip}:8710/readyz").status == 404
    with pytest.raises(OSError, match="refused"):
        http(f"http://{machine.ip}:8711/readyz")


def test_the_service_is_hardened(machine: Machine, created: Properties) -> None:
    """Systemd's own judgement is 1.5 or better, and the process is nobody that has a login."""
    score = machine.run(f"systemd-analyze security {UNIT}.service --no-pager").splitlines()[-1]
    assert float(score.partition(":")[2].split()[0]) <= 1.5
    assert 61184 <= int(machine.run(f"stat -c %u /proc/{main_pid(machine)}")) <= 65519  # a user of systemd's making


def test_no_secret_is_for_others_to_read(machine: Machine, created: Properties) -> None:
    """The token is in no unit, no command line, no environment and no journal, and no user but root can read it."""
    assert TOKEN not in machine.run(f"systemctl cat {UNIT}.service {UNIT}.socket; systemctl show {UNIT}.service")
    assert TOKEN not in machine.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert TOKEN not in machine.run(f"tr '\\0' '\\n' < /proc/{main_pid(machine)}/environ")
    assert TOKEN not in machine.run("journalctl --no-pager")
    found = machine.run(f"grep -rslF {TOKEN} /etc /opt /run /tmp /var/log /usr/lib/systemd /usr/local", check=False)
    for path in found.splitlines():
        assert "Permission denied" in machine.run(f"su deploy -c 'cat {path}' 2>&1", check=False), path


def test_an_operator_has_the_forwarders_commands(machine: Machine, created: Properties, sink: MailSink) -> None:
    """As the service itself: its user, its settings, its outbox."""
    command = "/opt/callfire-mail/production/forwarder"
    assert "ok     mail server" in machine.run(f"sudo {command} check")
    assert machine.run(f"{command} status")
    assert machine.run("stat -c %U:%G /var/lib/private/callfire-mail-production/* | sort -u").count("\n") == 0
    assert machine.run("systemctl list-units --all --no-legend 'callfire-mail-*-command*'") == ""


def test_two_operators_at_once(machine: Machine, created: Properties) -> None:
    """Neither keeps the other from it, nor do two commands of a script."""
    command = "/opt/callfire-mail/production/forwarder status >/dev/null"
    machine.run(f'set -e; for n in 1 2 3; do {command} & all="$all $!"; done; for one in $all; do wait $one; done')


def test_nothing_to_do_is_nothing_done(
    machine: Machine, provider: ServerForwarderProvider, props: Properties, created: Properties
) -> None:
    """A second `up` finds no difference; even an update that is asked for leaves the process alone."""
    pid = main_pid(machine)
    assert not provider.diff("id", created, props).changes
    seen = read(provider, created)
    assert not provider.diff("id", seen, props).changes
    provider.update("id", created, props)
    assert main_pid(machine) == pid


def test_what_lies_in_the_users_folder_is_not_run(
    machine: Machine, provider: ServerForwarderProvider, props: Properties, created: Properties
) -> None:
    """A file that is called like a module of Python's own."""
    machine.run("echo 'raise SystemExit(1)' > /home/deploy/json.py")
    assert differing(read(provider, created), props) == {}
    machine.run("rm /home/deploy/json.py")


def test_what_a_login_script_says_is_not_taken_for_an_answer(
    machine: Machine, provider: ServerForwarderProvider, props: Properties, created: Properties
) -> None:
    """Not even where it is JSON."""
    machine.run("sed -i '1i echo 7; echo [1]' /home/deploy/.bashrc")
    try:
        assert differing(read(provider, created), props) == {}
    finally:
        machine.run("sed -i 1d /home/deploy/.bashrc")


def test_an_upgrade_under_load_loses_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    props: Properties,
    created: Properties,
    load: Load,
    sink: MailSink,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A new release takes over while texts arrive, and the former one again: each text answered and mailed once."""

    def change(sources: Path) -> None:
        (sources / "__init__.py").write_text('"""Another release."""\n')

    with load, broken_release(monkeypatch, tmp_path, change) as name:
        newer = declared(machine, sink=sink)
        assert newer["release"] == name != props["release"]
        outputs = provider.update("id", created, newer).outs
        assert outputs is not None
        assert name in machine.run(f"systemctl show -P ExecStart {UNIT}.service")
        load.wait_for(50)
    with load_again(machine, sink) as second:
        provider.update("id", dict(outputs), props)
    load.check(sink)
    second.check(sink)
    assert machine.run(f"ls /var/backups/{UNIT}").split() != []


def load_again(machine: Machine, sink: MailSink) -> Load:
    """Another load, with texts of its own."""
    return Load(lambda: (machine.ip, 8710), first=5_000_000_000 + len(sink.mails))


def crash(sources: Path) -> None:
    """A release that ends at once."""
    (sources / "settings.py").write_text('raise SystemExit("no luck today")\n')


def hang(sources: Path) -> None:
    """A release that never becomes ready."""
    (sources / "settings.py").write_text("import time\n\nprint('sleeping', flush=True)\ntime.sleep(3600)\n")


def sicken(sources: Path) -> None:
    """A release that starts and is not well."""
    admin = sources / "admin.py"
    text = admin.read_text()
    assert "200 if" in text
    admin.write_text(text.replace("200 if", "503 if"))


@pytest.mark.parametrize(
    ("change", "said"),
    [(crash, "it ended with status 1"), (hang, "it was not ready in time"), (sicken, "/readyz answered 503")],
)
def test_a_broken_release_never_takes_over(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    created: Properties,
    load: Load,
    sink: MailSink,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
) -> None:
    """It is tried beside the old one, refused with its own last words, and the old one was never touched."""
    pid = main_pid(machine)
    refused = pytest.raises(ServerError, match="was refused before it took over")
    with load, broken_release(monkeypatch, tmp_path, change), refused as raised:
        provider.update("id", created, declared(machine, sink=sink))
    assert said in str(raised.value)
    assert "Its last words:" in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert main_pid(machine) == pid
    load.check(sink)
    assert "preflight" not in machine.run("ls /run/systemd/system /etc/callfire-mail /var/lib/private; ss -xl")


def hang_in_its_check(sources: Path) -> None:
    """A release that waits for the database for ever."""
    asked = "    if only_database or way_back is not None:\n"
    edit(sources / "commands.py", asked, f"    import time\n\n    time.sleep(3600)\n{asked}")


def test_a_release_that_never_ends_looking_at_the_database(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    created: Properties,
    sink: MailSink,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is refused after a while, and nothing of it goes on."""
    pid = main_pid(machine)
    change_on_server(monkeypatch, tmp_path, "apply.py", "CHECK = 60.0", "CHECK = 5.0")
    refused = pytest.raises(ServerError, match="before it took over; nothing was changed: its look at the database")
    with broken_release(monkeypatch, tmp_path, hang_in_its_check), refused:
        provider.update("id", created, declared(machine, sink=sink))
    assert machine.run("systemctl list-units --all --no-legend 'callfire-mail-*-check*'") == ""
    assert main_pid(machine) == pid


def fail_on_real_data(sources: Path) -> None:
    """A release whose migration fails where there are texts already, which no preflight can see."""
    app = sources / "app.py"
    refusal = """
    import sqlite3

    texts = sqlite3.connect(settings.state_dir / "outbox.db").execute("SELECT count(*) FROM text").fetchone()[0]
    if texts:
        raise StartError("the migration does not fit the texts that are there")
"""
    marked = app.read_text().replace(
        "            lost = outbox.register()\n", "            lost = outbox.register()\n@@"
    )
    assert "@@" in marked
    indented = "".join(f"        {line}\n" if line else "\n" for line in refusal.strip("\n").splitlines())
    app.write_text(marked.replace("@@", indented))


def test_a_release_that_fails_on_the_real_outbox_is_rolled_back(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    props: Properties,
    created: Properties,
    load: Load,
    sink: MailSink,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It passed its preflight, took over, failed, and the former one is back: no text was refused in between."""
    with load, broken_release(monkeypatch, tmp_path, fail_on_real_data):
        with pytest.raises(ServerError, match="What was in force before runs again") as raised:
            provider.update("id", created, declared(machine, sink=sink))
        assert "the migration does not fit" in str(raised.value)
    load.check(sink)
    script = "/opt/callfire-mail/production/forwarder"
    assert props["release"] in machine.run(f"{script} status >/dev/null && test -x {script} && cat {script}")
    assert not provider.diff("id", read(provider, created), props).changes


READ_ONLY = """
until grep -q {release} /etc/systemd/system/{unit}.service; do sleep 0.05; done
mount --bind /etc/systemd/system /etc/systemd/system && mount -o remount,bind,ro /etc/systemd/system
"""


def test_a_way_back_that_can_not_be_written_hides_no_error(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    props: Properties,
    created: Properties,
    sink: MailSink,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A release fails, and then the disk: both are said, and the next `up` finishes the way back."""
    assert post(machine, 9) == 200
    try:
        with broken_release(monkeypatch, tmp_path, fail_on_real_data) as name:
            thread = threading.Thread(target=machine.run, args=(READ_ONLY.format(release=name, unit=UNIT),))
            thread.start()
            with pytest.raises(ServerError, match="the migration does not fit") as raised:
                provider.update("id", created, declared(machine, sink=sink))
        thread.join(60)
    finally:
        machine.run("umount /etc/systemd/system")
    assert "What was in force before does not start either ([Errno 30] Read-only file system" in str(raised.value)
    provider.update("id", read(provider, created), props)
    assert post(machine, 10) == 200
    assert not provider.diff("id", read(provider, created), props).changes


def test_a_restart_under_load_loses_nothing(machine: Machine, load: Load, sink: MailSink) -> None:
    """The kernel holds what arrives while the service restarts, ten times."""
    with load:
        for _ in range(10):
            machine.run(f"systemctl restart {UNIT}.service")
    load.check(sink)


def test_a_killed_process_comes_back(machine: Machine, created: Properties, sink: MailSink) -> None:
    """By SIGKILL, six times in a row: systemd starts it again, and the socket stays."""
    for _ in range(6):
        pid = main_pid(machine)
        machine.run(f"kill -9 {pid}")
        eventually(lambda: main_pid(machine) not in {"0", pid}, "another process")  # noqa: B023 - used at once
    eventually(lambda: post(machine, 2) == 200, "it answers")


DRIFTS = {
    "a unit edited by hand": (f"sed -i s/MemoryMax=512M/MemoryMax=1G/ /etc/systemd/system/{UNIT}.service", "service"),
    "a drop-in": ("", "drop_ins"),
    "a socket edited by hand": (f"sed -i s/Backlog=4096/Backlog=1/ /etc/systemd/system/{UNIT}.socket", "socket"),
    "a setting": ("echo -n 2 > /etc/callfire-mail/production/FORWARDER_SMTP_PORT", "settings"),
    "a secret": ("echo -n other > /etc/callfire-mail/production/FORWARDER_TOKENS", "secrets"),
    "a service that was stopped": (f"systemctl stop {UNIT}.socket {UNIT}.service", "state"),
    "a service that does not start at boot": (f"systemctl disable {UNIT}.service {UNIT}.socket", "state"),
    "a release that was deleted": ("rm -r /opt/callfire-mail/production/releases", "release"),
    "another Python after an upgrade of the system": (
        "for folder in /opt/callfire-mail/production/releases/*/lib; do mv $folder/python3.* $folder/python3.9; done",
        "release",
    ),
    "an operator's command edited by hand": ("echo exit 1 > /opt/callfire-mail/production/forwarder", "command"),
    "all of it": (f"systemctl stop {UNIT}.socket; rm -r /etc/callfire-mail /etc/systemd/system/{UNIT}.*", "service"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_seen_and_mended(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    props: Properties,
    created: Properties,
    machine: Machine,
    sink: MailSink,
    drift: str,
) -> None:
    """A refresh names what differs, without a secret; an update makes it as declared, and texts arrive."""
    command, part = DRIFTS[drift]
    if part == "drop_ins":
        folder = f"/etc/systemd/system/{UNIT}.service.d"
        command = f"mkdir -p {folder}; printf '[Service]\\nMemoryMax=1G\\n' > {folder}/override.conf"
    machine.run(command)
    seen = read(provider, created)
    differences = differing(seen, props)
    assert part in differences, differences
    assert TOKEN not in str(seen["servers"])
    assert "other" not in str(seen["servers"]).split()
    assert provider.diff("id", seen, props).changes
    mended = provider.update("id", seen, props).outs
    assert mended is not None
    assert differing(read(provider, dict(mended)), props) == {}
    assert post(machine, 1000 + list(DRIFTS).index(drift)) == 200


def test_a_reboot_brings_it_back(machine: Machine, created: Properties, sink: MailSink) -> None:
    """Nobody needs to log in."""
    machine.reboot()
    eventually(lambda: post(machine, 3) == 200, "it answers after a reboot")
    machine.cut()
    machine.boot()
    eventually(lambda: post(machine, 4) == 200, "it answers after the power was cut")
    eventually(lambda: {(3, "office@example.com"), (4, "office@example.com")} <= set(sink.times()), "the mails arrive")


def test_a_backup_is_taken_and_restored_as_the_handbook_says(
    machine: Machine, created: Properties, sink: MailSink
) -> None:
    """The commands of docs/server.md: what was there at the copy is there again, and texts go on."""
    *copy, stop, remove, put_back, give, start = commands("Backing up and restoring")
    assert post(machine, 6) == 200
    for command in copy * 2:  # it takes the place of an earlier one
        machine.run(command)
    assert machine.run("stat -c %a /var/backups/outbox-copy.db") == "600"
    assert post(machine, 7) == 200
    for command in (stop, remove, put_back, give, start):
        machine.run(command)
    assert post(machine, 8) == 200
    asked = machine.call("ssh", "python3 -", stdin=TEXTS)
    assert asked.split() == ["6", "8"]
    machine.run("rm /var/backups/outbox-copy.db")


def test_three_releases_are_kept(machine: Machine, created: Properties, props: Properties) -> None:
    """However many there were."""
    kept = machine.run("ls /opt/callfire-mail/production/releases").split()
    assert len(kept) <= 3
    assert props["release"] in kept


def test_an_outbox_with_undelivered_texts_is_kept_and_named(  # noqa: PLR0913, PLR0917 - fixtures
    provider: ServerForwarderProvider,
    props: Properties,
    created: Properties,
    machine: Machine,
    sink: MailSink,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delete drains as long as it helps, then keeps the folder; the next installation delivers what is in it."""
    monkeypatch.setattr("hosting.server.DRAIN", 1.0)
    sink.stop()
    assert post(machine, 5) == 200
    provider.delete("id", created)
    said = capsys.readouterr().out
    assert f"kept /var/lib/{UNIT}, which holds what was not delivered (1 waiting); installed there again," in said
    assert "mails what waits; what is dead or in quarantine can be replayed" in said
    assert machine.run(f"ls -d /etc/systemd/system/{UNIT}* /etc/callfire-mail /opt/callfire-mail", check=False) == ""
    provider.delete("id", created)  # twice is fine
    sink.start()
    again = provider.create(props).outs
    assert again is not None
    eventually(lambda: (5, "office@example.com") in sink.times(), "the kept text is delivered")
    provider.delete("id", dict(again))
    assert machine.run(f"ls -d /var/lib/{UNIT} /var/lib/private/{UNIT} /var/backups/{UNIT}", check=False) == ""
    assert machine.run("systemctl --failed --quiet") == ""
