"""What sets up a fresh machine: locks, wheel, scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.tree import ROOT, tracked

Completed = subprocess.CompletedProcess[str]

DEBIAN_MODULES = Path("/usr/lib/python3/dist-packages")
LOCKS = ROOT / "locks"
ENTRY = re.compile(r"^(?P<requirement>[A-Za-z0-9][^\\]*?)\s*\\?$")


def project() -> dict[str, Any]:
    """Return the [project] table."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def locked(name: str) -> dict[str, Requirement]:
    """Return the pinned requirements of locks/NAME.txt, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in (LOCKS / f"{name}.txt").read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            match = ENTRY.match(line)
            assert match, line
            requirement = Requirement(match["requirement"])
            found[canonicalize_name(requirement.name)] = requirement
    return found


def listed(name: str) -> list[str]:
    """Return the requirements in locks/NAME.in."""
    lines = (LOCKS / f"{name}.in").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def version(requirement: Requirement) -> str:
    """Return the one version that a pinned requirement allows."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def unmet(lock: dict[str, Requirement], wanted: list[str]) -> list[str]:
    """Return the wanted requirements that the lock does not satisfy."""
    missing = []
    for text in wanted:
        requirement = Requirement(text)
        pinned = lock.get(canonicalize_name(requirement.name))
        if pinned is None or version(pinned) not in requirement.specifier:
            missing.append(f"{text}: locked {pinned}; run ./run lock")
    return missing


def test_locks_satisfy_the_project() -> None:
    dependencies, extras = project()["dependencies"], project()["optional-dependencies"]
    installed = locked("test") | locked("libvirt")
    for wanted in (dependencies, *extras.values()):
        assert unmet(installed, wanted) == []
    assert unmet(locked("build"), listed("build")) == []
    assert unmet(locked("campaign") | locked("libvirt"), dependencies) == []
    assert unmet(locked("compile"), listed("compile")) == []
    assert unmet(locked("docs"), extras["docs"]) == []
    assert listed("docs") == [Requirement(text).name for text in extras["docs"]]
    run = locked("run")
    assert unmet(run, listed("run")) == []
    assert set(listed("run")) <= {Requirement(text).name for text in dependencies}


def test_libvirt_binding_is_locked_alone() -> None:
    """The set-up leaves it out where the system's Python has Debian's."""
    assert [*locked("libvirt")] == listed("libvirt") == ["libvirt-python"]
    assert not {"libvirt-python"} & (locked("run").keys() | locked("test").keys())


def test_locks_agree_with_each_other() -> None:
    test = locked("test")
    for name in ("run", "campaign", "build", "compile", "docs"):
        for package, pinned in locked(name).items():
            assert version(test.get(package, pinned)) == version(pinned)
    assert locked("run").keys() <= locked("campaign").keys() <= test.keys()
    assert locked("docs").keys() <= test.keys()


@pytest.mark.parametrize("name", ["build", "campaign", "compile", "docs", "libvirt", "run", "test"])
def test_lock_contains_only_names_versions_and_hashes(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?|[a-z0-9][^/]*==[^/]*", line), (
            line
        )
    for block in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in block, f"no hash: {block}"


def test_citation_and_codemeta_agree_with_the_project() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    top = dict(re.findall(r"^([a-z-]+): (.+)$", citation, re.MULTILINE))
    words = citation.partition("\nkeywords:")[2].partition("\nreferences:")[0]
    keywords = re.findall(r"^  - (.+)$", words, re.MULTILINE)
    meta = json.loads((ROOT / "codemeta.json").read_text())
    wanted = project()
    assert top["title"].lower() == meta["name"].lower() == meta["identifier"] == wanted["name"]
    assert top["version"] == meta["version"] == wanted["version"]
    assert top["license"] == meta["license"].rpartition("/")[2] == wanted["license"]
    assert top["abstract"] == meta["description"] == wanted["description"]
    assert keywords == meta["keywords"] == wanted["keywords"]
    assert meta["runtimePlatform"] == f"Python {wanted['requires-python']}"


def test_libvirt_python_has_no_upper_limit() -> None:
    (binding,) = [text for text in project()["dependencies"] if text.startswith("libvirt-python")]
    assert {specifier.operator for specifier in Requirement(binding).specifier} == {">="}


def test_readme_is_short_and_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 200, "details belong in docs/"
    assert "./run demo" in readme
    assert "./run test" in readme


def test_documents_link_to_existing_files() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_ci_script_calls_the_test_command() -> None:
    assert "./run test" in (ROOT / ".ci/run").read_text()


def scripts() -> list[Path]:
    """Return the tracked shell scripts."""
    return [p for p in tracked() if p.suffix == ".sh" or p.read_bytes()[:20].endswith(b"bash\n")]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_script_parses(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["run", ".ci/run", "deploy/package/build"])
