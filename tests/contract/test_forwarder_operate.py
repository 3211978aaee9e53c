"""A real forwarder, looked after: every verb beside it, readiness, metrics, routes, alerts, TLS and what goes wrong."""

import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult
from click.testing import CliRunner, Result

from forwarder.commands import main
from tests.forwarder_kit import (
    TOKEN,
    MailSink,
    PostgreSQL,
    RunningForwarder,
    Watcher,
    environment,
    http,
    mail_sink,
    running,
    text_postback,
)

FORMER = "fedcba9876543210fedcba9876543210"
NUMBER = "18185551212"


def run(settings: dict[str, str], *arguments: str, status: int = 0) -> Result:
    """`python -m forwarder …` with just these settings, in this process: a new one takes a second each time."""
    others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("FORWARDER_")}
    done = CliRunner().invoke(main, arguments, env=others | settings)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == status, done.output
    return done


def run_alone(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own; it must fail without a traceback."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FORWARDER_")}
    done = subprocess.run(
        [sys.executable, "-m", "forwarder", *arguments],
        env=inherited | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done


def answer(settings: dict[str, str], *arguments: str, status: int = 0) -> Any:
    """What a verb answers with --json."""
    return json.loads(run(settings, *arguments, "--json", status=status).stdout)


@pytest.fixture(scope="module")
def sink() -> Iterator[MailSink]:
    """A mail server that knows nobody whose name begins with gone, until a test says otherwise."""
    with mail_sink() as server:
        server.on_rcpt = _no_gone
        yield server


def _no_gone(recipient: str) -> str | None:
    return "550 5.1.1 no such user" if recipient.startswith("gone") else None


ROUTES = """
[[route]]
name = "spam"
keyword = "prize"
drop = true
[[route]]
name = "gone"
keyword = "gone"
to = ["gone@example.com", "gone-too@example.com"]
[[route]]
name = "sales"
to_number = "+1 818-646-9992"
to = "sales@example.com"
bcc = "boss@example.com"
subject = "{{ from_name }} → {{ to_display }}"
body = "{{ time.strftime('%H:%M') }} {{ message }}"
time_zone = "America/Los_Angeles"
"""


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory, sink: MailSink) -> Iterator[RunningForwarder]:
    """A forwarder with routes, contacts, two tokens, an operator, and a state folder to look into."""
    folder = tmp_path_factory.mktemp("operate")
    (folder / "routes.toml").write_text(ROUTES, encoding="utf-8")
    (folder / "contacts.csv").write_text("+18185551212,Ada Lovelace\n", encoding="utf-8")
    settings = environment(
        folder / "state",
        sink.port,
        routes=str(folder / "routes.toml"),
        contacts=str(folder / "contacts.csv"),
        tokens=f"{TOKEN},{FORMER}",
        operator="ops@example.com",
        log_format="json",
    )
    with running(settings) as process:
        process.environment["FORWARDER_ADMIN_PORT"] = process.admin_url.rpartition(":")[2]
        yield process


@pytest.fixture(scope="module")
def place(forwarder: RunningForwarder) -> dict[str, str]:
    """All that looking after needs."""
    return {
        name: value for name, value in forwarder.environment.items() if name.endswith(("_STATE_DIR", "_ADMIN_PORT"))
    }


@pytest.fixture(scope="module")
def dead(forwarder: RunningForwarder, sink: MailSink, place: dict[str, str]) -> list[dict[str, Any]]:
    """Four dead deliveries of two texts, and a postback nobody could read; the operator has been told."""
    forwarder.post(text_postback(901, "gone"))
    forwarder.post(text_postback(902, "also gone"))
    forwarder.post(b"{private", content_type="text/xml")
    _wait_for(sink, "ops@example.com")
    found: list[dict[str, Any]] = answer(place, "dead", "list")["dead"]
    return found


def _wait_for(sink: MailSink, recipient: str, count: int = 1) -> list[Any]:
    """The mails to somebody, once there are so many."""
    while len(found := [mail for mail in list(sink.mails) if mail.recipient == recipient]) < count:
        sink.wait_for(len(sink.mails) + 1)
    return found


