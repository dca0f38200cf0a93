"""``trivisor request`` without a majority: it retries, unless --no-retry is given."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.voter.certificates import Authority
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


async def test_tls_and_token_are_taken_from_options_or_environment(
    nodes: Nodes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(scratch)
    pair, tokens, mine = authority.sign("server"), scratch / "tokens", scratch / "mine"
    mine.write_text("tvt_secret\n")
    tokens.write_text(f"billing {sha256(b'tvt_secret').hexdigest()}\n")
    node = await nodes.make(
        f'[security]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\ntokens = "{tokens}"'
    )
    to = ["--to", f"tcp:127.0.0.1:{node.native_port}"]
    options = ["--tls-ca", str(authority.file), "--token-file", str(mine)]

    async def ask(*words: str) -> Result:
        words = ("PUT", "/kv/a", *to, *words)
        return await asyncio.to_thread(CliRunner().invoke, request, words, standalone_mode=False)

    assert (await ask(*options)).return_value == ExitCode.OK
    for words, message in (
        ([], "give --tls-ca"),
        (options[:2], "TV0971"),
        (options[2:], "give --tls-ca"),
        (["--tls-key", str(pair.key)], "need --tls-ca"),
        ([*options[:2], "--tls-key", str(pair.key)], "needs --tls-certificate"),
        ([*options[:2], "--token-file", str(tokens)], "one token, and nothing else"),
        (["--tls-ca", str(mine)], "is not PEM"),
    ):
        error = (await ask(*words)).exception
        found = f"{error} {getattr(error, 'remedy', '')} {getattr(error, 'error_code', '')}"
        assert message in found, words
    monkeypatch.setenv("TRIVISOR_TLS_CA", str(authority.file))
    monkeypatch.setenv("TRIVISOR_TOKEN_FILE", str(mine))
    assert (await ask()).return_value == ExitCode.OK
