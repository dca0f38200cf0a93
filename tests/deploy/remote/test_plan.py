"""The changes that a deployment makes."""

from __future__ import annotations

import hashlib
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deploy.remote.facts import DROPIN, parse_facts
from deploy.remote.package import SETTINGS_FILE, DebianPackage
from deploy.remote.plan import Plan, make_plan, make_removal, merge_settings, settings_of, url_of
from tests.deploy.remote.fake_host import INSTALLED, facts_of
from tests.deploy.remote.fake_package import SETTINGS
from tests.errors import raises

PACKAGE = DebianPackage(Path("x.deb"), "ab" * 32, "0.1.0", 1 << 20, SETTINGS)
DEPLOYED = INSTALLED | {"record": [f"package {PACKAGE.sha256}"]}
SERVICE = ("mine.py", b"class Mine: ...\n")


def plan(
    changes: dict[str, list[str]],
    wanted: dict[str, Any] | None = None,
    service: tuple[str, bytes] | None = None,
    **files: str,
) -> Plan:
    return make_plan(parse_facts(facts_of(changes, **files)), PACKAGE, wanted or {}, service)


def test_new_host_gets_the_package_and_needs_no_consent() -> None:
    found = plan({})
    assert (found.package, found.files, found.diffs) == (PACKAGE, {}, [])
    assert found.steps and not found.restart


def test_same_package_and_settings_need_no_change() -> None:
    found = plan(DEPLOYED, settings=SETTINGS)
    assert (found.steps, found.package, found.files, found.delete) == ([], None, {}, [])
    assert plan(DEPLOYED, {"vote": "3/3"}, settings='vote = "3/3"\n').steps == []


@pytest.mark.parametrize(
    "changes", [{"record": [f"package {'cd' * 32}"]}, {"record": []}, {"package": ["ii 0.0.9"]},
                {"package": ["iF 0.1.0"]}, {"package": ["rc 0.1.0"]}],
)  # fmt: skip
def test_other_build_version_or_broken_package_is_replaced(changes: dict[str, list[str]]) -> None:
    assert plan(DEPLOYED | changes, settings=SETTINGS).package == PACKAGE


def test_stopped_node_is_started() -> None:
    found = plan(DEPLOYED | {"node_state": ["inactive"]}, settings=SETTINGS)
    assert found.steps == ["start the node"]
    assert (found.package, found.files) == (None, {})


def test_other_settings_are_a_diff_that_needs_consent() -> None:
    found = plan(DEPLOYED, {"vote": "3/3"}, settings='vote = "2/3"\n# mine\n')
    assert found.files == {SETTINGS_FILE: 'vote = "3/3"\n# mine\n'}
    (diff,) = found.diffs
    assert '-vote = "2/3"' in diff and '+vote = "3/3"' in diff
    assert found.restart and found.package is None


def test_options_not_given_stay_as_they_are_on_the_host() -> None:
    found = plan(DEPLOYED, {"memory": 256}, settings='vote = "3/3"\n')
    assert tomllib.loads(found.files[SETTINGS_FILE]) == {"vote": "3/3", "memory": 256}
    assert (found.settings.vote, found.settings.guests, found.settings.memory_mib) == (
        "3/3",
        3,
        256,
    )


def test_other_address_is_a_drop_in_and_the_default_removes_it() -> None:
    found = plan({}, {"http": "0.0.0.0:80"})
    assert "ListenStream=\nListenStream=0.0.0.0:80\n" in found.files[DROPIN]
    assert (list(found.files), found.diffs, found.http) == ([DROPIN], [], "0.0.0.0:80")
    there = DEPLOYED | {"listen": ["0.0.0.0:80 (Stream)"]}
    kept = plan(there, settings=SETTINGS, dropin=found.files[DROPIN])
    assert (kept.steps, kept.http) == ([], "0.0.0.0:80")
    back = plan(there, {"http": "127.0.0.1:8080"}, settings=SETTINGS, dropin=found.files[DROPIN])
    assert (back.delete, len(back.diffs), back.http) == ([DROPIN], 1, "127.0.0.1:8080")
    other = plan({}, {"http": "0.0.0.0:80"}, dropin="[Socket]\nListenStream=9\n")
    assert "-ListenStream=9" in other.diffs[0]


def test_address_in_the_settings_follows_that_of_the_socket() -> None:
    found = plan(DEPLOYED, {"http": "0.0.0.0:80"}, settings='http = "127.0.0.1:8080"\n')
    assert found.files[SETTINGS_FILE] == 'http = "0.0.0.0:80"\n'
    assert DROPIN in found.files