def test_a_route_decides_who_gets_what(forwarder: RunningForwarder, sink: MailSink) -> None:
    """Recipients, blind copies, templates, time zone and names reach the inbox; what is dropped does not."""
    forwarder.post(text_postback(801, "You won a PRIZE"))
    forwarder.post(text_postback(802, "Hello 👋", ToNumber="18186469992"))
    (sales,), (boss,) = _wait_for(sink, "sales@example.com"), _wait_for(sink, "boss@example.com")
    assert sales.content == boss.content
    assert sales.parsed["Subject"] == "Ada Lovelace → +1 818-646-9992"
    assert sales.parsed["From"] == "Ada Lovelace via CallFire <texts@example.com>"
    assert sales.parsed["To"] == "sales@example.com"
    assert sales.body == "22:02 Hello 👋"
    assert not [mail for mail in sink.mails if b"PRIZE" in mail.content]


def test_dead_deliveries_are_listed_without_what_they_say(place: dict[str, str], dead: list[dict[str, Any]]) -> None:
    """Numbers masked, no message; `show` tells everything about one."""
    assert sorted((entry["text_id"], entry["recipient"]) for entry in dead) == [
        (901, "gone-too@example.com"),
        (901, "gone@example.com"),
        (902, "gone-too@example.com"),
        (902, "gone@example.com"),
    ]
    assert {(entry["from_number"], entry["answer"]) for entry in dead} == {("•••1212", "550 5.1.1 no such user")}
    listed = run(place, "dead", "list").stdout
    assert "550 5.1.1 no such user" in listed
    assert not re.search("also gone|18185551212", listed + json.dumps(dead))
    shown = run(place, "dead", "show", "902").stdout
    assert "Text: also gone" in shown
    assert NUMBER in shown


def test_the_operator_is_told_once(sink: MailSink, dead: list[dict[str, Any]]) -> None:
    """One mail for all that died and was quarantined, past the outbox, with nothing private."""
    (mail,) = _wait_for(sink, "ops@example.com")
    assert mail.parsed["Subject"] == "callfire-mail: 4 deliveries failed for good, 1 postback could not be read"
    assert not re.search(f"{NUMBER}|private|also", mail.body)


def test_status_tells_the_whole_of_it(place: dict[str, str], dead: list[dict[str, Any]]) -> None:
    """What waits, what needs somebody, what happened, and that a forwarder runs."""
    found = answer(place, "status")
    assert (found["dead"], found["quarantined"], found["queued"]) == (4, 1, 0)
    assert found["last_hour"]["dead"] == 4
    assert found["running"]["ready"] is True
    words = run(place, "status").stdout
    assert "dead         4   (see: dead list)" in words
    assert "mail server  ok" in words


def test_the_quarantine_is_looked_after(
    place: dict[str, str], forwarder: RunningForwarder, dead: list[dict[str, Any]]
) -> None:
    """Listed by reason, shown whole, tried again, dropped."""
    (entry,) = answer(place, "quarantine", "list")["quarantine"]
    assert (entry["size"], "body" in entry) == (8, False)
    assert "private" not in run(place, "quarantine", "list").stdout
    assert answer(place, "quarantine", "show", str(entry["id"]))["body"] == "{private"
    found = answer(forwarder.environment, "quarantine", "replay", "--all", status=1)
    assert found == {"texts": 0, "still_unreadable": 1}
    assert answer(place, "quarantine", "drop", str(entry["id"])) == {"dropped": 1}
    assert "The quarantine is empty." in run(place, "quarantine", "list").stdout


def test_a_replay_is_picked_up_beside_the_running_forwarder(
    place: dict[str, str], sink: MailSink, dead: list[dict[str, Any]]
) -> None:
    """One delivery, then all others of a text; each goes out once, without a restart."""
    sink.on_rcpt = lambda _: None
    try:
        assert answer(place, "dead", "replay", "901", "--recipient", "gone@example.com") == {"replayed": 1}
        _wait_for(sink, "gone@example.com")
        assert answer(place, "dead", "replay", "901") == {"replayed": 1}
        _wait_for(sink, "gone-too@example.com")
    finally:
        sink.on_rcpt = _no_gone
    assert [mail.recipient for mail in sink.mails if b"text-901@" in mail.content] == [
        "gone@example.com",
        "gone-too@example.com",
    ]


def test_a_drop_of_everything_asks_first(place: dict[str, str], dead: list[dict[str, Any]]) -> None:
    """Nobody answers here, so nothing is dropped; with --yes it is."""
    assert "for good? [y/N]" in run(place, "dead", "drop", "--all", status=1).stderr
    assert answer(place, "dead", "drop", "--all", "--yes") == {"dropped": 2}
    assert "Nothing is dead." in run(place, "dead", "list").stdout


