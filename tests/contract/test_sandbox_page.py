"""The sandbox's page in a real Chromium: what a person sees, types, hears and reaches with the keyboard."""

import smtplib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from sandbox import Sandbox
from sandbox.pytest_plugin import PostbackEndpoint
from tests.chromium import chromium as started_chromium
from tests.contract.sandbox_peers import INBOUND_TEXT, npm_package, post_soap

AXE = "axe-core@4.14.1"
ANN, BOB, OFFICE = "18185550101", "12125550123", "18185550199"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser as a person has it."""
    with started_chromium(tmp_path_factory.mktemp("chromium"), "1360,800") as chrome:
        yield chrome


class Shown:
    """The page as somebody looks at it; everything is waited for, since the page is told of changes later."""

    def __init__(self, chrome: webdriver.Chrome) -> None:
        self.chrome = chrome

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """What each of them says, read at one instant."""
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.innerText.trim())"
        found: list[str] = self.chrome.execute_script(script, selector)
        return found

    def wait(self, condition: Callable[[], Any]) -> Any:
        """The first true value of the condition, or an error after twenty seconds."""
        return WebDriverWait(self.chrome, 20, 0.02).until(lambda _: condition())

    def wait_for_text(self, selector: str, text: str) -> None:
        self.wait(lambda: any(text in found for found in self.texts(selector)))

    def focused(self) -> str:
        """The accessible name of what has the focus."""
        name: str = self.chrome.switch_to.active_element.accessible_name
        return name

    def press(self, *keys: str) -> None:
        self.chrome.switch_to.active_element.send_keys(*keys)


@pytest.fixture
def page(chromium: webdriver.Chrome, sandbox: Sandbox) -> Iterator[Shown]:
    """The page of an empty sandbox, live; it must have logged nothing and fetched nothing from elsewhere."""
    chromium.get(sandbox.url)
    chromium.get_log("browser")
    shown = Shown(chromium)
    shown.wait(lambda: shown.texts("#live") == ["Live"])
    yield shown
    fetched = chromium.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    refused = "the server responded with a status of 400"  # shown to the person, and logged by Chromium by itself
    logged = [entry["message"] for entry in chromium.get_log("browser") if refused not in entry["message"]]
    chromium.get("about:blank")
    assert [name for name in fetched if not name.startswith(sandbox.url)] == []
    assert logged == []


@pytest.fixture
def subscribed(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> PostbackEndpoint:
    """An endpoint that is told about inbound texts."""
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=INBOUND_TEXT)
    return postback_endpoint


def send_mail(sandbox: Sandbox, subject: str, *headers: str) -> None:
    """One mail into the mailbox."""
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10) as smtp:
        head = "\r\n".join([f"Subject: {subject}", "From: Ann <ann@example.com>", *headers])
        smtp.sendmail("ann@example.com", ["office@example.com"], f"{head}\r\n\r\nText of {subject}\r\n".encode())


def test_a_text_typed_into_the_phone_is_posted_and_seen(
    page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint
) -> None:
    """Typed and sent with Enter: a bubble, a postback with its answer, and what became of it under the bubble."""
    page.one("#message").send_keys("Are you open?", Keys.ENTER)
    assert b"<Message>Are you open?</Message>" in subscribed.take().body
    page.wait_for_text("#bubbles .bubble", "Are you open?")
    page.wait_for_text("#bubbles .receipt", "posted to 1 endpoint")
    page.wait_for_text("#postbacks .chip", "200")
    assert page.one("#message").get_attribute("value") == ""
    page.one("#message").send_keys("Yes", Keys.SHIFT, Keys.ENTER, Keys.NULL, "from 9")
    page.one("[data-event=reply]").click()
    page.wait(lambda: sandbox.postbacks() and len(page.all("#bubbles li.theirs")) == 1)
    assert "Yes\nfrom 9" in (page.one("#bubbles li.theirs .bubble").get_attribute("textContent") or "")


def test_every_kind_of_event_has_its_button(page: Shown, sandbox: Sandbox) -> None:
    """Calls either way and what campaigns do; to the account that is chosen, where there are several."""
    assert not page.one("#account").is_displayed()
    sandbox.add_account("second", "secret")
    page.wait(lambda: page.one("#account").is_displayed())
    Select(page.one("#account")).select_by_visible_text("second")
    buttons = {button.text: button for button in page.all(".other-events button")}
    for name in ("Call", "Call from CallFire", "starts", "stops", "finishes"):
        buttons[name].click()
    page.wait_for_text("#bubbles .bubble", "Campaign “Sandbox campaign” finished")
    page.wait(lambda: len(page.all("#bubbles li")) == 5)
    assert {event["account"] for event in sandbox.events()} == {"second"}
    assert sorted(event["trigger"] for event in sandbox.events()) == [
        "CAMPAIGN_FINISHED",
        "CAMPAIGN_STARTED",
        "CAMPAIGN_STOPPED",
        "INBOUND_CALL_FINISHED",
        "OUTBOUND_CALL_FINISHED",
    ]


def test_everything_appears_without_a_reload(page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint) -> None:
    """Events, subscriptions, postbacks, mails, calls and trouble that others make."""
    sandbox.make_call(ANN, OFFICE, duration=61)
    sandbox.run_campaign("STARTED", name="Autumn")
    sandbox.send_text("naïve 😊 <b>", ANN, OFFICE)
    sandbox.trouble("soap-503", operation="GetSubscription")
    send_mail(sandbox, "Hello")
    post_soap(sandbox, "<svc:QuerySubscriptions/>")
    page.wait_for_text("#people button", "(818) 555-0101")
    page.one(f"#people button[title^='{ANN}']").click()
    page.wait_for_text("#bubbles .bubble", "Call, 61 seconds (LA)")
    page.wait_for_text("#bubbles .bubble", "Campaign “Autumn” started")
    page.wait_for_text("#bubbles .bubble", "naïve 😊 <b>")
    page.wait_for_text("#subscriptions .url", subscribed.url)
    page.wait_for_text("#postbacks .what", "text ")
    page.wait_for_text("#threads .subject", "Hello")
    page.wait_for_text("#requests .what", "QuerySubscriptions")
    page.wait_for_text("#trouble li", "Unavailable (503) (GetSubscription)")


def test_the_page_opens_with_the_conversation_that_was_last(sandbox: Sandbox, chromium: webdriver.Chrome) -> None:
    """A seed's history is there, and its newest conversation is the one that one sees."""
    sandbox.plant("demo")
    chromium.get(sandbox.url)
    shown = Shown(chromium)
    shown.wait_for_text("#bubbles .bubble", "Your table for two")
    assert shown.one("#from").get_attribute("value") == "14155550142"
    shown.one("#people button[title^='18185550101']").click()
    shown.wait_for_text("#bubbles .bubble", "Perfect, thank you 😊")
    assert len(shown.all("#bubbles li")) == 3
    chromium.get("about:blank")


