"""``trivisor model`` as a user types it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import trivisor
from faultinject.calculator.commands import model
from voter.commands.terminal import ExitCode

Output = tuple[int, str, str]
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "measured.json"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Output:
        with pytest.raises(SystemExit) as ended:
            trivisor.main(["model", *arguments])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


EXAMPLES = [
    (name, line.split("   ")[0].split("(Ineq")[0].split()[2:])
    for name, command in model.commands.items()
    for line in re.findall(r"^\s*(trivisor model .*)$", command.help or "", re.MULTILINE)
]


def test_every_command_has_examples() -> None:
    assert {name for name, _ in EXAMPLES} == model.commands.keys()


@pytest.mark.parametrize(("name", "arguments"), EXAMPLES, ids=[" ".join(w) for _, w in EXAMPLES])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_examples_of_the_help_work(
    name: str, arguments: list[str], as_json: bool, run: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / "measured.json")
    code, out, err = run(*arguments, *(["--json"] if as_json else []))
    assert (code, err) == (0, "")
    if as_json:
        assert strict(out)
    else:
        assert out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bound --design 2of3 --rm 1.5", "from 0 to 1"),
        ("bound --design 2of3 --rm often", "write 0.999, 1e-9 or 1-1e-15"),
        ("bound --design 2of3 --rm nan", "from 0 to 1"),
        ("bound --design 1ofn --rm 0.5 --n 0", "n is 0"),
        ("bound --design 1ofn --rm 0.5 --n 0", "n >= 1 VMs"),
        ("bound --design 2of3 --rm 1", "R_M = 1: a VM that never fails cannot be improved"),
        ("bound --design 1ofn --rm 1 --n 4", "(Inequality 1)"),
        ("bound --design 1ofn --rm 0 --n 4", "R_M = 0: a VM that never works"),
        ("bound --design moved --rf 0.5 --rm 0.5 --n 2 --rv 0.9", "R_H, R_V"),
        ("bound --design 1ofn --r 0.98 --rv 0.98 --rm 0.9", "requires R < R_V"),
        ("bound --design 2of3", "give --rm and --n"),
        ("bound --rm 0.9", "--design"),
        ("reliability --design 2of3 --rm 0.9", "--rv"),
        ("reliability --design c1 --rm 0.9", "needs --n, --rf"),
        ("reliability --design c2 --n 3 --rm 0.9 --rf 0.9", "--r-moved"),
        ("reliability --design 2of3 --rm 0.9 --rv 0.9 --rf 0.9", "--design c1 or c2"),
        ("advise --rm 0.9", "needs --rm"),
        ("advise --rm 0.9 --rv 0.99 --n 31", "1 to 30"),
        ("repairable --design 2of3 --mttf 0 --mttr 1", "above 0"),
        ("figure 5", "5"),
        ("figure 7 --out figure.gif", ".svg, .png, .pdf"),
        ("figure 7 --n 3 --json", "no n to choose"),
        ("figure all --n 3", "--n is for one figure"),
        ("figure all --out one.svg", "is a directory"),
        ("export mef --design c1 --n 2 --rm 0.9 --rv 0.9", "needs --rf"),
        ("export galileo --design 2of3 --rm 0 --rv 0.9", "reliability 0"),
    ],
)
def test_wrong_use_exits_with_2_and_the_reason(arguments: str, message: str, run: Any) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err and "Traceback" not in err


def test_json_has_no_infinity(run: Any) -> None:
    for arguments in (
        "reliability --design 2of3 --rm 1 --rv 1",
        "reliability --design 2of3 --rm 0 --rv 0.5",
        "bound --design 3of3 --rm 1e-200",
        "advise --rm 1 --rv 1 --r 0.5",
        "repairable --design 2of3 --mttf 1e300 --mttr 1e-300",
        "repairable --design 1of9 --mttf 1e9 --mttr 1 --mission 1",
    ):
        code, out, err = run(*arguments.split(), "--json")
        assert (code, err) == (0, ""), arguments
        assert strict(out), arguments


def test_digits_are_preserved_on_the_command_line(run: Any) -> None:
    _, out, _ = run("bound", "--design", "2of3", "--rm", "1-1e-15", "--json")
    assert strict(out)["value"]["complement"] == pytest.approx(1e-15, rel=1e-12)
    _, out, _ = run("reliability", "--design", "1ofn", "--n", "10000", "--rm", "0.001",
                    "--rv", "1", "--json")  # fmt: skip
    assert strict(out)["node"]["complement"] == pytest.approx(0.999**10_000, rel=1e-10)


def test_figure_json_has_curves_and_measured_points(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    code, out, _ = run("figure", "6b", "--results", str(EXAMPLE), "--out", str(path), "--json")
    shown = strict(out)
    assert code == 0 and path.exists() and shown["written"] == [str(path)]
    assert [each["value"] for each in shown["figures"][0]["curves"]] == [1, 3, 6, 9]
    assert len(shown["measured"]) == 5


def test_figure_warns_when_no_point_is_for_it(run: Any, tmp_path: Path) -> None:
    text = json.loads(EXAMPLE.read_text())
    text["points"] = text["points"][:1]
    results = tmp_path / "measured.json"
    results.write_text(json.dumps(text))
    code, _, err = run("figure", "3", "--results", str(results), "--out", str(tmp_path / "3.svg"))
    assert code == 0 and "warning TV0610: " in err and "has no point for figure 3" in err


def test_figure_all_writes_every_figure(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("figure", "all", "--out", str(tmp_path / "figures"))
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["3.svg", "4.svg", "6a.svg", "6b.svg", "7.svg", "map.svg"]
    assert len(out.splitlines()) == 6


@pytest.mark.skipif(shutil.which("scram") is None, reason="scram is not installed (apt)")
@pytest.mark.parametrize(
    "arguments",
    [
        "--design 2of3 --rm 0.9 --rv 0.98 --beta 0.1",
        "--design c1 --n 6 --rm 0.75 --rf 0.75 --rv 0.9",
        "--design c2 --n 6 --rm 0.75 --r-moved 0.9932 --rv 0.9",
        "--design majority --rm 0.9 --rm 0.8 --rm 0.7 --rv 0.9",
        "--design nv --rm 0.9 --rh 0.999",
    ],
)
def test_exported_tree_agrees_with_scram(arguments: str, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "node.xml"
    code, out, _ = run("export", "mef", *arguments.split(), "--out", str(path), "--json")
    assert code == 0
    done = subprocess.run(
        ["scram", "--bdd", "--probability", "1", "--ccf", "1", "--cut-off", "0", str(path)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    found = re.search(r'<sum-of-products[^>]* probability="([^"]+)"', done.stdout)
    assert found, done.stderr
    assert float(found[1]) == pytest.approx(strict(out)["node"]["complement"], rel=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        "--design 3of5 --rm 0.9 --rv 0.98 --beta 0.1",
        "--design c1 --n 3 --rm 0.75 --rf 0.75 --rv 0.9",
        "--design 1ofn --n 9 --rm 0.1 --rv 0.3",
    ],
)
def test_exported_tree_agrees_with_storm(arguments: str, run: Any, tmp_path: Path) -> None:
    stormpy: Any = pytest.importorskip("stormpy", reason="stormpy is not installed")
    dft: Any = pytest.importorskip("stormpy.dft", reason="stormpy has no fault trees")
    path = tmp_path / "node.dft"
    code, out, _ = run("export", "galileo", *arguments.split(), "--out", str(path), "--json")
    assert code == 0
    question = stormpy.parse_properties('P=? [F<=1 "failed"]')[0]
    tree = dft.load_dft_galileo_file(str(path))
    found = dft.analyze_dft(tree, [question.get_raw_formula()])[0]
    assert found == pytest.approx(strict(out)["node"]["complement"], rel=1e-9)
