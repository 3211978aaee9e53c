"""The mail, byte by byte: what stands in it, that the standard library agrees, that nothing gets into a header."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail import MAX_LINE, MAX_SUBJECT, Letterhead, compose_email, conversation, default_body, default_subject
from forwarder.postback import InboundText
from tests.forwarder_kit import inbound

_LETTERHEAD = Letterhead("texts@example.com", b"k" * 32)
_AT = 1_348_462_955.0
_HEADERS = [
    "From", "In-Reply-To", "References", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-CallFire-Text-Id",
    "X-CallFire-Subscription-Id", "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
]  # fmt: skip


def _compose(text: InboundText, **more: Any) -> bytes:
    values = {"to": "office@example.com", "subject": default_subject(text), "body": default_body(text)} | more
    return compose_email(_LETTERHEAD, text, _AT, **values)


def _read(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def test_the_tutorials_mail_to_the_letter() -> None:
    """Every byte of the default mail."""
    text = inbound(5707328001)
    thread = conversation(_LETTERHEAD, text.from_number, text.to_number)
    assert _compose(text).decode("ascii") == (
        'From: "+1 818-555-1212 via CallFire" <texts@example.com>\r\n'
        f"In-Reply-To: {thread}\r\n"
        f"References: {thread}\r\n"
        "To: office@example.com\r\n"
        "Subject: 18186469991 received a new SMS from 18185551212\r\n"
        "Date: Mon, 24 Sep 2012 05:02:35 GMT\r\n"
        "Message-ID: <text-5707328001@example.com>\r\n"
        "Auto-Submitted: auto-generated\r\n"
        "X-CallFire-Text-Id: 5707328001\r\n"
        "X-CallFire-Subscription-Id: 19001\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: 7bit\r\n"
        "\r\n"
        "From: 18185551212\r\n  To: 18186469991\r\nTime: 2012-09-24T05:02:35Z\r\nText: Hello, World!\r\n"
    )


_LINE = st.text(st.characters(blacklist_categories=["Cs"]), max_size=120)


@given(message=st.text(st.characters(blacklist_categories=["Cs"]), max_size=400), subject=_LINE, name=_LINE)
def test_the_standard_library_would_say_the_same(message: str, subject: str, name: str) -> None:
    """Headers and body mean what those of a mail mean that EmailMessage makes of the same values."""
    text = inbound(1, message)
    ours = _read(_compose(text, subject=subject, body=message, name=name or None, cc="b@example.com"))
    theirs = EmailMessage(policy=policy.SMTP)
    theirs["Subject"] = " ".join(subject.split()) if len(subject) <= MAX_SUBJECT else ""
    theirs["To"], theirs["Cc"] = "office@example.com", "b@example.com"
    theirs.set_content(message, cte="base64")
    read = _read(theirs.as_bytes())
    for header in ("To", "Cc"):
        assert ours[header] == read[header]
    assert _squeezed(ours["Subject"]) == _squeezed(subject)
    assert ours.get_content_type() == read.get_content_type()
    assert ours.get_content_charset() == read.get_content_charset()
    assert _lines(ours.get_content()) == _lines(read.get_content())
    (sender,) = ours["From"].addresses
    assert sender.addr_spec == "texts@example.com"
    assert ours.defects == []


def _squeezed(value: str) -> str:
    """A header's words: white space and control characters separate, and nothing else is lost."""
    return " ".join("".join(" " if c.isspace() or ord(c) < 32 or 127 <= ord(c) < 160 else c for c in value).split())


def _lines(content: str) -> str:
    return content.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


_HOSTILE = st.text(st.sampled_from("\r\n\0\t :<>\"'\\=?;,@ü👋\u2028\u2029\x85\x0b\x0c\x1c\u202eaB"), max_size=80)


@given(subject=_HOSTILE, body=_HOSTILE, name=_HOSTILE, from_number=_HOSTILE, subscription=_HOSTILE)
def test_nothing_becomes_a_header(subject: str, body: str, name: str, from_number: str, subscription: str) -> None:
    """Whatever the fields hold, the mail has the headers it should have, each once, in lines of bounded length."""
    text = inbound(1, body, from_number=from_number or "x", subscription_id=subscription)
    content = _compose(text, subject=f"{subject}\r\nBcc: x@example.com", body=body, name=name or None)
    head, _, _ = content.partition(b"\r\n\r\n")
    assert [line.partition(b":")[0].decode() for line in head.split(b"\r\n") if line[:1] not in b" \t"] == _HEADERS
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert b"\0" not in head
    assert all(len(line) <= MAX_LINE for line in content.split(b"\r\n"))
    assert _read(content)["Bcc"] is None


@pytest.mark.parametrize(
    "message",
    [
        "👋🏽 family 👨‍👩‍👧",
        "שלום עולם \u202e",
        "x" * 1600,
        "é" * 1600,
        "a\r\nb\rc\nd",
        ".\r\n.\r\nQUIT\r\n",
        "",
        "\x00",
        "=?utf-8?q?x?=",
    ],
)
def test_every_message_arrives_as_it_was_sent(message: str) -> None:
    """Emoji, right-to-left, 1,600 characters, dots and line ends; only the kind of line end is the mail's."""
    read = _read(_compose(inbound(1, message), body=message))
    assert _lines(read.get_content()) == _lines(message)


def test_a_mail_is_the_same_at_every_attempt() -> None:
    """A repeat after a crash is the same mail, so that a mailbox can tell."""
    assert _compose(inbound(1)) == _compose(inbound(1))
    assert parsedate_to_datetime(_read(_compose(inbound(1)))["Date"]).timestamp() == _AT


def test_one_conversation_whatever_the_spelling_and_nobody_learns_the_numbers() -> None:
    """The thread is the pair's, in either spelling, and depends on the key."""
    one = conversation(_LETTERHEAD, "18185551212", "18186469991")
    assert conversation(_LETTERHEAD, "+1 818 555 1212", "8186469991") == one
    assert conversation(_LETTERHEAD, "18186469991", "18185551212") != one
    assert conversation(Letterhead("texts@example.com", b"o" * 32), "18185551212", "18186469991") != one
    assert "5551212" not in one


def test_a_recovered_text_says_so() -> None:
    """Who reads a mail of a mended postback can see that it was one."""
    assert _read(_compose(inbound(1, recovered=True)))["X-CallFire-Recovered"] == "malformed postback"
    assert _read(_compose(inbound(1)))["X-CallFire-Recovered"] is None


def test_a_long_subject_ends_in_an_ellipsis() -> None:
    """A template with the message in it stays a subject."""
    subject = str(_read(_compose(inbound(1), subject="word " * 400))["Subject"])
    assert len(subject) <= MAX_SUBJECT
    assert subject.endswith("…")
