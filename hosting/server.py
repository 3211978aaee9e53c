"""A forwarder as a service on servers of yours: over SSH, run by systemd.

What runs there is compared with what is declared by the servers themselves (`on_server/`); here it is decided what is
declared, sent along, and told to the engine. The import path of `ServerForwarderProvider` is part of every stack's
state and must never change.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets as random
import shlex
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import pulumi
from pulumi import dynamic

from hosting import release as releases
from hosting.engine import end_with_the_engine
from hosting.errors import show_errors_without_traceback
from hosting.postback_token import ACCEPTED, RETIRE_AFTER, UNUSED, accepted_tokens, unused
from hosting.ssh import (
    HOST_NAME,
    NO_HOST,
    Access,
    LoginError,
    Server,
    ServerError,
    UnreachableError,
    bracketed,
    connect,
    is_host,
)
from hosting.unit import (
    CONTENT,
    Service,
    caddy_site,
    caddys_socket,
    command,
    operator_command,
    service_unit,
    socket_unit,
)

DECLARED = (
    *(
        "name",
        "hosts",
        "access",
        "key",
        "domain",
        "tls",
        "certificate",
        "acme_directory",
        "listen",
        "settings",
        "secrets",
        "tokens",
    ),
    *("retire_after", "offline", "purge", "release", "servers"),
)
TYPES = "pulumi-python:dynamic/hosting:"
AS_DECLARED = "as declared"
TOKENS = "FORWARDER_TOKENS"
DROPPED = "dropped"  # so states say that were written when `tokens` still listed one that was not accepted any more
NAME = re.compile(r"[a-z][a-z0-9-]{0,16}")  # with what stands before it, the name of a user: 31
OF_ANOTHER = re.compile(r".+-(?:preflight|check|command|status)")  # so end the units that a forwarder has for a while
HTTPS = 443
DRAIN = 30.0  # seconds that an outbox gets before its forwarder goes
Tls = Literal["acme", "files", "none"]
Properties = dict[str, Any]
Result = TypeVar("Result")


class ServerForwarderProvider(dynamic.ResourceProvider):
    """Installs, upgrades, watches, mends and removes one forwarder on each of its servers, one server at a time."""

    serialize_as_secret_always = False

    def configure(self, _req: dynamic.ConfigureRequest) -> None:
        """Nothing of the configuration is needed; errors are to be read by people, and no work outlives the CLI."""
        show_errors_without_traceback()
        end_with_the_engine()

    def check(self, _olds: Properties, news: Properties) -> dynamic.CheckResult:
        """Return every mistake at once, each by its property, but for secrets: the engine would show their values."""
        found = [("", f"{name}: {said}") if name == "secrets" else (name, said) for name, said in mistakes(news)]
        return dynamic.CheckResult(news, [dynamic.CheckFailure(name, said) for name, said in found])

    def diff(self, _id: str, olds: Properties, news: Properties) -> dynamic.DiffResult:
        """Any difference is an update; another name is another forwarder (the old one first: the ports)."""
        differs = any(olds.get(name) != news[name] for name in DECLARED if name != "tokens")
        differs |= olds["tokens"][:1] != news["tokens"]
        return dynamic.DiffResult(
            changes=differs or olds.get("former_token") == UNUSED,
            replaces=["name"] if olds.get("name") != news["name"] else [],
            delete_before_replace=True,
        )

    def create(self, props: Properties) -> dynamic.CreateResult:
        """Install on every server; what an interrupted run left behind is taken over, another stack's is refused."""
        accepted = list(props["tokens"])
        owner = random.token_hex(16)
        finish(bring_up(props, accepted, owner))
        return dynamic.CreateResult(props["name"], outputs(props, accepted, owner))

    def read(self, id_: str, props: Properties) -> dynamic.ReadResult:
        """Return what is in force on every server; secrets are compared without being sent."""
        tokens = tokens_in_force(props)
        looked = finish(look_at_all(props, tokens))
        seen: Properties = {"servers": {host: found["seen"] for host, found in looked.items()}}
        inputs = {name: props[name] for name in DECLARED} | seen | {"tokens": tokens[:1]}
        if len(tokens) > 1:
            retired = all(
                unused(found["tokens"], tokens, found["started"], found["now"] - props["retire_after"])
                for found in looked.values()
            )
            seen["former_token"] = UNUSED if retired else ACCEPTED
        return dynamic.ReadResult(id_, props | seen, inputs)

    def update(self, _id: str, olds: Properties, news: Properties) -> dynamic.UpdateResult:
        """Make exactly what differs right, server by server; servers that are no longer listed are cleared last."""
        accepted = accepted_tokens(news["tokens"], tokens_in_force(olds), olds.get("former_token", ""))
        owner, run = olds.get("owner") or random.token_hex(16), random.token_hex(16)
        finish(bring_up(news, accepted, owner, run, olds))
        for host in [host for host in olds["hosts"] if host not in news["hosts"]]:
            try:
                finish(clear(host, olds, unless=run))
            except LoginError as error:  # most likely why it is no longer listed: it is gone, or somebody else's now
                reporter(host, olds)(f"was left as it is. {error} If it comes back, its texts are mailed.")
        return dynamic.UpdateResult(outputs(news, accepted, owner))

    def delete(self, _id: str, props: Properties) -> None:
        """Drain and remove on every server, whatever another says; what can't be delivered is kept there, and named."""
        failed = finish(clear_all(props["hosts"], props, destroyed=True))
        if failed:
            raise ServerError(not_removed(props, failed))


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run something to its end in this thread of the provider."""
    return asyncio.run(work)


def mistakes(props: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with the declaration, by property; what is not known yet counts as right.

    What it looks at is `name`, `hosts`, the names in `secrets`, `tls`, `domain` and `certificate`: whoever knows these
    beforehand may ask beforehand.
    """
    hosts, tls, domain = props["hosts"], props["tls"], props["domain"]
    found = [("name", said) for said in [name_mistake(props["name"])] if said]
    if not hosts:
        found.append(("hosts", "no server is named"))
    found += [("hosts", f"`{host}` {NO_HOST}") for host in hosts if not is_host(str(host))]
    if len(set(hosts)) < len(hosts):
        found.append(("hosts", "a server is named twice"))
    known = isinstance(props["secrets"], Mapping | Sequence)
    if len(hosts) > 1 and known and "FORWARDER_DATABASE_URL" not in props["secrets"]:
        found.append(("secrets", "several servers need one PostgreSQL"))
    if len(hosts) > 1 and tls == "acme":
        found.append(("tls", "`acme` gets one server a certificate: for several, choose `none` or `files`"))
    if tls == "acme" and not domain:
        found.append(("domain", "tls `acme` needs the domain that the certificate is for"))
    if domain and not HOST_NAME.fullmatch(domain):
        found.append(("domain", f"`{domain}` is no host name such as texts.example.com"))
    if tls == "files" and not all(str(path).startswith("/") for path in props["certificate"] or [""]):
        found.append(("certificate", "tls `files` needs the absolute paths of certificate and key on the server"))
    return found


