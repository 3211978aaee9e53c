"""A certificate authority for tests (pebble, with its name server), on this side as a server sees it."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.server.machine import HOME, Machine, eventually

PEBBLE = HOME.parent / "pebble"
VERSION = "v2.10.0"


@contextmanager
def pebble(machine: Machine, folder: Path) -> Iterator[tuple[str, Path]]:
    """An authority that asks at the server, and that the server trusts: its directory, and its root certificate."""
    programs = [get(name) for name in ("pebble", "pebble-challtestsrv")]
    host = machine.gateway
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pebble"]
    openssl += ["-addext", f"subjectAltName=IP:{host}", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(openssl, check=True, capture_output=True)
    settings = {
        "listenAddress": f"{host}:14000",
        "managementListenAddress": f"{host}:15000",
        "certificate": str(folder / "cert.pem"),
        "privateKey": str(folder / "key.pem"),
        "httpPort": 80,
        "tlsPort": 443,
    }
    (folder / "config.json").write_text(json.dumps({"pebble": settings}))
    dns: list[str | Path] = [programs[1], "-dnsserver", f"{host}:8053", "-defaultIPv4", machine.ip, "-defaultIPv6", ""]
    dns += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-management", f"{host}:8055"]
    server: list[str | Path] = [programs[0], "-config", folder / "config.json", "-dnsserver", f"{host}:8053"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        for command in (dns, server):
            started = subprocess.Popen(command, env=os.environ | {"PEBBLE_VA_NOSLEEP": "1"}, stdout=log, stderr=log)
            stack.callback(started.wait)
            stack.callback(started.terminate)
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        root = folder / "root.pem"

        def fetched() -> bool:
            socket.create_connection((host, 8053)).close()  # the name server
            with urllib.request.urlopen(f"https://{host}:15000/roots/0", context=context, timeout=5) as answer:
                root.write_bytes(answer.read())
            return True

        eventually(fetched, "pebble answers")
        for name, path in (("directory", folder / "cert.pem"), ("root", root)):
            shutil.copy(path, machine.root / "usr/local/share/ca-certificates" / f"pebble-{name}.crt")
        machine.run("update-ca-certificates")
        yield f"https://{host}:14000/dir", root


def get(name: str) -> Path:
    """Return pebble's program, built once from its pinned Go module."""
    program = PEBBLE / name
    if not program.exists():
        if not shutil.which("go"):
            pytest.skip("the test authority pebble is built with Go, which is not there")
        done = subprocess.run(
            ["go", "install", f"github.com/letsencrypt/pebble/v2/cmd/{name}@{VERSION}"],
            env=os.environ | {"GOBIN": str(PEBBLE)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"the test authority pebble can't be built: {done.stderr.strip().splitlines()[-1]}")
    return program
