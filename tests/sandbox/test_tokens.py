"""The token endpoint: codes, refreshing in every mode, client authentication, revocation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx2

    from sandbox.conftest import SandboxClient

CODE_WRONG = {
    "error": "invalid_request",
    "error_description": "Value passed for the authorization code was invalid.",
}
TOKEN_WRONG = {"error": "invalid_request", "error_description": "Value passed for the token was invalid."}
BAD_CLIENT = {"error": "unauthorized_client", "error_description": "Missing valid authorization header"}
NO_CLIENT = {"error": "invalid_request", "error_description": "Missing required parameter [client_id]."}


def refused(answer: httpx2.Response, body: dict[str, str], status: int = 400) -> bool:
    """Whether this is that refusal."""
    return answer.status_code == status and answer.json() == body


async def alive(x: SandboxClient, access_token: str) -> bool:
    """Whether an access token is still good."""
    return (await x.call(access_token, "GET", "/2/users/me")).status_code == 200


async def test_the_answer_has_xs_members(x: SandboxClient) -> None:
    """X's token answer, to the member."""
    answer = await x.exchange(await x.code(scope="users.read tweet.read offline.access"))
    tokens = answer.json()
    assert tokens.keys() == {"token_type", "expires_in", "access_token", "scope", "refresh_token"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 7200)
    assert tokens["scope"] == "users.read tweet.read offline.access"
    assert answer.headers["cache-control"] == "no-store"


async def test_without_offline_access_there_is_no_refresh_token(x: SandboxClient) -> None:
    """X gives one only to apps that ask to stay connected."""
    tokens = await x.link(scope="tweet.read users.read")
    assert "refresh_token" not in tokens


async def test_a_code_is_good_once(x: SandboxClient) -> None:
    """RFC 6749 §4.1.2: its second use is refused."""
    code = await x.code()
    assert (await x.exchange(code)).status_code == 200
    assert refused(await x.exchange(code), CODE_WRONG)


async def test_a_code_lives_thirty_seconds(x: SandboxClient) -> None:
    """Good just before, refused after."""
    code = await x.code()
    await x.control("clock", advance_s=25)
    late = await x.code()
    assert (await x.exchange(code)).status_code == 200
    await x.control("clock", advance_s=31)
    assert refused(await x.exchange(late), CODE_WRONG)


@pytest.mark.parametrize(
    "changes",
    [{"redirect_uri": "http://127.0.0.1:9/other"}, {"code_verifier": "w" * 43}, {"code": "made-up"}],
)
async def test_a_code_is_bound_to_what_it_was_given_for(x: SandboxClient, changes: dict[str, str]) -> None:
    """Redirect URI and verifier must be those of the request."""
    assert refused(await x.exchange(await x.code(), **changes), CODE_WRONG)


async def test_a_code_is_bound_to_its_client(x: SandboxClient) -> None:
    """The public client's code is nothing to the confidential one."""
    assert refused(await x.exchange(await x.code(client_id="public")), CODE_WRONG)


@pytest.mark.parametrize("method", ["plain", "Plain", "PLAIN"])
async def test_a_plain_challenge_is_the_verifier_itself(x: SandboxClient, method: str) -> None:
    """RFC 7636 §4.6, with the method in any case of letters."""
    code = await x.code(code_challenge="p" * 43, code_challenge_method=method)
    assert (await x.exchange(code, code_verifier="p" * 43)).status_code == 200


async def test_the_challenge_method_is_read_in_any_case(x: SandboxClient) -> None:
    """Several SDKs send s256; the verifier is checked by its hash all the same."""
    code = await x.code(code_challenge_method="s256")
    assert refused(await x.exchange(code, code_verifier="w" * 43), CODE_WRONG)
    assert (await x.exchange(await x.code(code_challenge_method="s256"))).status_code == 200


async def test_an_access_token_expires_after_its_expires_in(x: SandboxClient) -> None:
    """7,200 seconds, or what the switch says."""
    await x.control("config", access_token_s=100)
    tokens = await x.link()
    assert tokens["expires_in"] == 100
    await x.control("clock", advance_s=95)
    assert await alive(x, tokens["access_token"])
    await x.control("clock", advance_s=10)
    assert not await alive(x, tokens["access_token"])


async def test_strict_a_spent_refresh_token_is_refused_and_nothing_else_happens(x: SandboxClient) -> None:
    """The newest pair lives on."""
    first = await x.link()
    second = (await x.refresh(first["refresh_token"])).json()
    assert refused(await x.refresh(first["refresh_token"]), TOKEN_WRONG)
    assert await alive(x, second["access_token"])
    assert (await x.refresh(second["refresh_token"])).status_code == 200


