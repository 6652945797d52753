"""Every option, once: name, type, default, one sentence. The only reader of the settings file."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from birdwire.api.paths import OAUTH_CALLBACK
from birdwire.runtime import private_files
from birdwire.runtime.addresses import is_any, is_loopback, network_of
from birdwire.runtime.failpoints import Failpoints
from birdwire.runtime.outbound_urls import OutboundRules

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic_core import ErrorDetails

PREFIX = "BIRDWIRE_"
LOOK_UPS = ("user/info", "user/last_tweets", "user/search")
CLIENT_NAMES = frozenset({"URL", "API_KEY", "CONFIG"})
"""Names with the settings' prefix that are not settings of the gateway: commands that call one read the first two."""


SECRETS = ("vault_key", "x_client_secret", "metrics_token")
PASSWORD_URLS = ("database_url", "redis_url", "x_proxy")
"""Settings that are a secret, and those that may hold a password."""


class SettingsError(Exception):
    """The settings have problems: `problems` holds one sentence for each, never with a secret.

    `rest` is what remains without the `wrong` ones, so that a check can go on; None if the file cannot be read.
    """

    def __init__(self, problems: list[str], rest: Settings | None = None, wrong: Collection[str] = ()) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.rest = rest
        self.wrong = frozenset(wrong)


Faults = list[tuple[str, str]]
"""The names of wrong settings, and what is wrong with each."""


class _MisfitError(ValueError):
    """Settings that are well-formed, but cannot be used, alone or together."""

    def __init__(self, faults: Faults) -> None:
        super().__init__("; ".join(sentence for _, sentence in faults))
        self.faults = faults


