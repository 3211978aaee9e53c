"""A forwarder that hands its mails to Postfix: nothing is lost, nothing comes twice, and what Postfix says is told."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from hosting.server import ServerForwarderProvider
from sandbox import Sandbox
from stacks.check import Stack, check
from stacks.settings import PROJECT
from tests.forwarder_kit import TOKEN, http, text_postback
from tests.server.conftest import Servers
from tests.server.kit import Load, Properties, broken_release, declared
from tests.server.machine import Machine, eventually
from tests.server.postfix import LOGIN, NAME, PASSWORD, Postfix

provider = ServerForwarderProvider()
UNIT = "callfire-mail-production"
WRONG = "not-the-password-of-texts"
NEW_TOKEN = "fedcba9876543210fedcba9876543210"
UNLIKELY = "Grüße 🙂 aus Köln\n.\n..\nFrom me " + "lang" * 1000


@pytest.fixture(scope="module")
def postfix(servers: Servers, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Postfix:
    """The mail server, which the forwarder's reaches and trusts."""
    made = Postfix(servers("mail"), tmp_path_factory.mktemp("postfix"))
    made.serve(machine)
    return made


def handing_to(machine: Machine, postfix: Postfix, password: str = PASSWORD, **changes: str) -> Properties:
    """What a program declares; further settings by their name without the prefix."""
    settings = {"SMTP_HOST": NAME, "SMTP_SECURITY": "starttls", "SMTP_USERNAME": LOGIN} | changes
    named = {f"FORWARDER_{name}": value for name, value in settings.items()}
    return declared(machine, sink=postfix, settings=named, secrets={"FORWARDER_SMTP_PASSWORD": password})


@pytest.fixture(scope="module")
def created(machine: Machine, postfix: Postfix) -> Properties:
    """The outputs of a fresh installation. Each test leaves it as it found it."""
    outputs = provider.create(handing_to(machine, postfix)).outs
    assert outputs is not None
    return dict(outputs)


@pytest.fixture
def changed(machine: Machine, postfix: Postfix, created: Properties) -> Iterator[Callable[..., None]]:
    """A function that updates to other settings, which are taken back behind the test."""
    now = [created]

    def change(password: str = PASSWORD, **changes: str) -> None:
        outputs = provider.update("id", now[-1], handing_to(machine, postfix, password, **changes)).outs
        assert outputs is not None
        now.append(dict(outputs))

    yield change
    change()


@pytest.fixture
def configured(postfix: Postfix) -> Iterator[Callable[..., None]]:
    """A function that changes settings of Postfix, which are taken back behind the test unless it did so itself."""
    before: dict[str, str] = {}

    def configure(**settings: str) -> None:
        for name in settings:
            before.setdefault(name, postfix.setting(name))
        postfix.configure(**settings)

    yield configure
    if any(postfix.setting(name) != value for name, value in before.items()):
        postfix.configure(**before)


numbers = itertools.count(1)


def post(machine: Machine, token: str = TOKEN, message: str = "Hello, World!") -> int:
    """Post a text; returns its id."""
    text_id = next(numbers)
    url = f"http://{machine.ip}:8710/postback/{token}"
    assert http(url, text_postback(text_id, message), {"Content-Type": "text/xml"}).status == 200
    return text_id


def ask(machine: Machine, path: str) -> str:
    """What the private port answers."""
    program = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8711{path}').read().decode())"
    return machine.call("ssh", "python3 -", stdin=program)


def command(machine: Machine, words: str) -> str:
    """What one of the forwarder's own commands prints."""
    return machine.run(f"/opt/callfire-mail/production/forwarder {words}", check=False)


def journal(machine: Machine) -> str:
    """The forwarder's log."""
    return machine.run(f"journalctl -u {UNIT} -o cat --no-pager")


