"""What a body means: every form CallFire posts, what can be mended, and that no bytes at all raise anything."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.postback import MAX_EVENTS, MAX_SHORT, Ignored, InboundText, Unreadable, parse_postback
from tests.forwarder_kit import sample, text_postback

_ONE = "http://api.callfire.com/data"
_TWO = "http://api.callfire.com/notification/xsd"


def _only(body: bytes) -> Any:
    (event,) = parse_postback(body)
    return event


def _text(body: bytes) -> InboundText:
    event = _only(body)
    assert isinstance(event, InboundText), event
    return event


def _reason(body: bytes) -> str:
    event = _only(body)
    assert isinstance(event, Unreadable), event
    return event.reason


_HELLO = (5707328001, "19001", "18185551212", "18186469991", "2012-09-24T05:02:35Z", "Hello, World!")


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("text-inbound.xml", (*_HELLO, False)),
        ("text-inbound.as-documented-malformed.xml", (*_HELLO, True)),
        ("call-inbound.xml", "call"),
        ("campaign-finished.inferred.xml", "campaign"),
        ("text-inbound.soap.inferred.xml", "outbound"),
        ("text-outbound.xml", "outbound"),
    ],
)
def test_every_documented_postback_means_what_it_should(name: str, outcome: object) -> None:
    """The samples of the contract, among them the malformed one, which is recovered whole and marked."""
    event = _only(sample(name))
    if isinstance(event, InboundText):
        found: object = (
            event.id, event.subscription_id, event.from_number, event.to_number, event.created, event.message,
            event.recovered,
        )  # fmt: skip
    else:
        found = event.reason
    assert found == outcome


@pytest.mark.parametrize("name", ["text-inbound-oneline.xml", "text-inbound.json"])
def test_captured_texts_are_read(name: str) -> None:
    """The one-line XML and the JSON of the captures are inbound texts with a message."""
    text = _text(sample(name))
    assert text.message
    assert text.from_number.lstrip("+").isdigit()
    assert not text.recovered
    assert text.raw == sample(name)


def test_the_same_text_in_xml_json_and_soap_is_the_same() -> None:
    """The form is CallFire's setting and changes nothing of what is mailed."""
    xml = text_postback(7, "Hi &amp; 👋")
    soap = b'<S:Envelope xmlns:S="http://www.w3.org/2003/05/soap-envelope"><S:Header/><S:Body>%b</S:Body></S:Envelope>'
    fields = {
        "@id": "7", "FromNumber": 18185551212, "ToNumber": "18186469991", "Created": "2012-09-24T05:02:35Z",
        "Inbound": True, "Message": "Hi & 👋",
    }  # fmt: skip
    document = json.dumps({"TextNotification": {"SubscriptionId": 19001, "Text": fields}}).encode()
    forms = [xml, soap % xml.partition(b"?>")[2], document]
    shown = {
        (text.id, text.subscription_id, text.from_number, text.to_number, text.created, text.message)
        for text in map(_text, forms)
    }
    assert shown == {(7, "19001", "18185551212", "18186469991", "2012-09-24T05:02:35Z", "Hi & 👋")}


def test_namespaces_count_and_prefixes_do_not() -> None:
    """Another prefix is the same postback; another namespace is not one."""
    body = text_postback(1)
    other = body.replace(b"<n:", b"<ns2:").replace(b"</n:", b"</ns2:").replace(b"xmlns:n=", b"xmlns:ns2=")
    assert _text(other).id == 1
    assert "no CallFire event" in _reason(body.replace(_TWO.encode(), b"http://example.com/notification"))


@pytest.mark.parametrize("root", ["TextReceived", "TextNotification"])
def test_synonyms_of_the_event_are_texts(root: str) -> None:
    """The schema's names and the documented one are the same event."""
    assert _text(text_postback(1).replace(b"TextNotification", root.encode())).id == 1


@pytest.mark.parametrize("root", ["BroadcastStarted", "BroadcastStopped", "BroadcastFinished", "CallFinished"])
def test_other_events_are_ignored(root: str) -> None:
    """A 1.0 subscription gets every kind of event of the account."""
    assert isinstance(_only(f'<n:{root} xmlns:n="{_TWO}"/>'.encode()), Ignored)
    assert isinstance(_only(json.dumps({root: {}}).encode()), Ignored)


def test_several_events_in_one_body_are_each_read() -> None:
    """Each with its own raw part; what is unreadable among them is told apart."""
    one, two = (text_postback(n).partition(b"?>")[2] for n in (1, 2))
    broken = text_postback(0).partition(b"?>")[2].replace(b'id="0"', b"")
    events = parse_postback(b"<all>%b%b%b</all>" % (one, broken, two))
    assert [type(event) for event in events] == [InboundText, Unreadable, InboundText]
    first = events[0]
    assert isinstance(first, InboundText)
    assert b'id="1"' in first.raw
    assert b'id="2"' not in first.raw
    document = {"TextNotification": [{"Text": [{"@id": 1}, {"@id": "2"}]}, {"Text": {"@id": "3"}}]}
    assert len(parse_postback(json.dumps(document).encode())) == 3
    assert "events in one body" in _reason(json.dumps([{"CallFinished": 1}] * (MAX_EVENTS + 1)).encode())


