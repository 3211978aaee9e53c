"""Postfix on a server of its own, as operators run it: submission with STARTTLS or TLS, a log-in, mailboxes."""

import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.forwarder_kit import Mail
from tests.server.machine import Machine, eventually

NAME = "mail.example.com"
USERS = ("office", "ann")
LOGIN, PASSWORD = "texts@example.com", "a-password-of-texts"

SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
"""
LOG = "/var/log/postfix.log"
SETTINGS = {
    "maillog_file": LOG,
    "mydestination": "example.com",
    "home_mailbox": "Maildir/",
    "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
    "smtpd_recipient_restrictions": "",
    "smtpd_sasl_auth_enable": "yes",
    "smtpd_tls_auth_only": "yes",
    "smtpd_tls_security_level": "encrypt",
    "smtpd_tls_cert_file": "/etc/postfix/certificate.pem",
    "smtpd_tls_key_file": "/etc/postfix/key.pem",
    "smtpd_peername_lookup": "no",  # there is no name server to ask
    "smtpd_client_event_limit_exceptions": "",  # nobody is spared the limits
}
SERVICES = {
    "submission/inet": "submission inet n - n - - smtpd",
    "submissions/inet": "submissions inet n - n - - smtpd -o smtpd_tls_wrappermode=yes",
}


class Postfix:
    """The mail server of example.com.

    Attributes:
        port: where it takes mail, with STARTTLS; with TLS from the first byte at 465.
        authority: the certificate of who signed its own.
    """

    port = 587

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.authority = folder / "authority.pem"
        self._mails: dict[Path, Mail] = {}
        try:
            machine.call("hostnet", "apt-get", "update", "-qq")
            machine.install("postfix", "sasl2-bin", "libsasl2-modules")
        except AssertionError as error:
            pytest.skip(f"Postfix can't be installed: {error}")
        self._certify(folder)
        (machine.root / "etc/postfix/sasl/smtpd.conf").write_text(SASL)
        machine.call("ssh", f"saslpasswd2 -p -c {LOGIN}; chgrp postfix /etc/sasldb2", stdin=PASSWORD)
        # Its check of the queue, before a start, runs as this user, and fails when it can't say what it found there.
        machine.run(f"touch {LOG}; chown postfix {LOG}")
        for user in USERS:
            machine.run(f"useradd --create-home {user}")
        self.configure(**SETTINGS)

    def _certify(self, folder: Path) -> None:
        """Make an authority on this side, and a certificate that it has signed for the server."""
        made = {"key.pem": 0o600, "certificate.pem": 0o644}
        key = "-newkey rsa:2048 -nodes -days 2"
        names = f"subjectAltName=DNS:{NAME},IP:{self.machine.ip}"
        signer = "-CA authority.pem -CAkey authority.key -CAcreateserial"
        for command in (
            f"req -x509 {key} -subj /CN=authority -keyout authority.key -out authority.pem",
            f"req {key} -subj /CN={NAME} -addext {names} -keyout key.pem -out request.pem",
            f"x509 -req -in request.pem -days 2 -copy_extensions copy {signer} -out certificate.pem",
        ):
            subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
        for name, mode in made.items():
            place = self.machine.root / "etc/postfix" / name
            place.write_bytes((folder / name).read_bytes())
            place.chmod(mode)

    def serve(self, machine: Machine) -> None:
        """Lay a cable to a server, which from now on finds this one by its name and trusts it."""
        address = machine.link(self.machine)
        machine.run(f"echo {address} {NAME} >> /etc/hosts")
        self.be_trusted(machine)

    def be_trusted(self, machine: Machine) -> None:
        """Have a server know who signed the certificate."""
        (machine.root / "usr/local/share/ca-certificates/mail.crt").write_bytes(self.authority.read_bytes())
        machine.run("update-ca-certificates")

    def be_forgotten(self, machine: Machine) -> None:
        """The contrary."""
        (machine.root / "usr/local/share/ca-certificates/mail.crt").unlink()
        machine.run("update-ca-certificates --fresh")

    def setting(self, name: str) -> str:
        """What is in force."""
        return self.machine.run(f"postconf -xh {name}")

    def configure(self, **settings: str) -> None:
        """Change settings, and start again with them."""
        words = shlex.join(f"{name}={value}" for name, value in settings.items())
        services = shlex.join(f"{name}={value}" for name, value in SERVICES.items())
        self.stop()
        self.machine.run(f"postconf -e {words} && postconf -M {services}")
        self.start()

    def start(self) -> None:
        """Start it, however often it was started just now."""
        self.machine.run(
            "systemctl reset-failed postfix@-.service; systemctl start postfix@-.service"
            f" || {{ journalctl --no-pager -n 20 -u postfix@-.service; tail -n 20 {LOG}; exit 1; }}"
        )

    def stop(self) -> None:
        self.machine.run("systemctl stop postfix@-.service")

    def kill(self) -> None:
        """End all its processes at once, and return when they are gone."""
        self.machine.run(
            "systemctl kill --signal KILL postfix@-.service"
            "; while systemctl is-active --quiet postfix@-.service; do sleep 0.05; done"
        )

    @property
    def log(self) -> str:
        """What it said."""
        return (self.machine.root / LOG.lstrip("/")).read_text()

    def mails(self, user: str = "office") -> list[Mail]:
        """What is in a mailbox."""
        folder = self.machine.root / f"home/{user}/Maildir/new"
        for file in folder.glob("*"):
            if file not in self._mails:
                self._mails[file] = Mail(f"{user}@example.com", file.read_bytes())
        return [mail for mail in self._mails.values() if mail.recipient.startswith(f"{user}@")]

    def times(self) -> Counter[tuple[int, str]]:
        """How often each text is in each mailbox."""
        return Counter((mail.text_id, mail.recipient) for user in USERS for mail in self.mails(user))

    def wait_for(self, text_id: int, user: str = "office") -> Mail:
        """The mail of a text, once it is there."""

        def found() -> list[Mail]:
            return [mail for mail in self.mails(user) if mail.text_id == text_id]

        eventually(found, f"text {text_id} in the mailbox of {user}")
        return found()[0]
