"""Names for one command, listeners on a server, and certificates: whatever `check` is to look at."""

import datetime as dt
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.server.machine import Machine, eventually

TLS_SERVER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = server.accept()
    try:
        context.wrap_socket(connection, server_side=True).close()
    except OSError:
        connection.close()
"""
PLAIN_SERVER = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
kept = []
while True:
    kept.append(server.accept()[0])
    if sys.argv[2]:
        kept[-1].sendall(sys.argv[2].encode())
"""


def with_names(names: Mapping[str, Sequence[str]], folder: Path, *, dns: bool = False) -> list[str]:
    """Return what stands before a command that is to know these names and no others.

    Args:
        names: the addresses of each.
        folder: for the files that it reads.
        dns: let it ask a name server, which does not answer, for all others.
    """
    lines = [f"{address} {name}" for name, addresses in names.items() for address in addresses]
    files = {
        "hosts": "\n".join(["127.0.0.1 localhost", *lines, ""]),
        "nsswitch.conf": f"hosts: files{' dns' if dns else ''}\n",
        "resolv.conf": "nameserver 127.0.0.99\noptions timeout:1 attempts:1\n",
    }
    bound = []
    for name, text in files.items():
        (folder / name).write_text(text)
        bound.append(f"mount --bind {shlex.quote(str(folder / name))} /etc/{name}")
    return ["unshare", "--mount", "sh", "-c", " && ".join([*bound, 'exec "$@"']), "sh"]


@contextmanager
def listening(machine: Machine, port: int, program: str, *words: str | Path) -> Iterator[None]:
    """Let a program of this side listen on a port of the server's, for the time of a block."""
    inside = ["ip", "netns", "exec", machine.call("netns")]
    started = subprocess.Popen([*inside, sys.executable, "-c", program, str(port), *words])
    try:
        eventually(lambda: f":{port} " in machine.run(f"ss -Hltn 'sport = :{port}'"), f"port {port} is open")
        yield
    finally:
        started.kill()
        started.wait()


def certificate(folder: Path, name: str, *, days: int = 2, authority: Path | None = None) -> Path:
    """Return a file with a certificate for `name` and its key: the authority's, or its own.

    Args:
        folder: where to put it.
        name: the DNS name.
        days: how long it counts from now; negative for one that has expired.
        authority: the file of who signs it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key
    if authority is not None:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes()).subject
        loaded = serialization.load_pem_private_key(authority.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    file = folder / f"{name}-{days}-{authority is not None}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return file
