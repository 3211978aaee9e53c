"""Two stacks of one name on one server: neither takes the other's forwarder over."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.conftest import Servers
from tests.server.kit import Properties, declared, differing, post, read
from tests.server.machine import Machine

provider = ServerForwarderProvider()
UNIT = "callfire-mail-production"
OTHERS = "fedcba9876543210fedcba9876543210"
# Several servers need one; nobody gets as far as asking it.
DATABASE = {"FORWARDER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


@pytest.fixture
def created(machine: Machine, sink: MailSink) -> Iterator[Properties]:
    """The outputs of a stack's installation, which is removed after the test."""
    outputs = dict(provider.create(declared(machine, sink=sink)).outs or {})
    yield outputs
    provider.delete("id", outputs)


def as_it_is(machine: Machine) -> str:
    """Whatever a takeover would change: the process, the files, the times of their last change."""
    places = f"/etc/callfire-mail /etc/systemd/system /opt/callfire-mail /var/lib/private/{UNIT} /run/systemd/system"
    return machine.run(
        f"systemctl show -P MainPID {UNIT}.service; find {places} -not -name '*.db*' -printf '%p %T@\\n'"
    )


def refused(props: Properties) -> str:
    """Return why an installation is refused."""
    with pytest.raises(ServerError) as raised:
        provider.create(props)
    said = str(raised.value)
    assert TOKEN not in said
    assert OTHERS not in said
    return said


def test_another_stack_of_the_same_name_is_refused(machine: Machine, sink: MailSink, created: Properties) -> None:
    """Whatever release and settings it has: it is told what to do, nothing is changed, and texts go on arriving."""
    before = as_it_is(machine)
    for changes in ({}, {"listen": "0.0.0.0:8720", "settings": {"FORWARDER_ADMIN_PORT": "8721"}}):
        said = refused(declared(machine, sink=sink, tokens=[OTHERS], **changes))
        assert said.startswith("The server can't take the forwarder; nothing was changed:\n")
        assert f"{machine.ip}: its service {UNIT} belongs to another stack" in said
        assert "give this one another name" in said
    assert as_it_is(machine) == before
    assert post(machine, 1) == 200
    assert sink.wait_for(1)[0].text_id == 1


def test_one_token_in_common_is_enough(machine: Machine, sink: MailSink, created: Properties) -> None:
    """A server that is added to the list in a rotation, and again, since its first `up` was cut off, is its stack's."""
    elsewhere = created | {"hosts": []}
    for _ in range(2):
        provider.update("id", elsewhere, declared(machine, sink=sink, tokens=[OTHERS]))
        assert (post(machine, 2), post(machine, 3, OTHERS)) == (200, 200)


def test_a_stack_that_was_lost_and_found_destroys_only_its_own(
    machine: Machine, sink: MailSink, created: Properties, servers: Servers
) -> None:
    """Its name is another's now: refused with what to do, even with `purge`; off its list, that server is left."""
    before = as_it_is(machine)
    found = declared(machine, sink=sink, tokens=[OTHERS], purge=True)
    with pytest.raises(ServerError) as raised:
        provider.delete("id", found)
    said = str(raised.value)
    assert f"{machine.ip}: its service {UNIT} belongs to another stack of this name" in said
    assert "nothing was removed" in said
    assert as_it_is(machine) == before
    other = servers("found")
    elsewhere = declared(machine, other, sink=sink, tokens=[OTHERS], purge=True) | {"hosts": [other.ip]}
    outputs = dict(provider.update("id", found, elsewhere).outs or {})
    assert as_it_is(machine) == before
    provider.delete("id", outputs)