def test_of_nothing_there_is_nothing_to_ask(place: dict[str, str], dead: list[dict[str, Any]]) -> None:
    """Nor to count: that there is nothing is said."""
    assert run(place, "quarantine", "drop", "--all").stdout == "The quarantine is empty.\n"
    nobody = ("--recipient", "nobody@example.com")
    assert run(place, "dead", "replay", "--all", *nobody).stdout == "Nothing to nobody@example.com is dead.\n"
    answer(place, "dead", "drop", "--all", "--yes")
    for verb in ("drop", "replay"):
        assert run(place, "dead", verb, "--all").stdout == "Nothing is dead.\n"


def test_what_cannot_be_done_is_said(place: dict[str, str], tmp_path: Path) -> None:
    """Names that are none, too few, too many; and an outbox that is not there."""
    assert "no delivery of text 7 is dead; nothing was changed" in run(place, "dead", "replay", "7", status=1).stderr
    assert "7 is not in quarantine" in run(place, "quarantine", "drop", "7", status=1).stderr
    assert "Name at least one, or say --all." in run(place, "dead", "replay", status=2).stderr
    assert "Name some or say --all, not both." in run(place, "dead", "drop", "7", "--all", status=2).stderr
    said = run({"FORWARDER_STATE_DIR": str(tmp_path)}, "status", status=1).stderr
    assert f"there is no outbox at {tmp_path}/outbox.db" in said
    assert not list(tmp_path.iterdir())


def test_readyz_tells_what_deployments_need(forwarder: RunningForwarder) -> None:
    """The database, the mail server, the oldest delivery, and when each token was last used."""
    forwarder.post(b"{}", token=TOKEN)
    found = forwarder.get("/readyz")
    assert found.status == 200
    document = found.json
    assert (document["ready"], document["database"], document["mail_server"]) == (True, "ok", "ok")
    assert document["oldest_delivery_age_seconds"] is None
    current, former = document["tokens"]
    assert isinstance(current["last_used_at"], float)
    assert former["last_used_at"] is None
    forwarder.post(b"{}", token=FORMER)
    assert forwarder.get("/readyz").json["tokens"][1]["last_used_at"] >= current["last_used_at"]


def test_metrics_count_and_tell_no_secret(forwarder: RunningForwarder) -> None:
    """Prometheus' format, figures that move, no number and no token."""
    pattern = r'callfire_mail_events_total\{outcome="duplicate"\} (\d+)\.0'
    before = re.search(pattern, forwarder.get("/metrics").body.decode())
    forwarder.post(text_postback(803))
    forwarder.post(text_postback(803))
    figures = forwarder.get("/metrics").body.decode()
    after = re.search(pattern, figures)
    assert before
    assert after
    assert int(after[1]) == int(before[1]) + 1
    for family in ("deliveries", "oldest_delivery_age_seconds", "database_writable", "mail_server_available"):
        assert f"# TYPE callfire_mail_{family} gauge" in figures
    assert not re.search(f"{TOKEN}|{FORMER}|{NUMBER}|example.com", figures)


def test_the_public_port_has_nothing_of_this(forwarder: RunningForwarder) -> None:
    """Postbacks and a sign of life, and a 404 for all else."""
    for path in ("/", "/readyz", "/metrics", "/style.css", "/dead/replay"):
        assert http(forwarder.url + path).status == 404
    assert http(f"{forwarder.url}/healthz").status == 200


def test_the_log_is_json_and_private(forwarder: RunningForwarder) -> None:
    """One object a line; numbers masked, texts and tokens nowhere."""
    forwarder.post(text_postback(804, "very private"))
    with socket.create_connection(("127.0.0.1", int(forwarder.url.rpartition(":")[2])), timeout=10) as client:
        client.sendall(b"very private nonsense\r\n\r\n")
        assert b"400" in client.recv(1000)
    assert json.loads(forwarder.wait_for_log('"uvicorn.error"'))["message"] == "Invalid HTTP request received."
    line = json.loads(forwarder.wait_for_log('"delivery.sent", "text_id": 804'))
    assert (line["level"], line["from"], line["attempts"]) == ("info", "•••1212", 1)
    for each in forwarder.lines:
        assert json.loads(each)["event"]
    assert not re.search(f"{NUMBER}|very private|{TOKEN}", forwarder.log)


