"""Settings: one name each, all problems reported together, no secret shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr, ValidationError

from birdwire.runtime.addresses import is_loopback
from birdwire.settings import PASSWORD_URLS, SECRETS, Settings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path


def problems(**environment: str) -> list[str]:
    """What is wrong with these variables."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({f"BIRDWIRE_{name.upper()}": value for name, value in environment.items()})
    return caught.value.problems


def test_nothing_set_means_x_itself_and_this_machine_only() -> None:
    """The defaults."""
    settings = Settings.load({})
    assert (settings.issuer, settings.host, settings.port) == ("x", "127.0.0.1", 8700)
    assert settings.redirect_uri == "http://127.0.0.1:8700/apis/v1/twitter/oauth_callback"


def test_the_environment_takes_precedence_over_the_file(tmp_path: Path) -> None:
    """And both before the defaults; other programs' variables mean nothing."""
    config = tmp_path / "birdwire.toml"
    config.write_text('port = 1\nhost = "127.0.0.2"\n')
    settings = Settings.load({"BIRDWIRE_CONFIG": str(config), "BIRDWIRE_PORT": "2", "PORT": "3", "HTTPS_PROXY": "x"})
    assert (settings.host, settings.port, settings.x_proxy) == ("127.0.0.2", 2, None)


@pytest.mark.trust("#300")
@pytest.mark.parametrize("raw", [b"port = 5\r\nhost = '127.0.0.2'\r\n", b"\xef\xbb\xbfport = 5\n"])
def test_a_file_may_come_from_another_system(tmp_path: Path, raw: bytes) -> None:
    """CRLF and a byte order mark do no harm."""
    config = tmp_path / "birdwire.toml"
    config.write_bytes(raw)
    assert Settings.load({}, config).port == 5


@pytest.mark.parametrize("raw", [b"port = ", b"\xff\xfe", b"port = 1\nport = 2\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, raw: bytes) -> None:
    """With its path."""
    config = tmp_path / "birdwire.toml"
    config.write_bytes(raw)
    with pytest.raises(SettingsError, match=str(config)):
        Settings.load({}, config)
    with pytest.raises(SettingsError, match=r"none\.toml"):
        Settings.load({}, tmp_path / "none.toml")


def test_all_problems_are_reported_together() -> None:
    """One sentence each, by the variable's name."""
    said = problems(port="70000", x_deadline_s="0", log_level="loud", no_such="1", public_url="http://birdwire.test")
    assert said.pop() == "public_url must use https, because its host is not a loopback address."
    assert [line.split(":")[0].split(" ")[0] for line in sorted(said)] == [
        "BIRDWIRE_LOG_LEVEL",
        "BIRDWIRE_NO_SUCH",
        "BIRDWIRE_PORT",
        "BIRDWIRE_X_DEADLINE_S",
    ]
    assert all(line.endswith(".") for line in said)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("public_url", value)
            for value in ("birdwire.example.com", "ftp://a", "https://", "https://a/path", "https://a?x=1")
        ),
        *(
            ("public_url", value)
            for value in ("https://a#b", "https://user:pass@a", "http://birdwire.example.com", "https://[::1")
        ),
        *(
            ("x_api_url", value)
            for value in ("", "http://api.x.com", "https://user@api.x.com", "//api.x.com", "javascript:x")
        ),
        *(
            ("x_authorize_url", value)
            for value in ("http://x.com/i/oauth2/authorize", "https://x.com/?a=b", "https://x.com:port/")
        ),
        ("database_url", "mysql://a/b"),
        *(
            ("redis_url", f"redis://{rest}")
            for rest in ("", "/0", "a:port", "a:0", "a/none", "a/1/2", "a?db=1", "a#b", "[::1", "a/99999")
        ),
        ("redis_url", "http://a"),
        ("redis_url", "a:6379"),
        *(
            ("hosts", value)
            for value in ("https://a", "a/b", "a:8700", "*.example.com", "a b", "::1", "-a", "a..b", f"{'a' * 64}.com")
        ),
        *(("extra_scopes", value) for value in ("dm", "dm.read dm.write", "DM.read", "dm.read;x")),
    ],
)
@pytest.mark.trust("T14")
def test_an_address_that_cannot_be_is_refused(name: str, value: str) -> None:
    """Plain http for this machine only; no user, no query."""
    assert any(name in line for line in problems(**{name: value}))


@pytest.mark.parametrize(
    "url",
    ["https://birdwire.example.com", "https://birdwire.example.com/", "http://localhost:8700", "http://[::1]:8700"],
)
def test_an_address_that_can_be_is_taken(url: str) -> None:
    """The redirect URI has no double slash."""
    assert Settings(public_url=url).redirect_uri == url.rstrip("/") + "/apis/v1/twitter/oauth_callback"


def test_an_ipv6_host_makes_a_url() -> None:
    """In brackets."""
    assert Settings(host="::1", port=1).base_url == "http://[::1]:1"


@pytest.mark.parametrize(
    ("url", "issuer"),
    [
        ("http://127.0.0.1:9/", "sandbox"),
        ("http://localhost", "sandbox"),
        ("http://[::1]:9", "sandbox"),
        ("https://api.x.com", "x"),
    ],
)
def test_a_loopback_x_is_the_sandbox(url: str, issuer: str) -> None:
    """By its address, not by its port."""
    assert Settings(x_api_url=url).issuer == issuer


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "localhost.example.com", "10.0.0.1", "", "2130706433"])
def test_names_that_resemble_loopback_are_not_loopback(host: str) -> None:
    """A name that begins like one, an address of everybody, a number."""
    assert not is_loopback(host)


