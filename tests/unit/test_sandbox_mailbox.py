"""Mails read and put into conversations as a mail program would."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.journal import Feed
from sandbox.mailbox import Mail, Mailbox, threads


def mail(ident: int, *headers: str, body: str = "text") -> Mail:
    """A mail with these headers."""
    return Mail(id=ident, mail_from="a@x", rcpt_to=["b@x"], raw=("\r\n".join(headers) + f"\r\n\r\n{body}\r\n").encode())


def conversations(*mails: Mail) -> list[list[int]]:
    """Which mails stand together."""
    return [[entry.id for entry in conversation] for conversation in threads(mails)]


def test_mails_with_the_same_root_are_one_conversation() -> None:
    """Even if the mail that they refer to never arrived; the conversation with the newest mail stands first."""
    first = mail(1, "Message-ID: <1@x>", "References: <root-a@x>")
    other = mail(2, "Message-ID: <2@x>", "References: <root-b@x>")
    second = mail(3, "Message-ID: <3@x>", "In-Reply-To: <root-a@x>")
    assert conversations(first, other, second) == [[1, 3], [2]]


def test_a_chain_of_answers_is_one_conversation() -> None:
    """A refers to B, B to C; and a late mail joins two that stood apart."""
    assert conversations(
        mail(1, "Message-ID: <1@x>"),
        mail(2, "Message-ID: <2@x>", "In-Reply-To: <1@x>"),
        mail(3, "Message-ID: <3@x>", "In-Reply-To: <2@x>"),
    ) == [[1, 2, 3]]
    assert conversations(
        mail(1, "Message-ID: <1@x>"),
        mail(2, "Message-ID: <2@x>"),
        mail(3, "Message-ID: <3@x>", "References: <1@x> <2@x>"),
    ) == [[1, 2, 3]]


def test_mails_without_ids_stand_alone() -> None:
    """The same subject is not enough."""
    assert conversations(mail(1, "Subject: s"), mail(2, "Subject: s")) == [[2], [1]]
    assert conversations(mail(1, "Message-ID: <same@x>"), mail(2, "Message-ID: <same@x>")) == [[1, 2]]


def test_a_mail_is_read_whatever_it_is() -> None:
    """Encodings, parts and broken ones."""
    encoded = mail(1, "Subject: =?utf-8?q?caf=C3=A9?=", "Content-Type: text/plain; charset=utf-8", body="naïve 😊")
    assert (encoded.subject, encoded.text) == ("café", "naïve 😊\n")
    html = mail(2, "Content-Type: text/html", body="<p>hi</p>")
    assert (html.text, html.html) == ("", "<p>hi</p>\n")
    unknown = mail(3, "Content-Type: text/plain; charset=none-such", body="plain")
    assert unknown.text == "plain\n"
    assert mail(4, "Received: one", "Received: two").headers == {"Received": "one\ntwo"}


HEADERS = ["Subject", "From", "Message-ID", "References", "Content-Type", "Content-Disposition", "Date", "X", ""]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(HEADERS), st.sampled_from(["<", '"', "=?utf-8?q?=", "a/b; c", ";", "(", ".", "\xff", "é"])
        )
    ),
    st.binary(max_size=40),
)
@example([("Message-ID", "<")], b"")
def test_no_mail_is_too_broken_to_be_shown(headers: list[tuple[str, str]], body: bytes) -> None:
    """It has a JSON form all the same."""
    raw = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1") + b"\r\n" + body
    shown = Mailbox(Feed()).add("a@x", ["b@x"], raw).as_json()
    assert shown["id"] == 1
    assert json.dumps(shown)