def name_mistake(name: str) -> str:
    """Return what is wrong with the name of a service; nothing when it will do."""
    if not NAME.fullmatch(name):
        return f"`{name}` is not a letter and up to 16 more of a-z, 0-9 and -"
    if OF_ANOTHER.fullmatch(name):
        of, _, purpose = name.rpartition("-")
        return f"`{name}` is what the {purpose} of a stack `{of}` is called on a server: choose another"
    return ""


def declare(props: Mapping[str, Any]) -> Properties:
    """Return what is to be in force on a server: the words in which `on_server` says what is."""
    service = describe(props)
    return {
        "release": props["release"],
        "service": service_unit(service),
        "socket": socket_unit(service),
        "command": operator_command(service),
        "site": caddy_site(props["domain"], f"unix/{service.listen}", props["acme_directory"])
        if props["tls"] == "acme"
        else "",
        "drop_ins": {},
        "settings": props["settings"],
        "secrets": dict.fromkeys([*props["secrets"], TOKENS], AS_DECLARED),
        "state": "running",
    }


def describe(props: Mapping[str, Any], *, trial: bool = False) -> Service:
    """Return the service; as a `trial`, with socket and state of its own."""
    service = Service(
        name=props["name"],
        release=props["release"],
        listen=props["listen"] or caddys_socket(props["name"]),
        credentials=tuple(sorted([*props["settings"], *props["secrets"], TOKENS])),
        certificate=(props["certificate"][0], props["certificate"][1]) if props["tls"] == "files" else None,
    )
    if not trial:
        return service
    unit = f"{service.unit}-preflight"
    own = {"FORWARDER_ADMIN_PORT": "0", "FORWARDER_DATABASE_URL": f"sqlite:////var/lib/{unit}/outbox.db"}
    return Service(
        service.name,
        service.release,
        f"/run/{unit}.sock",
        service.credentials,
        service.certificate,
        own,
        "-preflight",
    )