@pytest.mark.trust("G7")
@pytest.mark.trust("#299")
def test_no_secret_is_ever_shown() -> None:
    """Neither in the settings' own words nor in a problem's."""
    canary = "canary-5f2c"
    settings = Settings.load(
        {
            "BIRDWIRE_X_CLIENT_SECRET": canary,
            "BIRDWIRE_VAULT_KEY": canary,
            "BIRDWIRE_REDIS_URL": f"redis://:{canary}@localhost",
        }
    )
    assert canary not in repr(settings) + str(settings) + settings.model_dump_json()
    said = problems(
        x_client_secret=canary, vault_key=canary, vault_key_file="x", port="y", redis_url=f"redis://:{canary}@a?"
    )
    said += problems(redis_url=f"redis://:{canary}@a?b")
    assert canary not in " ".join(said)


def test_two_vault_keys_are_one_too_many() -> None:
    """Nothing is guessed."""
    assert any("both set" in line for line in problems(vault_key="a", vault_key_file="b"))


@pytest.mark.parametrize(
    "url", ["redis://a", "redis://a:6379/", "rediss://user:p%2Fw@a.example.com:6380/15", "redis://:p@[::1]/0"]
)
def test_a_redis_is_named_as_everywhere(url: str) -> None:
    """User, password, port and database are optional."""
    settings = Settings.load({"BIRDWIRE_REDIS_URL": url})
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


def test_settings_cannot_be_changed() -> None:
    """Made once, handed down."""
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "line",
    ['x_client_secret = "s"', 'vault_key = "k"', 'database_url = "postgresql://a:b@c/d"', 'x_proxy = "http://a@b"'],
)
def test_a_file_with_a_secret_must_be_private(tmp_path: Path, line: str) -> None:
    """It is refused with the command that fixes it; without a secret everyone may read it."""
    config = tmp_path / "birdwire.toml"
    config.write_text(f"port = 1\n{line}\n")
    config.chmod(0o644)
    with pytest.raises(SettingsError, match=f"chmod 600 {config}"):
        Settings.load({}, config)
    config.write_text('port = 1\nredis_url = "redis://redis:6379/0"\n')
    assert Settings.load({}, config).port == 1


def test_every_secret_setting_makes_a_file_secret() -> None:
    """A new one is in one of the two lists."""
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret <= {*SECRETS, *PASSWORD_URLS}


def test_one_upload_of_the_largest_size_fits_into_the_room_for_all() -> None:
    """Else it could never be served."""
    assert any("max_spooled_bytes" in line for line in problems(max_upload_bytes=str(257 << 20)))


@pytest.mark.parametrize(
    ("public_url", "hosts"),
    [
        ("https://Birdwire.example.com", "birdwire.example.COM, 10.0.0.1"),
        ("http://[::1]:8700", "[::1],my_service"),
        ("", "127.0.0.1"),
    ],
)
def test_hosts_hold_the_public_host(public_url: str, hosts: str) -> None:
    """Without it X's redirect to the callback would be refused, and no account could be linked."""
    assert Settings(public_url=public_url, hosts=hosts).hosts == hosts
    (problem,) = problems(public_url=public_url, hosts="other.example.com")
    assert problem.startswith("hosts does not contain ")
    assert "add it" in problem


def test_an_empty_client_secret_counts_as_missing(tmp_path: Path) -> None:
    """Whether it was set in code, in the environment or in a file: such an app is a public client."""
    config = tmp_path / "birdwire.toml"
    config.write_text('x_client_secret = ""\n')
    found = [
        Settings(x_client_secret=SecretStr("")),
        Settings.load({"BIRDWIRE_X_CLIENT_SECRET": " "}),
        Settings.load({}, config),
    ]
    assert [settings.x_client_secret for settings in found] == [None] * 3


@pytest.mark.parametrize(
    ("host", "metrics_host", "refused"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),  # noqa: S104 - nothing listens here
        ("::1", "::", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_gateway_and_metrics_cannot_share_a_port(*, host: str, metrics_host: str, refused: bool) -> None:
    """Of one address: `serve` could not listen on it twice. Any free port is another one each time."""
    both = {"BIRDWIRE_HOST": host, "BIRDWIRE_METRICS_HOST": metrics_host}
    same = both | {"BIRDWIRE_PORT": "9700", "BIRDWIRE_METRICS_PORT": "9700"}
    if refused:
        with pytest.raises(SettingsError, match=r"port and metrics_port are both 9700; choose another metrics_port\."):
            Settings.load(same)
    else:
        assert Settings.load(same).metrics_port == 9700
    assert Settings.load(both | {"BIRDWIRE_PORT": "0", "BIRDWIRE_METRICS_PORT": "0"}).metrics_port == 0


def test_a_metrics_token_that_is_too_short_is_counted_in_characters() -> None:
    """It is not a list and has no items."""
    assert problems(metrics_token="short") == ["BIRDWIRE_METRICS_TOKEN must have at least 16 characters."]


def test_valid_settings_remain_available_to_a_check() -> None:
    """With the names of what is wrong, of whatever kind."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({"BIRDWIRE_PORT": "x", "BIRDWIRE_PUBLIC_URL": "x", "BIRDWIRE_X_CLIENT_ID": "id"})
    error = caught.value
    assert error.rest is not None
    assert (sorted(error.wrong), error.rest.x_client_id) == (["port", "public_url"], "id")
