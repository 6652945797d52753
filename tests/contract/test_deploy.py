"""The examples for several replicas: they name what there is, Kubernetes would take them, and the plain one runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import kubernetes_validate  # type: ignore[import-untyped]  # it brings no types
import pytest
import yaml  # type: ignore[import-untyped]  # neither does it

from birdwire.cli.run_servers import DRAIN_S
from birdwire.settings import CLIENT_NAMES, PREFIX, Settings, SettingsError
from harness.gateway import API, POST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.engines import Postgres, Redis

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
START_S = 60


def documents() -> list[dict[str, Any]]:
    """Every Kubernetes object."""
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    (found,) = (document for document in documents() if document["kind"] == kind)
    return dict(found)


def pods() -> list[dict[str, Any]]:
    """The pod of the gateway, and the one that migrates."""
    return [of_kind(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_an_example_names_only_settings_that_there_are(path: Path) -> None:
    """An unknown name would keep the gateway from starting."""
    known = {name.upper() for name in Settings.model_fields} | CLIENT_NAMES
    assert set(re.findall(rf"\b{PREFIX}(\w+)", path.read_text())) <= known


@pytest.mark.parametrize("version", ["1.25", kubernetes_validate.latest_version()])
def test_kubernetes_would_take_the_manifests(version: str) -> None:
    """By its own schemas, strictly: nothing misspelt, nothing unknown."""
    kinds = {document["kind"] for document in documents()}
    assert {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Secret", "Job"} <= kinds
    assert "NetworkPolicy" in kinds
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_adds_no_variables_of_its_own() -> None:
    """For a Service named birdwire it would set BIRDWIRE_PORT to a URL."""
    assert [pod["enableServiceLinks"] for pod in pods()] == [False, False]


def test_a_pod_is_confined() -> None:
    """No root, no added privileges, nothing writable but /tmp, no token of the cluster."""
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert (confined["allowPrivilegeEscalation"], confined["readOnlyRootFilesystem"]) == (False, True)
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.trust("F9")
def test_a_pod_has_time_to_end_its_calls() -> None:
    """What comes before the signal, the drain, and some to end."""
    pod = pods()[0]
    (container,) = pod["containers"]
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before_s + DRAIN_S + 5
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_every_selector_matches_only_the_deployments_pods() -> None:
    """Service, budget and autoscaler mean the Deployment's pods, and not the Job's."""
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "birdwire"
    assert of_kind("Job")["spec"]["template"]["metadata"]["labels"] != labels


def test_kubernetes_starts_nothing_until_the_trusted_proxies_are_set() -> None:
    """A default that is too wide would let any pod choose the address that Birdwire sees."""
    data = of_kind("ConfigMap")["data"]
    given = {PREFIX + "X_CLIENT_ID": "id", PREFIX + "DATABASE_URL": "postgresql://u@h/d"}
    with pytest.raises(SettingsError, match="trusted_proxies"):
        Settings.load(data | given)
    settings = Settings.load(data | given | {PREFIX + "TRUSTED_PROXIES": "10.42.0.0/16"})
    assert settings.trusted_proxies == "10.42.0.0/16"


def test_a_network_policy_confines_the_pods() -> None:
    """Only the ingress comes in; nothing goes out to the cloud's metadata service or into the cluster's networks."""
    policy = of_kind("NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    for kind in ("Deployment", "Job"):
        labels = of_kind(kind)["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (ingress,) = policy["ingress"]
    assert ingress["from"]
    assert [port["port"] for port in ingress["ports"]] == [8700]
    blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule.get("to", []) if "ipBlock" in to]
    for address in ("169.254.169.254", "10.96.0.1", "192.168.0.1", "fd00:ec2::254"):
        for block in blocks:
            inside = ip_address(address) in ip_network(block["cidr"])
            assert not inside or any(ip_address(address) in ip_network(out) for out in block["except"])
    open_ports = {port["port"] for rule in policy["egress"] if "to" not in rule for port in rule["ports"]}
    assert open_ports == {5432, 6379}


def test_the_redis_of_compose_asks_for_its_password(redis: Redis, tmp_path: Path) -> None:
    """Its command, as the container would run it; the password is in no argument of a process."""
    service = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["redis"]
    assert service["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")
    port, password = _free_ports(1), "canary-redis-password"
    words = [word.replace("$$", "$") for word in service["command"]]
    words[-1] = words[-1].replace("redis-server -", f"redis-server - --port {port} --bind 127.0.0.1 --dir {tmp_path}")
    environment = {"PATH": f"{redis.programs}:{os.defpath}", "REDISCLI_AUTH": password}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            assert process.stdout is not None
            assert any("eady to accept connections" in line for line in process.stdout)
            with socket.create_connection(("127.0.0.1", port), START_S) as line:
                line.sendall(b"PING\r\n")
                assert line.recv(100).startswith(b"-NOAUTH")
                line.sendall(f"AUTH {password}\r\nPING\r\nCONFIG GET maxmemory-policy\r\n".encode())
                answer = b""
                while b"noeviction" not in answer:
                    answer += line.recv(1_000)
                assert answer.startswith(b"+OK\r\n+PONG\r\n")
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert b"redis-server" in arguments.split(b"\0")[0]  # it receives the signals, not a shell
            assert password.encode() not in arguments
        finally:
            process.terminate()


def test_images_have_plain_names_and_secrets_are_no_examples() -> None:
    """Where images come from is the operator's business; a password to copy would be copied."""
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    images = {service["image"] for service in compose["services"].values()}
    images |= {container["image"] for pod in pods() for container in pod["containers"]}
    images |= set(re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert all(re.fullmatch(r"[a-z]+:[\w.-]+", image) for image in images), images
    assert not re.search(
        r"(?i)(password|key|secret)\"?[:=] *[\w+/-]{8,}$", (DEPLOY / "compose/compose.yaml").read_text()
    )


def test_compose_gives_a_gateway_time_and_no_rights() -> None:
    """Every service we define; only fronts open a port to other machines."""
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        if service["image"].startswith("birdwire"):
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name
        if name in {"one", "two", "sandbox-one", "sandbox-two"}:
            assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
        ports = service.get("ports", [])
        assert name == "front" or all(port.startswith("127.0.0.1:") for port in ports), name


def in_bytes(size: str) -> int:
    """Return a size as Compose (`m`, `g`) or Kubernetes (`Mi`, `Gi`) writes it."""
    number, unit = re.fullmatch(r"([0-9]+)([mg]|[MG]i)", size, re.ASCII).groups()  # type: ignore[union-attr]  # it fails
    return int(number) << {"m": 20, "g": 30}[unit[0].lower()]


def test_there_is_room_for_the_concurrent_uploads() -> None:
    """What they may hold fits into each example's /tmp, with some to spare, and so does one of the largest size."""
    settings = Settings()
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    gateways = [service for service in services.values() if service["image"].startswith("birdwire")]
    (tmpfs,) = {mount for service in gateways for mount in service["tmpfs"]}
    compose = in_bytes(tmpfs.partition(":size=")[2])
    (container,) = pods()[0]["containers"]
    (volume,) = (volume for volume in pods()[0]["volumes"] if volume["name"] == "tmp")
    kubernetes = in_bytes(volume["emptyDir"]["sizeLimit"])
    assert settings.max_upload_bytes <= settings.max_spooled_bytes
    for room in (compose, kubernetes):
        assert 1.1 <= room / settings.max_spooled_bytes <= 1.5
    resources = {name: in_bytes(limits["ephemeral-storage"]) for name, limits in container["resources"].items()}
    assert kubernetes <= resources["requests"] < resources["limits"]


def test_the_image_is_made_of_what_is_there_and_pinned() -> None:
    """Hashes for every package, an ordinary user, and no file that is not in the build's own list."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--require-hashes" in text
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]
    listed = set(re.findall(r"^!(\S+)", (DEPLOY.parent / ".dockerignore").read_text(), re.MULTILINE))
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.+)", text, re.MULTILINE)]
    for source in (source for sources in copied for source in sources):
        assert (DEPLOY.parent / source).exists(), source
        assert source.partition("/")[0] in listed, source


@pytest.fixture
def plain(postgres: Postgres, redis: Redis) -> Iterator[dict[str, str]]:
    """The plain example, running as a person would run it; the variables that it tells."""
    programs = (Path(sys.executable).parent, postgres.programs, redis.programs, os.environ["PATH"])
    environment = {"PATH": ":".join(map(str, programs)), "PORT": str(_free_ports(6)), "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(  # noqa: S603 - our own example
        [DEPLOY / "plain" / "two-replicas.sh"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("Press Ctrl-C"):
                break
        told = dict(re.findall(r"(BIRDWIRE_\w+)=(\S+)", "".join(said)))
        assert set(told) == {"BIRDWIRE_URL", "BIRDWIRE_API_KEY"}, "".join(said)
        yield told
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=START_S)
    # It ends in time. With what code is chance: Ctrl-C may reach one of its programs before it reaches the script.
    assert process.returncode in (0, 1)


@pytest.mark.timeout(4 * START_S)
async def test_the_plain_example_runs_two_replicas_that_are_one(plain: dict[str, str]) -> None:
    """A link made at one, through the front, serves at the other; both count the same calls."""
    front = httpx2.URL(plain["BIRDWIRE_URL"])
    port = front.port or 0
    sandbox, *replicas = [str(front.copy_with(port=port + after)).rstrip("/") for after in (1, 2, 3)]
    headers = {"authorization": f"Bearer {plain['BIRDWIRE_API_KEY']}"}
    async with httpx2.AsyncClient(headers=headers, timeout=START_S) as client:
        auth_url = (await client.post(f"{replicas[0]}{API}auth_twitter")).json()["auth_url"]
        decision = {"auth_url": auth_url, "username": "ada", "action": "allow"}
        consent = (await client.post(f"{sandbox}/_sandbox/consent", json=decision)).json()
        assert consent["redirect_to"].startswith(plain["BIRDWIRE_URL"])
        assert (await client.get(consent["redirect_to"])).status_code == 200
        left, exact = [], True
        for place in (*replicas, plain["BIRDWIRE_URL"]):
            answer = await client.post(f"{place}{API}like_twitter", json={"tweet_id": POST})
            assert answer.json() == {"data": {"liked": True}}
            left.append(int(answer.headers["x-ratelimit-remaining"]))
            exact = exact and "x-ratelimit-degraded" not in answer.headers
        assert left == [58, 57, 56] or not exact  # a busy machine may be late, and then says so


def _free_ports(count: int) -> int:
    """Return the first of this many consecutive free ports."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        if port + count < 60_000 and all(_free(port + after) for after in range(count)):
            return port


def _free(port: int) -> bool:
    with socket.socket() as taken:
        return taken.connect_ex(("127.0.0.1", port)) != 0
