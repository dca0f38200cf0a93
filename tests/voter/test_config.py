"""The configuration: strict, with errors that name the key and its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.errors import raises
from voter.config import Timing, load, parse
from voter.core import Limits
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
    ("text", "processors", "follows"),
    [
        ("", 2, True),
        ("", 3, False),
        ('follow = "on"', 3, True),
        ('follow = "off"', 2, False),
        ('vote = "1/3"', 2, False),  # nothing is compared
    ],
)
def test_guests_follow_if_there_are_fewer_processors(
    text: str, processors: int, follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    assert parse(f"{text}\n{THREE}").follows is follows


def test_retired_replicas_do_not_make_processors_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)))
    spare = '[[replica]]\nname = "g4"\nlink = "unix:/run/g4"\nrole = "{}"\n'
    assert parse(THREE + spare.format("retired")).follows is False
    assert parse(THREE + spare.format("observer")).follows is True


def test_learner_is_no_role_of_a_configuration() -> None:
    """A learner is made by a change of roles, which is under way only while a node runs."""
    with raises("TV0201", match="Invalid enum value 'learner'"):
        parse(THREE.replace('name = "g3"', 'name = "g3"\nrole = "learner"'))


def test_processes_do_not_follow_unless_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    processes = re.sub("unix:/run/g.", "exec:true", THREE)
    assert parse(processes).follows is False
    assert parse(f'follow = "on"\n{processes}').follows is True
    assert parse(processes.replace("exec:true", "unix:/run/g1", 1)).follows is True


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
        ("follow = 'yes'\n" + THREE, ["follow", "yes"]),
        ("follow = true\n" + THREE, ["follow", "bool"]),
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
    with raises("TV0201", match=r"voter\.toml: cannot be read"):
        load(file)
    file.write_bytes(b"\xff")
    with raises("TV0201", match="cannot be read"):
        load(file)
    file.write_text(THREE)
    assert len(load(file).replica) == 3


def every_number() -> str:
    """Return a configuration with each key that is a number, at its default."""
    text = "max_body = 1048576\nmax_in_flight = 1024\n" + THREE
    for table, kind in (("limits", Limits), ("timing", Timing)):
        lines = (f"{name} = {getattr(kind(), name)}" for name in kind.__struct_fields__)
        text += f"[{table}]\n" + "\n".join(lines) + "\n"
    return text + '[journal]\ndirectory = "j"\nsegment = 33554432\n'


ABSURD = ("nan", "inf", "-inf", "-1", "-0.0", "0", "1e400", str(10**30), "true", '"1"')


@pytest.mark.parametrize("line", [n for n, line in enumerate(every_number().splitlines())
                                  if re.search(r"= \d", line)])  # fmt: skip
def test_absurd_number_is_an_error_that_names_its_key(line: int) -> None:
    lines = every_number().splitlines()
    parse("\n".join(lines))
    key, _, _ = lines[line].partition(" = ")
    for absurd in ABSURD:
        lines[line] = f"{key} = {absurd}"
        with pytest.raises(ConfigError, match=rf"line \d+: .*\b{key}\b"):
            parse("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[listen]\nhttp = "8080"\n', "HOST:PORT"), ('[listen]\nnative = "::1:80"\n', "IPV6"),
        ('[listen]\nhttp = "localhost:65536"\n', "0 to 65535"),
        ('function = "tcp:a:1"\n', "unix:PATH"), ('function = "unix"\n', "unix:PATH"),
    ],
)  # fmt: skip
def test_impossible_address_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text + THREE if text.startswith("function") else THREE + text)
    with pytest.raises(ConfigError, match="1 to 65535"):
        parse('vote = "1/1"\n[[replica]]\nname = "a"\nlink = "tcp:a:0"\n')
