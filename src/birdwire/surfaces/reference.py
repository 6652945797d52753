"""Writes docs/reference as Markdown: calls, refusals, rules, settings, metrics. `make docs` runs this module."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from birdwire.api.errors import PROBLEMS
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.rules import RULES
from birdwire.runtime.metrics import METRICS
from birdwire.settings import PREFIX, Settings
from birdwire.surfaces.openapi.document import TITLES, document
from birdwire.surfaces.openapi.outline import Listed, Member, outline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from birdwire.gateway.guardrails.presets import Preset

_SHAPE = """\
Every refusal is one JSON object, `error`, with `type`, `code`, `message`, `request_id`, `reason`, `fix`, `whose`, \
`retryable` and, if X responded, `upstream`. Birdwire replaces the text in braces below with the details of \
the refusal."""
_SOURCES = """\
Set these options in the environment, or by their short names in the TOML file that `--config` or `BIRDWIRE_CONFIG` \
names. Environment variables take precedence."""
_COUNTED = """\
`GET /metrics` returns these in the Prometheus text format: on a separate port (`BIRDWIRE_METRICS_PORT`), or on the \
main port with a token (`BIRDWIRE_METRICS_TOKEN`). In addition, `process_*` reports processor time, memory and open \
files. No label contains a user, a key or an id."""
_RULED = """\
A policy is a JSON object of these rules. `birdwire policy set` takes them in shorthand, or as JSON on standard input. \
All findings are reported, denials first, in the order of this table. [guardrails.md](../guardrails.md) explains \
them."""
_PRESET = """\
`birdwire keys create --preset NAME` and `birdwire policy set SCOPE --preset NAME` copy the rules of a preset. Later \
versions of a preset do not change the copies."""
_MADE = "<!-- Generated from the code by `make docs`. Do not edit. -->"


def pages() -> dict[str, str]:
    """Return every file of the reference: its text, by name."""
    return {
        "operations.md": _operations(),
        "errors.md": _errors(),
        "rules.md": _rules(),
        "settings.md": _settings(),
        "metrics.md": _metrics(),
    }


def write(directory: Path) -> None:
    """Write the reference into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


def _operations() -> str:
    made = document(Settings())
    blocks = ["# Calls", _MADE, made["info"]["description"]]
    for section in outline(made):
        blocks += [f"## {section.name}", section.words]
        for call in section.calls:
            blocks += _call(call)
    return "\n\n".join(blocks) + "\n"


def _call(call: Listed) -> list[str]:
    blocks = [f"### {call.method} {call.path}", f"{call.summary}. {call.description}", f"```sh\n{call.curl}\n```"]
    if call.takes:
        blocks += ["Request:", _members("Required", call.takes)]
    if call.answers:
        blocks += [f"Response {call.status}:", _members("Always", call.answers)]
    if call.accepted:
        blocks += ["Response 202, if a person must approve the call first:", _members("Always", call.accepted)]
    refused = [(status, ", ".join(f"`{reason}`" for reason in reasons)) for status, reasons in call.refusals.items()]
    return [*blocks, "Refusals:", _table(("Status", "Reasons"), refused)]


def _members(always: str, members: Iterable[Member]) -> str:
    rows = [(f"`{one.name}`", "yes" if one.required else "", one.form, one.words) for one in members]
    return _table(("Field", always, "Type", "Meaning"), rows)


def _errors() -> str:
    kinds = sorted({(problem.status, problem.type, problem.code) for problem in PROBLEMS.values()})
    statuses = [(str(status), f"`{kind}`", f"`{code}`", TITLES[status]) for status, kind, code in kinds]
    reasons = [
        (
            f"`{reason}`",
            str(problem.status),
            f"`{problem.code}`",
            problem.whose,
            "yes" if problem.retryable else "",
            problem.message,
            problem.fix,
        )
        for reason, problem in PROBLEMS.items()
    ]
    heads = ("Reason", "Status", "Code", "Whose", "Retryable", "Message", "Fix")
    return (
        "\n\n".join(
            (
                "# Refusals",
                _MADE,
                _SHAPE,
                "## Statuses, types and codes",
                _table(("Status", "Type", "Code", "Meaning"), statuses),
                "## Reasons",
                _table(heads, reasons),
            )
        )
        + "\n"
    )


def _rules() -> str:
    rows = [(f"`{rule.name}`", rule.sentence, f"`{rule.form}`", f"`{rule.shorthand}`") for rule in RULES]
    presets = [
        (f"`{name}`", one.sentence, f"`{json.dumps(dict(one.rules))}`" if one.rules else "", _key_rules(one))
        for name, one in PRESETS.items()
    ]
    blocks = ["# Rules", _MADE, _RULED, _table(("Rule", "Meaning", "Value in JSON", "Shorthand"), rows)]
    heads = ("Preset", "Meaning", "Rules", "Rules of the key")
    return "\n\n".join([*blocks, "## Presets", _PRESET, _table(heads, presets)]) + "\n"


def _key_rules(preset: Preset) -> str:
    return "; ".join(f"`{name}`: {', '.join(value)}" for name, value in preset.key_rules.items())


def _settings() -> str:
    rows = [
        (f"`{PREFIX}{name.upper()}`", f"`{name}`", _default(info.default), info.description or "")
        for name, info in Settings.model_fields.items()
    ]
    return (
        "\n\n".join(
            (
                "# Settings",
                _MADE,
                _SOURCES,
                _table(("Environment", "File", "Default", "Meaning"), rows),
            )
        )
        + "\n"
    )


def _metrics() -> str:
    rows = [
        (f"`{name}`", row.kind, row.meaning, "; ".join(f"`{label}`: {values}" for label, values in row.labels.items()))
        for name, row in METRICS.items()
    ]
    return "\n\n".join(("# Metrics", _MADE, _COUNTED, _table(("Name", "Kind", "Meaning", "Labels"), rows))) + "\n"


def _default(value: object) -> str:
    if value is None or value == "" or isinstance(value, SecretStr):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(heads), *(list(row) for row in rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in cells)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
