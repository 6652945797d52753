"""What a gateway that serves on SQLite does not load: each of these takes memory and time at every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import alembic.config
import alembic.script

import birdwire.store
from birdwire.store.schema import HEAD

UNUSED = (
    "alembic",
    "asyncpg",
    "birdwire.sandbox",
    "birdwire.surfaces.openapi.document",
    "jinja2",
    "mcp",
    "mcp_types",
    "rich.console",
    "sqlalchemy.dialects.postgresql",
)
START = """
import asyncio, io, os, sys
from birdwire.cli.commands import serve
from birdwire.cli.output import Output
from birdwire.settings import Settings

async def start():
    gateway = serve.create_app(Settings.load(dict(os.environ)), log=io.StringIO())
    async with gateway.app.router.lifespan_context(gateway.app):
        Output(as_json=False).lines("Birdwire is ready")

asyncio.run(start())
print(*sys.modules)
"""


def _loaded(folder: Path) -> set[str]:
    environment = {
        "BIRDWIRE_DATABASE_URL": f"sqlite:///{folder / 'birdwire.db'}",
        "BIRDWIRE_VAULT_KEY": "a2" * 21 + "a=",
        "BIRDWIRE_X_CLIENT_ID": "client",
    }
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    return set(done.stdout.split())


def test_a_start_loads_only_what_it_uses(tmp_path: Path) -> None:
    """The first start makes the tables, for which Alembic is loaded; no other does."""
    assert "alembic.command" in _loaded(tmp_path)
    loaded = _loaded(tmp_path)
    assert "birdwire.store.engines.sqlite" in loaded
    assert [name for name in UNUSED if name in loaded] == []


def test_the_version_that_the_code_speaks_is_the_newest_migration() -> None:
    """A start compares one word, and so never reads the migrations."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(birdwire.store.__file__).parent / "migrations"))
    assert alembic.script.ScriptDirectory.from_config(config).get_current_head() == HEAD