def tokens_in_force(props: Mapping[str, Any]) -> list[str]:
    """Return the tokens that are accepted by what is written down, the current one first."""
    return list(props["tokens"][:1] if props.get("former_token") == DROPPED else props["tokens"])


def outputs(props: Properties, accepted: Sequence[str], owner: str) -> Properties:
    """Return what is written down of a forwarder that is as declared."""
    former = ACCEPTED if len(accepted) > 1 else "none"
    return {name: props[name] for name in DECLARED} | {"tokens": accepted, "former_token": former, "owner": owner}


def access(props: Mapping[str, Any]) -> Access:
    """Return how to log in."""
    told = dict(props["access"])
    return Access(
        user=told["user"],
        port=int(told["port"]),
        known_hosts=tuple(told["known_hosts"]),
        key_file=told["key_file"],
        key=props["key"],
        jump=told["jump"],
        python=told["python"],
    )


def request(props: Mapping[str, Any], verb: str) -> Properties:
    """Return what every request to a server tells."""
    return {
        "verb": verb,
        "name": props["name"],
        "release": props["release"],
        "listen": describe(props).listen,
        "admin_port": props["settings"]["FORWARDER_ADMIN_PORT"],
        "certificate": props["certificate"],
        "domain": props["domain"],
        "settings": props["settings"],
    }


def hidden(nonce: str, value: str) -> str:
    """Return the HMAC by which a secret is compared without being sent."""
    return hmac.new(nonce.encode(), value.encode(), hashlib.sha256).hexdigest()


def claim(tokens: Sequence[str], owner: str = "") -> Properties:
    """Return what tells an own forwarder from another stack's of the same name.

    It is ours if `owner` is the mark that is there, or if it accepts one of our `tokens`.
    """
    nonce = random.token_hex(16)
    return {"claim": {"nonce": nonce, "tokens": [hidden(nonce, token) for token in tokens], "owner": owner}}


def claim_on(host: str, accepted: Sequence[str], owner: str, olds: Mapping[str, Any]) -> Properties:
    """Return the same for one server; `olds` tell whether one of ours is known there.

    States without a mark were written before there was one: what is there passes for ours, as it did then.
    """
    unmarked = host in olds.get("hosts", ()) and "owner" not in olds
    return claim([] if unmarked else accepted, owner)


def claim_of(exported: Mapping[str, Any]) -> Properties:
    """Return the same of a stack as `pulumi stack export --show-secrets` tells of it, which may never have been up."""
    resources = (exported.get("deployment") or {}).get("resources") or []
    kept = [found.get("outputs") or {} for found in resources if found["type"].startswith(TYPES)]
    values = [outputs["value"] for outputs in kept if isinstance(outputs.get("value"), dict)]
    tokens = [json.loads(value["plaintext"]) for value in values if "plaintext" in value]
    for outputs in kept:
        if "hosts" in outputs:
            return claim(tokens, outputs["owner"]) if "owner" in outputs else claim([])
    return claim(tokens or [random.token_hex()])  # no token at all is nobody's


