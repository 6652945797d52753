"""Pages for people: the commands in their console blocks, and a reader who runs them against `birdwire dev`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"
EXIT_CODE = re.compile(r"\s+# exit code ([0-9])$")
"""How a page marks a command that does not exit with 0."""

LATER = ("birdwire log ", "birdwire explain ")
"""Commands that show what the gateway does in the background, within a second."""

MAX_READINGS = 20
"""How often such a command runs again until it shows what a page promises."""

SHOWN = {"REQUEST_ID": re.compile(r"\breq_[0-9A-Z]{26}\b"), "PAYLOAD_SHA256": re.compile(r"\b[0-9a-f]{64}\b")}
"""What a page calls by a name, and every run has its own: the one that the last answer shows."""


@dataclass(frozen=True)
class Step:
    """A command that a page shows, and the answer it promises; an empty one promises nothing but success."""

    command: str
    answer: str


def text_of(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for kind, body in FENCE.findall(text_of(page)) if kind == language]


def steps(block: str) -> list[Step]:
    """The commands of a console block, each with the lines up to the next."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        command, _, answer = part.replace("\\\n", " ").partition("\n")
        found.append(Step(command, answer.strip()))
    return found


def fits(promised: Any, found: Any) -> bool:
    """Whether an answer is the promised one; `…` in a text stands for any text, as a member for any more members."""
    if isinstance(promised, dict) and isinstance(found, dict):
        wanted = {name: value for name, value in promised.items() if name != ANYTHING}
        more = ANYTHING in promised or found.keys() <= wanted.keys()
        return more and all(name in found and fits(value, found[name]) for name, value in wanted.items())
    if isinstance(promised, list) and isinstance(found, list):
        return len(promised) == len(found) and all(map(fits, promised, found))
    if isinstance(promised, str) and isinstance(found, str):
        return bool(re.fullmatch(".*".join(map(re.escape, promised.split(ANYTHING))), found, re.DOTALL))
    return bool(promised == found)


class Reader:
    """A reader who follows a page, with the dev gateway's real addresses, key and folder.

    A command's promised answer is its stdout, or its stderr if the page states another exit code than 0.
    """

    def __init__(self, offer: dict[str, Any], folder: Path) -> None:
        self._key = offer["api_key"]
        self._gateway = offer["gateway"]
        self._real = {
            "http://127.0.0.1:8700": offer["gateway"],
            "http://127.0.0.1:8701": offer["sandbox"],
            "$BIRDWIRE_API_KEY": self._key,
            ".birdwire": str(folder),
        }
        listed = json.loads(self.birdwire(["birdwire", "keys", "list", "--data", str(folder), "--json"]))["keys"]
        key_ids = [key["key_id"] for key in listed if key["label"] == "dev"]
        self._real["KEY_ID"] = key_ids[0]

    def real(self, text: str) -> str:
        """The text with what is true here."""
        for shown, real in self._real.items():
            text = text.replace(shown, real)
        return text

    def replace(self, shown: str, real: str) -> None:
        """Run a page's commands with something else than what it shows, such as a server of this test."""
        self._real[shown] = real

    def do(self, step: Step) -> None:
        """Run one step and hold the answer against the promise."""
        command, given = step.command, None
        if command.startswith("echo "):
            echoed, _, command = command.removeprefix("echo ").partition(" | ")
            [given] = shlex.split(self.real(echoed))
        code = EXIT_CODE.search(command)
        words = shlex.split(self.real(EXIT_CODE.sub("", command)))
        if words[0] == "export":
            return
        if words[0] == "curl":
            answer = self.curl(words[1:])
        else:
            answer = self.birdwire(words, given, int(code[1]) if code else 0)
        promised: Any = self._promised(step, answer)
        # The gateway records refused attempts in the background, and sends what was approved, within a second.
        for _ in range(MAX_READINGS if command.startswith(LATER) else 0):
            if not promised or fits(promised, answer):
                break
            answer = self.birdwire(words)
            promised = self._promised(step, answer)
        if promised.startswith("{"):
            promised, answer = (
                json.loads(promised.replace(f", {ANYTHING}}}", f', "{ANYTHING}": 0}}')),
                json.loads(answer),
            )
        assert not promised or fits(promised, answer), f"{step.command}\nanswers {answer}"

    def _promised(self, step: Step, answer: str) -> str:
        """Remember what the answer shows, and return what the page promises of it."""
        self.remember(answer)
        return self.real(step.answer)

    def remember(self, answer: str) -> None:
        """Remember what an answer shows that the page calls by a name."""
        for name, form in SHOWN.items():
            if found := form.findall(answer):
                self._real[name] = found[-1]

    @staticmethod
    def curl(words: list[str]) -> str:
        """What curl does with its options that the pages use."""
        parser = argparse.ArgumentParser()
        parser.add_argument("url")
        parser.add_argument("-X", dest="method")
        parser.add_argument("-H", dest="headers", action="append", default=[])
        parser.add_argument("-d", dest="data")
        asked = parser.parse_args(words)
        headers = dict(line.split(": ", 1) for line in asked.headers)
        method = asked.method or ("GET" if asked.data is None else "POST")
        with httpx2.Client(timeout=30) as client:
            return client.request(method, asked.url, headers=headers, content=asked.data).text

    def birdwire(self, words: list[str], given: str | None = None, code: int = 0) -> str:
        """A command of the command line."""
        assert words[0] == "birdwire"
        environment = {"PATH": "", "BIRDWIRE_URL": self._gateway, "BIRDWIRE_API_KEY": self._key, "COLUMNS": "500"}
        done = subprocess.run(  # noqa: S603 - our own command, with words from our own pages
            [sys.executable, "-m", "birdwire.cli", *words[1:]],
            env=environment,
            input=None if given is None else given.encode(),
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == code, f"{words}\nexits {done.returncode}: {done.stderr.decode()}"
        return (done.stdout or done.stderr).decode().strip()


@contextlib.contextmanager
def dev_gateway(folder: Path) -> Iterator[Reader]:
    """Run `birdwire dev` in a folder, where ada has approved, and yield a reader at it."""
    arguments = ("dev", "--json", "--port", "0", "--sandbox-port", "0", "--data", str(folder), "--link", "ada")
    with (
        (folder / "stderr.txt").open("wb") as errors,
        subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "birdwire.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"PATH": os.environ.get("PATH", "")},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "stderr.txt").read_text()
            yield Reader(json.loads(line), folder)
        finally:
            process.terminate()
