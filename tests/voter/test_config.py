"""The configuration: strict, with errors that name the key and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from voter.config import load, parse
from voter.errors import ConfigError

THREE = "".join(f'[[replica]]\nname = "g{n}"\nlink = "unix:/run/g{n}"\n' for n in (1, 2, 3))


def test_the_least_there_must_be() -> None:
    config = parse(THREE)
    assert str(config.policy) == "2/3"
    assert [replica.name for replica in config.replica] == ["g1", "g2", "g3"]
    assert config.replica[0].role == "voter"
    assert config.listen.http is None
    assert config.limits.pending > 0
    assert config.timing.request == 10.0


def test_every_key_can_be_set() -> None:
    text = f"""
vote = "1/2"
service = "kv"
max_body = 1000
max_in_flight = 7
[listen]
http = "127.0.0.1:0"
native_unix = "/run/native"
[limits]
pending = 5
hang = 1
[timing]
request = 2.5
{THREE.replace('name = "g3"', 'name = "g3"' + chr(10) + 'role = "observer"')}
"""
    config = parse(text)
    assert (config.service, config.max_body, config.max_in_flight) == ("kv", 1000, 7)
    assert (config.limits.pending, config.limits.hang, config.timing.request) == (5, 1.0, 2.5)
    assert config.replica[2].role == "observer"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vote = 'x'\nvoote = '2/3'\n" + THREE, ["line 2", "voote"]),
        ("[limits]\npending = 1\npendig = 2\n" + THREE, ["line 3", "pendig"]),
        (THREE + "lnik = 'x'\n", ["line 10", "lnik"]),
        ("[limits]\n\npending = 'many'\n" + THREE, ["line 3", "int"]),
        ("[listen]\nhttp = 80\n" + THREE, ["line 2", "str"]),
        ("[limits]\nhang = 0.0\n" + THREE, ["hang"]),
        ("[limits]\nwindow = -1\n" + THREE, ["window"]),
        ("[limits]\nhang = nan\n" + THREE, ["hang"]),
        ("vote = '4/3'\n" + THREE, ["4/3", "m must be from 1 to n"]),
        ("vote = '2/4'\n" + THREE, ["2/4", "3/4"]),
        ("vote = '3/5'\n" + THREE, ["needs 5 replicas", "3"]),
        ("vote = 2\n" + THREE, ["str"]),
        (THREE.replace("g2", "g1"), ["same name"]),
        (THREE.replace('"g2"', '"g 2"'), ["'g 2'"]),
        (THREE.replace('"g2"', '""'), ["''"]),
        (THREE + "role = 'king'\n", ["king"]),
        ("max_body = 0\n" + THREE, ["max_body"]),
        ("function = 'exec:true'\n" + THREE, ["write unix:PATH, where F listens"]),
        ("max_body = 2000000\n" + THREE, ["max_body"]),
        ("vote = \n", ["not TOML", "line 1"]),
        ("", ["replica"]),
    ],
)
def test_configuration_error_names_line_and_key(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "node.toml")
    assert str(error.value).startswith("node.toml")
    for word in words:
        assert word in str(error.value)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "voter.toml"
    with pytest.raises(ConfigError, match=r"voter\.toml: cannot be read"):
        load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file)
    file.write_text(THREE)
    assert len(load(file).replica) == 3