def reporter(host: str, props: Mapping[str, Any]) -> Callable[[str], None]:
    """Return a function that prints what is being done, one line each."""

    def progress(doing: str) -> None:
        print(f"{props['name']} on {host}: {doing}", flush=True)  # noqa: T201 - the engine shows it

    return progress


def log_in(host: str, props: Mapping[str, Any]) -> AbstractAsyncContextManager[Server]:
    """Log in to a server as is declared, for the time of a block."""
    return connect(host, access(props), reporter(host, props))


async def look_at(
    server: Server, props: Mapping[str, Any], accepted: Sequence[str], ours: Properties, *, check: bool
) -> Properties:
    """Return what a server says of itself and of its forwarder; `ours` tells it whose that should be."""
    nonce = random.token_hex(16)
    values = {**props["secrets"], TOKENS: ",".join(accepted)}
    hashes = {name: hidden(nonce, value) for name, value in values.items()}
    site = str(next(iter(props["servers"].values()))["site"])
    question = request(props, "look") | {"nonce": nonce, "secrets": hashes, "check": check, "site": site}
    return await server.ask(question | ours, {}, reporter(server.host, props))


async def examine(  # noqa: PLR0913 - what a server may lack depends on all of it
    service: str,
    host: str,
    access: Access,
    *,
    listen: str,
    admin_port: int,
    domain: str,
    certificate: Sequence[str],
    caddy: bool,
    reach: Sequence[tuple[str, str, int]],
    ours: Mapping[str, Any],
) -> tuple[Properties, list[str]]:
    """Return a server's facts and what it lacks for such a forwarder; nothing is changed there.

    `ours` (of `claim_of`) tells a forwarder of that name there from another stack's.

    Raises:
        ServerError: it can't even be asked.
    """
    question = {
        "verb": "look",
        "check": True,
        "wait": False,
        "name": service,
        "release": releases.name(),
        "listen": listen or caddys_socket(service),
        "admin_port": admin_port,
        "domain": domain,
        "certificate": list(certificate),
        "site": "wanted" if caddy else "",
        "reach": reach,
        "settings": {},
        "secrets": {},
        "nonce": "",
        **ours,
    }
    async with connect(host, access, lambda _: None, within=0) as server:
        found = await server.ask(question, {}, lambda _: None)
    return found["facts"], found["lacks"]


def listen_stream(tls: Tls, host: str, port: int) -> str:
    """Return what the kernel is to listen on: everywhere, where the forwarder itself is public; else for the proxy.

    With Caddy it is no port, so nothing.
    """
    return {"acme": "", "files": str(port), "none": f"{bracketed(host)}:{port}"}[tls]


def public_url(domain: str, port: int) -> str:
    """Return where CallFire finds a forwarder, without a path."""
    return f"https://{domain}" + f":{port}" * (port != HTTPS)


async def look_at_all(props: Mapping[str, Any], accepted: Sequence[str]) -> dict[str, Properties]:
    """Return what every server says; of one that does not answer, that it doesn't."""
    owner = props.get("owner", "")

    async def look(host: str) -> Properties:
        try:
            async with log_in(host, props) as server:
                return await look_at(server, props, accepted, claim_on(host, accepted, owner, props), check=False)
        except UnreachableError:
            declared = dict(props["servers"].get(host) or {})
            return {"seen": declared | {"state": "not reachable"}, "tokens": None, "started": 0, "now": 0}

    return dict(zip(props["hosts"], await asyncio.gather(*map(look, props["hosts"])), strict=True))