def test_a_postback_shows_what_was_said_and_can_be_resent(
    page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint
) -> None:
    """Request and answer in full; resending posts the same again."""
    subscribed.status = 503
    sandbox.send_text("Hello")
    first = subscribed.take()
    page.wait_for_text("#postbacks .chip", "503")
    page.wait_for_text("#bubbles .receipt", "1 of 1 postback went wrong")
    page.one("#postbacks summary").click()
    page.wait_for_text("#postbacks pre", "User-Agent: CallFire-HTTP/1.0")
    page.wait_for_text("#postbacks pre", "<Message>Hello</Message>")
    subscribed.status = 200
    next(button for button in page.all("#postbacks button") if button.text == "Resend").click()
    assert subscribed.take().body == first.body
    page.wait_for_text("#postbacks .what", "resend of 1")
    assert len(page.all("#postbacks details[open]")) == 1, "what was open stays open"


def test_mails_stand_in_their_conversations(page: Shown, sandbox: Sandbox) -> None:
    """As a mail program shows them: the newest first, the first opened, its headers and raw form at hand."""
    send_mail(sandbox, "One", "Message-ID: <1@x>", "References: <root@x>")
    send_mail(sandbox, "Other", "Message-ID: <2@x>")
    send_mail(sandbox, "Two", "Message-ID: <3@x>", "References: <root@x>")
    page.wait(lambda: page.texts("#threads .subject") == ["One", "Other"])
    assert page.texts("#mail-tally") == ["3"]
    page.wait_for_text("#threads li:first-child .chip", "2")
    threads = page.all("#threads > li > details")
    if not threads[0].get_attribute("open"):
        threads[0].find_element(By.CSS_SELECTOR, "summary").click()
    page.wait_for_text("#threads .text", "Text of Two")
    page.one("#threads li:first-child .mail:last-child details summary").click()
    page.wait_for_text("#threads .headers dd", "<root@x>")
    page.one("#clear-mail").click()
    page.wait_for_text("#threads", "No mail yet")
    assert sandbox.mails() == []


