"""The forwarder's settings: read once, at the edge, into one frozen object that holds no surprise.

Sources, the first one wins: environment variables `FORWARDER_*`, files of the same names in `$CREDENTIALS_DIRECTORY`
(systemd's LoadCredential), and one TOML file of the same names, named by `FORWARDER_CONFIG`. All mistakes are reported
together, each by name; a secret is never repeated.
"""

import difflib
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from forwarder.addresses import MailAddress, split_commas
from forwarder.contacts import Contacts, read_contacts
from forwarder.errors import SettingsError
from forwarder.routes import RouteFile, Routes, read_routes
from forwarder.server import server_tls
from forwarder.smtp import MailServer, Security

PREFIX: Final = "FORWARDER_"
CONFIG: Final = f"{PREFIX}CONFIG"
MIN_TOKEN: Final = 16
MAX_PATH: Final = 4096
"""Longest name of a file, in characters."""
FILES: Final = frozenset({"tls_certificate", "tls_key", "routes", "contacts"})
"""Settings that name a file."""
MIN_METADATA_DAYS: Final = 7
"""A text that is forgotten could be delivered again, so its id is kept longer than anybody posts it again."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")


DEFAULT_SMTP_PORTS: Final = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    """For people: time, level, event and its fields."""
    JSON = "json"
    """For machines: one object a line."""


def _http_url(value: SecretStr) -> SecretStr:
    url = urlsplit(value.get_secret_value())
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("is not an http or https URL")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    scheme = value.get_secret_value().partition("://")[0]
    if scheme not in {"postgresql", "postgres", "sqlite"}:
        raise ValueError("does not start with postgresql:// (or sqlite:///)")
    try:
        url = sa.make_url(value.get_secret_value())
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(
            "is not a URL such as postgresql://user:password@host:5432/name; write characters like @ or / "
            "in a password as %40 or %2F"
        ) from None
    if scheme == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ValueError("names no file; write sqlite:////folder/outbox.db, or leave it out")
    return value


def _path(value: Any) -> Any:
    """A file's name; never the file itself, which may be a secret and would be repeated in an error."""
    if isinstance(value, str) and ("\n" in value or len(value) > MAX_PATH):
        raise ValueError("is not the name of a file; write the content into a file and name that")
    return Path(value) if isinstance(value, str) else value


def _file(read: Callable[[Path], Any]) -> BeforeValidator:
    """A setting that names a file is what the file says."""

    def content(value: Any) -> Any:
        path = _path(value)
        return read(path) if isinstance(path, Path) else path

    return BeforeValidator(content)


class _Credentials(SecretsSettingsSource):
    """Files in a folder, called like settings; for a setting that names a file, the file itself."""

    def __call__(self) -> dict[str, Any]:
        """The settings found, by their field's name."""
        folder = Path(str(self.secrets_dir))
        found = super().__call__()
        return {
            name: str(folder / f"{PREFIX}{name.upper()}") if name in FILES else value for name, value in found.items()
        }


Port = Annotated[int, Field(ge=0, le=65535)]
Days = Annotated[int, Field(ge=1, le=36_500)]
Addresses = Annotated[tuple[MailAddress, ...], NoDecode, BeforeValidator(split_commas)]


