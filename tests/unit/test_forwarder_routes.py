"""Routes: which text takes which, what a route inherits, and every mistake of a file at once."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.contacts import Contacts
from forwarder.letters import Letters
from forwarder.mail import Letterhead
from forwarder.numbers import to_e164
from forwarder.outbox import Delivery
from forwarder.routes import Recipients, Route, Routes, read_routes
from forwarder.templates import compile_template
from tests.forwarder_kit import Mail, inbound


def _routes(folder: Path, content: str, mail_to: tuple[str, ...] = ("office@example.com",)) -> Routes:
    file = folder / "routes.toml"
    file.write_text(content, encoding="utf-8")
    return read_routes(file).routes(mail_to)


def _problems(folder: Path, content: str) -> list[str]:
    with pytest.raises(ValueError, match=r"routes\.toml") as caught:
        _routes(folder, content)
    return [line.removeprefix(f"{folder / 'routes.toml'}, ") for line in str(caught.value).splitlines()]


def _mail(routes: Routes, message: str = "Hello, World!", **fields: str) -> Mail:
    """The first mail that a text becomes."""
    text = inbound(7, message, **fields)
    route = routes.pick(text)
    letters = Letters(Letterhead("texts@example.com", b"key"), routes, Contacts({"+18185551212": "Ada"}))
    delivery = Delivery(text, route.name, route.recipients.everyone[0], 0, time.time(), time.time())
    return Mail(delivery.recipient, letters.write(delivery).content)


@pytest.mark.parametrize(
    ("condition", "matching", "other"),
    [
        ('to_number = "+1 (818) 646-9991"', {"to_number": "18186469991"}, {"to_number": "18186469992"}),
        ('to_number = "8186469991"', {"to_number": "+18186469991"}, {"to_number": "8186469"}),
        ('from_number = ["+1818*", "44*"]', {"from_number": "447911123456"}, {"from_number": "12125551212"}),
        ('from_number = "*1212"', {"from_number": "18185551212"}, {"from_number": "18185551213"}),
        ('from_number = "72345"', {"from_number": "72345"}, {"from_number": "172345"}),
        ('keyword = "sale"', {"message": "Big\nSALE!"}, {"message": "wholesale"}),
        ('keyword = ["#go", "Straße"]', {"message": "please #GO now"}, {"message": "#gone"}),
        ("matches = '(?i)order #\\d{3}'", {"message": "My Order #123"}, {"message": "order 123"}),
        ("matches = '^$'", {"message": ""}, {"message": " "}),
        (
            'to_number = "18186469991"\nkeyword = "help"',
            {"message": "help"},
            {"message": "help", "to_number": "18186469992"},
        ),
    ],
)
def test_a_condition_holds_for_what_it_names(
    tmp_path: Path, condition: str, matching: dict[str, str], other: dict[str, str]
) -> None:
    """Numbers however they are written, patterns, whole words, expressions; several conditions must all hold."""
    routes = _routes(tmp_path, f'[[route]]\nname = "a"\nto = "a@example.com"\n{condition}')
    assert routes.pick(inbound(1, **({"message": "x"} | matching))).name == "a"
    assert routes.pick(inbound(1, **({"message": "x"} | other))).name == "default"


def test_the_first_match_wins(tmp_path: Path) -> None:
    """The order of the file is the order of the routes, the default is last."""
    routes = _routes(
        tmp_path,
        """
        [[route]]
        name = "spam"
        keyword = "prize"
        drop = true
        [[route]]
        name = "sales"
        from_number = "+1*"
        to = ["a@example.com", "b@example.com", "A@example.com"]
        cc = "b@example.com"
        bcc = "c@example.com"
        """,
    )
    assert routes.pick(inbound(1, "a PRIZE for you")).recipients.everyone == ()
    assert routes.pick(inbound(1)).recipients.everyone == ("a@example.com", "b@example.com", "c@example.com")
    assert routes.pick(inbound(1, from_number="447911123456")).recipients.everyone == ("office@example.com",)
    assert routes.named("gone").name == "default"


def test_no_text_can_make_matching_slow(tmp_path: Path) -> None:
    """The expression that takes others years takes a megabyte of text in no time: it would never end here."""
    routes = _routes(tmp_path, '[[route]]\nname = "a"\nto = "a@example.com"\nmatches = \'^(a+)+$|(a|aa)+b\'')
    assert routes.pick(inbound(1, "a" * 1_000_000 + "!")).name == "default"


def test_without_routes_the_mail_is_the_tutorials(tmp_path: Path) -> None:
    """An empty file changes nothing."""
    mail = _mail(_routes(tmp_path, ""))
    assert mail.parsed["Subject"] == "18186469991 received a new SMS from 18185551212"
    assert mail.content.partition(b"\r\n\r\n")[2] == (
        b"From: 18185551212\r\n  To: 18186469991\r\nTime: 2012-09-24T05:02:35Z\r\nText: Hello, World!\r\n"
    )


def test_what_a_route_leaves_out_is_the_defaults(tmp_path: Path) -> None:
    """Recipients, subject, body, time zone and redaction; a route's own words win."""
    routes = _routes(
        tmp_path,
        """
        [default]
        to = "all@example.com"
        subject = "Text from {{ from_name }}"
        time_zone = "Europe/Berlin"
        redact = true
        [[route]]
        name = "a"
        keyword = "a"
        body = "{{ time.strftime('%H:%M') }} {{ message }}"
        [[route]]
        name = "b"
        keyword = "b"
        cc = "b@example.com"
        redact = false
        time_zone = "America/Los_Angeles"
        """,
    )
    first, second, last = _mail(routes, "a"), _mail(routes, "b"), _mail(routes, "c")
    assert (first.recipient, first.parsed["Subject"], first.body) == ("all@example.com", "Text from Ada", "07:02 a")
    assert (second.parsed["To"], second.parsed["Cc"]) == ("undisclosed-recipients:;", "b@example.com")
    assert "Time: 2012-09-23T22:02:35-07:00\r\n" in second.body
    assert "Time: 2012-09-24T07:02:35+02:00\r\n" in last.body
    assert [routes.named(name).redact for name in ("a", "b", "default")] == [True, False, True]


