"""The gateway's metrics as Prometheus reads them, and access to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from birdwire.runtime.metrics import METRICS, Metrics
from harness.gateway import API, POST, RunningGateway, serving
from harness.raw_http import MEMBERS

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a token for the tests"


async def scrape(running: RunningGateway) -> dict[str, dict[tuple[str, ...], float]]:
    """Each sample's name, and its values by those of its labels."""
    answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def test_metrics_are_off_unless_the_operator_wants_them(running: RunningGateway) -> None:
    """Neither a port nor a token: no such endpoint."""
    answer = await running.bare.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "route_unknown")


async def test_on_the_main_port_they_need_the_token(tmp_path: Path) -> None:
    """A missing or wrong token gets the standard error; an API key is not accepted."""
    async with RunningGateway.built(tmp_path, metrics_token=SecretStr(TOKEN)) as running:
        for sent in ({}, {"authorization": f"Bearer {running.raw_key}"}, {"authorization": TOKEN}):
            answer = await running.bare.get("/metrics", headers=sent)
            assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "metrics_token_wrong")
            assert list(answer.json()["error"]) == list(MEMBERS)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert await scrape(running)


async def test_a_port_of_their_own_needs_no_token_and_leaves_the_main_port_without(tmp_path: Path) -> None:
    """Requests to it are not counted and not logged."""
    async with (
        RunningGateway.built(tmp_path, metrics_port=0) as running,
        serving(running.gateway.metrics_server()) as url,
    ):
        assert (await running.bare.get("/metrics")).status_code == 404
        for _ in range(2):
            answer = await running.bare.get(f"{url}/metrics")
            assert 'birdwire_requests_total{operation="other",reason="route_unknown",status="4xx"} 1.0' in answer.text
        assert (await running.bare.get(f"{url}/livez")).status_code == 404
        assert running.log.getvalue().count('"event":"request"') == 1


async def test_a_token_guards_a_port_of_their_own_too(tmp_path: Path) -> None:
    """If both are set."""
    async with (
        RunningGateway.built(tmp_path, metrics_port=0, metrics_token=SecretStr(TOKEN)) as running,
        serving(running.gateway.metrics_server()) as url,
    ):
        assert (await running.bare.get(f"{url}/metrics")).status_code == 401
        assert (await running.bare.get("/metrics")).status_code == 404
        sent = {"authorization": f"Bearer {TOKEN}"}
        assert (await running.bare.get(f"{url}/metrics", headers=sent)).status_code == 200


async def test_every_name_of_the_table_is_there_and_no_other_of_ours(tmp_path: Path) -> None:
    """The table is what the reference is made of; what is watched has an owner that tells it."""
    async with RunningGateway.built(tmp_path, metrics_token=SecretStr(TOKEN)) as running:
        answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        typed = dict(line.split()[2:4] for line in answer.text.splitlines() if line.startswith("# TYPE"))
        ours = {name: kind for name, kind in typed.items() if name.startswith("birdwire_")}
        assert ours == {name: row.kind for name, row in METRICS.items()}
        assert "process_resident_memory_bytes" in typed
        silent = {"birdwire_writes_total"}  # until there are some
        assert {name for name, row in METRICS.items() if row.watched} - silent <= set(await scrape(running))


async def test_requests_and_calls_to_x_are_counted_by_outcome(tmp_path: Path) -> None:
    """Operation, class of status and reason; endpoint at X without ids, and outcome."""
    async with RunningGateway.built(tmp_path, metrics_token=SecretStr(TOKEN)) as running:
        await running.link("ada")
        for _ in range(2):
            assert (await running.like()).status_code == 200
        await running.like("none")
        await running.fault("POST", "/2/tweets", {"status": 503})
        await running.call("post_twitter", {"text": "Hello"})
        await running.bare.get(API + "auth/status")
        counted = await scrape(running)
    requests, calls = counted["birdwire_requests_total"], counted["birdwire_x_calls_total"]
    assert requests["like_twitter", "", "2xx"] == 2
    assert requests["like_twitter", "tweet_id_malformed", "4xx"] == 1
    assert requests["auth/status", "key_missing", "4xx"] == 1
    assert calls["POST /2/users/:id/likes", "2xx"] == 2
    assert calls["POST /2/tweets", "5xx"] == 1
    assert requests["post_twitter", "outcome_unknown", "5xx"] == 1
    assert counted["birdwire_writes_total"] == {("confirmed",): 2, ("unknown",): 1}
    assert counted["birdwire_request_seconds_count"]["like_twitter",] == 3
    assert counted["birdwire_request_seconds_sum"]["like_twitter",] > 0
    assert counted["birdwire_x_connections_opened_total"]["calls",] >= 1
    assert counted["birdwire_x_connections_opened_total"]["tokens",] >= 1


@pytest.mark.trust("G7")
async def test_no_label_names_a_user_a_key_or_a_secret(tmp_path: Path) -> None:
    """After calls of every kind, nothing of whose they were is in the text."""
    async with RunningGateway.built(tmp_path, metrics_token=SecretStr(TOKEN)) as running:
        await running.link("ada")
        user_id = str((await running.status())["user_id"])
        await running.like()
        await running.client.get(API + "user/info", params={"userName": "grace"})
        await running.client.get(API + "user/last_tweets", params={"userName": "grace"})
        await running.client.get(API + "requests/req_01M8")
        await running.bare.get("/apis/v1/canary?state=canary")
        answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    for private in (user_id, running.key_id, running.raw_key, TOKEN, POST, "ada", "grace", "canary", "req_"):
        assert private not in answer.text


def test_a_name_has_a_bounded_number_of_series() -> None:
    """Any further value counts as `other`, so that callers cannot fill the memory."""
    counted = Metrics(max_series=3)
    for number in range(10):
        counted.add("birdwire_x_calls_total", f"GET /{number}", "2xx")
        counted.time("birdwire_x_call_seconds", 0.1, f"GET /{number}")
    samples = {family.name: family.samples for family in counted.collect()}
    calls = {tuple(sample.labels.values()): sample.value for sample in samples["birdwire_x_calls"]}
    assert calls["other", "other"] == 7
    assert len(calls) == 4
    assert {sample.labels["endpoint"] for sample in samples["birdwire_x_call_seconds"]} == {
        *(f"GET /{number}" for number in range(3)),
        "other",
    }


def test_durations_are_counted_in_the_right_buckets() -> None:
    """A bucket counts all that took no longer than its bound (Prometheus's `le`)."""
    counted = Metrics()
    for seconds in (0.001, 0.0011, 99.0):
        counted.time("birdwire_request_seconds", seconds, "like_twitter")
    [family] = [family for family in counted.collect() if family.name == "birdwire_request_seconds"]
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels}
    assert (buckets["0.001"], buckets["0.0025"], buckets["30.0"], buckets["+Inf"]) == (1, 2, 2, 3)


def test_a_counter_cannot_also_be_a_gauge() -> None:
    """One number, one owner."""
    with pytest.raises(ValueError, match="counted"):
        Metrics().watch("birdwire_requests_total", float)
