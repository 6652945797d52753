"""The words for people: their examples are run, and what they name exists."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from birdwire.api.errors import PROBLEMS
from birdwire.api.paths import OAUTH_CALLBACK
from birdwire.cli.command_line import COMMANDS, build, load
from birdwire.keys.secrets import mint
from birdwire.settings import CLIENT_NAMES, PREFIX, Settings
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.client.auth_server import DEFAULT_SCOPES
from harness.pages import FENCE, ROOT, Reader, blocks, dev_gateway, steps, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"))
)
README = (ROOT / "README.md").read_text("utf-8")

INDENTED = re.compile(r"^ {4,}(?![-*|\d ])(.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s/(])birdwire (?!-- )([a-z-].*)")


def code(page: str) -> list[str]:
    """Everything that is set as code: each line of a block, each span within a line."""
    text = text_of(page)
    fenced = "".join(body for _, body in FENCE.findall(text)).replace("\\\n", " ")
    prose = FENCE.sub("", text)
    return [*fenced.splitlines(), *INDENTED.findall(prose), *CODE.findall(prose)]


# The guides have tests of their own, in test_guide.py and test_notifications_guide.py.
GUIDES = {"docs/guardrails.md", "docs/approvals.md", "docs/notifications.md"}
CONSOLE_PAGES = [page for page in PAGES if blocks(page, "console") and page not in GUIDES]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader at a fresh `birdwire dev`, where ada has approved."""
    with dev_gateway(tmp_path) as found:
        yield found


@pytest.mark.parametrize("page", CONSOLE_PAGES)
def test_a_page_s_examples_return_what_the_page_shows(reader: Reader, page: str) -> None:
    """Every console block, from top to bottom, against a running gateway and sandbox."""
    for block in blocks(page, "console"):
        for step in steps(block):
            reader.do(step)


def test_the_first_screen_has_the_two_commands_and_a_like() -> None:
    """A reader of thirty lines can run, test and like."""
    screen = "\n".join(README.splitlines()[:32])
    assert all(word in screen for word in ("make run", "make test", "like_twitter", '{"data":{"liked":true}}'))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """A linked file exists, and a linked heading is in it."""
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in slugs, target


@pytest.mark.parametrize("page", PAGES)
def test_every_named_file_exists(page: str) -> None:
    """By its path in the repository, or in src/birdwire."""
    named = re.findall(r"(?<![\w/.])(?:[\w-]+/)+[\w-]+\.(?:py|js)\b", text_of(page))
    assert [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "src/birdwire"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    """As the Makefile lists them."""
    targets = set(re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE))
    named = {
        word for line in code(page) for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", line) for word in words.split()
    }
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_exists(page: str) -> None:
    """Those of the environment, and those of a settings file."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + name for name in CLIENT_NAMES}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", text_of(page))) <= known
    assert {name for line in code(page) for name in re.findall(r"^([a-z_]+) = \"", line)} <= set(Settings.model_fields)


@cache
def parameters(name: str, sub: str) -> frozenset[str] | None:
    """Return the options of a command, or None for an unknown command."""
    if name not in {row.name for row in COMMANDS}:
        return None
    command = load(name)
    inner = getattr(command, "commands", {})
    if sub and inner:
        command = inner.get(sub)
    return command and frozenset(option for parameter in command.params for option in parameter.opts)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_its_options_exist(page: str) -> None:
    """As the command line has them today."""
    top = {option for parameter in get_command(build()).params for option in parameter.opts}
    for line in code(page):
        for words in COMMAND.findall(line):
            name, *rest = re.sub(r"[`#|].*", "", words).split()
            sub = next((word for word in rest[:1] if re.fullmatch(r"[a-z]+", word)), "")
            known = parameters(name, sub)
            assert known is not None, words
            assert {word for word in rest if word.startswith("-") and word != "-"} <= known | top | {"--help"}, words


def test_every_operation_and_look_up_is_in_the_table_of_what_x_allows() -> None:
    """None is left out of the README's honest table."""
    table = README.split("## Will X let you do this?")[1].split("\n## ")[0]
    names = [*(operation.name for operation in OPERATIONS), *(look_up.name for look_up in LOOKUPS)]
    assert [name for name in names if f"`{name}`" not in table] == []


