"""What a stack's file may say, read once and checked as a whole (Pulumi.yaml describes each setting)."""

import contextlib
import difflib
import ipaddress
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pulumi
from pulumi.runtime import is_config_secret
from pulumi.runtime.config import CONFIG
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.alias_generators import to_camel

from hosting.server import HTTPS, listen_stream, mistakes, public_url
from hosting.ssh import NO_HOST, Access, check_known_host, is_host, parse_jump
from provider.args import SubscriptionFilterArgs
from provider.canonical import number
from provider.imports import CONFIG_KEY
from provider.settings import collect_settings

PLAIN = "it is a secret: set it with `pulumi config set --secret`"


def address(value: str) -> str:
    """Return `value` when it can be an email address."""
    if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", value):
        raise ValueError(f"`{value}` is no email address")
    return value


def host_name(value: str) -> str:
    """Return `value` when it is none, or a host's name or address."""
    if value and not is_host(value):
        raise ValueError(f"`{value}` {NO_HOST}")
    return value


def secret(value: object) -> object:
    """Return `value` when it is a secret output; in plain text it is refused, and not repeated."""
    if value is not None and not isinstance(value, pulumi.Output):
        raise ValueError(PLAIN)
    return value


def several(value: object) -> list[str]:
    """Return what stands between the commas of `value`."""
    return [part.strip() for part in str(value or "").split(",") if part.strip()]


def distinct_numbers(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return `values` when CallFire has such numbers, none of them twice, however they are spelled."""
    problems: list[str] = []
    spelled: dict[str, str] = {}
    for value in values:
        try:
            canonical = number(value)
        except ValueError as error:
            problems.append(f"`{value}` {error}")
            continue
        if canonical in spelled:
            problems.append(f"`{value}` is the number `{spelled[canonical]}` again: leave one of them out")
        spelled.setdefault(canonical, value)
    if problems:
        raise ValueError("\n".join(problems))
    return values


def project_file(value: str) -> str:
    """Return `value` when it names a file of text; it is relative to the project."""
    if not value:
        return value
    if not (PROJECT / value).is_file():
        raise ValueError(f"there is no file {PROJECT / value}")
    try:
        (PROJECT / value).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{PROJECT / value} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{PROJECT / value} is not UTF-8; save it as that") from None
    return value


def host_keys(value: object) -> list[str]:
    """Return the lines of known_hosts in `value`, with commas or line ends between them.

    A comma may also stand inside a line, between the names of one host; and `ssh-keyscan` prints comments.
    """
    lines = [line for line in str(value or "").splitlines() if not line.lstrip().startswith("#")]
    found, names = [], ""
    for part in several(",".join(lines)):
        whole = f"{names}{part}"
        names = f"{whole}," if len(whole.split()) <= whole.startswith("@") + 1 else ""
        if not names:
            found.append(whole)
    return [*found, *filter(None, [names.rstrip(",")])]


def jump_host(value: str) -> str:
    """Return `value` when it is none, or a jump host."""
    if value:
        parse_jump(value)
    return value


def ip_address(value: str) -> str:
    """Return `value` when it is an address that a machine can listen on."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"`{value}` is no IP address such as 127.0.0.1 or ::1") from None
    return value


def url_without_path(value: str) -> str:
    """Return `value` when it is none, or an address without a path."""
    if not value:
        return value
    with contextlib.suppress(ValueError):  # brackets without an address between them, a port that is none
        url = urlsplit(value)
        if re.fullmatch(r"https?://[^/?#@\s]+", value) and url.hostname and url.port != 0:
            return value
    raise ValueError(f"`{value}` is no address such as https://texts.example.com")


PROJECT = Path(__file__).resolve().parent.parent
Address = Annotated[str, AfterValidator(address)]
Words = Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(several)]
Numbers = Annotated[Words, AfterValidator(distinct_numbers)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(several)]
HostKeys = Annotated[tuple[Annotated[str, AfterValidator(check_known_host)], ...], BeforeValidator(host_keys)]
Secret = Annotated[pulumi.Output[str] | None, BeforeValidator(secret)]
Port = Annotated[int, Field(ge=1, le=65535)]
ProjectFile = Annotated[str, AfterValidator(project_file)]
SECRETS = ("endpoint", "smtp_password", "server_key", "database_url", "heartbeat_url")
MOST_SENT = 1_000_000  # bytes: systemd hands a service no more than 1 MB, secrets and all
CALLFIRE = ("login", "password", "apiVersion", "url", "timeout")
NEEDED = {
    "local": ("mailFrom", "smtpHost"),
    "server": ("mailFrom", "smtpHost"),
    "external": ("endpoint",),
}
Mistake = tuple[Collection[str], str]
"""The settings that can't be used for it, and a sentence."""