async def bring_up(
    props: Mapping[str, Any],
    accepted: Sequence[str],
    owner: str,
    run: str = "",
    olds: Mapping[str, Any] | None = None,
) -> None:
    """Bring every server into the declared state, one at a time, once all of them will do; each remembers this `run`.

    A forwarder of another stack is refused, and ours is marked with its `owner`; `olds` know where ours were.

    Raises:
        ServerError: a server lacks something (all of it is said, and nothing was changed), or could not be brought up.
    """
    olds = olds or {}
    claims = {host: claim_on(host, accepted, owner, olds) for host in props["hosts"]}
    all_know = await require(props, accepted, claims)
    fresh: list[str] = []
    for host in props["hosts"]:
        ours = claims[host] | {"run": run, "all_know": all_know}
        try:
            if await bring_up_one(host, props, accepted, ours):
                fresh.append(host)
        except ServerError as error:
            left = await clear_all(fresh, props)
            raise type(error)(f"{error}{others(props, host, fresh, left)}") from None


async def bring_up_one(host: str, props: Mapping[str, Any], accepted: Sequence[str], ours: Properties) -> bool:
    """Bring a server into the declared state; return whether there was nothing before."""
    async with log_in(host, props) as server:
        looked = await look_at(server, props, accepted, ours, check=True)
        looked["all_know"] = lowest(ours["all_know"], looked["knows"])
        await apply(server, props, accepted, looked, ours)
    return bool(looked["seen"]["release"] == "none")


def others(props: Mapping[str, Any], failed: str, fresh: Sequence[str], left: Mapping[str, ServerError]) -> str:
    """Return what has become of the servers before the one that failed; the `fresh` ones were to be cleared."""
    before = props["hosts"][: props["hosts"].index(failed)]
    updated = [host for host in before if host not in fresh]
    said = f"\nBrought up before it, and left so: {', '.join(updated)}." if updated else ""
    return said + "".join(f"\nBrought up before it, and not taken back: {reason(*each)}" for each in left.items())


async def require(props: Mapping[str, Any], accepted: Sequence[str], claims: Mapping[str, Properties]) -> int | None:
    """Return, when each of several servers has what is needed, up to which version all know the outbox's tables.

    Raises:
        ServerError: with every lack of every server.
    """
    found, all_know = [], None
    for host in props["hosts"] if len(props["hosts"]) > 1 else []:  # a single one is looked at when its turn comes
        async with log_in(host, props) as server:
            looked = await look_at(server, props, accepted, claims[host], check=True)
            found += [f"{host}: {lack}" for lack in looked["lacks"]]
            all_know = lowest(all_know, looked["knows"])
    refuse(found)
    return all_know


def lowest(*versions: int | None) -> int | None:
    """Return the lowest of the versions that there are."""
    return min((version for version in versions if version is not None), default=None)


def refuse(lacks: Sequence[str]) -> None:
    """Raise ServerError with every lack, if there is one."""
    if lacks:
        raise ServerError(
            "The server can't take the forwarder; nothing was changed:\n" + "\n".join(f"  {lack}" for lack in lacks)
        )


async def apply(
    server: Server, props: Mapping[str, Any], accepted: Sequence[str], looked: Mapping[str, Any], ours: Properties
) -> None:
    """Bring one server into the declared state; `ours` tells it whose this is, and which run."""
    refuse([f"{server.host}: {lack}" for lack in looked["lacks"]])
    declared = props["servers"][server.host]
    service, trial = describe(props), describe(props, trial=True)
    all_know = looked["all_know"]
    checked = ["--database"] if all_know is None else ["--way-back", str(all_know)]
    order = (
        request(props, "apply")
        | ours
        | {
            "secrets": {**props["secrets"], TOKENS: ",".join(accepted)},
            "token": accepted[0],
            "service": declared["service"],
            "socket": declared["socket"],
            "site": declared["site"],
            "command": declared["command"],
            "offline": props["offline"],
            "requirements": releases.requirements(),
            "preflight": {
                "check": [*command(service, "check", trial.credentials_from), "check", "--json", *checked],
                "service": service_unit(trial),
                "socket": socket_unit(trial),
                "listen": trial.listen,
            },
        }
    )
    progress = reporter(server.host, props)
    files = {} if looked["installed"] else bundle(looked, progress, offline=props["offline"])
    if files:
        progress(f"sending {sum(map(len, files.values())) / 1e6:.1f} MB")
    await server.ask(order, files, progress)