def test_a_stack_that_was_lost_and_comes_back_updates_only_its_own(
    machine: Machine, sink: MailSink, created: Properties
) -> None:
    """Another of its name took over as the handbook says: a refresh shows that, and an update is refused."""
    machine.run("rm -rf /etc/callfire-mail/production /etc/callfire-mail/production.*")
    others = dict(provider.create(declared(machine, sink=sink, tokens=[OTHERS])).outs or {})
    before = as_it_is(machine)
    ours = declared(machine, sink=sink)
    seen = read(provider, created)
    assert differing(seen, ours)["state"] == "another stack's"
    assert provider.diff("id", seen, ours).changes
    for props in (ours, declared(machine, sink=sink, settings={"FORWARDER_MAIL_TO": "lost@example.com"})):
        with pytest.raises(ServerError, match=f"its service {UNIT} belongs to another stack of this name"):
            provider.update("id", seen, props)
    assert as_it_is(machine) == before
    assert (post(machine, 8, OTHERS), post(machine, 9)) == (200, 404)
    assert not provider.diff("id", read(provider, others), declared(machine, sink=sink, tokens=[OTHERS])).changes
    provider.delete("id", others)


@pytest.mark.parametrize("state", ["present", "former"])
def test_an_update_mends_tokens_that_were_changed_by_hand(
    machine: Machine, sink: MailSink, created: Properties, state: str
) -> None:
    """The stack's own forwarder is known by its mark; or by the state alone, where that tells of none yet."""
    olds = {name: value for name, value in created.items() if name != "owner" or state == "present"}
    machine.run(f"echo -n {OTHERS} > /etc/callfire-mail/production/FORWARDER_TOKENS")
    props = declared(machine, sink=sink)
    seen = read(provider, olds)
    assert differing(seen, props)["secrets"] == {"FORWARDER_TOKENS": "changed on the server"}
    outputs = dict(provider.update("id", seen, props).outs or {})
    assert differing(read(provider, outputs), props) == {}
    assert post(machine, 4) == 200


def test_a_server_under_another_name(machine: Machine, sink: MailSink, created: Properties) -> None:
    """What is no longer listed by its former name is not cleared: it is the same server."""
    *network, third, fourth = machine.ip.split(".")
    name = ".".join([*network, str(int(third) * 256 + int(fourth))])
    renamed = declared(machine, sink=sink) | {"hosts": [name]}
    before = as_it_is(machine)
    provider.update("id", created, renamed | {"servers": {name: created["servers"][machine.ip]}})
    assert as_it_is(machine) == before
    assert post(machine, 7) == 200


def test_two_stacks_at_once(machine: Machine, sink: MailSink) -> None:
    """Both find nothing there; the one that comes second to the lock is refused all the same."""
    said: dict[str, Any] = {}

    def create(token: str) -> None:
        try:
            said[token] = provider.create(declared(machine, sink=sink, tokens=[token])).outs
        except ServerError as error:
            said[token] = str(error)

    threads = [threading.Thread(target=create, args=(token,)) for token in (TOKEN, OTHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    [winner], [loser] = ([token for token in said if isinstance(said[token], kind)] for kind in (dict, str))
    assert f"its service {UNIT} belongs to another stack" in said[loser]
    assert "nothing was changed" in said[loser]
    assert (post(machine, 5, winner), post(machine, 6, loser)) == (200, 404)
    provider.delete("id", said[winner])


def test_a_server_that_is_added_to_the_list(
    machine: Machine, sink: MailSink, created: Properties, servers: Servers
) -> None:
    """It is as new to the stack as in an installation; every server that is another's is named, and none is touched."""
    second, third = servers("second"), servers("third")
    others = [dict(provider.create(declared(each, sink=sink, tokens=[OTHERS])).outs or {}) for each in (second, third)]
    before = [as_it_is(each) for each in (machine, second, third)]
    wider = declared(machine, second, third, sink=sink, secrets=DATABASE)
    for change in (lambda: provider.update("id", created, wider), lambda: provider.create(wider | {"tokens": ["new"]})):
        with pytest.raises(ServerError) as raised:
            change()
        said = str(raised.value)
        assert [each.ip in said for each in (second, third)] == [True, True]
    assert said.count(f"its service {UNIT} belongs to another stack") == 3
    assert [as_it_is(each) for each in (machine, second, third)] == before
    for outputs in others:
        provider.delete("id", outputs)