async def test_family_revoke_a_spent_refresh_token_ends_all(x: SandboxClient) -> None:
    """As where reuse counts as theft."""
    await x.control("config", refresh_mode="family_revoke")
    first = await x.link()
    second = (await x.refresh(first["refresh_token"])).json()
    assert refused(await x.refresh(first["refresh_token"]), TOKEN_WRONG)
    assert not await alive(x, second["access_token"])
    assert refused(await x.refresh(second["refresh_token"]), TOKEN_WRONG)


async def test_grace_a_spent_refresh_token_works_for_a_while(x: SandboxClient) -> None:
    """And not after."""
    await x.control("config", refresh_mode="grace", grace_s=60)
    first = await x.link()
    second = (await x.refresh(first["refresh_token"])).json()
    await x.control("clock", advance_s=50)
    third = (await x.refresh(first["refresh_token"])).json()
    assert await alive(x, second["access_token"])
    assert await alive(x, third["access_token"])
    await x.control("clock", advance_s=11)
    assert refused(await x.refresh(first["refresh_token"]), TOKEN_WRONG)
    assert (await x.refresh(third["refresh_token"])).status_code == 200


async def test_parent_of_active_a_lost_answer_can_be_asked_for_again(x: SandboxClient) -> None:
    """The parent of the newest pair may be used again, as after a failed save."""
    await x.control("config", refresh_mode="parent_of_active")
    first = await x.link()
    assert (await x.refresh(first["refresh_token"])).status_code == 200
    third = await x.refresh(first["refresh_token"])
    assert third.status_code == 200
    assert (await x.refresh(third.json()["refresh_token"])).status_code == 200


async def test_parent_of_active_an_older_token_ends_the_family(x: SandboxClient) -> None:
    """A grandparent is a thief's."""
    await x.control("config", refresh_mode="parent_of_active")
    first = await x.link()
    second = (await x.refresh(first["refresh_token"])).json()
    third = (await x.refresh(second["refresh_token"])).json()
    assert refused(await x.refresh(first["refresh_token"]), TOKEN_WRONG)
    assert refused(await x.refresh(third["refresh_token"]), TOKEN_WRONG)


async def test_parent_of_active_two_children_of_one_parent_do_not_both_go_on(x: SandboxClient) -> None:
    """Where two raced, the one that goes on leaves the other behind."""
    await x.control("config", refresh_mode="parent_of_active")
    first = await x.link()
    left = (await x.refresh(first["refresh_token"])).json()
    right = (await x.refresh(first["refresh_token"])).json()
    assert (await x.refresh(right["refresh_token"])).status_code == 200
    assert refused(await x.refresh(left["refresh_token"]), TOKEN_WRONG)


async def test_the_refusal_can_use_the_form_of_the_rfc(x: SandboxClient) -> None:
    """The switch refresh_refusal."""
    await x.control("config", refresh_refusal="invalid_grant")
    assert refused(await x.refresh("made-up"), TOKEN_WRONG | {"error": "invalid_grant"})


async def test_a_family_stays_small_however_often_it_is_refreshed(x: SandboxClient) -> None:
    """Spent tokens are forgotten after a while; the newest keeps working."""
    token = (await x.link())["refresh_token"]
    for _ in range(120):
        token = (await x.refresh(token)).json()["refresh_token"]
    assert (await x.refresh(token)).status_code == 200


async def test_clients_prove_themselves_as_at_x(x: SandboxClient) -> None:
    """Basic with and without client_id; client_id alone is the public client's form."""
    form = {"grant_type": "refresh_token", "refresh_token": "made-up", "scope": "tweet.read"}
    url, basic = "/2/oauth2/token", ("confidential", "a-secret")
    post = x.http.post
    assert refused(await post(url, data=form, auth=basic), TOKEN_WRONG)
    assert refused(await post(url, data=form | {"client_id": "confidential"}, auth=basic), TOKEN_WRONG)
    assert refused(await post(url, data=form | {"client_id": "public"}), TOKEN_WRONG)
    assert refused(await post(url, data=form), NO_CLIENT)
    for wrong in [("confidential", "wrong"), ("public", ""), ("nobody", "a-secret")]:
        assert refused(await post(url, data=form, auth=wrong), BAD_CLIENT, 401)
    assert refused(await post(url, data=form | {"client_id": "confidential"}), BAD_CLIENT, 401)
    assert refused(await post(url, data=form | {"client_id": "public"}, auth=basic), BAD_CLIENT, 401)


