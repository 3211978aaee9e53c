"""The local hosting's life cycle with a real forwarder: what it starts, sees, restarts, takes over and stops."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hosting import process
from hosting.errors import NotHealthyError
from hosting.local import LocalForwarderProvider
from tests.forwarder_kit import TOKEN, environment, http, mail_sink, text_postback

Properties = dict[str, Any]
NEW_TOKEN = "fedcba9876543210fedcba9876543210"
NEWER_TOKEN = "89abcdef0123456789abcdef01234567"


@pytest.fixture
def declared(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Properties]:
    """What a program declares: a forwarder with a state folder, ports and a mail server of its own."""
    port, admin_port, smtp_port = free_ports(3)
    settings = environment(tmp_path / "state", smtp_port, host="127.0.0.1", port=str(port), admin_port=str(admin_port))
    secrets = {"FORWARDER_TOKENS": settings.pop("FORWARDER_TOKENS")}
    yield {
        "state_dir": str(tmp_path / "state"),  # absolute, so not below the project
        "settings": settings,
        "secrets": secrets,
        "release": "test",
        "running": True,
    }
    left = process.find(tmp_path / "state")
    if left:
        process.stop(left)


@pytest.fixture
def provider() -> LocalForwarderProvider:
    """What the engine calls."""
    return LocalForwarderProvider()


def differs(provider: LocalForwarderProvider, olds: Properties, news: Properties) -> bool:
    """Tell what the engine would be told."""
    return bool(provider.diff("id", olds, news).changes)


def read(provider: LocalForwarderProvider, outputs: Properties) -> Properties:
    """Refresh: return the outputs as they are now."""
    found = provider.read("id", dict(outputs)).outs
    assert found is not None
    return found


def post(declared: Properties, text_id: int, token: str = TOKEN) -> int:
    """Post a text to the forwarder, as CallFire would."""
    url = f"http://127.0.0.1:{declared['settings']['FORWARDER_PORT']}/postback/{token}"
    return http(url, text_postback(text_id), {"Content-Type": "text/xml"}).status


def test_it_starts_healthy_detached_and_as_declared(provider: LocalForwarderProvider, declared: Properties) -> None:
    """After create the forwarder answers, in a session of its own; a refresh finds no difference."""
    created = provider.create(declared).outs
    assert created is not None
    assert post(declared, 1) == 200
    assert os.getsid(int(created["pid"])) == int(created["pid"])
    assert read(provider, created) == created
    assert not differs(provider, created, declared)


def test_it_hands_nothing_of_its_own_environment_on(
    provider: LocalForwarderProvider, declared: Properties, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passphrases and CallFire's password stay with the CLI."""
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "hidden")
    monkeypatch.setenv("CALLFIRE_PASSWORD", "hidden")
    created = provider.create(declared).outs
    assert created is not None
    assert "hidden" not in psutil.Process(int(created["pid"])).environ().values()


def test_a_dead_one_is_noticed_and_started_again_with_its_outbox(
    provider: LocalForwarderProvider, declared: Properties
) -> None:
    """Killed before a text was delivered: the refresh says so, the update restarts it, the mail arrives once."""
    created = provider.create(declared).outs
    assert created is not None
    assert post(declared, 7) == 200
    psutil.Process(int(created["pid"])).kill()
    process.gone(psutil.Process(int(created["pid"])), 10)

    seen = read(provider, created)
    assert seen["running"] is False
    assert differs(provider, seen, declared)
    with mail_sink(port=int(declared["settings"]["FORWARDER_SMTP_PORT"])) as sink:
        updated = provider.update("id", seen, declared).outs
        assert updated is not None
        assert not differs(provider, read(provider, updated), declared)
        assert [mail.text_id for mail in sink.wait_for(1)] == [7]
        assert post(declared, 7) == 200
        assert post(declared, 8) == 200
        assert [mail.text_id for mail in sink.wait_for(2)] == [7, 8]