class Settings(BaseModel):
    """The gateway's options. Frozen; made once, passed down."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8700, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    public_url: str = Field(
        "",
        description="Public URL of this gateway, such as https://birdwire.example.com. "
        "The callback URL is derived from it. Default: http://HOST:PORT.",
    )
    database_url: str = Field(
        "sqlite:///birdwire.db",
        repr=False,
        description="Database URL: sqlite:///PATH, or postgresql://USER:PASSWORD@HOST:PORT/NAME "
        "if several gateways share the database.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="URL of the Redis or Valkey server through which several gateways share their rate limits: "
        "redis://HOST:PORT/DATABASE, or rediss:// for TLS.",
    )
    vault_key_file: Path | None = Field(
        None,
        description="File with the vault key: 32 bytes in base64, not readable by others. "
        "`birdwire vault create FILE` creates one.",
    )
    vault_key: SecretStr | None = Field(
        None, description="The vault key itself, for deployments that cannot use a file."
    )
    vault_other_key_files: str = Field(
        "",
        description="Comma-separated paths of files with older vault keys, which Birdwire uses only to decrypt. Needed "
        "while one vault key replaces another.",
    )
    x_client_id: str = Field("", description="The OAuth 2.0 client ID of your X app.")
    x_client_secret: SecretStr | None = Field(
        None, description="The client secret of your X app. Omit it if the app is a public client."
    )
    x_api_url: str = Field(
        "https://api.x.com", description="Base URL of X's API. Birdwire treats a loopback address as the sandbox."
    )
    x_authorize_url: str = Field("https://x.com/i/oauth2/authorize", description="URL of X's consent page.")
    x_proxy: SecretStr | None = Field(
        None,
        description="HTTP proxy for calls to X, such as http://proxy.example.com:3128. "
        "The environment's proxy variables are ignored.",
    )
    x_connections: int = Field(100, ge=1, le=10_000, description="Maximum number of connections to X.")
    x_deadline_s: float = Field(15.0, gt=0, le=120, description="Maximum duration of one call to X, in seconds.")
    link_mode: Literal["open", "confirm"] = Field(
        "open",
        description="Determines when a link becomes active. `open`: as soon as the person with the auth_url approves "
        "at X; "
        "`confirm`: once the key's holder has also confirmed the account.",
    )
    extra_scopes: str = Field(
        "",
        description="Comma-separated X scopes that callers may request in addition to those that the operations need, "
        "such as dm.read,dm.write.",
    )
    relay_dialect: bool = Field(
        default=True,
        description="Whether to support the relay dialect of older clients, which sends the API key in the body and "
        "has its own paths, field names and response envelope.",
    )
    reads: str = Field(
        ",".join(LOOK_UPS),
        description="Comma-separated lookups that this gateway offers. X bills each call.",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated addresses or networks of the reverse proxies whose X-Forwarded-For header is "
        "trusted.",
    )
    outbound_allow: str = Field(
        "",
        description="Comma-separated addresses or networks that notifications may be sent to although they are not "
        "public, such as 10.1.2.3 for a receiver in your own network.",
    )
    hosts: str = Field(
        "", description="Comma-separated host names that Birdwire accepts in the Host header. Default: any."
    )
    max_connections: int = Field(1_000, ge=1, le=100_000, description="Maximum number of connections from callers.")
    max_connections_each: int = Field(
        200,
        ge=1,
        le=100_000,
        description="Maximum number of connections from one address. Trusted proxies and loopback addresses are "
        "exempt.",
    )
    max_calls: int = Field(200, ge=1, le=100_000, description="Maximum number of calls that run concurrently.")
    max_calls_each: int = Field(
        10, ge=1, le=100_000, description="Maximum number of calls per key that run concurrently."
    )
    max_calls_queued: int = Field(
        1_000, ge=0, le=100_000, description="Maximum number of calls that wait to run, each for at most 10 seconds."
    )
    max_calls_each_queued: int = Field(
        90,
        ge=0,
        le=100_000,
        description="Maximum number of waiting calls per key. max_calls_each limits its running calls separately. "
        "Birdwire refuses further calls with 429.",
    )
    max_body_bytes: int = Field(16_384, ge=1_024, le=1 << 20, description="Maximum size of a JSON body, in bytes.")
    max_post_bytes: int = Field(
        65_536, ge=1_024, le=1 << 20, description="Maximum size of a post_twitter body, in bytes."
    )
    max_upload_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        le=1 << 30,
        description="Maximum size of an upload, in bytes; X accepts images of 5 MiB and videos of 512 MiB.",
    )
    max_uploads: int = Field(8, ge=1, le=1_000, description="Maximum number of concurrent calls that upload files.")
    max_uploads_each: int = Field(
        2, ge=1, le=1_000, description="Maximum number of concurrent calls per key that upload files."
    )
    max_spooled_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Maximum total size of uploads in progress, in bytes. The folder for temporary files needs this "
        "much space.",
    )
    upload_deadline_s: float = Field(
        120.0, gt=0, le=3_600, description="Maximum time to receive an upload, in seconds."
    )
    request_deadline_s: float = Field(
        10.0,
        gt=0,
        le=120,
        description="Maximum time to receive a request's headers, in seconds. The same limit applies again to its "
        "body.",
    )
    drain_notice_s: float = Field(
        2.0,
        ge=0,
        le=60,
        description="Seconds between the shutdown signal and the moment the gateway stops listening. During this "
        "time, /readyz returns 503.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port that serves /metrics; 0 selects a free one. Default: none."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that the metrics port listens on.")
    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Bearer token required to read /metrics. If it is set and metrics_port is not, the main port "
        "serves /metrics.",
    )
    journal_days: int = Field(
        90, ge=2, le=36_500, description="Number of days that Birdwire keeps each write in the journal."
    )
    approval_ttl_s: int = Field(
        3_600,
        ge=300,
        le=86_400,
        description="Number of seconds that a write waits for a person's approval before it expires.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of the messages that are logged to standard error."
    )

    failpoints: str = Field(
        "",
        description="For tests with the sandbox: points at which this process is killed, fails or waits.",
    )

    @field_validator("x_client_secret")
    @classmethod
    def _empty_is_unset(cls, secret: SecretStr | None) -> SecretStr | None:
        """Treat an empty secret as unset, so that a template without one does not make a public client confidential."""
        return secret if secret is not None and secret.get_secret_value().strip() else None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = [*self._url_faults(), *self._host_faults()]
        if self.port == self.metrics_port != 0 and _collide(self.host, self.metrics_host):
            faults.append(("metrics_port", f"port and metrics_port are both {self.port}; choose another metrics_port"))
        if self.vault_key_file is not None and self.vault_key is not None:
            faults.append(("vault_key", "vault_key and vault_key_file are both set; set one"))
        faults += [
            (name, f"{name} contains {network}, which is not an IP address or network")
            for name in ("trusted_proxies", "outbound_allow")
            for network in listed(getattr(self, name))
            if network_of(network) is None
        ]
        if self.max_spooled_bytes < self.max_upload_bytes:
            faults.append(("max_spooled_bytes", "max_spooled_bytes must be at least max_upload_bytes"))
        unknown = set(self.offered_reads) - set(LOOK_UPS)
        if unknown:
            faults.append(("reads", f"reads contains {min(unknown)}, which is not one of {', '.join(LOOK_UPS)}"))
        faults += [
            ("extra_scopes", f"extra_scopes contains {scope}, which is not a scope such as dm.read")
            for scope in listed(self.extra_scopes)
            if not re.fullmatch(r"[a-z]{1,30}(\.[a-z]{1,30}){1,3}", scope)
        ]
        if not _is_database(self.database_url):
            wanted = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"
            faults.append(("database_url", f"database_url must be {wanted}"))
        if self.redis_url is not None and not _is_redis(self.redis_url.get_secret_value()):
            wanted = "redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], or rediss://"
            faults.append(("redis_url", f"redis_url must be {wanted}"))
        faults += self._failpoint_faults()
        if faults:
            raise _MisfitError(faults)
        return self

    def _failpoint_faults(self) -> Faults:
        if self.failpoints and self.issuer != "sandbox":
            return [("failpoints", "failpoints require the sandbox, but x_api_url is not a loopback address")]
        try:
            Failpoints(self.failpoints)
        except ValueError as error:
            return [("failpoints", str(error))]
        return []

    def _url_faults(self) -> Faults:
        faults = []
        for name in ("public_url", "x_api_url", "x_authorize_url"):
            url = getattr(self, name)
            if not url and name == "public_url":
                continue
            parts = _split(url)
            if parts is None or parts.query or parts.fragment or parts.username:
                faults.append((name, f"{name} must be an http or https URL without a query or user name"))
            elif parts.scheme == "http" and not is_loopback(parts.hostname or ""):
                faults.append((name, f"{name} must use https, because its host is not a loopback address"))
        public = _split(self.public_url)
        if public is not None and public.path not in ("", "/"):
            faults.append(("public_url", "public_url must not have a path"))
        return faults

    def _host_faults(self) -> Faults:
        hosts = [host.lower() for host in listed(self.hosts)]
        faults = [
            ("hosts", f"hosts contains {host}, which is not a host name without scheme, port or path")
            for host in hosts
            if not _is_host(host)
        ]
        public = _split(self.base_url)
        if hosts and public is not None:
            name = public.hostname or ""
            name = f"[{name}]" if ":" in name else name
            if name not in hosts:
                consequence = "X's redirect would be refused; add it, or correct public_url"
                faults.append(("hosts", f"hosts does not contain {name}, the host of the callback URL: {consequence}"))
        return faults

    @property
    def offered_reads(self) -> tuple[str, ...]:
        """Return the names of the lookups that are offered."""
        return listed(self.reads)

    @property
    def outbound_rules(self) -> OutboundRules:
        """Return which addresses notifications may be sent to: also this machine's own if X is the sandbox."""
        allow = tuple(found for text in listed(self.outbound_allow) if (found := network_of(text)) is not None)
        return OutboundRules(allow, loopback=self.issuer == "sandbox")

    @property
    def metrics_inside(self) -> bool:
        """Return whether the metrics are answered on the main port."""
        return self.metrics_token is not None and self.metrics_port is None

    @property
    def issuer(self) -> Literal["x", "sandbox"]:
        """Return which authorization server issues the tokens."""
        return "sandbox" if is_loopback(urlsplit(self.x_api_url).hostname or "") else "x"

    @property
    def mode(self) -> Literal["live", "test"]:
        """Return which keys are created and accepted: test keys with a sandbox, live keys with X."""
        return "test" if self.issuer == "sandbox" else "live"

    @property
    def base_url(self) -> str:
        """Return the public URL without a trailing slash."""
        return (self.public_url or f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}").rstrip(
            "/"
        )

    @property
    def redirect_uri(self) -> str:
        """Return the URL of the callback, as it must be registered at X."""
        return self.base_url + OAUTH_CALLBACK

    @classmethod
    def load(cls, environment: Mapping[str, str], config: Path | None = None) -> Settings:
        """Read a TOML file, then the environment over it.

        Raises:
            SettingsError: with every problem found, not just the first.
        """
        config = config_file(environment, config)
        values: dict[str, object] = {}
        problems: list[str] = []
        readable = True
        if config is not None:
            try:
                values.update(tomllib.loads(config.read_bytes().decode("utf-8-sig")))
                fault = private_files.fault(config, "config file") if _holds_secret(values) else None
                problems += [] if fault is None else [f"{fault}."]
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                readable = False
                problems.append(f"The config file {config} cannot be read: {_why(error)}.")
        for name, value in environment.items():
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in CLIENT_NAMES:
                values[name.removeprefix(PREFIX).lower()] = value
        settings, wrong = cls._usable(values, problems)
        if settings is None or problems:
            raise SettingsError(problems, settings if readable else None, wrong)
        return settings

    @classmethod
    def _usable(cls, values: Mapping[str, object], problems: list[str]) -> tuple[Settings | None, set[str]]:
        """Return the settings without those that are wrong, and the names of these; add the faults to `problems`.

        Rules between settings are checked once every value is well-formed. A setting that breaks a rule only because
        another setting was left out is left out too, but not reported.
        """
        wrong: set[str] = set()
        reporting = True
        while True:
            try:
                return cls.model_validate({name: value for name, value in values.items() if name not in wrong}), wrong
            except ValidationError as error:
                faults, misfits = _faults(error)
            if reporting:
                problems += [sentence for _, sentence in faults]
            reporting = reporting and not misfits
            names = {name for name, _ in faults} - wrong
            if not names:
                return None, wrong
            wrong |= names


