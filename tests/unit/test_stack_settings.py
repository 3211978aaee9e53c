"""A stack's settings: read once, every mistake at once, secrets never plain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime import set_all_config
from pulumi.runtime.config import CONFIG

from stacks.settings import StackSettings

DECLARED = yaml.safe_load((Path(__file__).parents[2] / "Pulumi.yaml").read_text())["config"]
LOGIN = {"callfire:login": "somebody", "callfire:password": "of ours"}
NO_NUMBER = "must be a phone number such as 18185551212, a short code, or a keyword such as 67076:JOIN"
GOOD = {"mailFrom": "texts@example.com", "mailTo": "office@example.com", "smtpHost": "mail.example.com"}


@pytest.fixture(autouse=True)
def forget(program: None) -> Iterator[None]:
    """Leave no configuration behind."""
    yield
    set_all_config({}, [])


def load(
    given: dict[str, Any], secrets: tuple[str, ...] = (), stack: str = "production", **callfire: str
) -> StackSettings:
    """Read settings as the CLI hands them over: the defaults of Pulumi.yaml and what is given, as strings."""
    settings = {name: declared["default"] for name, declared in DECLARED.items()} | given
    plain = {f"test:{name}": value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    plain |= LOGIN | {f"callfire:{name}": value for name, value in callfire.items()}
    set_all_config(plain, ["callfire:password", *(f"test:{name}" for name in secrets)])
    return StackSettings.load(pulumi.Config("test"), stack)


def mistakes(
    given: dict[str, Any], secrets: tuple[str, ...] = (), stack: str = "production", **callfire: str
) -> list[str]:
    """Return what is said of settings that can't be used, a line each."""
    with pytest.raises(pulumi.RunError) as raised:
        load(given, secrets, stack, **callfire)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


def test_every_setting_is_declared_and_described() -> None:
    """Pulumi.yaml and the model name the same settings, each with a sentence and a default."""
    fields = {str(field.alias) for field in StackSettings.model_fields.values()}
    assert set(DECLARED) == fields
    assert all(declared["description"].endswith((".", "secret.")) for declared in DECLARED.values())


def test_the_forwarder_is_told_its_settings() -> None:
    """The names are the forwarder's own."""
    told = load(GOOD | {"mailTo": "a@example.com, b@example.com"}).forwarder()
    assert told["FORWARDER_MAIL_TO"] == "a@example.com,b@example.com"
    assert told["FORWARDER_SMTP_SECURITY"] == "starttls"
    assert "FORWARDER_SMTP_USERNAME" not in told


def test_the_trigger_event_is_left_to_an_api_that_knows_none() -> None:
    """API 1.0 posts every kind of event, and refuses a subscription that names one."""
    assert load(GOOD).trigger_event == "INBOUND_TEXT_FINISHED"
    assert load(GOOD, apiVersion="1.0").trigger_event is None
    assert mistakes(GOOD, apiVersion="1") == [
        "callfire:apiVersion is '1', but must be 1.1 or 1.0; in a file, in quotes"
    ]


def test_every_mistake_is_named_at_once() -> None:
    """One error lists all that is wrong, each by the name it has in the file."""
    with pytest.raises(pulumi.RunError) as raised:
        load({"hosting": "cloud", "smtpPort": 0, "smtpSecurity": "ssl", "mailTo": "nobody", "mailFrom": "x"})
    for name in ("hosting", "smtpPort", "smtpSecurity", "mailTo", "mailFrom"):
        assert f"  {name}: " in str(raised.value)


def test_what_the_hosting_needs_is_asked_for() -> None:
    """`local` needs a mail server and addresses, `external` an endpoint."""
    with pytest.raises(pulumi.RunError, match="`local` needs mailFrom, mailTo, smtpHost"):
        load({"mailTo": ", "})
    with pytest.raises(pulumi.RunError, match="`external` needs endpoint"):
        load({"hosting": "external"})


def test_an_endpoint_beside_a_forwarder_of_the_stack_s_own_is_refused() -> None:
    """It would stand in the forwarder's place, and none would be put up."""
    (said,) = mistakes(GOOD | {"endpoint": "https://texts.example.com/postback/token"}, secrets=("endpoint",))
    told = "endpoint is for hosting `external`, and hosting is `local`: "
    assert said == f"{told}`pulumi config set hosting external`, or `pulumi config rm endpoint`"


def test_a_secret_in_plain_text_is_refused() -> None:
    """What was set without --secret is a mistake, and its value is not repeated."""
    with pytest.raises(pulumi.RunError, match=r"smtpPassword: .*--secret") as raised:
        load(GOOD | {"smtpPassword": "tell-nobody"})
    assert "tell-nobody" not in str(raised.value)
    login = {"smtpUsername": "texts", "smtpPassword": "tell-nobody"}
    assert load(GOOD | login, secrets=("smtpPassword",)).smtp_password is not None