def test_one_with_other_settings_is_noticed_and_mended(provider: LocalForwarderProvider, declared: Properties) -> None:
    """A forwarder that somebody restarted differently shows as a difference in that setting."""
    created = provider.create(declared).outs
    assert created is not None
    running = process.find(Path(declared["state_dir"]))
    assert running is not None
    process.stop(running)
    other = declared["settings"] | {"FORWARDER_MAIL_TO": "elsewhere@example.com"}
    process.start(Path(declared["state_dir"]), other | declared["secrets"], declared["release"])

    seen = read(provider, created)
    assert seen["settings"]["FORWARDER_MAIL_TO"] == "elsewhere@example.com"
    assert differs(provider, seen, declared)
    updated = provider.update("id", seen, declared).outs
    assert updated is not None
    assert read(provider, updated)["settings"] == declared["settings"]


def test_new_code_is_a_difference(provider: LocalForwarderProvider, declared: Properties) -> None:
    """A forwarder that runs the code of another release is restarted."""
    created = provider.create(declared).outs
    assert created is not None
    newer = declared | {"release": "newer"}
    assert differs(provider, created, newer)
    updated = provider.update("id", created, newer).outs
    assert updated is not None
    assert updated["pid"] != created["pid"]
    assert read(provider, updated)["release"] == "newer"


def with_tokens(declared: Properties, *tokens: str) -> Properties:
    """What is declared, or was, with other tokens."""
    return declared | {"secrets": declared["secrets"] | {"FORWARDER_TOKENS": ",".join(tokens)}}