def test_check_finds_nothing_wrong_beside_it(forwarder: RunningForwarder) -> None:
    """Everything is looked at while the forwarder runs, and left as it is."""
    found = answer(forwarder.environment, "check")
    assert found["ok"] is True
    assert [each["what"] for each in found["findings"]] == ["settings", "database", "mail server"]
    assert "3 routes and the default, 1 contact" in run(forwarder.environment, "check").stdout


def test_send_test_sends_what_such_a_text_would_become(forwarder: RunningForwarder, sink: MailSink) -> None:
    """By the routes, past the outbox; what the mail server says is told, and a refusal is a failure."""
    found = answer(forwarder.environment, "send-test", "--to", "18186469992", "--message", "Ping")
    assert found["route"] == "sales"
    assert [(mail["recipient"], mail["answer"]) for mail in found["mails"]] == [
        ("sales@example.com", "250 OK"),
        ("boss@example.com", "250 OK"),
    ]
    assert [mail for mail in sink.mails if mail.body.strip().endswith("Ping")]
    assert "550 5.1.1" in run(forwarder.environment, "send-test", "--message", "gone", status=1).stdout
    assert "such a text is dropped" in run(forwarder.environment, "send-test", "--message", "prize").stdout
    count = len(sink.mails)
    assert "Text: Hi" in run(forwarder.environment, "send-test", "--print", "--message", "Hi").stdout
    assert len(sink.mails) == count


def test_a_purge_beside_it_forgets_what_was_sent(
    place: dict[str, str], forwarder: RunningForwarder, sink: MailSink
) -> None:
    """At once, if told so; but not that the texts ever were, or CallFire's repeats would be mailed again."""
    forwarder.post(text_postback(805))
    forwarder.wait_for_log('"delivery.sent", "text_id": 805')
    assert answer(place, "purge", "--text-days", "0")["messages"] > 0
    assert "not in the range x>=7" in run(place, "purge", "--metadata-days", "0", status=2).stderr
    said = run(place, "purge", "--metadata-days", "7", status=2).stderr
    assert "7 days for metadata are less than 30 for messages" in said
    assert answer(place, "purge", "--text-days", "0", "--metadata-days", "7")["texts"] == 0
    known = answer(place, "status")["last_hour"].get("duplicate", 0)
    assert forwarder.post(text_postback(805)).status == 200
    assert answer(place, "status")["last_hour"]["duplicate"] == known + 1


def test_check_tells_everything_that_is_wrong(tmp_path: Path, sink: MailSink) -> None:
    """Settings, database and mail server in one run; nothing is made, and the exit status says it."""
    (tmp_path / "routes.toml").write_text('[default]\nsubject = "{{ sender }}"\n', encoding="utf-8")
    (tmp_path / "file").touch()
    wrong = environment(tmp_path / "file" / "state", 1, routes=str(tmp_path / "routes.toml"), port="x", admin_port="x")
    wrong["FORWARDER_MAIL_TOO"] = "x"
    said = run(wrong, "check", status=1).stdout
    assert "FORWARDER_PORT: " in said
    assert "routes.toml, [default], subject: sender is no field of a text" in said
    assert f"the state folder {tmp_path}/file/state cannot be written (Not a directory)" in said
    assert "not looked at: the settings are wrong" in said
    right = environment(tmp_path / "state", 1)
    said = run(right, "check", status=1).stdout
    assert "ok     database: " in said
    assert "mail server 127.0.0.1:1: connection refused; check FORWARDER_SMTP_HOST and FORWARDER_SMTP_PORT" in said
    assert not (tmp_path / "state").exists()


def test_a_mail_server_without_tls_is_told_apart_from_a_refused_log_in(tmp_path: Path, sink: MailSink) -> None:
    """Each with the setting that would be right."""
    login = {"smtp_username": "user", "smtp_password": "hidden-secret"}
    said = run(environment(tmp_path, sink.port, smtp_security="starttls", **login), "check", status=1)
    assert "FORWARDER_SMTP_SECURITY" in said.stdout
    said = run(environment(tmp_path, sink.port, smtp_security="tls", **login), "check", status=1)
    assert (
        "check FORWARDER_SMTP_PORT (usually 587 for starttls, 465 for tls) and FORWARDER_SMTP_SECURITY" in said.stdout
    )
    assert "hidden-secret" not in said.stdout + said.stderr


