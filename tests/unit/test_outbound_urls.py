"""Where notifications may be sent: public addresses by a table, and URLs that can be read in one way only."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birdwire.runtime.addresses import is_public, network_of, plain
from birdwire.runtime.outbound_urls import MAX_URL_CHARACTERS, ForbiddenURLError, OutboundRules, Target, read_url
from birdwire.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from birdwire.runtime.addresses import Address

pytestmark = pytest.mark.trust("T14")

PUBLIC = OutboundRules()
SANDBOX = OutboundRules(loopback=True)
CANARY = "canary-in-the-path"

NAT64 = ip_network("64:ff9b::/96")
NOT_PUBLIC = {
    "0.0.0.0": "0.255.255.255",  # noqa: S104 - nothing listens
    "10.0.0.0": "10.255.255.255",
    "100.64.0.0": "100.127.255.255",
    "127.0.0.0": "127.255.255.255",
    "169.254.0.0": "169.254.255.255",
    "172.16.0.0": "172.31.255.255",
    "192.0.0.0": "192.0.0.255",
    "192.0.2.0": "192.0.2.255",
    "192.88.99.0": "192.88.99.255",
    "192.168.0.0": "192.168.255.255",
    "198.18.0.0": "198.19.255.255",
    "198.51.100.0": "198.51.100.255",
    "203.0.113.0": "203.0.113.255",
    "224.0.0.0": "255.255.255.255",
    "::": "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff",
    "64:ff9b::1:0:0": "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001::": "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db8::": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "2002::": "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "3fff::": "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
    "4000::": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}
"""The first and the last address of each range that is not public. The addresses before and after are public."""


@pytest.mark.parametrize(("first", "last"), NOT_PUBLIC.items())
def test_a_range_is_not_public_from_its_first_to_its_last_address(first: str, last: str) -> None:
    """The edges are exact: what is next to the range is public, unless another range starts there."""
    low, high = ip_address(first), ip_address(last)
    assert not is_public(low)
    assert not is_public(high)
    assert not is_public(low + (int(high) - int(low)) // 2)
    others = {ip_address(one) for one in (*NOT_PUBLIC, *NOT_PUBLIC.values())}
    # The first and the last address of NAT64 are not public: they are judged by the IPv4 addresses in them.
    outside = [each for each in _neighbours(low, high) if each not in others and each not in NAT64]
    assert [each for each in outside if not is_public(each)] == []


def _neighbours(low: Address, high: Address) -> Iterator[Address]:
    if int(low) > 0:
        yield low - 1
    if int(high) + 1 < 1 << high.max_prefixlen:
        yield high + 1


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("1.1.1.1", True),
        ("223.255.255.255", True),
        ("2606:4700:4700::1111", True),
        ("2a00:1450:4001:80b::200e", True),
        # Embedded IPv4 addresses: mapped, NAT64, local NAT64, compatible, translated, 6to4, Teredo, ISATAP.
        ("::ffff:8.8.8.8", True),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::8.8.8.8", False),
        ("::8.8.8.8", False),
        ("::127.0.0.1", False),
        ("::ffff:0:8.8.8.8", False),
        ("2002:808:808::1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2606:4700::5efe:127.0.0.1", False),
        ("2606:4700::200:5efe:8.8.8.8", False),
        ("2606:4700::100:5efe:8.8.8.8", False),
        ("2606:4700::5eff:8.8.8.8", True),
        # A zone, unique local, link-local, site-local, multicast, discard, segment routing.
        ("2606:4700::1%eth0", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("100::1", False),
        ("5f00::1", False),
        ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
    ],
)
def test_whether_an_address_is_public(text: str, public: bool) -> None:  # noqa: FBT001 - a column of the table
    """By the registries of special addresses, whatever the version of Python knows of them."""
    assert is_public(ip_address(text)) is public


@given(st.ip_addresses())
def test_an_address_that_python_calls_private_is_not_public(address: object) -> None:
    """The table is at least as strict as any version's own. Of transition addresses, it judges the embedded one."""
    found = plain(ip_address(str(address)))
    if is_public(found) and found not in NAT64:
        names = ("private", "loopback", "multicast", "link_local", "reserved", "unspecified")
        assert [name for name in names if getattr(found, f"is_{name}")] == []


@pytest.mark.parametrize(
    ("text", "network"), [("10.1.2.3", "10.1.2.3/32"), ("fd00::/8", "fd00::/8"), ("10.0.0.1/8", None), ("", None)]
)
def test_a_network_is_named_by_itself_or_by_one_address(text: str, network: str | None) -> None:
    """Host bits are probably a mistake."""
    assert network_of(text) == (None if network is None else ip_network(network))


