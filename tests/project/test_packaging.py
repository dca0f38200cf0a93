"""What sets up a fresh machine: locks, wheel, scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.tree import ROOT, tracked

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
    assert unmet(locked("run"), dependencies) == []
    for extra in ("bench", "campaign", "distributed", "ssh", "test"):
        assert unmet(locked("test"), dependencies + extras[extra]) == []
    assert unmet(locked("build"), (LOCKS / "build.in").read_text().splitlines()[2:]) == []


def test_locks_agree_with_each_other() -> None:
    test = locked("test")
    for name in ("run", "build"):
        for package, pinned in locked(name).items():
            assert version(test.get(package, pinned)) == version(pinned)
    assert locked("run").keys() <= test.keys()


@pytest.mark.parametrize("name", ["build", "run", "test"])
def test_lock_contains_only_names_versions_and_hashes(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?|[a-z0-9][^/]*==[^/]*", line), (
            line
        )
    for block in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in block, f"no hash: {block}"


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


@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_script_is_executable(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111


def test_run_script_lists_its_jobs_and_rejects_others() -> None:
    listed = subprocess.run(["./run", "help"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0
    for job in ("demo", "test", "setup", "lock"):
        assert re.search(rf"^  {job} ", listed.stdout, re.MULTILINE)
    rejected = subprocess.run(["./run", "dmeo"], cwd=ROOT, capture_output=True, text=True)
    assert rejected.returncode != 0
    assert "unknown job: dmeo" in rejected.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Give a copy of what `./run` reads, in a directory with a space in its name."""
    copy = tmp_path / "my checkout"
    copy.mkdir()
    shutil.copy2(ROOT / "run", copy)
    shutil.copy2(ROOT / "pyproject.toml", copy)
    shutil.copytree(LOCKS, copy / "locks")
    return copy


@pytest.mark.parametrize("job", ["setup", "test", "demo"])
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
    text, _, _ = (ROOT / "run").read_text().partition("\njob=")
    (checkout / "functions").write_text(
        f"{text}\nvenv_key >venv_key\nsha256sum pyproject.toml >project\n"
    )
    done = subprocess.run(["bash", "functions"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stamps = checkout / ".venv" / "stamps"
    stamps.mkdir()
    for name, kept in (("venv", "venv_key"), ("project", "project")):
        (stamps / name).write_text((checkout / kept).read_text())
    done = subprocess.run(
        [str(checkout / "run"), "demo", "--seed", "3"], cwd="/", capture_output=True, text=True,
        env={"PATH": os.environ["PATH"]} | environment,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("demo --seed 3 None\n", "")


def test_wheel_contains_exactly_the_product(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("trivisor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = ("deploy", "faultinject", "guests", "voter")
    wanted = {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.relative_to(ROOT).parts[0] in (*packages, "trivisor.py")
    }
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == wanted
    assert "guests/agent/main.py" in inside, "the image build copies the guests' sources"
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        assert "trivisor = trivisor:main" in archive.read(entry).decode()
