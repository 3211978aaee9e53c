"""The provider's settings, parsed once into one frozen object that hides its password.

They come from the stack (`callfire:login` …) and from the environment, and the environment wins: on `destroy` and
`refresh` Pulumi hands a dynamic provider the configuration of the last `up`, which may hold an old password.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from provider.errors import InvalidSettings
from provider.redaction import Secret

DEFAULT_URL = "https://www.callfire.com"
DEFAULT_TIMEOUT = 60.0
VERSIONS = ("1.0", "1.1")

Lookup = Callable[[str], str | None]
"""The stack's configuration: `callfire:login` to its value, or None."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach CallFire.

    Attributes:
        login: the API login.
        password: the API password.
        url: the base address, without a slash at the end.
        api_version: `1.1` or `1.0`.
        timeout: seconds that one SOAP operation may take, all its retries included.
        credentials_from: the environment variables that login and password came from, where they did.
    """

    login: str
    password: Secret
    url: str = DEFAULT_URL
    api_version: str = "1.1"
    timeout: float = DEFAULT_TIMEOUT
    credentials_from: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where the subscription service of this API version listens."""
        return f"{self.url}/api/{self.api_version}/soap12/subscription"


def read_settings(lookup: Lookup, environ: Mapping[str, str] | None = None) -> Settings:
    """Read all settings.

    Raises:
        InvalidSettings: with every mistake, by name, and what would be right.
    """
    found, problems = collect_settings(lookup, os.environ if environ is None else environ)
    if found is None:
        raise InvalidSettings("The CallFire settings cannot be used: " + "; ".join(problems) + ".")
    return found


def collect_settings(lookup: Lookup, environ: Mapping[str, str]) -> tuple[Settings | None, list[str]]:
    """Read all settings and return them, or None and every problem."""
    problems: list[str] = []
    login = environ.get("CALLFIRE_LOGIN") or lookup("callfire:login")
    if not login:
        problems.append("callfire:login is missing (`pulumi config set callfire:login …`, or CALLFIRE_LOGIN)")
    password = environ.get("CALLFIRE_PASSWORD") or lookup("callfire:password")
    if not password:
        problems.append(
            "callfire:password is missing (`pulumi config set --secret callfire:password`, or CALLFIRE_PASSWORD)"
        )
    if environ.get("CALLFIRE_URL"):
        url = _parse_url(environ["CALLFIRE_URL"], "CALLFIRE_URL (which wins over callfire:url)", problems)
    else:
        url = _parse_url(lookup("callfire:url") or DEFAULT_URL, "callfire:url", problems)
    version = lookup("callfire:apiVersion") or "1.1"
    if version not in VERSIONS:
        problems.append(f"callfire:apiVersion is {version!r}, but must be 1.1 or 1.0; in a file, in quotes")
    timeout = _parse_timeout(lookup("callfire:timeout"), problems)
    if problems or not login or not password:
        return None, problems
    credentials_from = tuple(name for name in ("CALLFIRE_LOGIN", "CALLFIRE_PASSWORD") if environ.get(name))
    return Settings(login, Secret(password), url, version, timeout, credentials_from), []


def is_private_host(host: str) -> bool:
    """Whether a host is this machine or its own network, judged by its spelling and without asking DNS."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal", ".test", ".lan")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return not address.is_global


def _parse_url(text: str, name: str, problems: list[str]) -> str:
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        problems.append(f"{name} must be a base address such as {DEFAULT_URL} or http://127.0.0.1:8700")
    elif parts.username or parts.password:
        problems.append(f"{name} must not hold a user or a password; they belong in callfire:login and :password")
    elif parts.scheme == "http" and not is_private_host(host):
        problems.append(f"{name} would send the password to {host} in clear; use https://")
    return url


def _parse_timeout(text: str | None, problems: list[str]) -> float:
    try:
        timeout = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        timeout = 0.0
    if not 1 <= timeout <= 3600:  # noqa: PLR2004 - the bounds stand in the message
        problems.append(f"callfire:timeout is {text!r}, but must be a number of seconds from 1 to 3600")
    return timeout
