"""Dashboards and what they are told, for the tests of whatever they see."""

from contextlib import AsyncExitStack
from typing import Any

from tests.net.peers import Client, Json, Node, dial, until, user_token

QUICK = {"offline_after_seconds": 0.3}
PATIENT = {"offline_after_seconds": 20}


async def node(stack: AsyncExitStack, url: str, index: int = 0, **sections: Json) -> Node:
    worker = await Node(url, index, **{"presence": QUICK, **sections}).start()
    stack.push_async_callback(worker.stop)
    return worker


async def dashboard(worker: Node, user: str = "ann", organization: str = "acme", **ownership_store: Any) -> Client:
    """A dashboard that misses nothing from now on."""
    client = await dial(worker.port, user_token(user, organization, **ownership_store))
    await until(lambda: worker.gateway.pubsub.is_subscribed(organization))
    return client


async def status(client: Client) -> tuple[str, str, str]:
    data = await client.next("device:status")
    assert data["seq"] == data["since"]
    return data["deviceId"], data["status"], data["reason"]


async def join(client: Client, organization: str = "acme") -> None:
    ack = await client.ask("join:organization", {"organizationId": organization})
    assert ack["data"] == {"joined": True, "organizationId": organization}
    joined = await client.next("joined:organization")
    assert joined["organizationId"] == organization


async def silent(client: Client, *others: Client) -> None:
    """Nothing has come that was not asked for: the next message is the answer to a question."""
    for each in (client, *others):
        ack = await each.ask("nonsense", ack_id=99)
        assert ack["code"] == "UNKNOWN_EVENT"