def test_drop_in_that_a_removal_left_gives_the_address() -> None:
    found = plan(
        {"package": ["rc 0.1.0"]}, dropin="[Socket]\nListenStream=\nListenStream=[::]:81\n"
    )
    assert found.http == "[::]:81"


def test_own_service_is_written_once_and_named_in_the_settings() -> None:
    found = plan({}, service=SERVICE)
    assert found.files["etc/trivisor/services/mine.py"] == SERVICE[1].decode()
    assert found.settings.service == "/etc/trivisor/services/mine.py"
    settings = found.files[SETTINGS_FILE]
    there = {"sum": [f"etc/trivisor/services/mine.py {hashlib.sha256(SERVICE[1]).hexdigest()}"]}
    assert plan(DEPLOYED | there, service=SERVICE, settings=settings).steps == []
    other = {"sum": [f"etc/trivisor/services/mine.py {'0' * 64}"]}
    changed = plan(DEPLOYED | other, service=SERVICE, settings=settings)
    assert list(changed.files) == ["etc/trivisor/services/mine.py"] and changed.diffs


def test_units_of_other_origin_need_consent() -> None:
    own = plan({"unit": ["lib/systemd/system/trivisor.service"]})
    assert "lib/systemd/system/trivisor.service" in own.diffs[0]
    over = plan({"override": ["etc/systemd/system/trivisor-voter.service"]})
    assert "takes the place" in over.diffs[0]
    beside = plan({"override": ["etc/systemd/system/trivisor.service.d/x.conf"]})
    assert beside.diffs == []


@pytest.mark.parametrize(
    "text", ["vote = 3", 'vote = "2/', "guests = 50", "unknown = 1", 'vote = "x"', "memory = 1"]
)
def test_settings_that_cannot_be_used_are_an_error_that_names_the_file(text: str) -> None:
    with raises("TV0764", match=r"/etc/trivisor/node\.toml"):
        plan(DEPLOYED, settings=text)


@pytest.mark.parametrize(
    "text", ["[table]\nx = 1\n", 'note = """\nvote = 1\n"""\n', "vote = [\n 1,\n]\n"]
)
def test_settings_too_unusual_to_edit_are_an_error(text: str) -> None:
    with raises("TV0764", match="edited"):
        merge_settings(text, {"vote": "3/3"})


KEYS = st.sampled_from(["vote", "http", "memory", "allow-faults", "boot-deadline"])
VALUES = st.one_of(
    st.integers(0, 9), st.booleans(), st.text(st.characters(codec="utf-8"), max_size=5),
    st.floats(0.5, 1e6),
)  # fmt: skip


@example(before={}, wanted={"vote": "\x7f"})
@example(before={"vote": "\u2028"}, wanted={"http": "\x85"})
@given(before=st.dictionaries(KEYS, VALUES), wanted=st.dictionaries(KEYS, VALUES))
def test_merging_changes_exactly_the_wanted_keys(
    before: dict[str, Any], wanted: dict[str, Any]
) -> None:
    text = merge_settings("# vote = 1\n# kept\n", before)
    merged = merge_settings(text, wanted)
    assert tomllib.loads(merged) == before | wanted
    assert "# kept" in merged
    assert merge_settings(merged, wanted) == merged


def test_number_of_guests_follows_the_vote_and_the_other_way_round() -> None:
    assert settings_of('vote = "3/5"').guests == 5
    assert settings_of("guests = 5").vote == "3/5"
    assert settings_of("accept-service = true").vote == "2/3"


def test_url_is_one_that_the_host_itself_can_reach() -> None:
    assert url_of("0.0.0.0:80") == "http://127.0.0.1:80"
    assert url_of("[::]:80") == "http://[::1]:80"
    assert url_of("192.0.2.7:80") == "http://192.0.2.7:80"


def test_specification_is_read_by_a_shell_as_it_was_meant() -> None:
    found = plan({}, {"http": "[::1]:80"})
    text = found.spec(state="it's", deadline=60.4) + 'echo "$MODE|$EXPECT|$URL|$GUESTS|$DEADLINE"'
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "apply|it's|http://[::1]:80|3|60\n"


def test_removal_does_only_what_is_left_to_do() -> None:
    absent = parse_facts(facts_of())
    assert make_removal(absent, purge=False).steps == []
    removed = parse_facts(facts_of({"package": ["rc 0.1.0"]}))
    assert make_removal(removed, purge=False).steps == []
    assert make_removal(removed, purge=True).steps
    present = parse_facts(facts_of(DEPLOYED, dropin="x"))
    assert make_removal(present, purge=False).delete == [DROPIN]