def bundle(looked: Mapping[str, Any], progress: Callable[[str], None], *, offline: bool) -> dict[str, bytes]:
    """Return the wheels to send along: those that the server does not have yet."""
    progress("gathering the wheels of the release")
    file, content = releases.wheel()
    installer = releases.installer()
    wheels = {file: content, installer.name: installer.read_bytes()}
    if offline:
        platform = releases.Platform(**looked["facts"])
        wheels |= {path.name: path.read_bytes() for path in releases.libraries(platform)}
    kept = looked["wheels"]
    return {name: data for name, data in wheels.items() if kept.get(name) != hashlib.sha256(data).hexdigest()}


async def clear(host: str, props: Mapping[str, Any], *, unless: str = "", last: bool = False) -> None:
    """Remove the forwarder from one server, unless it was brought up in that run; say what is kept there.

    With PostgreSQL, the `last` one drains the outbox of all; before that, the others mail what one leaves. Another
    stack's of the same name is left: an error, but where the server is no longer listed it is only said.
    """
    service = describe(props)
    status: list[str] = []
    if last and "FORWARDER_DATABASE_URL" in props["secrets"]:
        status = [*command(service, "status", service.credentials_from), "status", "--json"]
    async with log_in(host, props) as server:
        order = request(props, "remove") | {"drain_seconds": DRAIN, "purge": props["purge"], "unless": unless}
        order |= {"status": status} | claim(props["tokens"], props.get("owner", ""))
        done = await server.ask(order, {}, reporter(host, props))
    left = ", ".join(f"{count} {kind}" for kind, count in done["left"].items() if count)
    if done["kept"]:
        reporter(host, props)(
            f"kept {PurePosixPath(done['kept'])}, which holds what was not delivered ({left});"
            " installed there again, the forwarder mails what waits; what is dead or in quarantine can be replayed"
        )
    elif left:
        reporter(host, props)(f"removed what was not delivered ({left}) with the outbox and its copies, as purge says")


async def clear_all(
    hosts: Sequence[str], props: Mapping[str, Any], *, destroyed: bool = False
) -> dict[str, ServerError]:
    """Remove the forwarder from all these servers, for good if it is destroyed; return where that failed, and why."""
    failed: dict[str, ServerError] = {}
    for host in hosts:
        try:
            await clear(host, props, last=destroyed and host == hosts[-1])
        except ServerError as error:
            failed[host] = error
    return failed


def reason(host: str, error: ServerError) -> str:
    """Return which server it is and what is the matter, where the error may not say which."""
    return f"{host}: {str(error).removeprefix(f'{host}: ')}"


def not_removed(props: Mapping[str, Any], failed: Mapping[str, ServerError]) -> str:
    """Return of which servers the forwarder could not be removed, and what to do if they are gone."""
    said = "\n".join(f"  {reason(*each)}" for each in failed.items())
    gone = [host for host, error in failed.items() if isinstance(error, LoginError)]
    if len(gone) == len(props["hosts"]):
        lost = "" if "FORWARDER_DATABASE_URL" in props["secrets"] else "; its outbox went with it"
        advice = f"\nIf that is gone for good, forget the forwarder with `pulumi state delete`{lost}."
    else:
        advice = (
            f"\nIf {', '.join(gone)} is gone for good, take it out of serverHosts and run `pulumi up`, then"
            " `pulumi destroy`."
        )
    return f"The forwarder could not be removed everywhere:\n{said}{advice if gone else ''}"


