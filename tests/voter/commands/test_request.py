"""``trivisor request`` without a majority: it retries, unless --no-retry is given."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner, Result

from tests.voter.conftest import Nodes
from tests.voter.node import Node
from tests.waiting import until
from voter.client.errors import NotExecuted
from voter.commands.request import request
from voter.commands.terminal import ExitCode


async def run(node: Node, *words: str) -> Result:
    """Run the command in a thread, while the voter's loop runs here."""
    arguments = [*words, "--to", f"unix:{node.native_path}"]
    return await asyncio.to_thread(
        CliRunner().invoke, request, arguments, standalone_mode=False, catch_exceptions=True
    )


async def test_it_is_sent_again_until_there_is_a_majority(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents[1:]:
        agent.stop()
    await node.until_status("refusing")
    call = asyncio.create_task(run(node, "POST", "/kv/n?increment=1"))
    await until(lambda: node.runner.failures.get("not-executed", 0) >= 2)
    assert not call.done()
    for agent in node.agents[1:]:
        agent.restart()
        await agent.start()
    done = await call
    assert (done.return_value, done.output) == (ExitCode.OK, "1")
    assert (await node.ask("GET", "/kv/n")).body == b"1"


@pytest.mark.parametrize("words", [("--no-retry",), ("--timeout", "3")])
async def test_refusal_until_the_timeout_is_not_executed(
    nodes: Nodes, words: tuple[str, ...]
) -> None:
    node = await nodes.make()
    for agent in node.agents[1:]:
        agent.stop()
    await node.until_status("refusing")
    done = await run(node, "PUT", "/kv/a", "--data", "x", *words)
    assert isinstance(done.exception, NotExecuted)  # the command exits with 3
    assert (node.runner.failures["not-executed"] == 1) is (words == ("--no-retry",))


async def test_idempotency_key_header_is_warned_about(nodes: Nodes) -> None:
    node = await nodes.make()
    done = await run(node, "PUT", "/kv/a", "-H", "Idempotency-Key: k")
    assert done.return_value == ExitCode.OK
    assert "warning TV0318: " in done.output and "over HTTP only" in done.output


async def test_help_explains_retries() -> None:
    words = " ".join(CliRunner().invoke(request, ["--help"]).output.split())
    assert "executed once however often" in words
    assert "--no-retry" in words