def test_a_message_only_in_the_record_is_found() -> None:
    """The outbound sample has it only there; the text's own wins where both are."""
    body = text_postback(1, "").replace(b"<Message></Message>", b"<TextRecord><Message>Hi</Message></TextRecord>")
    assert _text(body).message == "Hi"
    assert _text(text_postback(1, "").replace(b"<Message></Message>", b"")).message == ""
    both = text_postback(1, "own").replace(b"</Text>", b"<TextRecord><Message>other</Message></TextRecord></Text>")
    assert _text(both).message == "own"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((b'id="1"', b""), "has no id"),
        ((b'id="1"', b'id="-5"'), "not a positive whole number"),
        ((b'id="1"', b'id="9223372036854775808"'), "not a positive whole number"),
        ((b'id="1"', 'id="١٢"'.encode()), "not a positive whole number"),
        ((b"18185551212", b""), "FromNumber is missing"),
        ((b"18186469991", b" &#10; "), "ToNumber is missing"),
        ((b"18186469991", b"1" * (MAX_SHORT + 1)), "more than 64"),
        ((b"2012-09-24T05:02:35Z", b""), "Created is missing"),
    ],
)
def test_what_cannot_be_mailed_says_why(change: tuple[bytes, bytes], reason: str) -> None:
    """A text without what a mail needs is quarantined with the field's name."""
    assert reason in _reason(text_postback(1).replace(*change))


def test_line_ends_never_get_into_a_number() -> None:
    """What stands in headers is one line of characters that can be stored."""
    text = _text(text_postback(1, FromNumber="1818&#13;&#10;Bcc: x@example.com", Created="2012&#x2028;&#x85;"))
    assert text.from_number == "1818 Bcc: x@example.com"
    assert text.created == "2012"


@pytest.mark.parametrize(
    "broken",
    [
        text_postback(1, "whole").replace(b"<State>FINISHED</State>", b"<State>FINISHED</State"),
        text_postback(1, "whole").replace(b"</n:TextNotification>", b""),
        text_postback(1, "whole").replace(b"FINISHED", b"A & B"),
        text_postback(1, "whole") + b"trailing",
    ],
)
def test_a_malformed_body_with_a_whole_text_is_recovered_and_marked(broken: bytes) -> None:
    """As the documented sample: all that a mail needs is there, and the raw body is kept."""
    text = _text(broken)
    assert (text.recovered, text.message, text.raw) == (True, "whole", broken)


@pytest.mark.parametrize("length", range(0, 700, 7))
def test_a_body_that_was_cut_short_never_yields_half_a_message(length: int) -> None:
    """Wherever the connection broke, the text is whole or in quarantine."""
    body = text_postback(1, "one two three four five")
    event = _only(body[:length])
    assert isinstance(event, Unreadable) or event.message == "one two three four five"


def test_a_second_text_cut_short_spoils_the_first() -> None:
    """Which of several texts in a malformed body was cut is not guessed."""
    whole = text_postback(1, "whole").partition(b"?>")[2]
    assert "not well-formed" in _reason(b"<all>" + whole + whole.partition(b"ole</Message>")[0])


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x PUBLIC "-//x" "http://127.0.0.1:1/x.dtd">',
    ],
)
def test_a_document_type_is_refused(document: str) -> None:
    """No postback has one; nothing is expanded or fetched."""
    body = text_postback(1, "&x;&b;").partition(b"?>")[2]
    assert "document type definition" in _reason(document.encode() + body)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_a_declared_encoding_is_read(encoding: str) -> None:
    """Whatever the body is written in, the message is the same."""
    name = encoding.removesuffix("-sig")
    body = text_postback(1, "Grüße").decode().replace("UTF-8", name)
    assert _text(body.encode(encoding)).message == "Grüße"


@pytest.mark.parametrize(
    ("value", "shown"), [(7, "7"), (1.5, "1.5"), (True, "true"), (None, ""), ("007", "007"), ("\ud83d", "\ufffd")]
)
def test_json_values_are_shown_as_they_were_written(value: object, shown: str) -> None:
    """CallFire's JSON makes numbers of what looks like one; nothing is added to it."""
    fields = {"@id": "1", "FromNumber": "1", "ToNumber": "2", "Created": "3", "Message": value}
    assert _text(json.dumps({"TextNotification": {"Text": fields}}).encode()).message == shown


def test_nested_json_is_no_crash() -> None:
    """A body of nothing but brackets is quarantined."""
    assert "not JSON" in _reason(b"[" * 200_000)
    assert "not JSON" in _reason(b'{"TextNotification":' * 100_000)


_ANYTHING = st.one_of(
    st.binary(max_size=400),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["TextNotification", "Text", "@id", "Message", "TextRecord", "CallFinished", "x"]), inner
        ),
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@given(_ANYTHING)
def test_any_bytes_mean_something(body: bytes) -> None:
    """There is no body that raises an error or says nothing."""
    _is_sound(body)


@given(st.data())
def test_any_damage_to_a_postback_means_something(data: st.DataObject) -> None:
    """Bytes cut out, changed and put in anywhere of a real postback."""
    body = bytearray(text_postback(1, "Hi"))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = min(len(body), start + data.draw(st.integers(0, 20)))
        body[start:end] = data.draw(st.binary(max_size=20))
    _is_sound(bytes(body))


def _is_sound(body: bytes) -> None:
    events = parse_postback(body)
    assert events
    for event in events:
        if isinstance(event, InboundText):
            assert 0 < event.id < 2**63
            for value in (event.from_number, event.to_number, event.created):
                assert 0 < len(value) <= MAX_SHORT
            short = event.from_number + event.to_number + event.created + event.subscription_id
            assert not any(character in short for character in "\r\n\0\x85\u2028")
            event.message.encode()
            assert "\0" not in event.message
            assert event.created_at is None or isinstance(event.created_at, float)
        else:
            assert event.reason