class ServerForwarder(dynamic.Resource, module="hosting", name="ServerForwarder"):
    """A forwarder on Debian or Ubuntu servers, as a service that the kernel hands posts to.

    Args:
        service: its name on the servers; environments on one server differ in it.
        hosts: the servers; several share the PostgreSQL of `FORWARDER_DATABASE_URL` behind one address that is yours.
        access: how to log in, and whose host keys are right.
        key: the private key for that, if it is neither a file nor in an agent.
        token: the postback token; those before it are accepted, too, until none of them was used for a day.
        tls: `acme` (Caddy gets and renews a certificate of `domain`), `files` (the forwarder speaks TLS itself, with
            `certificate`: the paths of certificate and key there), or `none` (behind a proxy of yours).
        host: the address that it listens on, with tls `none`.
        port: the port that it listens on: the public one with tls `files`, one behind the proxy with `none`.
        url: its public address, where that is not `https://DOMAIN`.
        acme_directory: the certificate authority, if not Let's Encrypt.
        settings: environment variables of `docs/forwarder.md`.
        secrets: those that are secret.
        files: those that name a file, with the file to send there; kept as secrets, for they hold names and numbers.
        offline: send all wheels along, for a server without a package index.
        purge: on `pulumi destroy`, remove what was not delivered, too.
    """

    former_token: pulumi.Output[str]

    def __init__(  # noqa: PLR0913 - each is a word of the declaration
        self,
        name: str,
        *,
        service: str,
        hosts: Sequence[str],
        access: Access,
        key: pulumi.Input[str] | None = None,
        token: pulumi.Input[str],
        domain: str = "",
        tls: Tls = "acme",
        certificate: tuple[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 8710,
        url: str = "",
        acme_directory: str = "",
        settings: Mapping[str, str],
        secrets: Mapping[str, pulumi.Input[str]],
        files: Mapping[str, Path] | None = None,
        retire_after: float = RETIRE_AFTER,
        offline: bool = False,
        purge: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        contents = {f"{CONTENT}{name}": path.read_text("utf-8") for name, path in (files or {}).items()}
        secrets = {**secrets, **contents}
        props: Properties = {
            "name": service,
            "hosts": list(hosts),
            "access": {
                "user": access.user,
                "port": access.port,
                "known_hosts": list(access.known_hosts),
                "key_file": access.key_file,
                "jump": access.jump,
                "python": access.python,
            },
            "key": pulumi.Output.secret(key) if key else "",  # a property that is None is none
            "domain": domain,
            "tls": tls,
            "certificate": list(certificate or ()) if tls == "files" else [],
            "acme_directory": acme_directory,
            "listen": listen_stream(tls, host, port),
            "settings": {"FORWARDER_ADMIN_PORT": "8711", **settings},
            "secrets": pulumi.Output.secret(dict(secrets)),
            "tokens": pulumi.Output.secret([token]),
            "retire_after": retire_after,
            "offline": offline,
            "purge": purge,
            "release": releases.name(),
        }
        names = {**props, "secrets": dict.fromkeys(secrets)}
        props |= {"servers": {host: declare(names) for host in hosts}, "former_token": None}
        secret = pulumi.ResourceOptions(additional_secret_outputs=["secrets", "tokens", "key"])
        super().__init__(ServerForwarderProvider(), name, props, pulumi.ResourceOptions.merge(secret, opts))
        self.url = url or public_url(domain, port if tls == "files" else HTTPS)
        # Said only of a forwarder that is healthy: CallFire is told an address that answers.
        told = pulumi.Output.secret(token)
        self.endpoint: pulumi.Output[str] = pulumi.Output.all(self.former_token, told).apply(
            lambda both: f"{self.url}/postback/{both[1]}"
        )
        admin = props["settings"]["FORWARDER_ADMIN_PORT"]
        user = f"{access.user}@" if access.user else ""
        through = f"-p {access.port} " * (access.port != 22) + f"-J {access.jump} " * bool(access.jump)  # noqa: PLR2004 - SSH
        through += f"-i {shlex.quote(access.key_file)} " * bool(access.key_file)
        self.tunnels = [f"ssh -N -L {admin}:127.0.0.1:{admin} {through}{user}{host}" for host in hosts]