def test_script_is_executable(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111


def test_run_script_lists_its_jobs_and_rejects_others() -> None:
    listed = subprocess.run(["./run", "help"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0
    for job in ("demo", "test", "docs", "package", "audit", "setup", "lock"):
        assert re.search(rf"^  {job} ", listed.stdout, re.MULTILINE)
    rejected = subprocess.run(["./run", "dmeo"], cwd=ROOT, capture_output=True, text=True)
    assert rejected.returncode != 0
    assert "unknown job: dmeo" in rejected.stderr
    rejected = subprocess.run(["./run", "docs", "all"], cwd=ROOT, capture_output=True, text=True)
    assert rejected.returncode == 2
    assert "all" in rejected.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Give a copy of what `./run` reads, in a directory with a space in its name."""
    copy = tmp_path / "my checkout"
    copy.mkdir()
    shutil.copy2(ROOT / "run", copy)
    shutil.copy2(ROOT / "pyproject.toml", copy)
    shutil.copytree(LOCKS, copy / "locks")
    return copy


@pytest.mark.parametrize("job", ["setup", "test", "docs", "demo"])
def test_run_says_what_to_do_in_a_read_only_checkout(job: str, checkout: Path) -> None:
    (checkout / ".setup").mkdir()
    (checkout.parent / "link").symlink_to(checkout / "run")
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
    words = ["unshare", "--mount", "sh", "-c", f"{mount} || exit 77; exec ../link {job}", "sh"]
    done = subprocess.run(
        [*words, str(checkout)], cwd=checkout, env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True,
    )  # fmt: skip
    if "unshare failed" in done.stderr or done.returncode == 77:
        pytest.skip("this user may not mount")
    assert done.returncode == 1
    assert f"{checkout} cannot be written" in done.stderr
    assert f"cp -r '{checkout}' ~/trivisor && ~/trivisor/run {job}" in done.stderr
    assert "unbound" not in done.stderr and len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "environment",
    [{}, {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}, {"TERM": "", "CDPATH": "/"},
     {"PYTHONPATH": "here", "PYTHONHOME": "/nonexistent"}],
)  # fmt: skip
def test_run_needs_nothing_of_its_environment(environment: dict[str, str], checkout: Path) -> None:
    """The set-up is complete: a .venv whose command prints what it was given."""
    (checkout / "here").mkdir()
    (checkout / "here" / "os.py").write_text("raise ImportError('the wrong os')\n")
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (checkout / "trivisor.py").write_text(
        "import os, sys\nprint(*sys.argv[1:], os.environ.get('PYTHONPATH'))\n"
    )
    stamps = checkout / ".venv" / "stamps"
    stamps.mkdir()
    (stamps / "asked").write_text(sys.executable)
    commands = "choose_python\nvenv_key >venv_key\nsha256sum pyproject.toml >project"
    done = call_functions(checkout, commands)
    assert done.returncode == 0, done.stderr
    for name, kept in (("venv", "venv_key"), ("project", "project")):
        (stamps / name).write_text((checkout / kept).read_text())
    done = subprocess.run(
        [str(checkout / "run"), "demo", "--seed", "3"], cwd="/", capture_output=True, text=True,
        env={"PATH": os.environ["PATH"]} | environment,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("demo --seed 3 None\n", "")


def call_functions(checkout: Path, commands: str, **environment: str) -> Completed:
    """Run shell commands after the functions of `./run`."""
    text, _, _ = (checkout / "run").read_text().partition("\njob=")
    (checkout / "functions").write_text(f"{text}\n{commands}\n")
    clean = {name: text for name, text in os.environ.items() if name != "TRIVISOR_PYTHON"}
    return subprocess.run(
        ["bash", "functions"], cwd=checkout, env=clean | environment, capture_output=True, text=True
    )


def fake_python(path: Path, answer: str, status: int = 0) -> Path:
    """Make a program that answers as a Python does to the probe of `./run`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    path.chmod(0o755)
    return path


class Pythons(NamedTuple):
    """Pythons as `./run` finds them: the system's, one of the user's, one that is too old."""

    system: Path
    own: Path
    old: Path


@pytest.fixture
def pythons(tmp_path: Path) -> Pythons:
    """Give three fake Pythons.  The user's is the first `python3` on PATH."""
    system = tmp_path / "usr/bin/python3"
    own = tmp_path / "own/python3"
    return Pythons(
        system=fake_python(system, f"{system} headers"),
        own=fake_python(own, str(own)),
        old=fake_python(tmp_path / "old/python3", "is Python 3.9, older than 3.11", 1),
    )


def choose(checkout: Path, pythons: Pythons, **environment: str) -> Completed:
    """Return what `./run` prints of the Python that it chooses."""
    path = {"PATH": f"{pythons.own.parent}:{os.environ['PATH']}"}
    commands = f"SYSTEM_PYTHON={str(pythons.system)!r}\nchoose_python\n"
    return call_functions(checkout, f"{commands}echo $PYTHON $BINDING", **path | environment)


def test_setup_prefers_the_systems_python_with_debians_binding(
    checkout: Path, pythons: Pythons
) -> None:
    assert choose(checkout, pythons).stdout == f"{pythons.system} debian\n"
    pythons.system.unlink()  # apt will install it
    assert choose(checkout, pythons).stdout == f"{pythons.system} debian\n"


def test_setup_uses_the_first_python_on_path_where_the_systems_is_too_old(
    checkout: Path, pythons: Pythons
) -> None:
    pythons.old.replace(pythons.system)
    assert choose(checkout, pythons).stdout == f"{pythons.own} pip\n"
    fake_python(pythons.own, f"{pythons.own} venv headers")
    done = choose(checkout, pythons)
    assert done.returncode != 0
    assert f"{pythons.own}: has no venv headers" in done.stderr
    assert f"{pythons.system}: is Python 3.9, older than 3.11" in done.stderr


def test_setup_uses_the_python_asked_for_also_in_later_runs(
    checkout: Path, pythons: Pythons
) -> None:
    asked = {"TRIVISOR_PYTHON": str(pythons.own)}
    assert choose(checkout, pythons, **asked).stdout == f"{pythons.own} pip\n"
    stamps = checkout / ".venv/stamps"
    stamps.mkdir(parents=True)
    (stamps / "asked").write_text(f"{pythons.own}\n")
    assert choose(checkout, pythons).stdout == f"{pythons.own} pip\n"
    asked = {"TRIVISOR_PYTHON": str(pythons.system)}
    assert choose(checkout, pythons, **asked).stdout == f"{pythons.system} debian\n"
    pythons.own.unlink()  # it was removed
    assert choose(checkout, pythons).stdout == f"{pythons.system} debian\n"


@pytest.mark.parametrize("name", ["missing/python3", "old/python3"])
def test_setup_rejects_an_unusable_python_asked_for(
    name: str, checkout: Path, pythons: Pythons
) -> None:
    path = pythons.system.parents[2] / name
    done = choose(checkout, pythons, TRIVISOR_PYTHON=str(path))
    assert done.returncode != 0
    assert f"TRIVISOR_PYTHON={path} cannot be used" in done.stderr


@pytest.mark.skipif(not any(DEBIAN_MODULES.glob("libvirt.py")), reason="no python3-libvirt")
def test_debians_binding_is_linked_alone(checkout: Path) -> None:
    commands = 'step() { shift 2; "$@"; }\nSYSTEM_PYTHON=/usr/bin/python3\nchoose_python'
    made = 'step venv "" "$PYTHON" -m venv --without-pip "$VENV"\nlink_debian_binding'
    done = call_functions(checkout, f"{commands}\n{made}", TRIVISOR_PYTHON="/usr/bin/python3")
    assert done.returncode == 0, done.stderr
    (modules,) = (checkout / ".venv/lib").glob("python3.*/site-packages")
    linked = [path for path in modules.iterdir() if path.is_symlink()]
    assert {path.name.partition(".")[0].rstrip("_") for path in linked} >= {"libvirt", "libvirtmod"}
    assert all(path.resolve().parent == DEBIAN_MODULES for path in linked)
    words = [str(checkout / ".venv/bin/python"), "-c", "import libvirt, libvirt_qemu, sys; "
             "from importlib.metadata import version; print(version('libvirt-python')); "
             "sys.exit(any('dist-packages' in path for path in sys.path))"]  # fmt: skip
    assert subprocess.run(words, env={}, capture_output=True).returncode == 0


def build(source: Path, target: Path, kind: str) -> Path:
    """Build the wheel or the sdist of a source tree; return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("trivisor-*")
    return built


def test_source_distribution_builds_the_same_wheel(tmp_path: Path) -> None:
    shutil.unpack_archive(build(ROOT, tmp_path / "sdist", "sdist"), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheels = [build(ROOT, tmp_path / "1", "wheel"), build(unpacked, tmp_path / "2", "wheel")]
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_wheel_contains_exactly_the_product(tmp_path: Path) -> None:
    wheel = build(ROOT, tmp_path, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = ("deploy", "faultinject", "guests", "voter")
    wanted = {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.relative_to(ROOT).parts[0] in (*packages, "trivisor.py")
    }
    packed, data = (
        {name.partition(f"{part}/")[2] for name in names if f"{part}/" in name}
        for part in ("dist-info", "data/share/doc/trivisor")
    )
    assert "entry_points.txt" in packed
    assert data == {f"examples/{path.name}" for path in (ROOT / "examples").iterdir()}
    inside = {name for name in names if not name.startswith("trivisor-")}
    assert inside == wanted
    assert "guests/agent/main.py" in inside, "the image build copies the guests' sources"
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        assert "trivisor = trivisor:main" in archive.read(entry).decode()