def test_callfires_password_in_plain_text_is_refused() -> None:
    """It stands beside the program's settings, and would be committed with them."""
    set_all_config({"callfire:password": "tell-nobody"}, [])
    with pytest.raises(pulumi.RunError, match=r"callfire:password: .*--secret(?s:.*)mailFrom") as raised:
        StackSettings.load(pulumi.Config("test"), "production")
    assert "tell-nobody" not in str(raised.value)


def test_names_that_are_no_settings_are_refused() -> None:
    """A slip in a name is told with what was probably meant; names of others, such as Pulumi's, are left alone."""
    assert mistakes(GOOD | {"mailTwo": "a@example.com", "xyz": "1"}, ulr="http://127.0.0.1:8700") == [
        "callfire:ulr: no such setting; did you mean callfire:url?",
        "test:mailTwo: no such setting; did you mean test:mailTo?",
        "test:xyz: no such setting",
    ]
    load(GOOD)
    set_all_config({**CONFIG.get(), "pulumi:tags": "{}"})
    StackSettings.load(pulumi.Config("test"), "production")


def test_a_wrong_setting_hides_no_other_mistake() -> None:
    """What is wrong by itself, what is missing beside it and what is CallFire's stand in one list."""
    several = {"hosting": "server", "serverHosts": "a.example.com,b.example.com", "domain": "texts.example.com"}
    assert mistakes(GOOD | several | {"smtpPassword": "plain", "smtpSecurity": "ssl"}, timeout="soon") == [
        "callfire:timeout is 'soon', but must be a number of seconds from 1 to 3600",
        "smtpSecurity: must be 'starttls', 'tls' or 'none'",
        "smtpPassword: it is a secret: set it with `pulumi config set --secret`",
        "smtpPassword needs smtpUsername",
        "databaseUrl: several servers need one PostgreSQL",
        "tls: `acme` gets one server a certificate: for several, choose `none` or `files`",
    ]


def test_what_the_forwarder_would_refuse_is_refused_before() -> None:
    """A user without a password, a password in plain text on the wire, and one port for two purposes."""
    assert mistakes(GOOD | {"smtpUsername": "texts", "forwarderPort": 8712, "forwarderAdminPort": 8712}) == [
        "smtpUsername needs smtpPassword: set it with `pulumi config set --secret smtpPassword`",
        "forwarderPort and forwarderAdminPort are both 8712: they must differ",
    ]
    clear = {"smtpUsername": "texts", "smtpPassword": "tell-nobody", "smtpSecurity": "none"}
    assert mistakes(GOOD | clear, ("smtpPassword",)) == [
        "smtpSecurity `none` would send smtpPassword over plain text; use starttls or tls"
    ]


def test_files_are_text_and_fit_on_a_server(tmp_path: Path) -> None:
    """What could not be sent along, or would not be handed to the service there, is told before."""
    latin, large = tmp_path / "latin.csv", tmp_path / "large.csv"
    latin.write_bytes("18185551212,Zoë\n".encode("latin-1"))
    large.write_text("18185551212,Ann\n" * 70_000)
    server = {"hosting": "server", "serverHosts": "a.example.com", "domain": "texts.example.com"}
    assert mistakes(GOOD | {"contacts": str(latin)}) == [f"contacts: {latin} is not UTF-8; save it as that"]
    assert mistakes(GOOD | server | {"contacts": str(large)}) == [
        "routes and contacts have more than 1,000,000 bytes, too much for a server: shorten them"
    ]
    assert load(GOOD | {"contacts": str(large)}).contacts == str(large)


def test_numbers_are_numbers_and_none_stands_there_twice() -> None:
    """However it is spelled, a number is declared once; short codes and keywords are numbers of CallFire's too."""
    assert mistakes(GOOD | {"numbers": "18186469991, +1 818 646 9991, not a number, 67076:JOIN, 67076:JOIN"}) == [
        "numbers: `+1 818 646 9991` is the number `18186469991` again: leave one of them out",
        f"numbers: `not a number` {NO_NUMBER}",
        "numbers: `67076:JOIN` is the number `67076:JOIN` again: leave one of them out",
    ]
    assert load(GOOD | {"numbers": "67076, hello, 67076:JOIN"}).numbers == ("67076", "hello", "67076:JOIN")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqlcAtKaY6ZrPs0XEoFjMQwLKUURu6m2HHlkRaplhwW"


def server(**given: Any) -> dict[str, Any]:
    """Return settings of hosting `server`, with these."""
    return GOOD | {"hosting": "server", "serverHosts": "a.example.com", "domain": "texts.example.com"} | given


def test_host_keys_are_taken_as_they_are_printed() -> None:
    """With commas or line ends between the lines, commas between the names of one host, comments, and markers."""
    lines = [f"a.example.com,192.0.2.1 {KEY}", f"[2001:db8::1]:2222 {KEY} root@b"]
    lines.append(f"@cert-authority *.example.com,192.0.2.* {KEY}")
    for between in (",", ", ", "\n", "\r\n", "\n# a.example.com:22 SSH-2.0-OpenSSH_9.2p1 Debian-2, as it says\n"):
        told = load(server(serverHostKeys=between.join(lines)))
        assert told.access().known_hosts == tuple(lines), repr(between)