@pytest.mark.parametrize(
    ("url", "rules", "read"),
    [
        ("https://example.com", PUBLIC, ("https", "example.com", 443, "/")),
        ("https://example.com/hooks/1", PUBLIC, ("https", "example.com", 443, "/hooks/1")),
        (
            "HTTPS://Ntfy.Example.com:8443/topic?auth=QmVh",
            PUBLIC,
            ("https", "ntfy.example.com", 8443, "/topic?auth=QmVh"),
        ),
        ("https://example.com?auth=x", PUBLIC, ("https", "example.com", 443, "/?auth=x")),
        ("https://example.com//a/../%2e%0d?a?b@c:d", PUBLIC, ("https", "example.com", 443, "//a/../%2e%0d?a?b@c:d")),
        ("https://xn--bcher-kva.example/", PUBLIC, ("https", "xn--bcher-kva.example", 443, "/")),
        ("https://a_b.1x.internal/", PUBLIC, ("https", "a_b.1x.internal", 443, "/")),
        ("https://8.8.8.8/", PUBLIC, ("https", "8.8.8.8", 443, "/")),
        ("https://[2606:4700::1]:8443/", PUBLIC, ("https", "2606:4700::1", 8443, "/")),
        ("https://10.1.2.3/", OutboundRules((ip_network("10.1.2.0/24"),)), ("https", "10.1.2.3", 443, "/")),
        ("https://127.0.0.1/", OutboundRules((ip_network("127.0.0.1/32"),)), ("https", "127.0.0.1", 443, "/")),
        ("https://localhost/", SANDBOX, ("https", "localhost", 443, "/")),
        ("http://localhost/", SANDBOX, ("http", "localhost", 80, "/")),
        ("http://127.0.0.1:8080/a", SANDBOX, ("http", "127.0.0.1", 8080, "/a")),
        ("http://[::1]:8080/a", SANDBOX, ("http", "::1", 8080, "/a")),
    ],
)
def test_a_url_that_is_accepted(url: str, rules: OutboundRules, read: tuple[str, str, int, str]) -> None:
    """Scheme and host are read in lower case; path and query stay as they are."""
    target = read_url(url, rules)
    assert (target.scheme, target.host, target.port, target.target) == read


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.example/", "a.example"),
        ("https://a.example:443/", "a.example"),
        ("https://a.example:80/", "a.example:80"),
        ("https://[2606:4700::1]/", "[2606:4700::1]"),
        ("https://[2606:4700::1]:1/", "[2606:4700::1]:1"),
    ],
)
def test_the_host_header_has_the_port_if_it_is_not_the_scheme_s_own(url: str, authority: str) -> None:
    """IPv6 addresses are in brackets."""
    assert read_url(url, PUBLIC).authority == authority