def test_a_database_that_is_gone_is_one_sentence(tmp_path: Path, sink: MailSink) -> None:
    """For check, for the verbs and for a start; the password is not in it."""
    gone = environment(tmp_path, sink.port, database_url="postgresql://user:hidden-secret@127.0.0.1:1/outbox")
    for arguments in (("check",), ("dead", "list"), ("serve",)):
        done = run_alone(gone, *arguments)
        said = done.stdout + done.stderr
        assert "the database (FORWARDER_DATABASE_URL) cannot be" in said
        assert "Connection refused" in said
        assert "hidden-secret" not in said


def test_the_verbs_look_after_postgresql_too(tmp_path: Path, sink: MailSink, postgresql: PostgreSQL) -> None:
    """A database without tables is told from one with an outbox."""
    settings = environment(tmp_path, sink.port, database_url=postgresql.database(), mail_to="gone@example.com")
    assert "there is no outbox in this database yet" in run(settings, "status", status=1).stderr
    assert "its tables will be made at the first start" in run(settings, "check").stdout
    with running(settings) as forwarder:
        forwarder.post(text_postback(1))
        forwarder.wait_for_log("delivery.dead")
        while not answer(settings, "dead", "list")["dead"]:  # it is logged a moment before it is written down
            pass
        assert answer(settings, "dead", "drop", "1") == {"dropped": 1}
        assert "ok     database: PostgreSQL" in run(settings, "check").stdout


def test_another_releases_outbox_is_left_alone(tmp_path: Path, sink: MailSink) -> None:
    """An earlier one is brought up by the next start, a newer one by nobody; the verbs change neither."""
    settings = environment(tmp_path, sink.port)
    shutil.copy(Path(__file__).parents[1] / "recorded" / "outbox-v1.db", tmp_path / "outbox.db")
    assert "the outbox is an earlier release's" in run(settings, "status", status=1).stderr
    assert "an earlier release's; the next start brings it to this one's" in run(settings, "check").stdout
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(delivery)")]
    assert "queued_at" not in columns
    with running(settings):
        assert answer(settings, "status")["quarantined"] >= 0
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '999'")
    assert "the outbox is a newer release's" in run(settings, "dead", "list", status=1).stderr
    assert "a newer release has used the outbox" in run(settings, "check", status=1).stdout


def test_the_database_is_looked_at_alone(tmp_path: Path, sink: MailSink, postgresql: PostgreSQL) -> None:
    """Before an upgrade: no other setting matters, nothing is made, and no password is shown."""
    url = postgresql.database()
    settings = environment(tmp_path, sink.port, database_url=url, mail_from="nobody")
    assert "its tables will be made at the first start" in run(settings, "check", "--database").stdout
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE USER reader")
    reader = url.replace("postgres@", "reader:secret-word@")
    said = run(settings | {"FORWARDER_DATABASE_URL": reader}, "check", "--database", status=1).stdout
    assert "permission denied for schema public" in said
    assert "secret-word" not in said
    other = settings | {"FORWARDER_DATABASE_URL": "mysql://a:secret-word@b/c"}
    said = run(other, "check", "--database", status=1).stdout
    assert "FORWARDER_DATABASE_URL: does not start with postgresql://" in said
    assert "secret-word" not in said


def test_whether_the_release_before_could_go_on_is_told_beforehand(tmp_path: Path, sink: MailSink) -> None:
    """The first release's outbox has no way back from this one; this one's own needs none."""
    settings = environment(tmp_path, sink.port)
    shutil.copy(Path(__file__).parents[1] / "recorded" / "outbox-v1.db", tmp_path / "outbox.db")
    assert "upgrade to a release in between first" in run(settings, "check", "--way-back", "1", status=1).stdout
    with running(settings):
        assert "ok     database" in run(settings, "check", "--way-back", "2").stdout
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '3_from_2'")
    assert "a newer release's, which this one can use" in run(settings, "check", "--way-back", "2").stdout
    assert answer(settings, "status")["dead"] == 1


def test_a_tokens_use_is_known_after_a_restart(tmp_path: Path, sink: MailSink) -> None:
    """Who takes an old token away is not told that nobody uses it only because the forwarder is new."""
    settings = environment(tmp_path, sink.port, tokens=f"{TOKEN},{FORMER}")
    with running(settings) as forwarder:
        forwarder.post(b"{}", token=FORMER)
        used = forwarder.get("/readyz").json["tokens"]
    with running(settings | {"FORWARDER_TOKENS": f"{FORMER},{TOKEN}"}) as forwarder:
        assert forwarder.get("/readyz").json["tokens"] == used[::-1]


