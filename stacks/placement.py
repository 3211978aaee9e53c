"""Where a stack's settings put the forwarder: on this machine, on servers, or nowhere, since it runs already."""

import pulumi

from hosting import ExternalForwarder, LocalForwarder, PostbackToken, ServerForwarder
from stacks.settings import StackSettings

Forwarder = ExternalForwarder | LocalForwarder | ServerForwarder


def place_forwarder(settings: StackSettings, stack: str) -> Forwarder:
    """Declare the forwarder of a stack."""
    if settings.endpoint is not None:
        return ExternalForwarder(settings.endpoint)
    place = on_servers if settings.hosting == "server" else on_this_machine
    forwarder = place(settings, stack)
    pulumi.export("forwarder", forwarder.url)
    return forwarder


def on_this_machine(settings: StackSettings, stack: str) -> LocalForwarder:
    """Declare a process of this machine."""
    return LocalForwarder(
        "forwarder",
        state_dir=f".local/forwarder/{stack}",
        token=postback_token(settings.postback_token_version),
        port=settings.forwarder_port,
        settings=settings.forwarder(),
        secrets=settings.forwarder_secrets(),
        files=settings.forwarder_files(),
    )


def on_servers(settings: StackSettings, stack: str) -> ServerForwarder:
    """Declare a service on servers, and say how to reach its status page."""
    forwarder = ServerForwarder(
        "forwarder",
        service=stack,
        hosts=settings.server_hosts,
        access=settings.access(),
        key=settings.server_key,
        token=postback_token(settings.postback_token_version),
        domain=settings.domain,
        tls=settings.tls,
        certificate=(settings.tls_certificate, settings.tls_key),
        acme_directory=settings.acme_directory,
        host=settings.listen_on,
        port=settings.forwarder_port,
        url=settings.public_url,
        settings=settings.forwarder(),
        secrets=settings.forwarder_secrets(),
        files=settings.forwarder_files(),
        offline=settings.offline,
        purge=settings.purge,
    )
    pulumi.export("status", "\n".join(forwarder.tunnels))
    return forwarder


def postback_token(version: int) -> pulumi.Output[str]:
    """Declare the token of this version; the forwarder itself remembers those before it."""
    return PostbackToken(f"postback-token-{version}" if version > 1 else "postback-token").value
