"""The forwarder's settings: read once, at the edge, into one frozen object that holds no surprise.

Sources, the first one wins: environment variables `FORWARDER_*`, files of the same names in `$CREDENTIALS_DIRECTORY`
(systemd's LoadCredential), and one TOML file of the same names, named by `FORWARDER_CONFIG`. All mistakes are reported
together, each by name; a secret is never repeated.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from forwarder.errors import SettingsError
from forwarder.smtp import Security

PREFIX: Final = "FORWARDER_"
CONFIG: Final = f"{PREFIX}CONFIG"
MIN_TOKEN: Final = 16

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")


DEFAULT_SMTP_PORTS: Final = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def mail_address(value: str) -> str:
    """`value` if it is one plain mail address; raises ValueError if it is not."""
    if not _ADDRESS.fullmatch(value) or ".." in value:
        raise ValueError(f"{value!r} is not a mail address such as texts@example.com")
    return value


def _http_url(value: SecretStr) -> SecretStr:
    url = urlsplit(value.get_secret_value())
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("is not an http or https URL")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in {"postgresql", "postgres", "sqlite"}:
        raise ValueError("does not start with postgresql:// (or sqlite:///)")
    return value


MailAddress = Annotated[str, AfterValidator(mail_address)]
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]
Addresses = Annotated[tuple[MailAddress, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Everything a forwarder can be told. The table in docs/forwarder.md is this class, checked by a test."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="Address of the public port.")
    port: Port = Field(8710, description="The public port: postbacks and `/healthz`, nothing else. 0 takes a free one.")
    admin_port: Port = Field(8711, description="The private port on loopback: status page, `/readyz`, `/metrics`.")
    tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = Field(
        min_length=1, description="Tokens that may post, comma-separated; the first is the current one."
    )
    state_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("STATE_DIRECTORY", "state")),
        description="Folder of the outbox; default `$STATE_DIRECTORY` (systemd) or `state`.",
    )
    database_url: SecretStr | None = Field(
        None, description="`postgresql://…` for several forwarders; default is SQLite in the state folder."
    )
    smtp_host: str = Field(min_length=1, description="The mail server.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Its port; default 587 for `starttls`, 465 for `tls`, 25 for `none`."
    )
    smtp_security: Security = Field(Security.STARTTLS, description="`starttls`, `tls` or `none`.")
    smtp_username: str | None = Field(None, description="User to log in as, together with the password.")
    smtp_password: SecretStr | None = Field(None, description="Its password; never sent over plain text.")
    mail_from: MailAddress = Field(description="Sender of every mail; its domain is used in Message-IDs.")
    mail_to: Addresses = Field((), description="Who gets the mails, comma-separated, where no route says otherwise.")
    routes: Path | None = Field(None, description="TOML file of routes (docs/routes.md).")

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

    _check_database_url = field_validator("database_url")(lambda url: url and _database_url(url))

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = []
        if (self.smtp_username is None) != (self.smtp_password is None):
            problems.append(f"{PREFIX}SMTP_USERNAME and {PREFIX}SMTP_PASSWORD: set both or neither")
        if self.smtp_password is not None and self.smtp_security is Security.NONE:
            problems.append(f"{PREFIX}SMTP_SECURITY: none would send the password over plain text; use starttls or tls")
        if not self.mail_to and self.routes is None:
            problems.append(f"{PREFIX}MAIL_TO: nobody would get the mails; name at least one address")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def mail_server_port(self) -> int:
        """The mail server's port, given or by the kind of security."""
        return self.smtp_port or DEFAULT_SMTP_PORTS[self.smtp_security]

    @property
    def mail_domain(self) -> str:
        """What stands behind the @ in Message-IDs."""
        return self.mail_from.rpartition("@")[2]

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
        del settings_cls, dotenv_settings
        return env_settings, file_secret_settings, init_settings


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process; raises SettingsError with every problem, one per line."""
    from_file, problems = _read_config(environ.get(CONFIG))
    problems += _unknown_names(environ)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    settings = None
    try:
        settings = Settings(_secrets_dir=directory if directory and Path(directory).is_dir() else None, **from_file)
    except ValidationError as error:
        problems += [line for finding in error.errors() for line in _explain(finding)]
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


def _read_config(path: str | None) -> tuple[dict[str, Any], list[str]]:
    if not path:
        return {}, []
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"{CONFIG}: {path} cannot be read: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{CONFIG}: {path} is not TOML: {error}"]
    known = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    problems = [_unknown(name, list(known), f" in {path}") for name in table if name not in known]
    return {known[name]: value for name, value in table.items() if name in known}, problems


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields] + [CONFIG]
    return [_unknown(name, known, "") for name in environ if name.startswith(PREFIX) and name not in known]


def _unknown(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}{where}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _explain(finding: Any) -> list[str]:
    message: str = finding["msg"].removeprefix("Value error, ")
    if not finding["loc"]:
        return message.splitlines()
    field = str(finding["loc"][0])
    if finding["type"] == "missing":
        message = f"is required: {_description(field)}"
    return [f"{PREFIX}{field.upper()}: {message[:1].lower()}{message[1:]}"]


def _description(field: str) -> str:
    return Settings.model_fields[field].description or ""
