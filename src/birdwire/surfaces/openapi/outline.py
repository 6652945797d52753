"""The OpenAPI document as an outline for pages that people read: calls, their fields, a curl line, refusals."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a body, a query or an answer: its dotted name, its form in words, its meaning."""

    name: str
    form: str
    required: bool
    words: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One call. `accepted` are the members of its answer while a person must approve it first."""

    method: str
    path: str
    summary: str
    description: str
    needs_key: bool
    curl: str
    takes: list[Member] = field(default_factory=list)
    status: str = "200"
    answers: list[Member] = field(default_factory=list)
    accepted: list[Member] = field(default_factory=list)
    refusals: dict[str, list[str]] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Return the name of its place on a page."""
        return re.sub(r"[^A-Za-z0-9_]+", "-", self.path).strip("-")


@dataclass(frozen=True, slots=True)
class Section:
    """The calls of one tag."""

    name: str
    words: str
    calls: list[Listed]


def outline(document: dict[str, Any]) -> list[Section]:
    """Return the document's calls, by tag, in its order."""
    resolved = _Resolved(document)
    listed = [
        (operation["tags"][0], resolved.call(path, method, operation))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return [
        Section(tag["name"], tag["description"], [call for name, call in listed if name == tag["name"]])
        for tag in document["tags"]
    ]


class _Resolved:
    """A document with its references resolved."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def call(self, path: str, method: str, operation: dict[str, Any]) -> Listed:
        success = next(status for status in operation["responses"] if status.startswith("2"))
        return Listed(
            method.upper(),
            path,
            operation["summary"],
            operation["description"],
            bool(operation["security"]),
            self._curl(path, method, operation),
            self._taken(operation),
            success,
            self._members(_json_of(operation["responses"][success])),
            self._members(_json_of(self._followed(operation["responses"].get("202", {})))),
            {
                status: self._reasons(self._followed(response))
                for status, response in operation["responses"].items()
                if status >= "4"
            },
        )

    def _followed(self, value: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in value:
            found: Any = self._document
            for step in value["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            value = found | {key: inner for key, inner in value.items() if key != "$ref"}
        return value

    def _curl(self, path: str, method: str, operation: dict[str, Any]) -> str:
        parameters = operation.get("parameters", [])
        for parameter in parameters:
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
        words = [f"curl {shlex.quote(self._document['servers'][0]['url'] + path)}"]
        if operation["security"]:
            words.append('-H "Authorization: Bearer $BIRDWIRE_API_KEY"')
        asked = [one for one in parameters if one["in"] == "query" and "example" in one]
        needed = [one for one in asked if one["required"]] or asked[:1]
        if needed:
            words += [
                "--get",
                *(f"--data-urlencode {shlex.quote(one['name'] + '=' + one['example'])}" for one in needed),
            ]
        if method == "post":
            words += _sent(operation["requestBody"]["content"])
        return " \\\n  ".join(words)

    def _taken(self, operation: dict[str, Any]) -> list[Member]:
        found = [
            Member(one["name"], f"{self._form(one['schema'])}, {one['in']}", one["required"], one["description"])
            for one in operation.get("parameters", [])
        ]
        content = operation.get("requestBody", {}).get("content", {})
        for media in list(content.values())[:1]:
            found += self._members(media["schema"])
        return found

    def _members(self, schema: Any, before: str = "") -> list[Member]:
        schema = self._inner(schema)
        found = []
        for name, inner in schema.get("properties", {}).items():
            member = self._followed(inner)
            words = inner.get("description", member.get("description", ""))
            found.append(Member(before + name, self._form(inner), name in schema.get("required", []), words))
            found += self._members(inner, f"{before}{name}.")
        return found

    def _inner(self, schema: Any) -> dict[str, Any]:
        """Return the object that a schema describes: itself, or the item of a list."""
        if not isinstance(schema, dict):
            return {}
        schema = self._followed(schema)
        return self._inner(schema["items"]) if isinstance(schema.get("items"), dict) else schema

    def _form(self, schema: dict[str, Any]) -> str:
        schema = self._followed(schema)
        if "anyOf" in schema and "type" not in schema:
            return " or ".join(self._form(option) for option in schema["anyOf"])
        kinds = schema.get("type", "value")
        words = [kinds if isinstance(kinds, str) else " or ".join(kinds)]
        if "items" in schema:
            words[0] = words[0].replace("array", f"list of {self._form(schema['items'])}")
        if "const" in schema:
            words.append(json.dumps(schema["const"]))
        if "enum" in schema:
            words.append("one of " + ", ".join(str(option) for option in schema["enum"] if option is not None))
        words += [schema["pattern"]] if "pattern" in schema else []
        for lower, upper, unit in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", " characters"),
            ("minItems", "maxItems", " items"),
        ):
            if upper in schema:
                words.append(f"{schema.get(lower, 0)} to {schema[upper]}{unit}")
        return ", ".join(words)

    def _reasons(self, response: dict[str, Any]) -> list[str]:
        narrowed = response["content"]["application/json"]["schema"]
        return list(narrowed["properties"]["error"]["properties"]["reason"]["enum"])


def _json_of(response: dict[str, Any]) -> Any:
    return response.get("content", {}).get("application/json", {}).get("schema", {})


def _sent(content: dict[str, Any]) -> list[str]:
    if "multipart/form-data" in content:
        return ["-F media_files=@photo.png"]
    if "application/json" not in content:
        example = next(iter(content["application/x-www-form-urlencoded"]["examples"].values()))["value"]
        return [f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in example.items()]
    example = next(iter(content["application/json"]["examples"].values()))["value"]
    body = shlex.quote(json.dumps(example, ensure_ascii=False))
    return ["-H 'Content-Type: application/json'", f"-d {body}"]