def test_former_tokens_are_dropped_when_nobody_uses_them(
    provider: LocalForwarderProvider, declared: Properties, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rotations, of which CallFire was told nothing: all three are accepted, until the unused ones go."""
    outputs = provider.create(declared).outs or {}
    for token in (NEW_TOKEN, NEWER_TOKEN):
        outputs = provider.update("id", read(provider, outputs), with_tokens(declared, token)).outs or {}
    assert [post(declared, 1 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN, NEWER_TOKEN])] == [200] * 3
    rotated = with_tokens(declared, NEWER_TOKEN)
    assert read(provider, outputs) == outputs
    assert not differs(provider, outputs, rotated)
    monkeypatch.setattr("hosting.local.RETIRE_AFTER", 0.0)
    seen = read(provider, outputs)
    assert differs(provider, seen, rotated)
    outputs = provider.update("id", seen, rotated).outs or {}
    assert [post(declared, 4 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN, NEWER_TOKEN])] == [404, 404, 200]
    assert not differs(provider, read(provider, outputs), rotated)


def test_tokens_that_somebody_changed_are_mended(provider: LocalForwarderProvider, declared: Properties) -> None:
    """Those that were in force are again, the former one, too."""
    rotated = with_tokens(declared, NEW_TOKEN)
    outputs = provider.update("id", provider.create(declared).outs or {}, rotated).outs or {}
    running = process.find(Path(declared["state_dir"]))
    assert running is not None
    process.stop(running)
    other = with_tokens(declared, NEWER_TOKEN)
    process.start(Path(declared["state_dir"]), other["settings"] | other["secrets"], declared["release"])
    seen = read(provider, outputs)
    assert differs(provider, seen, rotated)
    provider.update("id", seen, rotated)
    assert [post(declared, 1 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN, NEWER_TOKEN])] == [200, 200, 404]


def test_a_state_that_lists_two_tokens_as_declared(provider: LocalForwarderProvider, declared: Properties) -> None:
    """As it was written when the program declared the former one: that stays in force, and nothing is restarted."""
    both = with_tokens(declared, NEW_TOKEN, TOKEN)
    created = provider.create(both).outs or {}
    olds = {name: value for name, value in created.items() if name not in {"tokens", "former_token"}}
    seen = read(provider, olds)
    assert "tokens" not in seen  # what declares that to be secret is only in the next update
    outputs = provider.update("id", seen, with_tokens(declared, NEW_TOKEN)).outs or {}
    assert outputs["tokens"] == [NEW_TOKEN, TOKEN]
    assert outputs["pid"] == created["pid"]
    assert not differs(provider, read(provider, outputs), with_tokens(declared, NEW_TOKEN))


def test_another_state_folder_is_another_forwarder(provider: LocalForwarderProvider, declared: Properties) -> None:
    """It is replaced, the old one first: both want the same ports."""
    found = provider.diff("id", declared, declared | {"state_dir": "elsewhere"})
    assert found.replaces == ["state_dir"]
    assert found.delete_before_replace


def test_one_that_was_never_written_down_is_taken_over(provider: LocalForwarderProvider, declared: Properties) -> None:
    """A create after one whose end Pulumi never saw finds that forwarder and keeps it."""
    first = provider.create(declared).outs
    second = provider.create(declared).outs
    assert first == second


def test_settings_that_do_not_work_leave_the_former_running(
    provider: LocalForwarderProvider, declared: Properties
) -> None:
    """The error holds the forwarder's own words; the former settings are in force again."""
    created = provider.create(declared).outs
    assert created is not None
    broken = declared | {"settings": declared["settings"] | {"FORWARDER_SMTP_SECURITY": "ssl"}}
    with pytest.raises(NotHealthyError, match=r"(?s)smtpSecurity.*runs on with its former settings"):
        provider.update("id", created, broken)
    assert post(declared, 1) == 200
    assert not differs(provider, read(provider, created), declared)


def test_settings_that_do_not_work_leave_nothing_at_first(
    provider: LocalForwarderProvider, declared: Properties
) -> None:
    """A create that fails leaves no process; the token is not in the message."""
    broken = declared | {"settings": declared["settings"] | {"FORWARDER_MAIL_FROM": ""}}
    with pytest.raises(NotHealthyError, match="mailFrom") as raised:
        provider.create(broken)
    assert TOKEN not in str(raised.value)
    assert process.find(Path(declared["state_dir"])) is None


@pytest.mark.parametrize(("variable", "setting"), [("PORT", "forwarderPort"), ("ADMIN_PORT", "forwarderAdminPort")])
def test_a_port_that_is_taken_is_named_as_in_the_stack(
    provider: LocalForwarderProvider, declared: Properties, variable: str, setting: str
) -> None:
    """The forwarder's words name its own variables, which nobody can set there; the error names what can be set."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = declared["settings"] | {f"FORWARDER_{variable}": str(port)}
        with pytest.raises(
            NotHealthyError, match=rf"127.0.0.1:{port}: address already in use.* set {setting}"
        ) as raised:
            provider.create(declared | {"settings": settings})
    assert "FORWARDER_" not in str(raised.value)


def test_a_state_folder_that_cannot_be_made_is_named(
    provider: LocalForwarderProvider, declared: Properties, tmp_path: Path
) -> None:
    """The error says which folder."""
    (tmp_path / "file").touch()
    with pytest.raises(NotHealthyError, match="file/state can't be written"):
        provider.create(declared | {"state_dir": str(tmp_path / "file" / "state")})


def test_a_pid_that_is_now_somebody_elses_is_left_alone(provider: LocalForwarderProvider, declared: Properties) -> None:
    """The recorded pid belongs to another process (this one): nothing runs, and delete ends nothing."""
    stale = declared | {"pid": str(os.getpid()), "started": "1.0"}
    assert read(provider, stale)["running"] is False
    provider.delete("id", stale)
    assert psutil.Process(os.getpid()).is_running()


def test_delete_ends_it_and_twice_is_fine(provider: LocalForwarderProvider, declared: Properties) -> None:
    """Stopped, even when it does not listen to SIGTERM; what it has not delivered stays on disk."""
    created = provider.create(declared).outs
    assert created is not None
    assert post(declared, 1) == 200
    provider.delete("id", created)
    assert process.find(Path(declared["state_dir"])) is None
    provider.delete("id", created)
    assert (Path(declared["state_dir"]) / "outbox.db").exists()
    shutil.rmtree(declared["state_dir"])
