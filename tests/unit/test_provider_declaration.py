"""What may be declared: normalised, and every mistake named at once."""

from typing import Any

import pytest
from pulumi.output import Unknown

from provider.declaration import check

URL = "https://mail.example.com/postback/0123456789abcdef"
UNKNOWN = Unknown()


def checked(version: str = "1.1", **properties: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """The canonical properties, the problems and the warnings."""
    given = {"endpoint": URL, "trigger_event": "INBOUND_TEXT_FINISHED"} | properties
    result = check(given, version)
    return result.properties, [f"{p.property} {p.reason}" for p in result.problems], result.warnings


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("+1 (818) 646-9991", "18186469991"),
        ("8186469991", "18186469991"),
        ("1-818-646-9991", "18186469991"),
        (18186469991, "18186469991"),
        (18186469991.0, "18186469991"),
        ("67076", "67076"),
        ("67076:JOIN", "67076:JOIN"),
        ("Join_us", "Join_us"),
        ("1-800-FLOWERS", "18003569377"),
        ("+44 7700 900123", "447700900123"),
        ("447700900123", "447700900123"),
        ("+49 30 123456", "4930123456"),
    ],
)
def test_numbers_become_callfires_digits(given: object, canonical: str) -> None:
    """In any usual spelling."""
    properties, problems, _ = checked(filter={"to_number": given})
    assert problems == []
    assert properties["filter"]["to_number"].removeprefix("+") == canonical


@pytest.mark.parametrize(
    "given",
    ["12 ", "+", "1 2", "67076:", ":JOIN", "6-7:JOIN IN", "", "é", True, 1.5, [], "9" * 30, "1818646999", "0000000000"],
)
def test_what_is_no_number_is_refused(given: object) -> None:
    """With what would be right."""
    _, problems, _ = checked(filter={"from_number": given})
    assert len(problems) == 1
    assert problems[0].startswith("filter.from_number must")


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("HTTPS://Mail.Example.COM:443/a/B?c=D", "https://mail.example.com/a/B?c=D"),
        ("http://127.0.0.1:8710", "http://127.0.0.1:8710/"),
        ("  https://mail.example.com/x ", "https://mail.example.com/x"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
    ],
)
def test_urls_become_canonical(given: str, canonical: str) -> None:
    """Path and query keep their case: they hold the token."""
    assert checked(endpoint=given)[0]["endpoint"] == canonical


@pytest.mark.parametrize("given", ["ftp://mail.example.com/", "mail.example.com/x", "", "https://", 7, None, "/x"])
def test_an_endpoint_is_an_http_url(given: object) -> None:
    """Or an address, with EMAIL."""
    _, problems, _ = checked(endpoint=given)
    assert problems[0].startswith(("endpoint must be an http", "endpoint is missing"))


def test_a_fragment_is_refused() -> None:
    """A token there would never arrive."""
    assert "fragment" in checked(endpoint=URL + "#token")[1][0]


def test_email_needs_an_address_and_the_reverse() -> None:
    """Both ways round, with the property that is wrong."""
    assert checked(endpoint="Ops@Example.COM", notification_format="email")[:2] == (
        {
            "endpoint": "Ops@example.com",
            "notification_format": "EMAIL",
            "trigger_event": "INBOUND_TEXT_FINISHED",
            "enabled": True,
            "adopt": True,
        },
        [],
    )
    assert checked(notification_format="EMAIL")[1] == [
        "endpoint must be an email address, because notification_format is EMAIL"
    ]
    assert checked(endpoint="ops@example.com")[1] == [
        "notification_format must be EMAIL, because endpoint is an email address"
    ]


@pytest.mark.parametrize(
    ("name", "given", "canonical"),
    [
        ("notification_format", " json", "JSON"),
        ("trigger_event", "campaign_Finished", "CAMPAIGN_FINISHED"),
    ],
)
def test_enumerations_by_either_case(name: str, given: str, canonical: str) -> None:
    """They are stored in CallFire's capitals."""
    assert checked(**{name: given})[0][name] == canonical


