"""A relay as one writes it with FastAPI and httpx: a typed body, one shared client, a header injected. Nothing else."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

X_PATH, TOKEN = os.environ["X_PATH"], os.environ["TOKEN"]


class Like(BaseModel):
    """What is asked."""

    tweet_id: str = Field(pattern=r"^[0-9]{1,19}$")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the life of the app, with room for every caller."""
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=128)
    async with httpx.AsyncClient(base_url=os.environ["X_URL"], limits=limits) as client:
        app.state.x = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/apis/v1/twitter/like_twitter")
async def like(body: Like, request: Request) -> Response:
    """Pass a like on."""
    reply = await request.app.state.x.post(X_PATH, json=body.model_dump(), headers={"Authorization": f"Bearer {TOKEN}"})
    return Response(reply.content, reply.status_code, media_type="application/json")