class WrongSettingError(AttributeError):
    """What is asked for depends on a setting that is wrong; the message is its name."""


class StackSettings(BaseModel):
    """The program's settings. Secrets stay outputs, so that nothing can print them."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    hosting: Literal["local", "server", "external"]
    endpoint: Secret
    numbers: Numbers
    mail_from: Annotated[str, AfterValidator(lambda value: value and address(value))]
    mail_to: Addresses
    smtp_host: Annotated[str, AfterValidator(host_name)]
    smtp_port: Port
    smtp_security: Literal["starttls", "tls", "none"]
    smtp_username: str
    smtp_password: Secret
    forwarder_port: Port
    forwarder_admin_port: Port
    routes: ProjectFile
    contacts: ProjectFile
    operator: Addresses
    heartbeat_url: Secret
    postback_token_version: Annotated[int, Field(ge=1)]
    server_hosts: Words
    server_user: str
    server_port: Port
    server_host_keys: HostKeys
    server_key_file: str
    server_key: Secret
    server_jump: Annotated[str, AfterValidator(jump_host)]
    server_python: str
    domain: str
    tls: Literal["acme", "files", "none"]
    tls_certificate: str
    tls_key: str
    acme_directory: str
    listen_on: Annotated[str, AfterValidator(ip_address)]
    public_url: Annotated[str, AfterValidator(url_without_path)]
    database_url: Secret
    offline: bool
    purge: bool

    @classmethod
    def load(cls, config: pulumi.Config, stack: str) -> Self:
        """Read the settings of the stack of this name.

        Raises:
            pulumi.RunError: with every mistake, by name.
        """
        settings, mistakes = cls.load_what_is_right(config, stack)
        if mistakes:
            raise pulumi.RunError(
                f"The settings in stacks/Pulumi.{stack}.yaml can't be used:\n"
                + "\n".join(f"  {mistake}" for mistake in mistakes)
            )
        return settings

    @classmethod
    def load_what_is_right(cls, config: pulumi.Config, stack: str) -> tuple[Self, list[str]]:
        """Read the settings of the stack of this name, and say every mistake; to ask for one that is wrong raises."""
        given = {to_camel(name): read(config, name) for name in cls.model_fields}
        found = [*unknown(config.name), *callfire()]
        settings = cls.model_validate(given, context=found)
        found += contradictions(given, {name for names, _ in found for name in names})
        if given["hosting"] == "server":
            found += on_servers(given, stack)
        wrong = {name for names, _ in found for name in names}
        for name in cls.model_fields:
            if to_camel(name) in wrong:
                del vars(settings)[name]
        return settings, [said for _, said in found]

    @field_validator("*", mode="wrap")
    @classmethod
    def note_mistakes(cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        """Add what is wrong with a setting to the context, where that is a list of mistakes, and go on."""
        try:
            return validate(value)
        except ValidationError as error:
            if info.context is None:
                raise
            info.context.extend(explain(to_camel(str(info.field_name)), error))
            return None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say which setting is wrong, where it is asked for."""
            if name in type(self).model_fields:
                raise WrongSettingError(to_camel(name))
            return super().__getattr__(name)

    @property
    def trigger_event(self) -> str | None:
        """What CallFire is to post: API 1.0 knows no choice and posts every event; the forwarder ignores the others."""
        return None if pulumi.Config("callfire").get("apiVersion") == "1.0" else "INBOUND_TEXT_FINISHED"

    def subscriptions(self) -> dict[str, SubscriptionFilterArgs | None]:
        """Return the filter of each subscription, by the name of its resource."""
        if not self.numbers:
            return {"texts": None}
        return {f"texts-to-{number}": SubscriptionFilterArgs(to_number=number) for number in self.numbers}

    def url(self) -> str:
        """Return where CallFire finds a forwarder that is not `external`, without a path."""
        if self.hosting == "local":
            return f"http://127.0.0.1:{self.forwarder_port}"
        return self.public_url or public_url(self.domain, self.forwarder_port if self.tls == "files" else HTTPS)

    def forwarder(self) -> dict[str, str]:
        """Return what the forwarder is told of these, by the names of its own settings."""
        told = {
            "FORWARDER_ADMIN_PORT": str(self.forwarder_admin_port),
            "FORWARDER_MAIL_FROM": self.mail_from,
            "FORWARDER_MAIL_TO": ",".join(self.mail_to),
            "FORWARDER_SMTP_HOST": self.smtp_host,
            "FORWARDER_SMTP_PORT": str(self.smtp_port),
            "FORWARDER_SMTP_SECURITY": self.smtp_security,
            "FORWARDER_SMTP_USERNAME": self.smtp_username,
            "FORWARDER_OPERATOR": ",".join(self.operator),
        }
        return {name: value for name, value in told.items() if value}

    def forwarder_secrets(self) -> dict[str, pulumi.Output[str]]:
        """Return the secret ones among them."""
        secrets = {
            "FORWARDER_SMTP_PASSWORD": self.smtp_password,
            "FORWARDER_DATABASE_URL": self.database_url,
            "FORWARDER_HEARTBEAT_URL": self.heartbeat_url,
        }
        return {name: value for name, value in secrets.items() if value is not None}

    def forwarder_files(self) -> dict[str, Path]:
        """Return the files that the forwarder reads, by the names of the settings that name them."""
        files = {"FORWARDER_ROUTES": self.routes, "FORWARDER_CONTACTS": self.contacts}
        return {name: PROJECT / path for name, path in files.items() if path}

    def listen(self) -> str:
        """Return what the forwarder listens on, on a server."""
        return listen_stream(self.tls, self.listen_on, self.forwarder_port)

    def access(self) -> Access:
        """Return how to log in to the servers."""
        return Access(
            user=self.server_user,
            port=self.server_port,
            known_hosts=self.server_host_keys,
            key_file=self.server_key_file,
            jump=self.server_jump,
            python=self.server_python,
        )