def refusal(machine: Machine, said: str) -> None:
    """Wait until `/readyz` says so of the mail server; then the page, the log and `check` do as well."""
    eventually(lambda: said in json.loads(ask(machine, "/readyz"))["mail_server"], f"/readyz says {said}")
    whole = json.loads(ask(machine, "/readyz"))["mail_server"]
    assert "The mail server takes no mail" in ask(machine, "/")
    assert f"mail.unavailable {whole}" in journal(machine)
    assert said in command(machine, "check")
    for word in (PASSWORD, WRONG):
        assert word not in whole + ask(machine, "/") + journal(machine) + command(machine, "check")


def of_many(text_id: int) -> bytes:
    """Texts of many people to one number; every tenth is one that mail servers might stumble over."""
    message = UNLIKELY if text_id % 10 == 0 else "Hello, World!"
    return text_postback(text_id, message, FromNumber=f"1818555{1000 + text_id % 17}")


def load(machine: Machine, first: int) -> Load:
    """Posts for the time of a block."""
    return Load(lambda: (machine.ip, 8710), first=first, text=of_many)


def test_restarts_an_upgrade_and_a_rotation_lose_nothing(
    machine: Machine, postfix: Postfix, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every text is in the mailbox once, in the thread of who sent it, and says what it said."""

    def change(sources: Path) -> None:
        (sources / "__init__.py").write_text('"""Another release."""\n')

    with load(machine, 1_000_000) as posts:
        for _ in range(5):
            machine.run(f"systemctl restart {UNIT}.service")
        with broken_release(monkeypatch, tmp_path, change):
            upgraded = provider.update("id", created, handing_to(machine, postfix)).outs
        assert upgraded is not None
        posts.wait_for(50)
        rotating = handing_to(machine, postfix) | {"tokens": [NEW_TOKEN]}
        rotated = provider.update("id", dict(upgraded), rotating).outs
        assert rotated is not None
        with_the_new_one = post(machine, NEW_TOKEN)
        provider.update("id", dict(rotated), handing_to(machine, postfix))
    posts.check(postfix)
    postfix.wait_for(with_the_new_one)
    threads: dict[str, set[str]] = {}
    for mail in postfix.mails():
        if mail.text_id >= 1_000_000:
            assert mail.parsed["Message-ID"] == f"<text-{mail.text_id}@example.com>"
            assert mail.parsed["In-Reply-To"] == mail.parsed["References"]
            threads.setdefault(mail.parsed["From"], set()).add(mail.parsed["References"])
            text = mail.body.replace("\r\n", "\n").partition("Text: ")[2].removesuffix("\n")
            assert text == (UNLIKELY if mail.text_id % 10 == 0 else "Hello, World!")
    assert len(threads) == 17
    assert all(len(threads_of_one) == 1 for threads_of_one in threads.values())
    assert len(set.union(*threads.values())) == 17


def test_postfix_is_stopped_restarted_and_killed(machine: Machine, postfix: Postfix, created: Properties) -> None:
    """Nothing is lost; only what was under way in a kill can come twice, and has the same Message-ID."""
    kills = 3
    with load(machine, 2_000_000) as posts:
        flows(posts, postfix)
        postfix.stop()
        posts.wait_for(100)
        postfix.start()
        flows(posts, postfix)
        postfix.stop()
        postfix.start()
        for _ in range(kills):
            flows(posts, postfix)
            postfix.kill()
            posts.wait_for(50)
            postfix.start()
    repeated = posts.repeated(postfix)
    assert sum(count - 1 for count in repeated.values()) <= 4 * kills, repeated  # one on each of four connections
    for text_id, _ in repeated:
        copies = [mail.parsed["Message-ID"] for mail in postfix.mails() if mail.text_id == text_id]
        assert set(copies) == {f"<text-{text_id}@example.com>"}


def flows(posts: Load, postfix: Postfix) -> None:
    """Wait until a text arrives that was not posted before."""
    posts.wait_for(1)
    newest = max(posts.accepted)
    eventually(lambda: max((mail.text_id for mail in postfix.mails()), default=0) > newest, "new texts arrive", 90)


def test_a_wrong_password_is_told_and_texts_wait_for_the_right_one(
    machine: Machine, postfix: Postfix, changed: Callable[..., None]
) -> None:
    """Everywhere where one looks, with Postfix's words and what to do; the update that mends it is enough."""
    eventually(lambda: "No delivery is waiting." in ask(machine, "/"), "what was cut off before is mailed again", 120)
    changed(WRONG)
    text_id = post(machine)
    refusal(machine, "535 5.7.8 Error: authentication failed: authentication failure; check FORWARDER_SMTP_USERNAME")
    assert "1 delivery waiting" in ask(machine, "/")
    assert not [mail for mail in postfix.mails() if mail.text_id == text_id]
    changed(PASSWORD)
    postfix.wait_for(text_id)
    assert "ok     mail server" in command(machine, "check")


def test_whom_postfix_refuses_for_good_is_dead_and_the_others_have_their_mail(
    machine: Machine, postfix: Postfix, configured: Callable[..., None], changed: Callable[..., None]
) -> None:
    """An unknown user is dead with Postfix's own words; who is put off gets the mail later."""
    changed(MAIL_TO="missing@example.com,ann@example.com,office@example.com")
    configured(smtpd_recipient_restrictions="check_recipient_access inline:{{ann@example.com=450 4.2.0 Greylisted}}")
    text_id = post(machine)
    postfix.wait_for(text_id)
    eventually(lambda: "missing@example.com" in command(machine, "dead list"), "it is dead")
    words = "550 5.1.1 <missing@example.com>: Recipient address rejected: User unknown in local recipient table"
    assert words in json.loads(command(machine, f"dead show {text_id} --json"))["deliveries"][0]["answer"]
    eventually(lambda: "450 4.2.0 <ann@example.com>: Recipient address rejected: Greylisted" in journal(machine), "450")
    assert not [mail for mail in postfix.mails("ann") if mail.text_id == text_id]
    configured(smtpd_recipient_restrictions="")
    postfix.wait_for(text_id, "ann")
    assert postfix.times()[text_id, "office@example.com"] == 1
    command(machine, "dead drop --all --yes")


def test_a_certificate_that_is_not_trusted_gets_neither_mail_nor_password(
    machine: Machine, postfix: Postfix, created: Properties
) -> None:
    """The sentence says whom to trust; as soon as the server does, the texts go, without a restart."""
    postfix.be_forgotten(machine)
    machine.run(f"systemctl restart {UNIT}.service")
    before = len(postfix.log)
    text_id = post(machine)
    refusal(machine, "its certificate is refused (unable to get local issuer certificate); nothing was sent")
    eventually(lambda: "disconnect" in postfix.log[before:], "Postfix says what was said to it")
    for word in ("auth=", "mail=", "sasl_username"):
        assert word not in postfix.log[before:]
    postfix.be_trusted(machine)
    postfix.wait_for(text_id)


def test_without_starttls_neither_mail_nor_password_is_sent(
    machine: Machine, postfix: Postfix, created: Properties, configured: Callable[..., None]
) -> None:
    """The sentence names the settings; when Postfix offers it again, the texts go."""
    configured(smtpd_tls_security_level="none")
    before = len(postfix.log)
    text_id = post(machine)
    refusal(machine, "it does not offer STARTTLS, so nothing was sent; check FORWARDER_SMTP_PORT")
    for word in ("auth=", "mail=", "sasl_username"):
        assert word not in postfix.log[before:]
    configured(smtpd_tls_security_level="encrypt")
    postfix.wait_for(text_id)


def test_tls_from_the_first_byte(machine: Machine, postfix: Postfix, changed: Callable[..., None]) -> None:
    """Port 465 takes the same mails."""
    changed(SMTP_PORT="465", SMTP_SECURITY="tls")
    postfix.wait_for(post(machine))
    assert f"ok     mail server: {NAME}:465, tls, logged in as {LOGIN}" in command(machine, "check")


def told(machine: Machine, said: str, before: int) -> None:
    """Wait until the log says so behind its first `before` characters."""
    eventually(lambda: said in journal(machine)[before:], f"the log says {said}")


def nothing_was_used_up(machine: Machine, before: int) -> None:
    """No delivery was refused, for now or for good: all waited."""
    assert "delivery.retry" not in journal(machine)[before:]
    assert "delivery.dead" not in journal(machine)[before:]


def test_more_mails_than_postfix_takes(
    machine: Machine, postfix: Postfix, created: Properties, configured: Callable[..., None]
) -> None:
    """They wait until it takes more, and each arrives once."""
    configured(smtpd_client_message_rate_limit="50", anvil_rate_time_unit="2s")
    before = len(journal(machine))
    with load(machine, 3_000_000) as posts:
        posts.wait_for(200)
        told(machine, "450 4.7.1 Error: too much mail from", before)
    posts.check(postfix)
    nothing_was_used_up(machine, before)


def test_more_connections_than_postfix_takes(
    machine: Machine, postfix: Postfix, created: Properties, configured: Callable[..., None]
) -> None:
    """Restarts use them up; the texts wait for the next one, and each arrives once."""
    configured(smtpd_client_connection_rate_limit="3", anvil_rate_time_unit="5s")
    before = len(journal(machine))
    with load(machine, 4_000_000) as posts:
        for _ in range(3):
            machine.run(f"systemctl restart {UNIT}.service")
            posts.wait_for(50)
        told(machine, "Error: too many connections from", before)
    posts.check(postfix)
    nothing_was_used_up(machine, before)


def test_a_postfix_without_room(
    machine: Machine, postfix: Postfix, created: Properties, configured: Callable[..., None]
) -> None:
    """It takes nothing at all then, and everything when there is room again."""
    configured(queue_minfree="1000000000000000")
    before = len(journal(machine))
    with load(machine, 5_000_000) as posts:
        told(machine, "452 4.3.1 Insufficient system storage", before)
    assert not set(posts.accepted) & {mail.text_id for mail in postfix.mails()}
    configured(queue_minfree="0")
    posts.check(postfix)
    nothing_was_used_up(machine, before)


def test_a_text_that_is_too_long_for_postfix_is_dead_alone(
    machine: Machine, postfix: Postfix, created: Properties, configured: Callable[..., None]
) -> None:
    """With Postfix's words; when the limit is raised, a replay delivers it."""
    configured(message_size_limit="5000")
    long, short = post(machine, message="long" * 2000), post(machine)
    postfix.wait_for(short)
    eventually(lambda: "552 5.3.4" in command(machine, "dead list"), "it is dead")
    assert "552 5.3.4 Error: message file too big" in command(machine, "dead list")
    configured(message_size_limit="10240000")
    command(machine, "dead replay --all")
    assert "long" * 2000 in postfix.wait_for(long).body


@pytest.mark.parametrize(
    ("trusted", "password", "said"),
    [
        (True, PASSWORD, f"587, starttls, logged in as {LOGIN}"),
        (True, WRONG, "authentication failure; check smtpUsername and smtpPassword"),
        (False, PASSWORD, "its certificate is refused (unable to get local issuer certificate); nothing was sent"),
    ],
)
def test_stacks_check_logs_in_to_postfix(  # noqa: PLR0913, PLR0917 - fixtures and parameters
    postfix: Postfix,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,  # noqa: FBT001 - a parameter of the test
    password: str,
    said: str,
) -> None:
    """From the operator's machine, before the first `up`, in the words of the stack's file."""
    declared = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())["config"]
    given = {"mailFrom": "texts@example.com", "mailTo": "office@example.com", "smtpHost": postfix.machine.ip}
    given |= {"smtpSecurity": "starttls", "smtpPort": "587", "smtpUsername": LOGIN, "smtpPassword": password}
    config = {f"callfire-mail:{name}": str(setting["default"]) for name, setting in declared.items()}
    config |= {f"callfire-mail:{name}": value for name, value in given.items()}
    config |= {"callfire:login": sandbox.login, "callfire:password": sandbox.password, "callfire:url": sandbox.url}
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(postfix.authority))
    found = asyncio.run(check(Stack("production", config, {"callfire:password", "callfire-mail:smtpPassword"})))
    assert said in str(found[-1])
    assert all(password not in str(finding) for finding in found)