class OutboxPlace(BaseSettings):
    """Where a forwarder keeps its outbox."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_ignore_empty=True,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    state_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY", "state")),
        description="Folder of the outbox; default `$STATE_DIRECTORY` (systemd) or `state`.",
    )
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = Field(
        None, description="`postgresql://…` for several forwarders; default is SQLite in the state folder."
    )

    @property
    def outbox_url(self) -> str:
        """Where the outbox is; holds a password."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.sqlite_file}"

    @property
    def sqlite_file(self) -> Path | None:
        """The file of the outbox, unless it is in PostgreSQL."""
        if not self.database_url:
            return self.state_dir.resolve() / "outbox.db"
        url = sa.make_url(self.database_url.get_secret_value())
        return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before files; what `load_settings` read from TOML comes last."""
        del dotenv_settings
        folder = file_secret_settings.secrets_dir if isinstance(file_secret_settings, SecretsSettingsSource) else None
        credentials = (_Credentials(settings_cls, secrets_dir=folder),) if folder else ()
        return env_settings, *credentials, init_settings


class Place(OutboxPlace):
    """Where a forwarder keeps its outbox and can be asked: all that those need to be told who look after it."""

    admin_port: Port = Field(8711, description="The private port on loopback: status page, `/readyz`, `/metrics`.")
    keep_text_days: Days = Field(30, description="Days after which a delivered text's message is forgotten.")
    keep_metadata_days: Annotated[int, Field(ge=MIN_METADATA_DAYS, le=36_500)] = Field(
        365, description="Days after which all else about a delivered text is forgotten, its numbers too; at least 7."
    )

    @field_validator("keep_metadata_days")
    @classmethod
    def _metadata_outlives_text(cls, days: int, info: ValidationInfo) -> int:
        if days < info.data.get("keep_text_days", 0):
            raise ValueError(f"{days} is less than {PREFIX}KEEP_TEXT_DAYS; a message cannot outlive its text")
        return days


class Settings(Place):
    """Everything a forwarder can be told. The table in docs/forwarder.md is this class, checked by a test."""

    host: str = Field("127.0.0.1", description="Address of the public port.")
    port: Port = Field(8710, description="The public port: postbacks and `/healthz`, nothing else. 0 takes a free one.")
    tls_certificate: Annotated[Path, BeforeValidator(_path)] | None = Field(
        None, description="PEM file of a certificate and its chain: the public port then speaks TLS itself."
    )
    tls_key: Annotated[Path, BeforeValidator(_path)] | None = Field(
        None, description="PEM file of its private key, without a passphrase."
    )
    tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_commas)] = Field(
        min_length=1, description="Tokens that may post, comma-separated; the first is the current one."
    )
    smtp_host: str = Field(min_length=1, description="The mail server.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Its port; default 587 for `starttls`, 465 for `tls`, 25 for `none`."
    )
    smtp_security: Security = Field(Security.STARTTLS, description="`starttls`, `tls` or `none`.")
    smtp_username: str | None = Field(None, description="User to log in as, together with the password.")
    smtp_password: SecretStr | None = Field(None, description="Its password; never sent over plain text.")
    mail_from: MailAddress = Field(description="Sender of every mail; its domain is used in Message-IDs.")
    routes: Annotated[InstanceOf[RouteFile], NoDecode, _file(read_routes)] = Field(
        RouteFile(), description="TOML file of [routes](routes.md): who gets which texts, and how the mails look."
    )
    mail_to: Addresses = Field((), description="Who gets the mails, comma-separated, where no route says otherwise.")
    contacts: Annotated[InstanceOf[Contacts], NoDecode, _file(read_contacts)] = Field(
        Contacts(), description="CSV file of numbers and names: `+18185551212,Ada Lovelace`."
    )
    operator: Addresses = Field(
        (), description="Who is told, comma-separated, when something is dead or in quarantine; at most once an hour."
    )
    heartbeat_url: Annotated[SecretStr, AfterValidator(_http_url)] | None = Field(
        None, description="URL that is fetched every minute as long as deliveries flow; who watches it raises an alarm."
    )
    log_format: LogFormat = Field(LogFormat.TEXT, description="`text` for people or `json` for machines.")

    @field_validator("port")
    @classmethod
    def _ports_differ(cls, port: int, info: ValidationInfo) -> int:
        if port and port == info.data.get("admin_port"):
            raise ValueError(f"{port} is {PREFIX}ADMIN_PORT too; the public and the private port must differ")
        return port

    @field_validator("tls_key")
    @classmethod
    def _tls_is_usable(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        certificate = info.data.get("tls_certificate")
        if "tls_certificate" in info.data and (certificate is None) != (key is None):
            raise ValueError(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY belong together: set both or neither")
        if certificate and key:
            server_tls(certificate, key)
        return key

    @field_validator("tokens")
    @classmethod
    def _tokens_are_strong(cls, tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, token in enumerate(tokens, start=1):
            value = token.get_secret_value()
            if len(value) < MIN_TOKEN or not _TOKEN.fullmatch(value):
                raise ValueError(
                    f"token {number} is not at least {MIN_TOKEN} characters of A-Z a-z 0-9 _ - "
                    "(make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))')"
                )
        return tokens

    @field_validator("smtp_password")
    @classmethod
    def _password_is_safe(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        username = info.data.get("smtp_username")
        if "smtp_username" in info.data and (username is None) != (password is None):
            raise ValueError(f"{PREFIX}SMTP_USERNAME and {PREFIX}SMTP_PASSWORD belong together: set both or neither")
        if password is not None and info.data.get("smtp_security") is Security.NONE:
            raise ValueError(f"{PREFIX}SMTP_SECURITY=none would send it over plain text; use starttls or tls")
        return password

    @field_validator("mail_to")
    @classmethod
    def _somebody_gets_the_mails(cls, mail_to: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        routes: RouteFile | None = info.data.get("routes")
        wanting = routes.wanting() if routes and not mail_to else []
        if wanting:
            where = f" or write `to` into {routes.path}" if routes and routes.path else ""
            raise ValueError(f"nobody would get {' and '.join(wanting)}; name at least one address here{where}")
        return mail_to

    @property
    def mail_server(self) -> MailServer:
        """Where mails are handed over."""
        password = self.smtp_password.get_secret_value() if self.smtp_password else None
        port = self.smtp_port or DEFAULT_SMTP_PORTS[self.smtp_security]
        return MailServer(self.smtp_host, port, self.smtp_security, self.smtp_username, password)

    @property
    def mail_tls(self) -> ssl.SSLContext | None:
        """How the mail server's certificate is verified, unless there is no TLS at all."""
        return None if self.smtp_security is Security.NONE else ssl.create_default_context()

    @property
    def public_tls(self) -> ssl.SSLContext | None:
        """What the public port shows of itself, if it speaks TLS."""
        return server_tls(self.tls_certificate, self.tls_key) if self.tls_certificate and self.tls_key else None

    @property
    def all_routes(self) -> Routes:
        """The routes, the default last."""
        return self.routes.routes(self.mail_to)