def test_unknown_enumerations_are_refused_with_those_that_exist() -> None:
    """Both in one go."""
    problems = checked(notification_format="YAML", trigger_event="TEXT")[1]
    assert problems[0].startswith("notification_format must be one of XML, JSON")
    assert problems[1].startswith("trigger_event must be one of INBOUND_TEXT_FINISHED")


def test_a_trigger_is_required_in_1_1_and_unknown_in_1_0() -> None:
    """1.0 posts every event."""
    assert checked(trigger_event=None)[1][0].startswith("trigger_event is missing")
    assert checked("1.0")[1][0].startswith("trigger_event does not exist in CallFire API 1.0")
    assert checked("1.0", trigger_event=None, filter={"inbound": True})[1] == []


def test_what_else_1_0_lacks() -> None:
    """Keywords and LEGACY."""
    problems = checked("1.0", trigger_event=None, notification_format="LEGACY", filter={"to_number": "67076:JOIN"})[1]
    assert [p.partition(" ")[0] for p in problems] == ["notification_format", "filter.to_number"]


def test_non_strict_ssl_is_for_https() -> None:
    """With http there is nothing to be lenient about."""
    assert checked(non_strict_ssl=True)[1] == []
    assert checked(non_strict_ssl=False, endpoint="http://127.0.0.1/x")[1] == []
    assert checked(non_strict_ssl=True, endpoint="http://127.0.0.1/x")[1][0].startswith("non_strict_ssl is for https")


@pytest.mark.parametrize("host", ["mail.example.com", "8.8.8.8"])
def test_plain_http_to_a_public_host_is_a_warning(host: str) -> None:
    """Which names the host and not the token."""
    properties, problems, warnings = checked(endpoint=f"http://{host}/postback/0123456789abcdef")
    assert properties["endpoint"].startswith("http://")
    assert problems == []
    assert len(warnings) == 1
    assert host in warnings[0]
    assert "0123456789abcdef" not in warnings[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.7", "[::1]", "forwarder", "mail.internal"])
def test_plain_http_at_home_is_fine(host: str) -> None:
    """Loopback and private networks."""
    assert checked(endpoint=f"http://{host}/x")[2] == []


@pytest.mark.parametrize("given", ["-1", 0, "0", "1.5", 2**63, True, "x", 2.0**60])
def test_ids_are_whole_numbers_above_nought(given: object) -> None:
    """Doubles lose digits above 2⁵³, so they are refused there."""
    assert checked(filter={"batch_id": given})[1][0].startswith("filter.batch_id must be an id")


@pytest.mark.parametrize("given", ["0017", 17, 17.0])
def test_ids_become_strings(given: object) -> None:
    """Of digits, without zeros in front."""
    assert checked(filter={"broadcast_id": given})[0]["filter"] == {"broadcast_id": "17"}


def test_unknown_values_are_left_alone() -> None:
    """And so are the rules that depend on them."""
    given: dict[str, Any] = {
        "endpoint": UNKNOWN,
        "notification_format": "EMAIL",
        "non_strict_ssl": True,
        "filter": {"to_number": UNKNOWN, "from_number": "8186469991"},
    }
    properties, problems, _ = checked(**given)
    assert problems == []
    assert properties["endpoint"] is UNKNOWN
    assert properties["filter"] == {"to_number": UNKNOWN, "from_number": "18186469991"}
    assert checked(filter=UNKNOWN)[0]["filter"] is UNKNOWN


def test_an_empty_filter_is_none() -> None:
    """Both filter nothing."""
    assert "filter" not in checked(filter={})[0]
    assert "filter" not in checked(filter={"to_number": None})[0]


def test_one_mistake_hides_no_other() -> None:
    """A broken field counts as unknown for the rules between fields."""
    problems = checked(endpoint="x", notification_format="EMAIL", trigger_event=None, enabled="maybe")[1]
    assert [p.partition(" ")[0] for p in problems] == ["endpoint", "enabled", "trigger_event"]


def test_names_that_do_not_exist_are_refused() -> None:
    """With those that do."""
    problems = checked(colour="red", filter={"shape": "round"})[1]
    assert sorted(p.partition(" ")[0] for p in problems) == ["colour", "filter.shape"]
    assert "there are broadcast_id, batch_id" in str(problems)
