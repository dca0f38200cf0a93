"""The state of a service, and the loading of one from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.answer import answer
from guests.protocol.message import Reply, Request, encode_request
from guests.service import Context, Service, ServiceError, load, state_digest
from tests.errors import raises


def test_service_without_state_has_an_empty_one() -> None:
    class Stateless(Service):
        def apply(self, request: Request, context: Context) -> Reply:
            return Reply()

    service = Stateless()
    service.restore(b"")
    assert service.digest() == state_digest(iter(()))
    with pytest.raises(ServiceError, match="no state"):
        service.restore(b"x")


def test_file_may_use_dataclasses_and_postponed_annotations(tmp_path: Path) -> None:
    file = tmp_path / "s.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from guests.service import Reply, Service\n"
        "@dataclass\nclass Item:\n    n: int = 3\n"
        "class S(Service):\n    def apply(self, request, context): return Reply(200, str(Item()))\n"
    )
    answered = answer(load(str(file))(), encode_request("GET", "/"), Context(1, 0, b"", ""))
    assert Reply.decode(answered).body == b"Item(n=3)"


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "not 0"),
        (
            "from guests.service import Service\n"
            "class A(Service):\n    def apply(self, r, c): ...\nclass B(A): ...\n",
            "not 2",
        ),
        ("from guests.service import Service\nclass A(Service): ...\n", "must define the method"),
        ("x = 1\n\ndef (", r"wrong\.py, line 3, cannot be imported: SyntaxError: invalid syntax"),
        ("\nimport nothing_of_this_name", "line 2, cannot be imported: ModuleNotFoundError"),
        ("def f():\n    return 1 / 0\n\nf()\n", "line 2, cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit"),
    ],
)
def test_invalid_file_is_an_error_that_names_the_problem(
    tmp_path: Path, source: str, message: str
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(source)
    with pytest.raises(ServiceError, match=message):
        load(str(file))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with raises("TV0401", match="give one of kv, static, or a Python file"):
        load(str(tmp_path / "absent.py"))
    (tmp_path / "service.txt").write_text("x")
    with raises("TV0402", match=r"must end in \.py"):
        load(str(tmp_path / "service.txt"))