def config_file(environment: Mapping[str, str], config: Path | None = None) -> Path | None:
    """Return the settings file: the one that was named, else BIRDWIRE_CONFIG's; None if there is none."""
    named = environment.get(PREFIX + "CONFIG")
    return config or (Path(named) if named else None)


def _holds_secret(values: Mapping[str, object]) -> bool:
    """Return whether a settings file holds a key, secret, token or password."""
    urls = (str(values.get(name, "")) for name in PASSWORD_URLS)
    return any(values.get(name) for name in SECRETS) or any("@" in url or "password=" in url for url in urls)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _split(url: str) -> SplitResult | None:
    """Return the parts of an http(s) URL; None if it is not a valid one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # The address or the port is not valid.
        return None
    return parts if usable else None


def _is_database(url: str) -> bool:
    """Return whether a URL is that of a supported database."""
    if url.startswith("sqlite:///"):
        return len(url) > len("sqlite:///")
    try:
        parts = urlsplit(url)
        return parts.scheme in {"postgresql", "postgres"} and len(parts.path) > 1
    except ValueError:
        # The brackets do not hold an address.
        return False


def _is_redis(url: str) -> bool:
    """Return whether a URL is that of a Redis server, with at most a database in its path."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    database = re.fullmatch(r"(/[0-9]{0,4})?", parts.path, re.ASCII) is not None
    fits = port != 0 and database and not parts.query and not parts.fragment
    return parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and fits


