"""The status page in a real Chromium, beside a real forwarder: what one sees, what a click does, and who may click."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

from forwarder.ledger import Ledger
from forwarder.outbox import Outbox, Posting, Quarantined, Turn, connect
from tests.chromium import chromium as started_chromium
from tests.forwarder_kit import Answer, MailSink, RunningForwarder, environment, http, mail_sink, running, text_postback

EVIL = "<script>document.title='taken'</script>"
CONTRAST = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
  const colour = getComputedStyle(node).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : colour;
};
return [...document.querySelectorAll("h1, h2, p, dt, dd, a, button, span, code, strong")]
  .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
  .map((node) => {
    const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), node.className + " " + node.textContent.slice(0, 40)];
  });
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser without scripts: the page needs none."""
    with started_chromium(tmp_path_factory.mktemp("chromium"), "1200,900", scripts=False) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def sink() -> Iterator[MailSink]:
    """A mail server whose refusals are not to be trusted."""
    with mail_sink() as server:
        server.on_rcpt = lambda address: f"550 5.1.1 {EVIL}" if address.startswith("gone") else None
        yield server


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory, sink: MailSink) -> Iterator[RunningForwarder]:
    """A forwarder with three texts sent to one inbox and dead at another, and one postback nobody could read."""
    settings = environment(tmp_path_factory.mktemp("state"), sink.port, mail_to="office@example.com,gone@example.com")
    with running(settings) as process:
        for text_id in (1, 2, 3):
            process.post(text_postback(text_id, "very private"))
            process.wait_for_log(f"delivery.dead text_id={text_id}")
            process.wait_for_log(f"delivery.sent text_id={text_id}")
        process.post(b"<nope")
        yield process


@pytest.fixture
def page(chromium: webdriver.Chrome, forwarder: RunningForwarder) -> Iterator[webdriver.Chrome]:
    """The page; it must have logged nothing, and fetched nothing but its own files."""
    chromium.get(forwarder.admin_url)
    yield chromium
    fetched = chromium.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    logged = chromium.get_log("browser")
    chromium.get("about:blank")
    assert {urlsplit(name).netloc for name in fetched} <= {urlsplit(forwarder.admin_url).netloc}
    assert logged == []


def _said(page: webdriver.Chrome) -> str:
    return page.find_element(By.TAG_NAME, "body").text


def test_the_page_shows_at_a_glance_what_matters(page: webdriver.Chrome) -> None:
    """One sentence, five figures, the flow as bars, what needs somebody, what went through."""
    assert page.find_element(By.CSS_SELECTOR, ".state strong").text == "Something needs you"
    tiles = [tile.text.split("\n") for tile in page.find_elements(By.CSS_SELECTOR, ".tile")]
    assert tiles == [
        ["Sent, last 24 h", "3"], ["Waiting", "0"], ["Oldest waits", "\u2013"], ["Dead", "3"], ["In quarantine", "1"]
    ]  # fmt: skip
    chart = page.find_element(By.CSS_SELECTOR, "svg[role=img]")
    assert chart.get_attribute("aria-label") == "3 texts received, 3 mails sent, 4 dead or unreadable, last 24 h"
    bars = {kind: chart.find_elements(By.CSS_SELECTOR, f"rect.{kind}") for kind in ("received", "sent", "failed")}
    assert all(bars.values())
    assert all(bar.size["height"] > 0 for found in bars.values() for bar in found)
    assert len(page.find_elements(By.CSS_SELECTOR, "[aria-labelledby=needs] li")) == 4
    assert len(page.find_elements(By.CSS_SELECTOR, "[aria-labelledby=recent] li")) == 6


def test_numbers_are_masked_and_texts_are_not_there(page: webdriver.Chrome) -> None:
    """Neither in what one sees nor in the source; what the mail server says is text and nothing else."""
    assert "•••1212" in _said(page)
    assert not re.search("18185551212|18186469991|private", page.page_source)
    assert f"550 5.1.1 {EVIL}" in _said(page)
    assert page.title == "Something needs you · callfire-mail"


