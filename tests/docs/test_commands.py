"""Commands of the documentation that need no node work, and the tools that run commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.commands import OFFLINE
from tests.docs.pages import Command, SavedFile, steps
from tests.docs.shell import Done, Shell, shown_as
from tests.project.tree import ROOT


def command(text: str, *shown: str, status: int = 0) -> Command:
    return Command(ROOT / "README.md", 1, text, shown, status)


@pytest.mark.parametrize("text", OFFLINE)
def test_command_works_without_a_node(text: str, scratch: Path) -> None:
    (done,) = Shell(scratch / "reader").run([command(text)])
    assert done.status == 0, done
    assert OFFLINE[text] in "\n".join(done.output)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["took 3 s"], ["took 12.5 s"], True),
        (["took 3 s"], ["took 3 ms"], False),
        (["a"], ["a", "b"], False),
        (["a", "..."], ["a", "b"], True),
        (["...", "b"], ["a", "b"], True),
        (["a", "c"], ["a", "b", "c"], False),
        (["a", "...", "c"], ["a", "b", "c"], True),
        (["c", "...", "a"], ["a", "b", "c"], False),
        ([], ["anything"], True),
    ],
)
def test_shown_output_may_differ_in_numbers_and_leave_lines_out(
    shown: list[str], printed: list[str], same: bool
) -> None:
    found = shown_as(Done(command("x", *shown), 0, tuple(printed)))
    assert (found is not None) == same


def test_shell_does_all_steps_up_to_the_first_unexpected_status(scratch: Path) -> None:
    words: list[Command | SavedFile] = [
        SavedFile("greeting", "hello\n"),
        command("cat greeting; false", status=1),
        command("cd /; x=1"),
        command("echo $x in $PWD; exit_status=3; (exit 3)"),
        command("echo never"),
    ]
    done = Shell(scratch / "reader").run(words)
    assert [(each.status, each.output) for each in done] == [
        (1, ("hello",)), (0, ()), (3, ("1 in /",)),
    ]  # fmt: skip


def test_shell_is_ended_after_its_time(scratch: Path) -> None:
    shell = Shell(scratch / "reader")
    with pytest.raises(AssertionError, match="not within"):
        shell.run([command("echo $$ >pid; sleep 1000")], seconds=1)
    pid = (scratch / "reader" / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}/exe").exists()


def test_page_is_taken_apart_into_files_and_commands(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(
        "Save this as `a.py`:\n\n```python\nx\n```\n\n```python\nnot saved\n```\n\n"
        "```\none  # why\n\ntwo\n```\n\n"
        "<!-- exits with 3 -->\n```console\n$ three\nout\n$ four\n```\n"
        "<!-- demo output -->\n```\nnot a command\n```\n```text\nnor this\n```\n"
    )
    assert list(steps(page)) == [
        SavedFile("a.py", "x\n"),
        Command(page, 12, "one"),
        Command(page, 14, "two"),
        Command(page, 19, "three", ("out",)),
        Command(page, 21, "four", (), 3),
    ]


def test_services_page_shows_the_example_unchanged() -> None:
    example = (ROOT / "examples/counter.py").read_text()
    assert example.strip() in (ROOT / "docs/services.md").read_text()
