"""Lookups: one lookup of the linked account, step by step. A guarded one reserves the most, and is corrected."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.gateway.guardrails.proposal import propose_lookup
from birdwire.gateway.guardrails.spending import Judged
from birdwire.x.catalog.lookups import BILLED, billed

if TYPE_CHECKING:
    from birdwire.accounts.retrying_client import AccountClient, AccountClients
    from birdwire.api.messages import Headers
    from birdwire.gateway.admission import Admission
    from birdwire.gateway.guardrails.spending import Spending
    from birdwire.keys.context import CallContext
    from birdwire.x.catalog.lookups import Lookup, LookupRunner
    from birdwire.x.client.requests import Reading, Resource, XRequest


class Lookups:
    """Runs lookups. They are not recorded in the journal."""

    def __init__(self, admission: Admission, clients: AccountClients, spending: Spending, runner: LookupRunner) -> None:
        self._admission = admission
        self._clients = clients
        self._spending = spending
        self._runner = runner

    async def perform(self, lookup: Lookup, context: CallContext) -> Answer:
        """Ask X as the linked account, and return the answer in the shape that published clients read.

        Raises:
            GatewayError: the query is malformed, there is no usable link, a policy forbids it, or X refused.
        """
        query = check(context.parsed.fields, lookup.query)
        session = await self._admission.session_for_lookup(context, lookup.scopes)
        guard = await self._admission.guards.of(context.key.key_id)
        client = self._clients.open(session, self._admission.lookup_permit(context, lookup))
        if guard is None:
            return Answer.of(await lookup.run(self._runner, session.user_id, query, client.ask))
        price = self._spending.prices.of_reads(lookup.most)
        judged = Judged(guard, label=context.key.label, username=session.username)
        judged.proposal = propose_lookup(lookup.name, session.user_id, price)
        await self._spending.judge(judged, None)
        await self._spending.check(judged)
        reads = _Reads(self._spending, judged, client, context.call.request_id)
        try:
            return Answer.of(await lookup.run(self._runner, session.user_id, query, reads.ask))
        except GatewayError as error:
            # Other refusals of a lookup are about what it asked for.
            if error.reason == "x_user_suspended" and (trip := self._admission.guards.after_refusal(guard, error)):
                await trip
            raise
        finally:
            context.headers += await reads.end()


class _Reads:
    """The requests of one guarded lookup. The most that they may cost is reserved before the first of them."""

    def __init__(self, spending: Spending, judged: Judged, client: AccountClient, request_id: str) -> None:
        self._spending = spending
        self._judged = judged
        self._client = client
        self._request_id = request_id
        self._reserved = False
        self._came: Counter[Resource] = Counter()

    async def ask(self, request: XRequest, reading: Reading) -> dict[str, Any]:
        """Send a request to X, and count what X may bill for it."""
        if not self._reserved:
            await self._spending.reserve(self._judged, self._request_id)
            self._reserved = True
        resource, most = BILLED[request.endpoint]
        try:
            answer = await self._client.ask(request, reading)
        except GatewayError as error:
            self._came[resource] += most * (error.outcome == "unknown")
            raise
        finally:
            self._came[resource] += most * self._client.maybe_billed
        _, count = billed(request.endpoint, answer)
        self._came[resource] += count
        return answer

    async def end(self) -> Headers:
        """Correct what was reserved to what came; return the header that states what it cost."""
        usd = self._spending.prices.of_reads(self._came)
        if self._reserved:
            await self._spending.correct(self._judged, self._request_id, usd, self._came.total())
        else:
            await self._spending.give_back(self._judged, self._request_id)
        return self._judged.header(usd=usd)