def test_the_flow_is_shown_for_an_hour_a_day_or_a_week(page: webdriver.Chrome) -> None:
    """A link each, and the one that is shown is marked."""
    for name, words in (("Hour", "last hour"), ("Week", "last 7 days"), ("Day", "last 24 h")):
        page.find_element(By.LINK_TEXT, name).click()
        shown = f"//nav/a[@aria-current='page'][.='{name}']"
        WebDriverWait(page, 20, 0.05).until(presence_of_element_located((By.XPATH, shown)))
        assert f"Sent, {words}" in _said(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_on_a_phone_in_light_and_dark(page: webdriver.Chrome, scheme: str) -> None:
    """Nothing is wider than the screen, buttons fit a thumb, and letters stand out from their ground (WCAG AA)."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert min(button.size["height"] for button in page.find_elements(By.TAG_NAME, "button")) >= 36
        ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(244, 242, 238)", "dark": "rgb(20, 22, 26)"}[scheme]
        faint = [(ratio, words) for ratio, words in page.execute_script(CONTRAST) if ratio < 4.5]
        assert faint == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _post(forwarder: RunningForwarder, token: str, path: str = "/dead/replay", **headers: str) -> Answer:
    form = urlencode({"token": token, "text_id": "999", "recipient": "x@example.com", "id": "999"}).encode()
    return http(forwarder.admin_url + path, form, {name.replace("_", "-"): value for name, value in headers.items()})


def test_only_the_page_itself_can_change_something(forwarder: RunningForwarder) -> None:
    """Not another site, not by a name of its own that points here, not without the page's token, not by GET."""
    found = re.search(r'name="token" value="([^"]+)"', forwarder.get("/").body.decode())
    assert found
    token, host = found[1], urlsplit(forwarder.admin_url).netloc
    assert _post(forwarder, token).status == 200  # redirected to the page, which says that 999 is not there
    assert _post(forwarder, token, Origin=f"http://{host}", Sec_Fetch_Site="same-origin").status == 200
    for path in ("/dead/replay", "/quarantine/replay"):
        for refused in (
            _post(forwarder, "", path),
            _post(forwarder, "x" * len(token), path),
            _post(forwarder, token, path, Origin="http://evil.example"),
            _post(forwarder, token, path, Origin="null"),
            _post(forwarder, token, path, Sec_Fetch_Site="cross-site"),
            _post(forwarder, token, path, Sec_Fetch_Site="same-site"),
            _post(forwarder, token, path, Host="evil.example:80"),
            http(forwarder.admin_url + path, b"x" * 20_000),
        ):
            assert refused.status == 403
        assert forwarder.get(path).status == 405
    for path in ("/", "/readyz", "/metrics"):
        assert http(forwarder.admin_url + path, headers={"Host": "rebound.example"}).status == 403
        assert http(forwarder.admin_url + path, headers={"Host": "[::1"}).status == 403
        assert http(forwarder.admin_url + path, headers={"Host": f"localhost:{host.rpartition(':')[2]}"}).status == 200


def test_the_page_is_locked_down(forwarder: RunningForwarder) -> None:
    """No script, no frame, nothing from elsewhere, nothing kept."""
    headers = forwarder.get("/").headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'")
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "<script" not in forwarder.get("/").body.decode().replace("&lt;script", "")


def test_a_replay_says_what_came_of_it(forwarder: RunningForwarder) -> None:
    """A postback that a newer release can read, and that is of a text we sent, queues nothing; so does none at all."""
    outbox = Outbox(connect(f"sqlite:///{forwarder.environment['FORWARDER_STATE_DIR']}/outbox.db"))
    sent = text_postback(7).replace(b"<Inbound>true", b"<Inbound>false")
    outbox.turn(Turn([Posting(time.time(), quarantined=(Quarantined("an older release", "text/xml", sent),))]))
    ident = Ledger(outbox).quarantined()[0].id
    outbox.close()
    found = re.search(r'name="token" value="([^"]+)"', forwarder.get("/").body.decode())
    assert found
    form = f"token={found[1]}&id={ident}".encode()
    replay = f"{forwarder.admin_url}/quarantine/replay"
    assert "holds no text for anybody" in http(replay, form).body.decode()
    assert "somebody was faster" in http(replay, form).body.decode()


def _click(page: webdriver.Chrome, button: str, said: str) -> None:
    """Click, and wait for the page that says what came of it."""
    page.find_element(By.XPATH, button).click()
    told = f"//*[@role='status'][contains(., '{said}')]"
    WebDriverWait(page, 20, 0.05).until(lambda _: page.find_elements(By.XPATH, told))


def test_a_click_sends_it_again(page: webdriver.Chrome, forwarder: RunningForwarder, sink: MailSink) -> None:
    """One by its button, all others by one for all; a postback that still cannot be read stays where it is."""
    sink.on_rcpt = lambda _: None
    before = len(sink.mails)
    _click(page, "//button[@aria-label='Replay text 2 to gone@example.com']", "Queued again.")
    sink.wait_for(before + 1)
    assert (sink.mails[-1].text_id, sink.mails[-1].recipient) == (2, "gone@example.com")
    page.get(forwarder.admin_url)
    _click(page, "//button[starts-with(., 'Replay all')]", "Queued again.")
    sink.wait_for(before + 3)
    _click(page, "//button[@aria-label='Replay postback 1']", "It still cannot be read")

    def all_sent(_: object) -> bool:
        page.get(forwarder.admin_url)
        return {pill.text for pill in page.find_elements(By.CSS_SELECTOR, "[aria-labelledby=recent] .pill")} == {"sent"}

    WebDriverWait(page, 20, 0.2).until(all_sent)


def test_trouble_is_the_first_thing_one_sees(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """A mail server that is gone, what waits for it, and that nothing is lost."""
    with mail_sink() as gone:
        gone.stop()
        with running(environment(tmp_path, gone.port)) as forwarder:
            chromium.get(forwarder.admin_url)
            assert "No delivery is waiting." in _said(chromium)
            assert "Nothing yet." in _said(chromium)
            forwarder.post(text_postback(1))
            forwarder.wait_for_log("mail.unavailable")
            chromium.get(f"{forwarder.admin_url}/?span=nonsense")
            assert chromium.title == "The mail server takes no mail · callfire-mail"
            assert "connection refused; check FORWARDER_SMTP_HOST" in _said(chromium)
            assert "Nothing is lost: 1 delivery waiting" in _said(chromium)
            assert "waits for the mail server" in _said(chromium)
            chromium.get("about:blank")
