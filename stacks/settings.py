"""What a stack's file may say, read once and checked as a whole (Pulumi.yaml describes each setting)."""

import json
import re
from typing import Annotated, Literal, Self

import pulumi
from pulumi.runtime import is_config_secret
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel


def address(value: str) -> str:
    """Return `value` when it can be an email address."""
    if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", value):
        raise ValueError(f"`{value}` is no email address")
    return value


def secret(value: object) -> object:
    """Return `value` when it is a secret output; in plain text it is refused, and not repeated."""
    if value is not None and not isinstance(value, pulumi.Output):
        raise ValueError("it is a secret: set it with `pulumi config set --secret`")
    return value


Address = Annotated[str, AfterValidator(address)]
Secret = Annotated[pulumi.Output[str] | None, BeforeValidator(secret)]
Port = Annotated[int, Field(ge=1, le=65535)]
SECRETS = ("endpoint", "smtp_password")


class StackSettings(BaseModel):
    """The program's settings. Secrets stay outputs, so that nothing can print them."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    hosting: Literal["local", "external"]
    endpoint: Secret
    numbers: tuple[Annotated[str, StringConstraints(min_length=1)], ...]
    mail_from: Annotated[str, AfterValidator(lambda value: value and address(value))]
    mail_to: tuple[Address, ...]
    smtp_host: str
    smtp_port: Port
    smtp_security: Literal["starttls", "tls", "none"]
    smtp_username: str
    smtp_password: Secret
    forwarder_port: Port
    forwarder_admin_port: Port

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = ("endpoint",) if self.hosting == "external" else ("mail_from", "mail_to", "smtp_host")
        missing = [to_camel(name) for name in needed if not getattr(self, name)]
        if missing:
            raise ValueError(f"hosting `{self.hosting}` needs {', '.join(missing)}")
        return self

    @classmethod
    def load(cls, config: pulumi.Config) -> Self:
        """Read the selected stack's settings.

        Raises:
            pulumi.RunError: with every mistake, by name.
        """
        try:
            return cls.model_validate({to_camel(name): read(config, name) for name in cls.model_fields})
        except ValidationError as error:
            mistakes = [
                f"  {'.'.join(map(str, found['loc'])) or 'settings'}: {found['msg']}" for found in error.errors()
            ]
            raise pulumi.RunError(
                f"The settings in stacks/Pulumi.{pulumi.get_stack()}.yaml can't be used:\n" + "\n".join(mistakes)
            ) from None

    def forwarder(self) -> dict[str, str]:
        """Return what the forwarder is told of these, by the names of its own settings."""
        return {
            "FORWARDER_ADMIN_PORT": str(self.forwarder_admin_port),
            "FORWARDER_MAIL_FROM": self.mail_from,
            "FORWARDER_MAIL_TO": ",".join(self.mail_to),
            "FORWARDER_SMTP_HOST": self.smtp_host,
            "FORWARDER_SMTP_PORT": str(self.smtp_port),
            "FORWARDER_SMTP_SECURITY": self.smtp_security,
        } | ({"FORWARDER_SMTP_USERNAME": self.smtp_username} if self.smtp_username else {})

    def forwarder_secrets(self) -> dict[str, pulumi.Output[str]]:
        """Return the secret ones among them."""
        return {"FORWARDER_SMTP_PASSWORD": self.smtp_password} if self.smtp_password is not None else {}


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
