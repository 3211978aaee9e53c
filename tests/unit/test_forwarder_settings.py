"""Settings: three sources, one frozen object, every mistake at once and no secret in any of it."""

import ssl
import subprocess
from pathlib import Path

import pytest

from forwarder.errors import SettingsError
from forwarder.server import server_tls
from forwarder.settings import Settings, load_outbox_place, load_place, load_settings
from tests.forwarder_kit import TOKEN, environment


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Load":
    """Load settings from an environment that holds what a test says, and what every forwarder needs."""
    return Load(monkeypatch, tmp_path)


class Load:
    """Settings as a forwarder with this environment would have them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._folder = folder

    def __call__(self, drop: tuple[str, ...] = (), **settings: str) -> Settings:
        values = environment(self._folder, 25) | {f"FORWARDER_{key.upper()}": value for key, value in settings.items()}
        for name in drop:
            values.pop(f"FORWARDER_{name.upper()}", None)
        if "credentials_directory" in settings:
            values["CREDENTIALS_DIRECTORY"] = values.pop("FORWARDER_CREDENTIALS_DIRECTORY")
        with self._monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            return load_settings(values)

    def problems(self, drop: tuple[str, ...] = (), **settings: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            self(drop, **settings)
        return str(caught.value).splitlines()


def test_the_environment_wins_over_credentials_and_they_over_the_file(load: Load, tmp_path: Path) -> None:
    """Each source has the names of the others."""
    (tmp_path / "settings.toml").write_text(
        f'FORWARDER_MAIL_FROM = "file@example.com"\nFORWARDER_SMTP_HOST = "file"\nFORWARDER_TOKENS = "{TOKEN}"\n'
        'FORWARDER_MAIL_TO = ["a@example.com", "b@example.com"]\n'
    )
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "FORWARDER_SMTP_HOST").write_text("credential\n")
    (credentials / "FORWARDER_MAIL_FROM").write_text("credential@example.com")
    found = load(
        ("smtp_host", "tokens", "mail_to"),
        config=str(tmp_path / "settings.toml"),
        credentials_directory=str(credentials),
        mail_from="environment@example.com",
    )
    assert (found.mail_from, found.smtp_host) == ("environment@example.com", "credential")
    assert [token.get_secret_value() for token in found.tokens] == [TOKEN]
    assert found.mail_to == ("a@example.com", "b@example.com")


def test_a_credential_of_a_setting_that_names_a_file_is_the_file(load: Load, tmp_path: Path) -> None:
    """Where others take a path, a credential is the routes, the certificate or the key itself."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "FORWARDER_ROUTES").write_text('[default]\nto = "credential@example.com"\n')
    found = load(("mail_to",), credentials_directory=str(credentials))
    assert found.all_routes.ordered[-1].recipients.everyone == ("credential@example.com",)


def test_a_key_instead_of_its_files_name_is_not_repeated(load: Load) -> None:
    """Whoever pastes a key into the environment must not find it in the log."""
    key = "-----BEGIN PRIVATE KEY-----\nhidden\n-----END PRIVATE KEY-----"
    said = load.problems(tls_certificate="x" * 5000, tls_key=key, routes=key, contacts=key)
    assert sorted(said) == [
        f"FORWARDER_{name}: is not the name of a file; write the content into a file and name that"
        for name in ("CONTACTS", "ROUTES", "TLS_CERTIFICATE", "TLS_KEY")
    ]