def unknown(project: str) -> Iterator[Mistake]:
    """Say which names of the configuration are no settings: of the program, of an import into it, or of CallFire."""
    known = {project: [*map(to_camel, StackSettings.model_fields), CONFIG_KEY], "callfire": CALLFIRE}
    for key in sorted(CONFIG.get()):
        namespace, _, name = key.partition(":")
        if namespace in known and name not in known[namespace]:
            close = difflib.get_close_matches(name, known[namespace], n=1)
            meant = f"; did you mean {namespace}:{close[0]}?" if close else ""
            yield close if namespace == project else [], f"{key}: no such setting{meant}"


def callfire() -> list[Mistake]:
    """Say what is wrong with CallFire's settings, as the provider would later."""
    config = pulumi.Config("callfire")
    _, mistakes = collect_settings(lambda key: config.get(key.removeprefix("callfire:")), os.environ)
    if config.get("password") and not is_config_secret("callfire:password"):
        mistakes.append(f"callfire:password: {PLAIN}")
    return [((), said) for said in mistakes]


def explain(name: str, error: ValidationError) -> Iterator[Mistake]:
    """Say what pydantic found wrong with the setting `name`, in lines that begin with it."""
    for found in error.errors():
        said = found["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        yield from (([name], f"{name}: {line}") for line in said.splitlines())


def contradictions(given: Mapping[str, Any], wrong: set[str]) -> Iterator[Mistake]:
    """Say what is missing beside what is given, as far as that does not depend on what is wrong by itself."""
    if "hosting" not in wrong:
        missing = [name for name in needed(given) if blank(given[name])]
        if missing:
            yield missing, f"hosting `{given['hosting']}` needs {', '.join(missing)}"
    if given["hosting"] == "external":
        return
    if given["endpoint"] is not None and not wrong & {"hosting", "endpoint"}:
        what_to_do = "`pulumi config set hosting external`, or `pulumi config rm endpoint`"
        yield ["endpoint"], f"endpoint is for hosting `external`, and hosting is `{given['hosting']}`: {what_to_do}"
    yield from mail_login(given)
    if given["hosting"] == "server" and not wrong & {"routes", "contacts"}:
        files = [PROJECT / given[name] for name in ("routes", "contacts") if given[name]]
        if sum(file.stat().st_size for file in files) > MOST_SENT:
            yield (), f"routes and contacts have more than {MOST_SENT:,} bytes, too much for a server: shorten them"
    used = given["hosting"] != "server" or given["tls"] != "acme"
    if used and "forwarderPort" not in wrong and given["forwarderPort"] == given["forwarderAdminPort"]:
        both = f"forwarderPort and forwarderAdminPort are both {given['forwarderPort']}"
        yield ["forwarderPort"], f"{both}: they must differ"


def mail_login(given: Mapping[str, Any]) -> Iterator[Mistake]:
    """Say what is missing of the mail server's user and password, or too dangerous for it."""
    if given["smtpUsername"] and not given["smtpPassword"]:
        yield ["smtpUsername"], "smtpUsername needs smtpPassword: set it with `pulumi config set --secret smtpPassword`"
    if given["smtpPassword"] is not None and not given["smtpUsername"]:
        yield ["smtpUsername"], "smtpPassword needs smtpUsername"
    if given["smtpPassword"] is not None and given["smtpSecurity"] == "none":
        yield ["smtpSecurity"], "smtpSecurity `none` would send smtpPassword over plain text; use starttls or tls"


def blank(value: object) -> bool:
    """Tell whether nothing is given, not even between commas."""
    return not (several(value) if isinstance(value, str) else value)


def needed(given: Mapping[str, Any]) -> list[str]:
    """Return the settings without which the hosting that is chosen can't be."""
    names = [*NEEDED[given["hosting"]]]
    if given["hosting"] != "external" and not given["routes"]:
        names.insert(1, "mailTo")
    if given["hosting"] == "server":
        names += ["domain"] if given["tls"] == "files" else []
        names += ["publicUrl"] if given["tls"] == "none" and not given["domain"] else []
    return names


def on_servers(given: Mapping[str, Any], stack: str) -> Iterator[Mistake]:
    """Say what the provider would refuse of a forwarder on servers, in the words of the stack."""
    declared = {
        "name": stack,
        "hosts": several(given["serverHosts"]),
        "secrets": [] if given["databaseUrl"] is None else ["FORWARDER_DATABASE_URL"],
        "tls": given["tls"],
        "domain": given["domain"] or "",
        "certificate": [given["tlsCertificate"], given["tlsKey"]],
    }
    paths = [name for name in ("tlsCertificate", "tlsKey") if not given[name].startswith("/")]
    called = {"name": [], "hosts": ["serverHosts"], "secrets": ["databaseUrl"], "certificate": paths}
    for name, said in mistakes(declared):
        names = called.get(name, [name])
        yield names, ", ".join(names or ["the stack's name"]) + f": {said}"


def read(config: pulumi.Config, name: str) -> object:
    """Return the setting `name` as the stack's file has it; a secret one as an output."""
    key = to_camel(name)
    if name in SECRETS:
        return read_secret(config, key)
    value = config.get(key)
    try:
        return json.loads(value or "null") if StackSettings.model_fields[name].annotation is not str else value
    except ValueError:
        return value


def read_secret(config: pulumi.Config, key: str) -> pulumi.Output[str] | str | None:
    """Return the secret setting `key` as an output, None without one; as it is, so that it is refused, when plain."""
    return config.get_secret(key) if is_config_secret(config.full_key(key)) else config.get(key) or None
