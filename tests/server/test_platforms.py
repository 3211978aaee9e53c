"""The servers that the handbook names: there is a wheel of every pinned library for each of them.

They are fetched as `pulumi up` does it, five seconds and 27 MB for each, and kept.
"""

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from hosting import release as releases
from hosting.release import NoIndexError, Platform

SYSTEMS = {
    "Debian 12": ("3.11", 36),
    "Debian 13": ("3.13", 41),
    "Ubuntu 22.04 with Python 3.11": ("3.11", 35),
    "Ubuntu 24.04": ("3.12", 39),
    "Python 3.14 on Debian 13": ("3.14", 41),
}
OLDER_NAMES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


def tags(platform: Platform) -> set[Tag]:
    """Return the tags of the wheels that fit a platform (PEP 425, PEP 600)."""
    names = [f"manylinux_2_{minor}_{platform.machine}" for minor in range(5, platform.glibc + 1)]
    names += [f"{name}_{platform.machine}" for minor, name in OLDER_NAMES.items() if minor <= platform.glibc]
    version = tuple(map(int, platform.python.split(".")))
    interpreter = f"cp{platform.python.replace('.', '')}"
    return {*cpython_tags(version, [interpreter], names), *compatible_tags(version, interpreter, names)}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_library_has_a_wheel(system: str, machine: str) -> None:
    """One for each pin, and each fits; pip has compared its hash."""
    platform = Platform(SYSTEMS[system][0], machine, SYSTEMS[system][1])
    try:
        found = [parse_wheel_filename(wheel.name) for wheel in releases.libraries(platform)]
    except NoIndexError as error:
        pytest.skip(str(error))
    pins = [Requirement(line.rstrip("\\")) for line in releases.REQUIREMENTS.read_text().splitlines() if "==" in line]
    wanted = {(pin.name, str(pin.specifier)) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    assert {(name, f"=={version}") for name, version, _, _ in found} == wanted
    assert [name for name, _, _, own in found if not own & tags(platform)] == []
