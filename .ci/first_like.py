"""Start `birdwire dev` as installed beside this interpreter, like a post with the key that it prints, stop it again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from threading import Timer

START_S = 60
POST = "/apis/v1/twitter/like_twitter"


def main() -> None:
    """Fail with a sentence if the first like is not what the contract says."""
    if importlib.util.find_spec("pytest"):
        sys.exit("this must run from a runtime-only install, but pytest is here")
    program = Path(sys.executable).with_name("birdwire")
    with tempfile.TemporaryDirectory() as folder:
        options = ["dev", "--json", "--port", "0", "--sandbox-port", "0", "--data", f"{folder}/data", "--link", "ada"]
        gateway = subprocess.Popen([program, *options], stdout=subprocess.PIPE)  # noqa: S603 - our own program
        guard = Timer(START_S, gateway.kill)
        guard.start()
        try:
            assert gateway.stdout is not None  # noqa: S101 - for the type checker
            line = json.loads(gateway.stdout.readline() or "{}")
            answer = like(line) if line else b"birdwire dev did not start"
        finally:
            guard.cancel()
            gateway.terminate()
            code = gateway.wait(START_S)
    if answer != b'{"data":{"liked":true}}' or code:
        sys.exit(f"the first like went wrong: {answer!r}, exit code {code}")
    print(f"the first like: {answer.decode()}")  # noqa: T201 - a script says what it saw


def like(line: dict[str, str]) -> bytes:
    """Like the post that the line names."""
    body = json.dumps({"tweet_id": line["tweet_id"]}).encode()
    headers = {"Authorization": f"Bearer {line['api_key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(line["gateway"] + POST, body, headers)  # noqa: S310 - a loopback address
    with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310 - the same
        return bytes(answer.read())


main()
