"""A node whose clients need TLS and a token, as docs/security.md shows it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands.prepare import read_settings
from deploy.commands.status import _show
from tests.deploy.supervisor.running import Running, plan
from tests.voter.certificates import Authority
from trivisor import command


async def test_node_with_tls_and_tokens_serves_who_has_one(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(scratch)
    pair, tokens = authority.sign("server"), scratch / "tokens"
    words = ["token", "add", "billing", "--tokens", str(tokens)]
    token = CliRunner().invoke(command, words, standalone_mode=False).stdout.strip()
    options = scratch / "node.toml"
    options.write_text(
        f'http = "127.0.0.1:0"\ntokens = "{tokens}"\n'
        f'tls-certificate = "{pair.certificate}"\ntls-key = "{pair.key}"\n'
    )
    settings, _ = read_settings(options, [])
    running = Running(
        plan(
            scratch / "node", tls_certificate=settings.tls_certificate, tls_key=settings.tls_key,
            tokens=settings.tokens,
        )
    )  # fmt: skip
    await running.start_ready()
    try:
        status = await running.status()
        url = f"https://{status['http']}/kv/colour"

        async def curl(*more: str) -> str:
            words = ["curl", "-sw", "%{http_code}", "--cacert", str(authority.file), *more, url]
            done = await asyncio.to_thread(
                subprocess.run, words, capture_output=True, text=True, check=True
            )
            return str(done.stdout)

        assert (await curl()).endswith("401")
        bearer = ["-H", f"Authorization: Bearer {token}"]
        assert await curl(*bearer, "-X", "PUT", "--data", "blue") == "201"
        assert await curl(*bearer) == "blue200"
        assert status["security"]["tokens"] == 1
        assert 9 < status["security"]["certificate_expires_in_days"] < 10
        _show(status)
        shown = capsys.readouterr().out
        assert url.removesuffix("kv/colour") in shown
        assert "clients: TLS, shows a certificate, expires in 10 days" in shown
        assert "RENEW" in shown
    finally:
        await running.stop()
