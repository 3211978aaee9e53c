"""Another Debian; a server that is reached through another one; files that the forwarder reads."""

import email
from email import policy

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, http, text_postback
from tests.server.conftest import Servers
from tests.server.kit import Load, declared, differing, read, sink_at

provider = ServerForwarderProvider()
ROUTES = """
[[route]]
name = "sales"
to_number = "+1 818-646-9991"
to = "sales@example.com"
"""
CONTACTS = "number,name\n18185551212,Zoë Müller\n"


def test_debian_13(servers: Servers) -> None:
    """Installed, hardened, restarted under load, as declared, and removed: as on Debian 12."""
    machine = servers("trixie", "trixie")
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink)
        outputs = dict(provider.create(props).outs or {})
        score = machine.run("systemd-analyze security callfire-mail-production.service --no-pager").splitlines()[-1]
        assert float(score.partition(":")[2].split()[0]) <= 1.5
        with Load(lambda: (machine.ip, 8710)) as load:
            for _ in range(5):
                machine.run("systemctl restart callfire-mail-production.service")
        load.check(sink)
        assert differing(read(provider, outputs), props) == {}
        provider.delete("id", outputs)
        assert machine.run("ls -d /opt/callfire-mail /etc/callfire-mail /var/lib/callfire*", check=False) == ""


def test_through_a_jump_host(servers: Servers) -> None:
    """Log in to one server, and from there to the one that is meant: both host keys are verified."""
    machine = servers("jump")
    with sink_at(machine) as sink:
        here = declared(machine, sink=sink)
        inner = [line.replace(machine.ip, "127.0.0.1") for line in machine.known_hosts]
        access = here["access"] | {"jump": f"deploy@{machine.ip}:22", "known_hosts": machine.known_hosts + inner}
        props = here | {"hosts": ["127.0.0.1"], "access": access, "servers": {"127.0.0.1": here["servers"][machine.ip]}}
        outputs = dict(provider.create(props).outs or {})
        url = f"http://{machine.ip}:8710/postback/{TOKEN}"
        assert http(url, text_postback(1), {"Content-Type": "text/xml"}).status == 200
        assert sink.wait_for(1)[0].text_id == 1
        provider.delete("id", outputs)


def test_routes_are_sent_along(servers: Servers) -> None:
    """The file's content is there for the service, its preflight and its commands; a change of it is an update."""
    machine = servers("routes")
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink, secrets={"file.FORWARDER_ROUTES": ROUTES})
        outputs = dict(provider.create(props).outs or {})
        url = f"http://{machine.ip}:8710/postback/{TOKEN}"
        assert http(url, text_postback(1), {"Content-Type": "text/xml"}).status == 200
        assert sink.wait_for(1)[0].recipient == "sales@example.com"
        assert "route sales" in machine.run(
            "/opt/callfire-mail/production/forwarder send-test --print --to 18186469991"
        )
        changed = declared(machine, sink=sink, secrets={"file.FORWARDER_ROUTES": ROUTES.replace("sales@", "more@")})
        assert provider.diff("id", outputs, changed).changes
        outputs = dict(provider.update("id", outputs, changed).outs or {})
        assert http(url, text_postback(2), {"Content-Type": "text/xml"}).status == 200
        assert sink.wait_for(2)[1].recipient == "more@example.com"
        provider.delete("id", outputs)


def test_contacts_are_sent_along(servers: Servers) -> None:
    """Who wrote is named by the service, its preflight and its commands; a change of the file is an update."""
    machine = servers("contacts")
    with sink_at(machine) as sink:
        props = declared(machine, sink=sink, secrets={"file.FORWARDER_CONTACTS": CONTACTS})
        outputs = dict(provider.create(props).outs or {})
        url = f"http://{machine.ip}:8710/postback/{TOKEN}"
        assert http(url, text_postback(1), {"Content-Type": "text/xml"}).status == 200
        assert "Zoë Müller" in sender(sink.wait_for(1)[0].content)
        forwarder = "/opt/callfire-mail/production/forwarder"
        assert "Zoë Müller" in sender(machine.run(f"{forwarder} send-test --print").partition("\n\n")[2].encode())
        assert "1 contact" in machine.run(f"{forwarder} check")
        changed = declared(machine, sink=sink, secrets={"file.FORWARDER_CONTACTS": CONTACTS.replace("Zoë", "Ann")})
        assert provider.diff("id", outputs, changed).changes
        outputs = dict(provider.update("id", outputs, changed).outs or {})
        assert http(url, text_postback(2), {"Content-Type": "text/xml"}).status == 200
        assert "Ann Müller" in sender(sink.wait_for(2)[1].content)
        broken = declared(machine, sink=sink, secrets={"file.FORWARDER_CONTACTS": "no number,Nobody\n"})
        with pytest.raises(ServerError, match=r"was refused before it took over(?s:.*)no number"):
            provider.update("id", outputs, broken)
        assert http(url, text_postback(3), {"Content-Type": "text/xml"}).status == 200
        assert "Ann Müller" in sender(sink.wait_for(3)[2].content)
        provider.delete("id", outputs)


def sender(mail: bytes) -> str:
    """Return who a mail says that it is from."""
    return str(email.message_from_bytes(mail, policy=policy.default)["From"])