def test_the_public_port_speaks_tls_itself(tmp_path: Path, sink: MailSink, certificate: tuple[Path, Path]) -> None:
    """With a certificate and its key: verified by who knows it, refused below TLS 1.2, and no plain HTTP."""
    known, key = map(str, certificate)
    settings = environment(tmp_path / "state", sink.port, tls_certificate=known, tls_key=key)
    with running(settings) as forwarder:
        assert forwarder.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=known)
        request = urllib.request.Request(f"{forwarder.url}/postback/{TOKEN}", text_postback(1))
        with urllib.request.urlopen(request, context=context, timeout=20) as response:
            assert response.status == 200
        forwarder.wait_for_log("delivery.sent")
        old = ssl.create_default_context(cafile=known)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(OSError, match=r"(?i)ssl|version|reset"):
            urllib.request.urlopen(f"{forwarder.url}/healthz", context=old, timeout=20)
        assert forwarder.stop() == 0


def test_a_database_that_goes_is_seen_everywhere_and_comes_back(tmp_path: Path, sink: MailSink) -> None:
    """Postbacks are answered 503, `/readyz` says why, the page still opens; then all is as before."""
    file, aside = tmp_path / "outbox.db", tmp_path / "aside.db"
    with running(environment(tmp_path, sink.port)) as forwarder:
        file.rename(aside)
        assert forwarder.post(text_postback(1)).status == 503
        found = forwarder.get("/readyz")
        assert (found.status, found.json["ready"]) == (503, False)
        assert "was moved, deleted or replaced" in found.json["database"]
        page = forwarder.get("/")
        assert page.status == 200
        assert "Nothing can be stored" in page.body.decode()
        assert "callfire_mail_database_writable 0.0" in forwarder.get("/metrics").body.decode()
        aside.rename(file)
        assert forwarder.get("/readyz").status == 200
        assert forwarder.post(text_postback(1)).status == 200
        forwarder.wait_for_log("delivery.sent text_id=1")


def test_a_heartbeat_is_heard_while_deliveries_flow(tmp_path: Path, sink: MailSink) -> None:
    """At the start already, after the mail server has been asked; `/readyz` knows of that contact."""
    watcher = Watcher()
    try:
        with running(environment(tmp_path, sink.port, heartbeat_url=watcher.url)) as forwarder:
            assert watcher.heard.wait(20)
            assert forwarder.get("/readyz").json["last_smtp_contact_at"] is not None
            assert "secret-uuid" not in forwarder.log
    finally:
        watcher.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody knows, and its key."""
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", file, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return file, key


def test_check_logs_in_and_tells_why_it_could_not(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A certificate nobody signed, a wrong password, and all well: three different sentences."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def authenticate(*arguments: Any) -> AuthResult:
        return AuthResult(success=arguments[-1].password == b"right-secret", handled=False)

    with mail_sink() as server:
        server.smtp_options = {"tls_context": context, "authenticator": authenticate, "auth_required": True}
        settings = environment(
            tmp_path, server.port, smtp_security="starttls", smtp_username="user", smtp_password="wrong-secret"
        )
        said = run(settings, "check", status=1).output
        assert "its certificate is refused (self-signed certificate); nothing was sent" in said
        settings |= {"SSL_CERT_FILE": str(certificate[0])}
        said = run(settings, "check", status=1).output
        assert "535 5.7.8" in said
        assert "check FORWARDER_SMTP_USERNAME and FORWARDER_SMTP_PASSWORD" in said
        assert "secret" not in said
        settings |= {"FORWARDER_SMTP_PASSWORD": "right-secret"}
        assert "starttls, logged in as user" in run(settings, "check").output
        assert "250 OK" in run(settings, "send-test").output


def test_a_heartbeat_falls_silent_with_the_mail_server(tmp_path: Path) -> None:
    """It says why, without its address."""
    with mail_sink() as gone:
        gone.stop()
        settings = environment(tmp_path, gone.port, heartbeat_url="http://127.0.0.1:1/secret-uuid")
        with running(settings) as forwarder:
            said = forwarder.wait_for_log("heartbeat.withheld")
            assert "connection refused" in said
            assert "secret-uuid" not in forwarder.log