async def test_a_refresh_token_is_bound_to_its_client(x: SandboxClient) -> None:
    """Another client's token is refused, and stays good for its own."""
    tokens = await x.link()
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "public"}
    assert refused(await x.http.post("/2/oauth2/token", data=form), TOKEN_WRONG)
    assert (await x.refresh(tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize("form", ["data", "json", "params"])
async def test_the_token_and_revoke_endpoints_read_forms_json_and_the_query(x: SandboxClient, form: str) -> None:
    """From a code to the end of its tokens, as three families of SDKs send them."""
    auth, kind = ("confidential", "a-secret"), {"content-type": "application/x-www-form-urlencoded"}
    headers = kind if form == "params" else {}  # X's older TypeScript SDK sends this type with an empty body

    async def ask(endpoint: str, **parameters: str) -> Any:
        more: dict[str, Any] = {form: parameters, "headers": headers}
        answer = await x.http.post(f"/2/oauth2/{endpoint}", auth=auth, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    bound = {"code": await x.code(), "redirect_uri": "http://127.0.0.1:9/callback", "code_verifier": "v" * 43}
    tokens = await ask("token", grant_type="authorization_code", **bound)
    tokens = await ask("token", grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert await alive(x, tokens["access_token"])
    await ask("revoke", token=tokens["refresh_token"], token_type_hint="refresh_token")
    assert not await alive(x, tokens["access_token"])


@pytest.mark.parametrize(
    ("request_body", "sentence"),
    [
        ({"json": {"grant_type": 7}}, "The parameter [grant_type] must be a string."),
        ({"json": {"grant_type": "refresh_token"}, "params": {"grant_type": "x"}}, "given more than once"),
        ({"data": {"grant_type": "refresh_token"}, "params": {"grant_type": "x"}}, "given more than once"),
        (
            {"content": b'{"grant_type":"x","grant_type":"y"}', "headers": {"content-type": "application/json"}},
            "given more than once",
        ),
        ({"content": b"[]", "headers": {"content-type": "application/json"}}, "malformed"),
        ({"content": b"{", "headers": {"content-type": "application/json; charset=utf-8"}}, "malformed"),
        ({"content": b"a=%ff", "headers": {"content-type": "application/x-www-form-urlencoded"}}, "malformed"),
        ({"content": b"a=b", "headers": {"content-type": "text/plain"}}, "Content-Type must be"),
        ({"content": b"a=b"}, "Content-Type must be"),
    ],
)
async def test_parameters_that_cannot_be_read_are_refused(
    x: SandboxClient, request_body: dict[str, Any], sentence: str
) -> None:
    """In the token endpoint's own form, with the cause."""
    answer = await x.http.post("/2/oauth2/token", auth=("confidential", "a-secret"), **request_body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert sentence in answer.json()["error_description"]


async def test_revoking_needs_a_hint(x: SandboxClient) -> None:
    """Against RFC 7009, where it is optional."""
    auth = ("confidential", "a-secret")
    token = (await x.link())["access_token"]
    answer = await x.http.post("/2/oauth2/revoke", data={"token": token}, auth=auth)
    assert answer.json()["error_description"] == "Missing required parameter [token_type_hint]."
    assert await alive(x, token)


async def test_revoking_a_refresh_token_ends_its_access_tokens(x: SandboxClient) -> None:
    """The whole grant ends (RFC 7009 §2.1)."""
    tokens = await x.link()
    form = {"token": tokens["refresh_token"], "token_type_hint": "refresh_token"}
    answer = await x.http.post("/2/oauth2/revoke", data=form, auth=("confidential", "a-secret"))
    assert answer.json() == {"revoked": True}
    assert not await alive(x, tokens["access_token"])
    assert refused(await x.refresh(tokens["refresh_token"]), TOKEN_WRONG)


async def test_revoking_an_access_token_leaves_the_refresh_token(x: SandboxClient) -> None:
    """Also under the wrong hint, which is only a hint (RFC 7009 §2.1)."""
    tokens = await x.link()
    form = {"token": tokens["access_token"], "token_type_hint": "refresh_token"}
    await x.http.post("/2/oauth2/revoke", data=form, auth=("confidential", "a-secret"))
    assert not await alive(x, tokens["access_token"])
    assert (await x.refresh(tokens["refresh_token"])).status_code == 200


async def test_removing_the_app_ends_the_next_call_and_the_next_refresh(x: SandboxClient) -> None:
    """Connected apps; other people's grants stay."""
    ada, grace = await x.link("ada"), await x.link("grace")
    assert await x.control("users/2244994945/revoke_app") == {"revoked": 1}
    assert not await alive(x, ada["access_token"])
    assert refused(await x.refresh(ada["refresh_token"]), TOKEN_WRONG)
    assert await alive(x, grace["access_token"])
