"""A PostgreSQL of this side's, for the time of a block, as servers see it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PORT = 15432
PASSWORD = "not-for-anybodys-eyes"


@contextmanager
def postgresql(address: str) -> Iterator[str]:
    """Yield the URL of an empty database that listens on `address`; there, a password is asked for."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not there (tests/debian-packages.txt)")
    data = Path(tempfile.mkdtemp(prefix="callfire-mail-postgresql-"))  # where another user gets to
    shutil.chown(data, "postgres", "postgres")

    def as_postgres(program: str, *words: str) -> None:
        command: list[str | Path] = ["runuser", "-u", "postgres", "--", programs[-1] / program, *words]
        done = subprocess.run(
            command, cwd=data, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    as_postgres("initdb", "-D", str(data), "-A", "trust", "-U", "callfire", "--no-sync")
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 10.77.0.0/16 scram-sha-256\n")
    options = f"-c listen_addresses={address} -c port={PORT} -c unix_socket_directories={data} -c fsync=off"
    as_postgres("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(data / "log"), "start")
    try:
        here = ("-h", str(data), "-p", str(PORT), "-U", "callfire")
        as_postgres("createdb", *here, "outbox")
        as_postgres("psql", *here, "-d", "outbox", "-c", f"ALTER USER callfire PASSWORD '{PASSWORD}'")
        yield f"postgresql://callfire:{PASSWORD}@{address}:{PORT}/outbox"
    finally:
        as_postgres("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(data)