def test_a_template_that_fails_for_one_text_gives_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The text arrives in the tutorial's words, and the log says so without repeating it."""
    routes = _routes(tmp_path, "[default]\nbody = \"{{ message if message != 'private' else message.x }}\"")
    assert _mail(routes, "fine").body == "fine"
    assert "Text: private" in _mail(routes, "private").body
    assert "template.failed text_id=7 route=default error=UndefinedError" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize("field", ["message", "from_number", "to_number", "created", "subscription_id"])
def test_nothing_in_a_text_becomes_a_header(tmp_path: Path, field: str) -> None:
    """Line ends of every kind, in every field, through a subject of one's own."""
    routes = _routes(tmp_path, f'[default]\nsubject = "{{{{ {field} }}}} {{{{ from_name }}}}"')
    for end in ("\n", "\r\n", "\r", "\x00", "\u2028", "\x85", "\x0b", "\n "):
        evil = f"x{end}Bcc: eve@example.com"
        mail = _mail(routes, **{"message": "x", field: evil})
        assert mail.parsed["Bcc"] is None
        assert not [line for line in mail.content.split(b"\r\n\r\n")[0].split(b"\n") if line.startswith(b"Bcc")]


HEADERS = {
    "From", "To", "Cc", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "MIME-Version",
    "X-CallFire-Text-Id", "X-CallFire-Subscription-Id", "Content-Type", "Content-Transfer-Encoding",
}  # fmt: skip
ANYTHING = st.text(max_size=80) | st.lists(
    st.sampled_from(["\r\n", "\n", "Bcc: e@example.com", ".", " ", "=?utf-8?q?x?=", "\x00", "a"])
).map("".join)


