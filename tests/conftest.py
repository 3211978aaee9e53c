"""What tests of every kind use: the Pulumi CLI, a project for it, what a program has around it, free ports."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import Sandbox
from tests import ports
from tests.forwarder_kit import PostgreSQL
from tests.pulumi_kit import Project, credentials

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def pulumi_cli() -> Path:
    """The folder of the Pulumi CLI, got in the project's own way."""
    asked = subprocess.run(
        [sys.executable, ROOT / "tools" / "pulumi_cli.py", "path"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(asked.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory, pulumi_cli: Path) -> Project:
    """A Pulumi project whose stack is empty, to be copied: making a stack takes as long as an `up`."""
    return Project(tmp_path_factory.mktemp("empty"), pulumi_cli, {})


@pytest.fixture
def project(tmp_path: Path, pulumi_cli: Path, empty_project: Project, sandbox: Sandbox) -> Project:
    """A Pulumi project with an empty stack and the sandbox's credentials."""
    return Project(tmp_path, pulumi_cli, credentials(sandbox), like=empty_project)


@pytest.fixture
def program() -> Iterator[None]:
    """The event loop that a Pulumi program has, in which its outputs live."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop)))
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """A function that returns as many TCP ports as asked, none of them in use."""
    return ports.free_ports


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL server; every test makes databases of its own in it."""
    server = PostgreSQL()
    try:
        yield server
    finally:
        server.close()