_Kind = TypeVar("_Kind", bound=OutboxPlace)


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process; raises SettingsError with every problem, one per line."""
    return _load(Settings, environ)


def load_place(environ: Mapping[str, str] = os.environ) -> Place:
    """The settings that looking after an outbox needs; raises SettingsError with their problems, one per line."""
    return _load(Place, environ)


def load_outbox_place(environ: Mapping[str, str] = os.environ) -> OutboxPlace:
    """Where the outbox is, whatever else is wrong; raises SettingsError where that itself cannot be told."""
    return _load(OutboxPlace, environ, all_names=False)


def _load(kind: type[_Kind], environ: Mapping[str, str], *, all_names: bool = True) -> _Kind:
    """Read settings of one kind; with `all_names` every name that is no setting is a problem too."""
    table, problems = _read_config(environ.get(CONFIG))
    credentials = Path(environ["CREDENTIALS_DIRECTORY"]) if environ.get("CREDENTIALS_DIRECTORY") else None
    if credentials and not credentials.is_dir():
        credentials = None
    if all_names:
        problems += _unknown_in_file(table, environ.get(CONFIG))
        problems += _unknown_names(environ, "")
        files = (file.name for file in credentials.iterdir()) if credentials else ()
        problems += _unknown_names(files, f" in {credentials}")
    names = _names(kind)
    settings = None
    try:
        settings = kind(
            _secrets_dir=credentials, **{names[name]: value for name, value in table.items() if name in names}
        )
    except ValidationError as error:
        problems += [line for finding in error.errors() for line in _explain(finding)]
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


def _read_config(path: str | None) -> tuple[dict[str, Any], list[str]]:
    if not path:
        return {}, []
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8")), []
    except OSError as error:
        return {}, [f"{CONFIG}: {path} cannot be read: {(error.strerror or str(error)).lower()}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{CONFIG}: {path} is not TOML: {error}"]


def _unknown_in_file(table: Mapping[str, Any], path: str | None) -> list[str]:
    known = _names(Settings)
    return [_unknown(name, list(known), f" in {path}") for name in table if name not in known]


def _unknown_names(names: Iterable[str], where: str) -> list[str]:
    known = [*_names(Settings), CONFIG]
    return [_unknown(name, known, where) for name in names if name.startswith(PREFIX) and name not in known]


def _names(kind: type[OutboxPlace]) -> dict[str, str]:
    return {f"{PREFIX}{name.upper()}": name for name in kind.model_fields}


def _unknown(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}{where}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _explain(finding: Any) -> list[str]:
    """What is wrong with a setting, and what would be right; never the value, which may be a secret."""
    name = str(finding["loc"][0])
    message: str = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "missing":
        message = f"is required: {_description(name)}"
    elif finding["type"] == "too_short":
        message = f"is empty: {_description(name)}"
    elif finding["type"] != "value_error":
        message = f"{message[:1].lower()}{message[1:]}"
    return [f"{PREFIX}{name.upper()}: {line}" for line in message.splitlines()]


def _description(field: str) -> str:
    return Settings.model_fields[field].description or ""