@settings(max_examples=200, deadline=None)
@given(message=ANYTHING, from_number=ANYTHING, to_number=ANYTHING, subscription_id=ANYTHING, name=ANYTHING)
def test_whatever_is_written_the_mail_has_the_headers_it_should(name: str, **fields: str) -> None:
    """Any text in any field and in the contacts' name, through a template into subject and body."""
    source = "{{ message }}{{ from_name }}{{ to_number }}{{ subscription_id }}"
    recipients = Recipients(("office@example.com",), ("copy@example.com",))
    route = Route("default", (), recipients, compile_template(source), compile_template(f"\n{source}"))
    contacts = Contacts({to_e164(fields["from_number"]): name}) if name else Contacts()
    letters = Letters(Letterhead("texts@example.com", b"key"), Routes((route,)), contacts)
    text = inbound(7, **fields)
    mail = letters.write(Delivery(text, "default", "office@example.com", 0, 0.0, 0.0))
    head, _, _ = mail.content.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].decode() for line in head.split(b"\r\n") if not line.startswith((b" ", b"\t"))}
    assert names == HEADERS
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", head)
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998


def test_many_recipients_make_no_long_line(tmp_path: Path) -> None:
    """A line of a header stays below RFC 5322's 998 bytes, and the reader still finds all."""
    everybody = [f"person{n:03}@example.com" for n in range(100)]
    mail = _mail(_routes(tmp_path, "", tuple(everybody)))
    assert max(map(len, mail.content.split(b"\r\n"))) < 998
    assert mail.parsed["To"] == ", ".join(everybody)


def test_every_mistake_in_a_file_is_told_with_its_place(tmp_path: Path) -> None:
    """The table, the key, the value and what would be right, for all of them in one run."""
    said = _problems(
        tmp_path,
        """
        [[routes]]
        [[route]]
        name = "sales team"
        to_number = ["+1 818-646-9991", "12ab"]
        to = ["sales@example.com", "nobody"]
        subject = "{{ form_number }}"
        matches = "(a"
        time_zone = "Mars/Base"
        colour = "red"
        drop = "maybe"
        [[route]]
        to = "x@example.com"
        matches = "(?=x)y"
        [default]
        to = 3
        """,
    )
    first = '[[route]] 1 "sales team"'
    assert sorted(said) == sorted([
        "routes: no such table; did you mean route?",
        f"{first}, name: 'sales team' is not 1 to 64 letters, digits, - _ and .",
        f"{first}, to_number: '12ab' is neither a phone number such as +18186469991 nor a pattern such as +1818*",
        f"{first}, to: 'nobody' is not a mail address such as texts@example.com",
        f"{first}, subject: form_number is no field of a text; did you mean from_number?",
        f"{first}, matches: '(a' is not a regular expression: unclosed group",
        f"{first}, time_zone: 'Mars/Base' is no time zone, such as America/Los_Angeles or Europe/Berlin",
        (f"{first}: colour: no such key; there are to, cc, bcc, subject, body, time_zone, redact, drop, "
         "name, to_number, from_number, keyword, matches"),
        f"{first}, drop: 'maybe' is not true or false",
        "[[route]] 2, name: is required: letters, digits, - _ and . by which logs and lists call the route",
        ("[[route]] 2, matches: '(?=x)y' is not a regular expression: look-around, "
         "including look-ahead and look-behind, is not supported"),
        "[default], to: 3 is not a string or a list of strings",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[[route]]\nname = "a"\nto = "a@example.com"', '[[route]] 1 "a": matches every text'),
        ('[[route]]\nname = "default"\nkeyword = "x"', "name: is taken"),
        (
            '[[route]]\nname = "a"\nkeyword = "x"\n[[route]]\nname = "a"\nkeyword = "y"',
            '[[route]] 2 "a", name: is taken',
        ),
        ('[[route]]\nname = "a"\nkeyword = "x"\ndrop = true\nto = "a@b"', "drop = true sends nothing"),
        ('[[route]]\nname = "a"\nkeyword = " "', "keyword: a keyword is empty"),
        ('[route]\nname = "a"', "[route]: write [[route]]"),
        ("to = ", "is not TOML"),
        (f'[[route]]\nname = "{"n" * 65}"\nkeyword = "x"', "is not 1 to 64 letters, digits, - _ and ."),
        (f'[default]\nto = "{"a" * 243}@example.com"', "has 255 characters; a mail address has at most 254"),
        ('[[route]]\nname = "a"\nkeyword = "x"\nsubject = 3', "subject: a template is a string"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """Routes that shadow others or contradict themselves, and files that are none."""
    assert [line for line in _problems(tmp_path, content) if said in line]
