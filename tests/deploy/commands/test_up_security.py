"""Options of `up` on who may connect: checked before anything starts, passed on to the voter."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands.up import up
from deploy.node.configuration import voter_config
from deploy.node.records import Layout, Settings
from tests.voter.certificates import Authority
from voter.commands.terminal import CommandError
from voter.config import Clients, Security, parse
from voter.errors import ConfigError


def start(scratch: Path, *words: object) -> BaseException | None:
    """Try to start a node with options that cannot work; return the error."""
    done = CliRunner().invoke(
        up, ["--dir", str(scratch / "node"), *map(str, words)], standalone_mode=False
    )
    assert not (scratch / "node").exists(), "something was started"
    return done.exception


def test_unusable_files_are_named_before_anything_starts(scratch: Path) -> None:
    authority = Authority(scratch)
    pair, other = authority.sign("server"), authority.sign("other")
    late = authority.sign("late", days=-1)
    tokens = scratch / "tokens"
    tokens.write_text("billing in-clear\n")
    for words, message in (
        (["--tls-certificate", pair.certificate], "needs --tls-key"),
        (["--tls-key", pair.key], "need --tls-certificate"),
        (["--tls-client-ca", authority.file], "need --tls-certificate"),
        (["--tls-certificate", pair.certificate, "--tls-key", other.key], "does not belong"),
        (["--tls-certificate", late.certificate, "--tls-key", late.key], "late.crt: .*expired"),
        (["--tokens", tokens], "line 1: not a name"),
        (["--tls-certificate", scratch / "none", "--tls-key", pair.key], "does not exist"),
        (["--client-rate", "0"], "is not a number of requests a second"),
    ):
        error = start(scratch, *words)
        with pytest.raises(Exception, match=message):
            raise error or AssertionError("no error")
        assert not isinstance(error, AssertionError)


def test_voter_gets_the_files_and_limits(scratch: Path) -> None:
    settings = Settings(
        tls_certificate="/c", tls_key="/k", tls_client_ca="/ca", tokens="/t",
        client_rate=2.5, client_in_flight=3, client_connections=4,
    )  # fmt: skip
    links = {f"g{number}": f"unix:/g{number}" for number in (1, 2, 3)}
    config = parse(voter_config(Layout(scratch), settings, "node", links))
    assert config.security == Security(certificate="/c", key="/k", client_ca="/ca", tokens="/t")
    assert config.clients == Clients(rate=2.5, in_flight=3, connections=4)
    plain = tomllib.loads(voter_config(Layout(scratch), Settings(), "node", links))
    assert not {"security", "clients"} & plain.keys()


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["--http", "0.0.0.0:8080"], "every host that reaches this one can read and write"),
        (["--native", "192.0.2.1:1"], "every host that reaches this one can read and write"),
        (["--http", "0.0.0.0:8080", "--tokens", "TOKENS"], "tokens are sent unencrypted"),
        (["--http", "localhost:8080", "--native", "[::1]:1"], ""),
    ],
)
def test_port_that_is_open_to_other_hosts_is_warned_of(
    scratch: Path, words: list[str], warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise CommandError("far enough")

    monkeypatch.setattr("deploy.commands.launch.prepare_node", stop)
    tokens = scratch / "tokens"
    tokens.write_text("")
    words = [str(tokens) if word == "TOKENS" else word for word in words]
    done = CliRunner().invoke(up, ["--dir", str(scratch / "node"), *words], standalone_mode=False)
    assert str(done.exception) == "far enough"
    if warning:
        assert f"warning TV0976: {warning}" in done.stderr
    else:
        assert "warning" not in done.stderr


def test_incomplete_sections_of_the_voters_configuration_are_refused() -> None:
    replicas = "".join(f'[[replica]]\nname = "g{n}"\nlink = "unix:/g{n}"\n' for n in (1, 2, 3))
    for section, message in (
        ('[security]\nkey = "k"', "certificate and key belong together"),
        ('[security]\nclient_ca = "k"', "needs the server's own"),
        ('[security]\ntoken = "k"', "line 2: unknown key `token`"),
        ("[clients]\nrate = 0", "Expected `float` > 0"),
        ("[clients]\nin_flight = 0", "Expected `int` >= 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(f"{section}\n{replicas}")