def test_a_subscription_is_made_changed_and_removed_by_hand(page: Shown, sandbox: Sandbox) -> None:
    """And what is wrong is said."""
    page.one(".add summary").click()
    page.one("#add-subscription [name=endpoint]").send_keys("nonsense", Keys.ENTER)
    page.wait_for_text("#toast", "Endpoint must be an http or https URL or an email address")
    page.one("#add-subscription [name=endpoint]").clear()
    page.one("#add-subscription [name=endpoint]").send_keys("http://127.0.0.1:1/x")
    Select(page.one("#add-subscription [name=notification_format]")).select_by_visible_text("JSON")
    page.one("#add-subscription button").click()
    page.wait_for_text("#subscriptions .url", "http://127.0.0.1:1/x")
    page.one("#subscriptions [aria-label='Disable subscription 19001']").click()
    page.wait_for_text("#subscriptions .chip", "disabled")
    assert [(found["enabled"], found["notification_format"]) for found in sandbox.subscriptions()] == [(False, "JSON")]
    page.one("#subscriptions [aria-label='Delete subscription 19001']").click()
    page.wait_for_text("#subscriptions", "Nobody is subscribed")


def test_trouble_is_made_and_taken_back(page: Shown, sandbox: Sandbox) -> None:
    """With the fields that its kind needs."""
    assert not page.one("#trouble-seconds").is_displayed()
    Select(page.one("#trouble-kind")).select_by_value("soap-slow")
    Select(page.one("[name=operation]")).select_by_visible_text("QuerySubscriptions")
    Select(page.one("[name=often]")).select_by_value("3")
    page.one("#trouble-seconds input").clear()
    page.one("#trouble-seconds input").send_keys("0")
    page.one("#add-trouble button").click()
    page.wait_for_text("#trouble li", "Slow answer (QuerySubscriptions)")
    post_soap(sandbox, "<svc:QuerySubscriptions/>")
    page.wait_for_text("#trouble li", "next 3, 1\u00d7 so far")
    Select(page.one("#trouble-kind")).select_by_value("mail-5xx")
    assert not page.one("#trouble-operation").is_displayed()
    page.one("#trouble button").click()
    page.wait(lambda: page.texts("#trouble li") == [])


def test_a_reset_is_asked_about_and_done(page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint) -> None:
    """Refused, nothing happens; then everything is gone."""
    page.wait_for_text("#subscriptions .url", subscribed.url)
    page.one("#reset").click()
    page.chrome.switch_to.alert.dismiss()
    assert len(sandbox.subscriptions()) == 1
    page.one("#reset").click()
    page.chrome.switch_to.alert.accept()
    page.wait_for_text("#subscriptions", "Nobody is subscribed")
    assert sandbox.subscriptions() == []


def test_everything_can_be_done_with_the_keyboard(page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint) -> None:
    """In the order in which one reads; the focus is never lost when what had it changes or goes away."""
    page.wait_for_text("#subscriptions .url", subscribed.url)
    page.chrome.execute_script("document.activeElement.blur()")
    names = []
    page.one("body").send_keys(Keys.TAB)
    while (name := page.focused()) not in names:
        names.append(name)
        page.press(Keys.TAB)
    expected = ["Skip to the phone", f"Copy WSDL: {sandbox.wsdl}", "Reset", "This phone", "Your CallFire number"]
    expected += ["Conversation", "Message", "Send text", "Call", "Disable subscription 19001"]
    expected += ["Delete subscription 19001", "What goes wrong", "How often", "Make trouble"]
    assert [name for name in names if name in expected] == expected
    page.one("[aria-label='Disable subscription 19001']").send_keys(Keys.SPACE)
    page.wait_for_text("#subscriptions .chip", "disabled")
    page.wait(lambda: page.focused() == "Enable subscription 19001")
    page.press(Keys.TAB)
    page.press(Keys.ENTER)
    page.wait_for_text("#subscriptions", "Nobody is subscribed")
    page.wait(lambda: page.focused().startswith("Subscriptions"))