REFUSED = {
    "Start it with https://": [
        *(
            "",
            "example.com/x",
            "//example.com/x",
            "ftp://example.com",
            "file:///etc/passwd",
            "gopher://127.0.0.1:6379/_x",
        ),
        *("javascript:alert(1)", "https:example.com", "https:/example.com", "unix:///run/docker.sock", "data:,x"),
    ],
    "Plain http is allowed only to": [
        "http://example.com/",
        "http://8.8.8.8/",
        "http://127.0.0.1/",
        "http://localhost/",
    ],
    "user name or a password": [
        *("https://user@example.com/", "https://user:secret@example.com/", "https://@example.com/"),
        *("https://example.com@127.0.0.1/", "https://example.com:443@127.0.0.1/"),
    ],
    "fragment": ["https://example.com/#", "https://example.com/a#b", "https://example.com#@127.0.0.1/"],
    "a space, a control character or a backslash": [
        *("https://example.com/a b", " https://example.com/", "https://example.com/\n", "https://exam\tple.com/"),
        *("https://example.com\\@127.0.0.1/", "https:\\\\example.com/", "https://example.com/\x00", "https://a/\x7f"),
        *("https://example.com/\r\nX-Injected: 1", "https://example.com\r\n/"),
    ],
    "punycode": [
        *(
            "https://bücher.example/",
            "https://\uff11\uff12\uff17.0.0.1/",
            "https://127\u30020\u30020\u30021/",
            "https://\u24dbocalhost/",
        ),
        *("https://example.com\u2028/", "https://ex\u00adample.com/"),
    ],
    "Percent-encode them": ["https://example.com/ü", "https://example.com/?q=\u00a0", "https://example.com/\ud800"],
    "without a %": [
        *("https://%31%32%37.0.0.1/", "https://example%2ecom/", "https://127.0.0.1%00.example.com/"),
        *("https://[fe80::1%25eth0]/", "https://[::1%lo]/"),
    ],
    "has no host": ["https://", "https:///a", "https://:443/", "https://?a", "https:///127.0.0.1/"],
    "The port is not valid": [
        *("https://example.com:0/", "https://example.com:65536/", "https://example.com:/", "https://example.com:443a/"),
        *("https://example.com:00443/", "https://example.com:-1/", "https://example.com:80:80/"),
        f"https://example.com:{'9' * 1_000}/",
    ],
    "unusual spelling. Write an IPv4 address": [
        *("https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://0x7f.1/"),
        *("https://127.0.0.1./", "https://127.0.1/", "https://017700000001/", "https://0/", "https://0x/"),
        *("https://127.0.0.0x1/", "https://256.0.0.1/", "https://1.2.3.4.5/", "https://127.00.0.1/", "https://a.1/"),
        *("https://0X7F.0.0.1/", "https://00000177.0.0.1/", "https://8.8.2056/"),
    ],
    "unusual spelling. Write it as [": [
        *("https://[0:0:0:0:0:0:0:1]/", "https://[2606:4700:0:0:0:0:0:1]/", "https://[2606:4700::0001]/"),
        "https://[::127.0.0.1]/",
    ],
    "IPv4 address in IPv6 form. Write it as": [
        *("https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::ffff:8.8.8.8]/"),
        "https://[0:0:0:0:0:ffff:127.0.0.1]/",
    ],
    "not an IPv6 address": ["https://[]/", "https://[127.0.0.1]/", "https://[::1::]/", "https://[v1.x]/"],
    "The host is not valid": ["https://[::1]x/", "https://x[::1]/", "https://[[::1]]/", "https://]/", "https://[::1/"],
    "not a valid name": [
        *("https://example..com/", "https://.example.com/", "https://example.com./", "https://localhost./"),
        *("https://-a.example/", "https://a,b/", "https://a;b/", "https://*.example.com/", "https://a=b/"),
        *(f"https://{'a' * 64}.com/", f"https://{'a.' * 127}com/", "https://$(x)/", "https://127.0.0.1,example.com/"),
    ],
    "is not a public address": [
        *("https://127.0.0.1/", "https://127.0.0.2:8443/", "https://0.0.0.0/", "https://10.0.0.1/", "https://[::1]/"),
        *("https://169.254.169.254/latest/meta-data/", "https://192.168.1.1/", "https://172.31.0.1/", "https://[::]/"),
        *("https://100.100.100.200/", "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[ff02::1]/"),
        *("https://255.255.255.255/", "https://224.0.0.1/", "https://198.18.0.1/", "https://192.0.0.192/"),
        *("https://[64:ff9b::a9fe:a9fe]/", "https://[2002:7f00:1::]/", "https://[2606:4700::5efe:7f00:1]/"),
        *("https://[::7f00:1]/", "https://[3fff::1]/", "https://[5f00::1]/", "https://[64:ff9b:1::808:808]/"),
    ],
    "2,048 characters": [f"https://example.com/{'a' * MAX_URL_CHARACTERS}"],
}
"""A part of the message, and the URLs that are refused with it."""
FORMS = [(url, part) for part, urls in REFUSED.items() for url in urls]


@pytest.mark.parametrize(("url", "part"), FORMS, ids=[repr(url[:60]) for url, _ in FORMS])
def test_a_url_that_is_refused(url: str, part: str) -> None:
    """With the cause and the next step."""
    with pytest.raises(ForbiddenURLError) as refused:
        read_url(url, PUBLIC)
    assert part in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.2/", "http://localhost.localdomain/", "http://a.localhost/", "http://127.0.0.1.example.com/"),
        *("http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/", "http://127.1/", "http://localhost./"),
        *("https://127.0.0.2/", "https://[::]/", "https://0.0.0.0/", "http://0.0.0.0/", "http://10.0.0.1/"),
    ],
)
def test_with_the_sandbox_three_spellings_of_this_machine_are_allowed(url: str) -> None:
    """All others are refused as they are without the sandbox."""
    with pytest.raises(ForbiddenURLError):
        read_url(url, SANDBOX)


def test_a_network_that_the_operator_allows_does_not_allow_http() -> None:
    """Nor does it with the sandbox."""
    for loopback in (False, True):
        rules = OutboundRules((ip_network("10.0.0.0/8"),), loopback)
        assert read_url("https://10.0.0.1/", rules).address == ip_address("10.0.0.1")
        with pytest.raises(ForbiddenURLError, match="Plain http"):
            read_url("http://10.0.0.1/", rules)


