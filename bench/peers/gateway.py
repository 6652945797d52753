"""A gateway as one builds it with FastAPI: what Birdwire does for a like, each step by the usual library.

Key look-up, limit, sealed token and journal row on SQLite (WAL, synchronous=FULL) through SQLAlchemy's ORM and
aiosqlite, validation by pydantic, AES-GCM by cryptography, the window by limits, X by httpx, the log by structlog.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, Field
from sqlalchemy import ForeignKey, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

USER_ID = os.environ["USER_ID"]
VAULT_KEY = os.urandom(32)
A_MINUTE = RateLimitItemPerMinute(1_000_000)


class Base(DeclarativeBase):
    """The tables."""


class ApiKey(Base):
    """A caller's key, by its hash."""

    __tablename__ = "api_keys"
    key_id: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[bytes] = mapped_column(unique=True)
    revoked_at: Mapped[datetime | None]
    session: Mapped[XSession] = relationship(lazy="joined")


class XSession(Base):
    """The account that a key acts as, with its token, sealed."""

    __tablename__ = "x_sessions"
    session_id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.key_id"), index=True)
    user_id: Mapped[str]
    access_ct: Mapped[bytes]


class JournalRow(Base):
    """What was asked and what became of it."""

    __tablename__ = "journal"
    request_id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(index=True)
    operation: Mapped[str]
    target: Mapped[str]
    status: Mapped[int]
    created_at: Mapped[datetime]


class Like(BaseModel):
    """What is asked."""

    tweet_id: str = Field(pattern=r"^[0-9]{1,19}$")


engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ['DATABASE']}", pool_size=20)
make_session = async_sessionmaker(engine, expire_on_commit=False)


@event.listens_for(engine.sync_engine, "connect")
def set_up(connection: Any, _record: object) -> None:
    """Each connection writes ahead, and to the disk."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables and the callers, and one client for X."""
    cipher = AESGCM(VAULT_KEY)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with make_session() as db:
        for raw_key in Path(os.environ["KEYS"]).read_text("ascii").split():  # noqa: ASYNC240 - once, at start
            key_id, nonce = uuid.uuid4().hex, os.urandom(12)
            sealed = nonce + cipher.encrypt(nonce, os.environ["TOKEN"].encode(), key_id.encode())
            session = XSession(session_id=uuid.uuid4().hex, user_id=USER_ID, access_ct=sealed)
            db.add(ApiKey(key_id=key_id, secret_hash=hashed(raw_key), session=session))
        await db.commit()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    app.state.cipher, app.state.log = cipher, structlog.get_logger()
    app.state.limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
    bounds = httpx.Limits(max_connections=128, max_keepalive_connections=128)
    async with httpx.AsyncClient(base_url=os.environ["X_URL"], limits=bounds) as client:
        app.state.x = client
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


def hashed(raw_key: str) -> bytes:
    """How a key is kept."""
    return hashlib.sha256(raw_key.encode()).digest()


async def database() -> AsyncIterator[AsyncSession]:
    """A session of the database for one request."""
    async with make_session() as db:
        yield db


Db = Annotated[AsyncSession, Depends(database)]


async def caller(request: Request, db: Db, authorization: Annotated[str, Header()]) -> ApiKey:
    """The caller's key, admitted."""
    raw_key = authorization.removeprefix("Bearer ")
    key = (await db.scalars(select(ApiKey).where(ApiKey.secret_hash == hashed(raw_key)))).first()
    if key is None or key.revoked_at is not None:
        raise HTTPException(401, "unknown key")
    if not await request.app.state.limiter.hit(A_MINUTE, key.key_id):
        raise HTTPException(429, "too many calls")
    return key


@app.post("/apis/v1/twitter/like_twitter")
async def like(body: Like, request: Request, db: Db, key: Annotated[ApiKey, Depends(caller)]) -> Response:
    """Like a post, and write down what became of it before saying so."""
    state, session = request.app.state, key.session
    token = state.cipher.decrypt(session.access_ct[:12], session.access_ct[12:], key.key_id.encode()).decode()
    reply = await state.x.post(
        f"/2/users/{session.user_id}/likes", json=body.model_dump(), headers={"Authorization": f"Bearer {token}"}
    )
    row = JournalRow(
        request_id=uuid.uuid4().hex,
        key_id=key.key_id,
        operation="like",
        target=body.tweet_id,
        status=reply.status_code,
        created_at=datetime.now(UTC),
    )
    db.add(row)
    await db.commit()
    state.log.info("request", request_id=row.request_id, key_id=key.key_id, path="like", status=reply.status_code)
    return Response(reply.content, reply.status_code, media_type="application/json")