def test_a_credential_that_no_setting_has_is_an_error(load: Load, tmp_path: Path) -> None:
    """A slip in its name is not a password that is missing; what belongs to others is left alone."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "FORWARDER_SMTP_PASWORD").write_text("hidden")
    (credentials / "tls.key").write_text("hidden")
    assert load.problems(credentials_directory=str(credentials)) == [
        f"FORWARDER_SMTP_PASWORD in {credentials}: no such setting; did you mean FORWARDER_SMTP_PASSWORD?"
    ]
    assert load(credentials_directory=str(tmp_path / "none")).smtp_password is None


def test_every_mistake_is_told_at_once_with_those_of_the_files(load: Load, tmp_path: Path) -> None:
    """Settings, routes and contacts, each with what would be right."""
    (tmp_path / "routes.toml").write_text('[default]\nto = "nobody"\n')
    (tmp_path / "contacts.csv").write_text("bob,Bob\n")
    said = load.problems(
        ("mail_from",),
        routes=str(tmp_path / "routes.toml"),
        contacts=str(tmp_path / "contacts.csv"),
        port="http",
        keep_text_days="400",
        keep_metadata_days="30",
        smtp_username="user",
        tls_key="key.pem",
        operator="me",
        log_format="xml",
        mial_to="x@example.com",
        database_url="mysql://x",
    )
    for wanted in (
        f"FORWARDER_ROUTES: {tmp_path}/routes.toml, [default], to: 'nobody' is not a mail address",
        f"FORWARDER_CONTACTS: {tmp_path}/contacts.csv, line 1: 'bob' is not a phone number",
        "FORWARDER_MAIL_FROM: is required: Sender of every mail",
        "FORWARDER_PORT: ",
        "FORWARDER_KEEP_METADATA_DAYS: 30 is less than FORWARDER_KEEP_TEXT_DAYS",
        "FORWARDER_SMTP_PASSWORD: FORWARDER_SMTP_USERNAME and FORWARDER_SMTP_PASSWORD belong together",
        "FORWARDER_TLS_KEY: FORWARDER_TLS_CERTIFICATE and FORWARDER_TLS_KEY belong together",
        "FORWARDER_OPERATOR: 'me' is not a mail address",
        "FORWARDER_LOG_FORMAT: input should be 'text' or 'json'",
        "FORWARDER_MIAL_TO: no such setting; did you mean FORWARDER_MAIL_TO?",
        "FORWARDER_DATABASE_URL: does not start with postgresql://",
    ):
        assert [line for line in said if line.startswith(wanted)], wanted


def test_no_secret_is_repeated(load: Load) -> None:
    """Neither in an error nor in what the object shows of itself."""
    secrets = {
        "tokens": "hidden",
        "database_url": "postgresql://u:hidden@/x:y:z@h:port/d",
        "heartbeat_url": "hidden",
        "smtp_password": "hidden",
    }
    assert "hidden" not in "\n".join(load.problems(drop=(), **secrets))
    found = load(
        database_url="postgresql://u:hidden@h/d",
        heartbeat_url="https://h/hidden",
        tokens=f"{TOKEN},hidden-hidden-hidden",
        smtp_username="u",
        smtp_password="hidden",
        smtp_security="tls",
    )
    assert "hidden" not in f"{found!r} {found.mail_server!r}"


def test_a_password_is_never_sent_in_the_clear(load: Load) -> None:
    """Without TLS there is no log-in."""
    assert load.problems(smtp_username="u", smtp_password="p", smtp_security="none") == [
        "FORWARDER_SMTP_PASSWORD: FORWARDER_SMTP_SECURITY=none would send it over plain text; use starttls or tls"
    ]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_an_outbox_is_never_in_memory_only(load: Load, url: str) -> None:
    """What is answered 200 must be on a disk."""
    assert load.problems(database_url=url) == [
        "FORWARDER_DATABASE_URL: names no file; write sqlite:////folder/outbox.db, or leave it out"
    ]
    assert load(database_url="sqlite:////folder/outbox.db").sqlite_file == Path("/folder/outbox.db")


def test_no_address_is_longer_than_mail_takes(load: Load) -> None:
    """Nor than the outbox takes, which would put every text into quarantine."""
    longest = "a" * 242 + "@example.com"
    assert load(mail_to=longest).mail_to == (longest,)
    (problem,) = load.problems(mail_to=f"a{longest}")
    assert "has 255 characters; a mail address has at most 254" in problem


def test_somebody_gets_every_text(load: Load, tmp_path: Path) -> None:
    """Without FORWARDER_MAIL_TO the routes must say who, or drop."""
    assert load.problems(("mail_to",)) == [
        "FORWARDER_MAIL_TO: nobody would get the texts that no route matches; name at least one address here"
    ]
    routes = tmp_path / "routes.toml"
    routes.write_text('[[route]]\nname = "a"\nkeyword = "x"\n[default]\ndrop = true\n')
    assert load.problems(("mail_to",), routes=str(routes)) == [
        (
            'FORWARDER_MAIL_TO: nobody would get the texts of [[route]] "a"; '
            f"name at least one address here or write `to` into {routes}"
        )
    ]
    routes.write_text('[default]\nto = "office@example.com"\n')
    assert load(("mail_to",), routes=str(routes)).all_routes.ordered[-1].recipients.everyone == ("office@example.com",)


def test_the_two_ports_differ(load: Load) -> None:
    """Or the second could not be listened on; 0 is any port, for both."""
    assert load.problems(port="8712", admin_port="8712") == [
        "FORWARDER_PORT: 8712 is FORWARDER_ADMIN_PORT too; the public and the private port must differ"
    ]
    assert load.problems(admin_port="8710", drop=("port",)) == [
        "FORWARDER_PORT: 8710 is FORWARDER_ADMIN_PORT too; the public and the private port must differ"
    ]
    assert load(port="0", admin_port="0").port == 0


def test_where_the_outbox_is_can_be_told_whatever_else_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not where that itself is wrong, or may stand in a file that cannot be read."""
    wrong = {"FORWARDER_ADMIN_PORT": "x", "FORWARDER_MAIL_TOO": "x", "FORWARDER_STATE_DIR": str(tmp_path)}
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert load_outbox_place(wrong).sqlite_file == tmp_path / "outbox.db"
    with pytest.raises(SettingsError, match="cannot be read"):
        load_outbox_place({"FORWARDER_CONFIG": str(tmp_path / "none.toml")})
    monkeypatch.setenv("FORWARDER_DATABASE_URL", "mysql://")
    with pytest.raises(SettingsError, match="FORWARDER_DATABASE_URL"):
        load_outbox_place(wrong)