def test_the_x_app_is_described_as_the_gateway_needs_it() -> None:
    """The callback's path and the scopes are the code's own."""
    assert f"`https://YOUR-HOST{OAUTH_CALLBACK}`" in README
    assert f"`{' '.join(DEFAULT_SCOPES)}`" in README


def test_every_reason_in_the_guide_to_errors_is_one() -> None:
    """Every first cell of its tables is declared, with the status that is said; and so is whose each can be."""
    rows = re.findall(
        r"^\| `([a-z0-9_]+)`((?:, `[a-z0-9_]+`)*) \|(?: (\d{3}) \|)?", text_of("docs/errors.md"), re.MULTILINE
    )
    members = {"type", "code", "reason", "message", "fix", "whose", "retryable", "request_id", "upstream", "findings"}
    whose = {problem.whose for problem in PROBLEMS.values()}
    reasons = [
        (name, status)
        for first, others, status in rows
        for name in (first, *re.findall(r"`(\w+)`", others))
        if name not in members | whose
    ]
    assert len(reasons) > 15
    assert [name for name, _ in reasons if name not in PROBLEMS] == []
    assert [name for name, status in reasons if status and int(status) != PROBLEMS[name].status] == []
    assert whose <= {first for first, _, _ in rows}


def test_the_scanner_s_rule_finds_every_key() -> None:
    """The published expression matches fresh keys in a text, and nothing shorter."""
    rule = re.compile(blocks("docs/security.md", "regex")[0].strip())
    for key in (mint("live"), mint("test")):
        found = rule.search(f"key={key};")
        assert found is not None
        assert found[0] == key
        assert not rule.search(f"key={key[:-1]};")


def test_the_map_names_every_module_of_the_gateway() -> None:
    """docs/design.md names each module once, in the row of its package, and no module that does not exist."""
    source = ROOT / "src" / "birdwire"
    programs, skipped = {"cli", "sandbox"}, {"__init__", "__main__"}
    paths = [path.relative_to(source).with_suffix("") for path in source.rglob("*.py")]
    modules = {
        str(path) for path in paths if path.name not in skipped and not {*programs, "migrations"} & {*path.parts}
    }
    table = text_of("docs/design.md").split("## The map")[1].split("\n## ")[0]
    named = []
    for package, names in re.findall(r"^\| `([a-z/]*)` \|[^|]*\| (.+) \|$", table, re.MULTILINE):
        named += [f"{package}{name}" for name in re.findall(r"`(\w+)`", names)]
    assert sorted(named) == sorted(modules)


def test_the_guide_states_how_long_every_table_is_kept() -> None:
    """Nothing is stored that docs/operating.md does not own up to."""
    chapter = text_of("docs/operating.md").split("## Retention")[1].split("\n## ")[0]
    store = "".join(path.read_text("utf-8") for path in (ROOT / "src" / "birdwire" / "store").rglob("*.py"))
    tables = re.findall(r"= Table\(\s*\"(\w+)\"", store)
    assert len(tables) > 10
    assert [name for name in tables if f"`{name}`" not in chapter] == []


def test_decisions_are_numbered_in_a_row() -> None:
    """One page for each number, which its heading repeats; the list begins at 1 and has no gap."""
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:5] for path in files] == [f"{number:04}-" for number in range(1, len(files) + 1)]
    for number, path in enumerate(files, 1):
        text = path.read_text("utf-8")
        assert text.startswith(f"# {number}. "), path.name
        assert len(text.splitlines()) <= 60, path.name
