"""The published description: equal to the live routes, as strict as the code, valid, and in the tree as generated."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonschema import ValidationError, validators  # type: ignore[import-untyped]
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import birdwire
from birdwire.accounts.bodies import AuthTwitter, Confirm, Undo
from birdwire.api import relay_dialect
from birdwire.api.body import check
from birdwire.api.errors import PROBLEMS, REQUIRED, GatewayError
from birdwire.api.paths import MCP
from birdwire.keys.rules import MAX_TEXT_LIMIT
from birdwire.settings import Settings
from birdwire.surfaces import reference
from birdwire.surfaces.openapi.document import document
from birdwire.surfaces.openapi.endpoints import endpoints, fields
from birdwire.surfaces.openapi.reasons import BEYOND_SCHEMA
from birdwire.surfaces.openapi.schemas import EXAMPLES
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.x.catalog.operations import OPERATIONS, TweetTarget, UserTarget
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.client.auth_server import DEFAULT_SCOPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from birdwire.api.models import Body
    from harness.gateway import RunningGateway

ROOT = Path(birdwire.__file__).parent.parent.parent
DOCUMENT = document(Settings())
REGISTRY: Registry[Any] = Registry().with_resource(
    "urn:birdwire", Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
)


def _pattern(_: object, pattern: str, value: object, __: object) -> Iterator[ValidationError]:
    """ECMA 262's `$` is the end of the text; Python's would let a newline stand after it."""
    exact = pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern
    if isinstance(value, str) and not re.search(exact, value):
        yield ValidationError(f"{value!r} does not match {pattern}")


Strict = validators.extend(OAS31Validator, {"pattern": _pattern})


def validator(place: str) -> Any:
    """The validator of a schema of the document, by its JSON pointer."""
    return Strict({"$ref": f"urn:birdwire#{place}"}, registry=REGISTRY)


def found(value: Any, name: str) -> Iterator[Any]:
    """Every value of a member of this name, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name:
                yield inner
            yield from found(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from found(inner, name)


OPERATION_LIST = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


@pytest.mark.parametrize(
    "changed",
    [{}, {"relay_dialect": False}, {"reads": ""}, {"reads": "user/search"}, {"metrics_token": "a token for tests"}],
)
def test_the_document_lists_what_is_live_and_nothing_else(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the operator switched something off. Aliases of older clients are left out on purpose, and so is MCP."""
    from birdwire.app import create_app  # noqa: PLC0415 - heavy, and for this test alone
    from birdwire.store.encryption.key_files import create_key_file  # noqa: PLC0415 - the same

    monkeypatch.chdir(tmp_path)
    create_key_file(tmp_path / "vault.key")
    settings = Settings.model_validate({"vault_key_file": tmp_path / "vault.key", **changed})
    live = {(route.method, route.path) for route in create_app(settings).routes}
    aliases = {
        (method, relay_dialect.aliases(path)[-1]) for method, path in live if len(relay_dialect.aliases(path)) > 1
    }
    listed = {(method.upper(), path) for path, methods in document(settings)["paths"].items() for method in methods}
    assert listed == live - aliases - {("POST", MCP)}


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    """OpenAPI 3.1 takes JSON Schema 2020-12 as it is."""
    for schema in [*DOCUMENT["components"]["schemas"].values(), *found(DOCUMENT["paths"], "schema")]:
        if isinstance(schema, dict):
            OAS31Validator.check_schema(schema)
    resolver = REGISTRY.resolver("urn:birdwire")
    for place in set(found(DOCUMENT, "$ref")):
        assert resolver.lookup(place).contents


def test_every_schema_is_an_object() -> None:
    """Generators refuse the whole document for a schema that is `true`, though JSON Schema has it."""
    for name in ("schema", "items", "additionalItems", "not", "if", "then"):
        assert not [inner for inner in found(DOCUMENT, name) if not isinstance(inner, dict)], name
    for properties in found(DOCUMENT, "properties"):
        assert all(isinstance(inner, dict) for inner in properties.values())


def test_the_document_is_small_and_has_one_type_of_error() -> None:
    """Generators make a type of each schema that a response has, so all refusals refer to one."""
    assert len(json.dumps(DOCUMENT, ensure_ascii=False).encode()) <= 300_000
    accepted = DOCUMENT["components"]["responses"]["Accepted"]
    for response in DOCUMENT["components"]["responses"].values():
        if response is accepted:
            continue
        assert response["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/Error"
        assert all("$ref" in header for header in response["headers"].values())
    for _, _, operation in OPERATION_LIST:
        refused = [response for status, response in operation["responses"].items() if status >= "4"]
        assert refused
        assert all(list(response) == ["$ref"] for response in refused)


def test_operations_have_names_of_their_own() -> None:
    """Generators of clients make functions of them."""
    names = [operation["operationId"] for _, _, operation in OPERATION_LIST]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][A-Za-z]+", name) for name in names)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_served_documents_are_the_document(shared_gateway: RunningGateway) -> None:
    """JSON and YAML say the same, and what is served is what the settings make."""
    wanted = document(shared_gateway.settings)
    answers = {path: await shared_gateway.bare.get(path) for path in DOCUMENTS}
    assert answers["/openapi.json"].json() == wanted
    assert yaml.safe_load(answers["/openapi.yaml"].text) == wanted
    for path, answer in answers.items():
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == DOCUMENTS[path][0]
        assert answer.headers["access-control-allow-origin"] == "*"


def test_every_field_has_a_description_and_a_valid_example() -> None:
    """The description, a form, and an example, for every member that a caller may send."""
    for endpoint in endpoints(Settings()):
        for name, _ in fields(endpoint.takes):
            assert EXAMPLES[name] is not None
    for name in (
        "PostTwitter",
        "TweetTarget",
        "UserTarget",
        "AuthTwitter",
        "Confirm",
        "Undo",
        "Reply",
        "Media",
        "Poll",
    ):
        for field, schema in DOCUMENT["components"]["schemas"][name]["properties"].items():
            assert schema["description"], f"{name}.{field}"
            place = validator(f"/components/schemas/{name}/properties/{field}")
            assert [place.is_valid(example) for example in schema["examples"]] == [True], f"{name}.{field}"


def test_no_caller_may_send_null_or_a_member_more() -> None:
    """The code refuses both, so the schemas do."""
    asked = json.dumps([operation.get("requestBody") for _, _, operation in OPERATION_LIST])
    assert '"null"' not in asked
    takers = [endpoint for endpoint in endpoints(Settings()) if endpoint.method == "POST" and not endpoint.dry]
    for name in {endpoint.takes.__name__ for endpoint in takers} | {"Poll"}:
        schema = DOCUMENT["components"]["schemas"].get(name, {"additionalProperties": False})
        assert schema["additionalProperties"] is False
        assert '"null"' not in json.dumps(schema)


EVERYTHING = {
    "text": "Hello, world!",
    "reply": {"in_reply_to_tweet_id": "1", "auto_populate_reply_metadata": True, "exclude_reply_user_ids": ["2"]},
    "media": {"media_ids": ["1", "2"], "tagged_user_ids": ["3"]},
    "geo": {"place_id": "a"},
    "reply_settings": "verified",
    "made_with_ai": True,
    "community_id": "4",
    "edit_options": {"previous_post_id": "5"},
}
POLL = {"text": "?", "poll": {"options": ["a", "b"], "duration_minutes": 5, "reply_settings": "following"}}
SOUND: list[tuple[type[Body], dict[str, Any]]] = [
    (TweetTarget, {"tweet_id": "1346889436626259968"}),
    (UserTarget, {"target_user_id": "0"}),
    (AuthTwitter, {"scopes": ["like.write"], "expected_username": "@ada", "return_to": "https://app.example.com"}),
    (Confirm, {"state": "s", "username": "ada"}),
    (Undo, {"undo_token": "t"}),
    (PostTwitter, EVERYTHING),
    (PostTwitter, POLL),
    (PostTwitter, {"text": "x", "quote_tweet_id": "1"}),
    (PostTwitter, {"text": "x", "card_uri": "card://1"}),
    (PostTwitter, {"text": "x", "direct_message_deep_link": "https://x.com/messages"}),
]
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        1,
        4,
        5,
        10_080,
        10_081,
        1.5,
        60.0,
        "",
        " ",
        "1",
        "x",
        "1" * 19,
        "1" * 20,
        "1\n",
        "+1",
        "\u0661",
        "a\x00b",
        "\x7f",
    ),
    *([], {}, ["1"], ["1"] * 4, ["1"] * 5, ["1"] * 11, [1], [None], ["a" * 25] * 2, ["a" * 26] * 2, ["", "a"], [["1"]]),
    *({"x": 1}, {"media_ids": ["1"]}, {"place_id": None}, "following", "x" * 2_001, "\u2003", "\u0085"),
)


def mutants(value: Any) -> Iterator[Any]:
    """The value with each of its members, at any depth, left out or replaced by something odd; and with one more."""
    if not isinstance(value, dict):
        return
    yield {**value, "more": 1}
    for name, inner in value.items():
        rest = {key: other for key, other in value.items() if key != name}
        yield rest
        for odd in ODD:
            yield {**rest, name: copy.deepcopy(odd)}
        for mutant in mutants(inner):
            yield {**rest, name: mutant}


def taken(model: type[Body], value: Any) -> bool:
    """What the code says."""
    try:
        body = check(value, model, {"text_limit": MAX_TEXT_LIMIT})
    except GatewayError:
        return False
    return not isinstance(body, AuthTwitter) or set(body.scopes) <= set(DEFAULT_SCOPES)


@pytest.mark.parametrize(("model", "value"), SOUND, ids=lambda item: getattr(item, "__name__", ""))
def test_the_schemas_are_as_strict_as_the_code(model: type[Body], value: dict[str, Any]) -> None:
    """Whatever is wrong with a body, both say so; and both take it if nothing is."""
    says = validator(f"/components/schemas/{model.__name__}")
    assert says.is_valid(value)
    assert taken(model, value)
    pairs = [*mutants(value)]
    if model is PostTwitter:
        pairs += [value | {"quote_tweet_id": "1"}, value | {"card_uri": "c"}, value | POLL, {"quote_tweet_id": "1"}]
    verdicts = {True: 0, False: 0}
    for mutant in pairs:
        verdict = taken(model, mutant)
        verdicts[verdict] += 1
        placeless = mutant.get("geo") == {}  # the published schema takes it, and X does not
        assert says.is_valid(mutant) == (verdict or placeless), mutant
    assert verdicts[False] > 10


def test_the_examples_of_requests_are_taken() -> None:
    """By the schema and by the code."""
    models = {endpoint.operation_id: endpoint.takes for endpoint in endpoints(Settings())}
    seen = 0
    for _, path, operation in OPERATION_LIST:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            check(example["value"], models[operation["operationId"]])
            assert validator(content["schema"]["$ref"].removeprefix("#")).is_valid(example["value"]), path
            seen += 1
    assert seen > len(OPERATIONS)


def test_every_reason_is_documented_where_it_can_occur() -> None:
    """Except what no listed call answers: another method, the metrics, which the operator has to switch on, and MCP."""
    told = {
        reason
        for schema in found(DOCUMENT["components"]["responses"], "reason")
        if isinstance(schema, dict)
        for reason in schema["enum"]
    }
    unlisted = {
        "method_not_allowed",
        "metrics_token_wrong",
        "arguments_malformed",
        "tool_unavailable",
        "mcp_unavailable",
    }
    assert set(PROBLEMS) - told == unlisted


def test_each_rule_beyond_a_schema_is_one_of_its_operation() -> None:
    """It names a reason for which the operation answers 400."""
    known = {endpoint.operation_id: endpoint.reasons for endpoint in endpoints(Settings())}
    for operation, rules in BEYOND_SCHEMA.items():
        for reason in rules:
            assert reason in known[operation]
            assert PROBLEMS[reason].status == 400


def test_a_field_may_be_missed_if_a_call_needs_it() -> None:
    """A post's text, its place's id and the file of an upload are needed by rules that no schema tells.

    The page's own form has no reason for each field: a person does not fill them in.
    """
    takers = [endpoint for endpoint in endpoints(Settings()) if endpoint.form != "only"]
    needed = {name for endpoint in takers for name, required in fields(endpoint.takes) if required}
    assert {*needed, "text", "place_id", "media_files"} == set(REQUIRED)


def test_a_dry_run_takes_any_object() -> None:
    """A body that the call would refuse is no error of the dry run: the answer has the refusal."""
    dry = [endpoint for endpoint in endpoints(Settings()) if endpoint.dry]
    assert [endpoint.path.rpartition("/")[2] for endpoint in dry] == [row.name for row in OPERATIONS]
    assert validator("/components/schemas/AnyBody").is_valid({"no_such_field": None})
    assert not validator("/components/schemas/AnyBody").is_valid([])
    for endpoint in dry:
        parameters = DOCUMENT["paths"][endpoint.path]["post"].get("parameters", [])
        assert not parameters, "it takes no Idempotency-Key"


def test_a_write_that_may_wait_shows_the_answer_to_it() -> None:
    """With where to poll and when; an upload and a lookup never wait for a person."""
    response = DOCUMENT["components"]["responses"]["Accepted"]
    content = response["content"]["application/json"]
    place = validator("/components/responses/Accepted/content/application~1json/schema")
    assert [error.message for error in place.iter_errors(content["example"])] == []
    assert not place.is_valid({"data": {}})
    for name in ("X-Request-Id", "Location", "Retry-After"):
        assert DOCUMENT["components"]["headers"][response["headers"][name]["$ref"].rsplit("/", 1)[-1]]["required"]
    waiting = {path for _, path, operation in OPERATION_LIST if "202" in operation["responses"]}
    assert {path.rsplit("/", 1)[-1] for path in waiting} == {row.name for row in OPERATIONS if not row.takes_file}
    preferring = {
        path for _, path, one in OPERATION_LIST for given in one.get("parameters", []) if given["name"] == "Prefer"
    }
    assert preferring - waiting == {"/apis/v1/twitter/requests/{request_id}"}


def test_every_refusal_shows_one_that_fits_its_schema() -> None:
    """With every blank filled in."""
    for name, response in DOCUMENT["components"]["responses"].items():
        if name == "Accepted":
            continue
        content = response["content"]["application/json"]
        place = validator(f"/components/responses/{name}/content/application~1json/schema")
        assert [error.message for error in place.iter_errors(content["example"])] == []
        assert "{" not in content["example"]["error"]["message"]
        error = content["example"]["error"]
        assert "unknown" in PROBLEMS[error["reason"]].message or not re.search(r"\bunknown\b", error["message"]), name


def test_refusals_are_grouped_by_status() -> None:
    """Each with the headers that the status demands."""
    demanded = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After"}
    for _, _, operation in OPERATION_LIST:
        for status, response in operation["responses"].items():
            if status >= "4":
                whole = DOCUMENT["components"]["responses"][response["$ref"].rsplit("/", 1)[-1]]
                reasons = next(found(whole["content"]["application/json"]["schema"], "reason"))["enum"]
                assert {PROBLEMS[reason].status for reason in reasons} == {int(status)}
                for name in ("X-Request-Id", *([demanded[status]] if status in demanded else ())):
                    place = whole["headers"][name]["$ref"].rsplit("/", 1)[-1]
                    assert DOCUMENT["components"]["headers"][place]["required"]


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_the_reference_in_the_tree_is_what_the_code_makes(name: str) -> None:
    """`make docs` regenerates it."""
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == reference.pages()[name]


def test_the_reference_has_every_call_setting_and_reason() -> None:
    """Walked from the tables, not from the document."""
    made = reference.pages()
    for endpoint in endpoints(Settings()):
        assert f"### {endpoint.method} {endpoint.path}\n" in made["operations.md"]
    for name in Settings.model_fields:
        assert f"`BIRDWIRE_{name.upper()}`" in made["settings.md"]
    for reason in PROBLEMS:
        assert f"| `{reason}` |" in made["errors.md"]


class _Links(HTMLParser):
    """What a page refers to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Gather."""
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"href", "src", "action"}:
                self.places.append(value or "")
            if name == "id":
                self.anchors.add(value or "")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_loads_nothing_and_runs_nothing(shared_gateway: RunningGateway) -> None:
    """Its links stay on it or on this host, each anchor is there, and its policy allows its one style alone."""
    answer = await shared_gateway.bare.get("/docs")
    page = _Links()
    page.feed(answer.text)
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "form"})
    assert all(place.startswith(("#", "/")) and not place.startswith("//") for place in page.places)
    assert {place[1:] for place in page.places if place.startswith("#")} <= page.anchors
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for endpoint in endpoints(shared_gateway.settings):
        assert endpoint.path in answer.text


@pytest.mark.asyncio(loop_scope="module")
async def test_agents_find_every_operation(shared_gateway: RunningGateway) -> None:
    """In the card, and in the text for language models; the manifest leads to the description."""
    card = (await shared_gateway.bare.get("/.well-known/agent-card.json")).json()
    assert {skill["id"] for skill in card["skills"]} == {row.name for row in OPERATIONS}
    assert all(skill["name"] and skill["description"] and skill["tags"] for skill in card["skills"])
    assert {"protocolVersion", "name", "description", "url", "version", "capabilities"} <= card.keys()
    plugin = (await shared_gateway.bare.get("/.well-known/ai-plugin.json")).json()
    assert (await shared_gateway.bare.get(plugin["api"]["url"])).json()["openapi"] == "3.1.0"
    assert len(plugin["description_for_human"]) <= 100
    text = (await shared_gateway.bare.get("/llms.txt")).text
    assert text.startswith("# Birdwire\n\n> ")
    # An agent that does not know what 202 means takes a post that waits for a published one.
    assert all("202" in how for how in (text, card["description"], plugin["description_for_model"]))
    for row in OPERATIONS:
        assert f"/apis/v1/twitter/{row.name}]" in text