def test_who_looks_after_an_outbox_needs_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, no mail server; but what is said must be right."""
    monkeypatch.setenv("FORWARDER_STATE_DIR", str(tmp_path))
    assert load_place({"FORWARDER_STATE_DIR": str(tmp_path)}).sqlite_file == tmp_path / "outbox.db"
    with pytest.raises(SettingsError, match="did you mean FORWARDER_STATE_DIR"):
        load_place({"FORWARDER_STATEDIR": str(tmp_path)})


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_tls_needs_a_pair_that_fits(load: Load, tmp_path: Path) -> None:
    """Another's key, a passphrase, a missing file and a file of something else are told before anybody connects."""
    certificate, key, other, locked = (str(tmp_path / name) for name in ("c.pem", "k.pem", "o.pem", "l.pem"))
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=x")
    _openssl("genrsa", "-out", other, "2048")
    _openssl("rsa", "-in", key, "-aes256", "-passout", "pass:abcd", "-out", locked)
    context = load(tls_certificate=certificate, tls_key=key).public_tls
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    for wrong, said in (
        (other, "are not a PEM certificate and its private key (key values mismatch)"),
        (locked, "the private key has a passphrase"),
        (str(tmp_path / "none.pem"), "none.pem cannot be read: no such file or directory"),
        (certificate, "are not a PEM certificate and its private key (no pem in one of them)"),
    ):
        (problem,) = load.problems(tls_certificate=certificate, tls_key=wrong)
        assert problem.startswith("FORWARDER_TLS_KEY: ")
        assert said in problem
    with pytest.raises(ValueError, match="cannot be read: is a directory"):
        server_tls(tmp_path, Path(key))