def test_what_is_no_host_key_is_refused() -> None:
    """A fingerprint, half a line, a key that was cut: each by itself."""
    cut, fingerprint = f"b {KEY[:-9]}", "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
    said = "is no line as `ssh-keyscan` prints it: HOST KIND KEY"
    assert mistakes(server(serverHostKeys=f"c {KEY},{cut},d ssh-ed25519\n|1|x {KEY},{fingerprint}")) == [
        f"serverHostKeys: `{cut}` {said}",
        f"serverHostKeys: `d ssh-ed25519` {said}",
        f"serverHostKeys: `|1|x {KEY}` {said}",
        f"serverHostKeys: `{fingerprint}` {said}",
    ]


def test_addresses_of_both_families_are_servers() -> None:
    """Names and addresses; an IPv6 address stands in brackets only where a port follows."""
    hosts = "a.example.com, 192.0.2.1, 2001:db8::1"
    given = server(serverHosts=hosts, serverJump="me@[2001:db8::2]:2222", listenOn="::1", tls="none", databaseUrl="x")
    told = load(given, ("databaseUrl",))
    assert told.server_hosts == ("a.example.com", "192.0.2.1", "2001:db8::1")
    assert told.listen() == "[::1]:8710"
    for jump in ("jump", "jump:22", "me@jump", "me@192.0.2.1:22", "[::1]", "me@[::1]:22"):
        assert load(server(serverJump=jump)).access().jump == jump


def test_addresses_that_are_none_are_refused() -> None:
    """Together, and each with what would be right."""
    given = server(serverHosts="[::1], a b", listenOn="localhost", databaseUrl="x", tls="none")
    no_host = "is no host name, and no address (an IPv6 one stands without brackets)"
    jump = "is no jump host: USER@HOST:PORT, and an IPv6 address as USER@[ADDRESS]:PORT"
    for wrong in ("me@", "me@::1", "jump:ssh", "jump:70000", "a,b", "ssh://jump"):
        assert mistakes(given | {"serverJump": wrong}, ("databaseUrl",)) == [
            f"serverJump: `{wrong}` {jump}",
            "listenOn: `localhost` is no IP address such as 127.0.0.1 or ::1",
            f"serverHosts: `[::1]` {no_host}",
            f"serverHosts: `a b` {no_host}",
        ]


def test_a_public_address_has_a_name_and_a_port_that_can_be() -> None:
    """What no connection could be made to is refused here, before anything looks at it."""
    for right in ("https://texts.example.com", "http://192.0.2.1:8710", "https://[2001:db8::1]:8443"):
        assert load(server(tls="none", publicUrl=right)).public_url == right
    for wrong in (
        "https://a:abc",
        "https://a:70000",
        "https://a:0",
        "https://:443",
        "https://[::1",
        "https://a/b",
        "https://a?b",
    ):
        said = f"publicUrl: `{wrong}` is no address such as https://texts.example.com"
        assert mistakes(server(tls="none", publicUrl=wrong)) == [said]


def test_what_the_provider_would_refuse_is_refused_before() -> None:
    """A name that no service can have, servers that can't be, a certificate that could not be got: as `up` says it."""
    no_name = "is not a letter and up to 16 more of a-z, 0-9 and -"
    for name in ("Production", "eighteen-letters-x", "2nd", "a.b"):
        assert mistakes(server(), stack=name) == [f"the stack's name: `{name}` {no_name}"]
        load(GOOD, stack=name)  # on this machine, and elsewhere, any will do
    another = "`office-check` is what the check of a stack `office` is called on a server: choose another"
    assert mistakes(server(), stack="office-check") == [f"the stack's name: {another}"]
    wrong = {
        "serverHosts: a server is named twice": {"serverHosts": "a,a", "databaseUrl": "x", "tls": "none"},
        "serverHosts: no server is named": {"serverHosts": ","},
        "tls: `acme` gets one server a certificate: for several, choose `none` or `files`": {
            "serverHosts": "a,b",
            "databaseUrl": "x",
        },
        "domain: tls `acme` needs the domain that the certificate is for": {"domain": ""},
        "domain: `https://a` is no host name such as texts.example.com": {"domain": "https://a"},
        "domain: `a..b` is no host name such as texts.example.com": {"domain": "a..b"},
        f"domain: `{'a' * 64}.b` is no host name such as texts.example.com": {"domain": f"{'a' * 64}.b"},
        "domain: `[a` is no host name such as texts.example.com": {"domain": "[a", "tls": "none"},
        "tlsKey: tls `files` needs the absolute paths of certificate and key on the server": {
            "tls": "files",
            "tlsCertificate": "/a.pem",
        },
    }
    for said, given in wrong.items():
        assert mistakes(server(**given), ("databaseUrl",) if "databaseUrl" in given else ()) == [said]
    assert mistakes(server(tls="files", domain="", tlsCertificate="/a", tlsKey="/b")) == [
        "hosting `server` needs domain"
    ]
    assert mistakes(server(tls="none", domain="")) == ["hosting `server` needs publicUrl"]