def test_a_refused_address_names_the_setting_that_allows_it() -> None:
    """With the value to add."""
    with pytest.raises(ForbiddenURLError, match=r"add 10\.1\.2\.3 to outbound_allow"):
        read_url("https://10.1.2.3/", PUBLIC)


TOKENS = st.sampled_from((
    *("https://", "http://", "HTTPS:", "//", "/", ":", "@", "#", "?", "[", "]", "%", "%25", "\\", "\t", "\r\n", "\x00"),
    *("localhost", "127.0.0.1", "0x7f", "2130706433", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "8.8.8.8", ".", "-"),
    *("example.com", "xn--", "ü", "\u3002", "\ud800", "443", "0", "65536", "user", "2606:4700::1", "\u017f", "a"),
))  # fmt: skip
URLS = st.text(max_size=40) | st.lists(TOKENS, max_size=8).map("".join) | st.lists(TOKENS).map("".join)
ALL = OutboundRules((ip_network("0.0.0.0/0"), ip_network("::/0")), loopback=True)


@given(URLS.map(lambda text: text) | URLS.map(lambda text: f"https://{text}"), st.sampled_from([PUBLIC, SANDBOX, ALL]))
@example("https://[::1]:443?a", SANDBOX)
@example("http\u017f://8.8.8.8", PUBLIC)
def test_a_url_is_refused_or_has_one_meaning(url: str, rules: OutboundRules) -> None:
    """Any text is read or refused, and another reader finds the same host, port and target in what is read."""
    try:
        target = read_url(url, rules)
    except ForbiddenURLError:
        return
    assert isinstance(target, Target)
    other = urlsplit(url)
    assert (other.scheme, other.hostname) == (target.scheme, target.host)
    assert (other.port or {"https": 443, "http": 80}[target.scheme]) == target.port
    assert other.username is None
    assert target.target == (other.path or "/") + ("?" + url.partition("?")[2] if "?" in url else "")
    assert read_url(f"{target.scheme}://{target.authority}{target.target}", rules) == target
    assert target.scheme == "https" or target.host in {"localhost", "127.0.0.1", "::1"}
    if target.address is not None and rules is PUBLIC:
        assert is_public(target.address)


@pytest.mark.parametrize(("url", "part"), FORMS, ids=[repr(url[:60]) for url, _ in FORMS])
def test_no_message_repeats_a_path_or_a_query(url: str, part: str) -> None:
    """They may hold a token: a Slack URL does in its path, an ntfy URL in its query."""
    del part
    for secret in (f"{url}/{CANARY}", f"{url}?{CANARY}", url.replace("://", f"://{CANARY}:{CANARY}@")):
        try:
            found = repr(read_url(secret, PUBLIC))
        except ForbiddenURLError as refused:
            found = f"{refused} {refused!r} {refused.__cause__!r}"
        assert CANARY not in found


def test_a_target_shows_its_host_only() -> None:
    """Wherever it is logged by mistake."""
    target = read_url(f"https://hooks.example.com:8443/{CANARY}?{CANARY}", PUBLIC)
    assert f"{target!r} {target}" == "Target(hooks.example.com) Target(hooks.example.com)"


def test_the_settings_name_the_networks_that_are_allowed() -> None:
    """A value that is not a network is refused by name."""
    settings = Settings(outbound_allow="10.1.2.3, fd00::/8")
    assert settings.outbound_rules == OutboundRules((ip_network("10.1.2.3/32"), ip_network("fd00::/8")))
    with pytest.raises(
        SettingsError, match=r"outbound_allow contains ntfy\.internal, which is not an IP address or network"
    ):
        Settings.load({"BIRDWIRE_OUTBOUND_ALLOW": "10.0.0.0/8,ntfy.internal"})
    with pytest.raises(SettingsError, match=r"outbound_allow contains 10\.0\.0\.1/8"):
        Settings.load({"BIRDWIRE_OUTBOUND_ALLOW": "10.0.0.1/8"})


@pytest.mark.parametrize(("x_api_url", "loopback"), [("https://api.x.com", False), ("http://127.0.0.1:8701", True)])
def test_this_machine_is_allowed_while_x_is_the_sandbox(x_api_url: str, loopback: bool) -> None:  # noqa: FBT001 - the same
    """By the same rule that decides which keys are created."""
    assert Settings(x_api_url=x_api_url).outbound_rules.loopback is loopback