def listed(value: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated value."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _collide(one: str, other: str) -> bool:
    """Return whether one port cannot listen on both addresses."""
    same_family = (":" in one) == (":" in other)
    return one == other or (same_family and (is_any(one) or is_any(other)))


def _is_host(name: str) -> bool:
    """Return whether a lower-case name is a valid host of a Host header (RFC 9110 §7.2), without a port."""
    if name.startswith("[") and name.endswith("]"):
        try:
            return ipaddress.ip_address(name[1:-1]).version == 6
        except ValueError:
            return False
    labels = name.removesuffix(".").split(".")
    return len(name) <= 253 and all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", one) for one in labels)


def _faults(error: ValidationError) -> tuple[Faults, bool]:
    """Return the faults, and whether they are broken rules between values that are well-formed."""
    found = error.errors(include_input=False)
    misfit = found[0].get("ctx", {}).get("error")
    if isinstance(misfit, _MisfitError):
        return [(name, f"{sentence}.") for name, sentence in misfit.faults], True
    return [(str(item["loc"][0]), _sentence(item)) for item in found], False


def _sentence(error: ErrorDetails) -> str:
    place = str(error["loc"][0])
    name = PREFIX + place.upper()
    # Pydantic counts the characters of a secret as items.
    if error["type"] == "too_short":
        return f"{name} must have at least {error['ctx']['min_length']} characters."
    if error["type"] == "extra_forbidden":
        meant = difflib.get_close_matches(place, Settings.model_fields, 1)
        hint = f"did you mean {PREFIX}{meant[0].upper()}?" if meant else "`birdwire check --help` lists them."
        return f"{name} is not a setting; {hint}"
    return f"{name}: {error['msg']}."