def test_what_arrives_is_said(page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint) -> None:
    """In a live region, for those who do not see it appear; and problems interrupt."""
    assert page.one("#news").aria_role == "status"
    assert page.one("#toast").get_attribute("role") == "alert"
    sandbox.send_text("Hello")
    page.wait_for_text("#news", "Postback to 19001: 200")
    send_mail(sandbox, "Hello")
    page.wait_for_text("#news", "New mail from Ann: Hello")


def test_the_page_comes_back_with_its_sandbox(chromium: webdriver.Chrome) -> None:
    """It says when the sandbox is gone, and looks again when there is one at the same address."""
    with Sandbox() as first:
        port = int(first.url.rpartition(":")[2])
        chromium.get(first.url)
        shown = Shown(chromium)
        shown.wait(lambda: shown.texts("#live") == ["Live"])
    shown.wait_for_text("#live", "The sandbox is gone")
    with Sandbox(port=port, seed="demo"):
        shown.wait(lambda: shown.texts("#live") == ["Live"])
        shown.wait_for_text("#people button", "(818) 555-0101")
        chromium.get("about:blank")


def test_thousands_of_events_leave_the_page_usable(page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint) -> None:
    """It shows the newest, and what one types is not in the way."""
    page.one("#message").send_keys("I am ")
    for number in range(2000):
        sandbox.send_text(f"number {number}", "18185551212", "18186469991")
    page.one("#message").send_keys("typing")
    page.wait_for_text("#bubbles li:last-child .bubble", "number 1999")
    page.wait(lambda: page.texts("#postbacks-tally") == ["2000"])
    assert len(page.all("#bubbles li")) <= 300
    assert page.one("#message").get_attribute("value") == "I am typing"


@pytest.fixture(scope="session")
def axe() -> str:
    """Deque's accessibility checker, fetched from npm once and kept outside the checkout."""
    return (npm_package(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()


def test_a_conversations_heading_fits_a_phone(page: Shown, sandbox: Sandbox) -> None:
    """Sender, how many mails and when, all of it visible; a long name is what gives way."""
    name = "From: A name of somebody that is longer than the screen is wide <a@example.com>"
    for number in range(2):
        with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10) as smtp:
            head = f"{name}\r\nSubject: Hi\r\nMessage-ID: <{number}@x>\r\nReferences: <0@x>"
            smtp.sendmail("a@example.com", ["office@example.com"], f"{head}\r\n\r\nText\r\n".encode())
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.wait_for_text("#threads .thread-top .chip", "2")
        right = "return arguments[0].getBoundingClientRect().right"
        time, heading = page.one("#threads .thread-top time"), page.one("#threads summary")
        assert page.chrome.execute_script(right, time) <= page.chrome.execute_script(right, heading)
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("look", [(1360, "light"), (1360, "dark"), (400, "light"), (400, "dark")], ids=str)
def test_axe_finds_nothing_to_complain_about(
    page: Shown, sandbox: Sandbox, subscribed: PostbackEndpoint, axe: str, look: tuple[int, str]
) -> None:
    """Names, roles, structure and contrast, with everything on the page opened; and nothing is wider than the page."""
    sandbox.plant("demo")
    sandbox.create_subscription(endpoint="https://127.0.0.1:1/x", trigger_event="CAMPAIGN_STARTED", enabled=False)
    sandbox.trouble("postback-lost")
    sandbox.send_text("lost")
    sandbox.send_text("Hello")
    send_mail(sandbox, "Hello")
    post_soap(sandbox, "<svc:QuerySubscriptions/>", auth=("sandbox", "wrong"))
    width, scheme = look
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    try:
        for selector, text in (("#threads .subject", "Hello"), ("#postbacks .chip", "200"), ("#requests .chip", "401")):
            page.wait_for_text(selector, text)
        page.chrome.execute_script("for (const found of document.querySelectorAll('details')) found.open = true")
        page.wait(lambda: len(page.all("#postbacks pre")) == 2)
        page.chrome.execute_script(axe)
        run = "axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
        found = page.chrome.execute_async_script(run)
        problems = [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found["violations"]]
        assert problems == []
        assert len(found["passes"]) > 20
        assert page.chrome.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
