"""Fault trees, compared with external engines: SCRAM (Open-PSA MEF), Storm (Galileo)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from faultinject.model.export import NodeDesign, to_galileo, to_open_psa
from faultinject.model.paired import ModelError
from faultinject.model.reliability import m_of_n, moved_c1, moved_c2
from tests.errors import raises

DESIGNS = {
    "plain": NodeDesign(rh=0.999, rv=1.0, rm=(0.9,), m=1),
    "1-of-4": NodeDesign(rh=1.0, rv=0.3, rm=(0.1,) * 4, m=1),
    "2-of-3": NodeDesign(rh=0.999, rv=0.98, rm=(0.9,) * 3, m=2),
    "2-of-3 at .75": NodeDesign(rh=1.0, rv=8 / 9, rm=(0.75,) * 3, m=2),
    "2-of-3 unequal": NodeDesign(rh=0.999, rv=0.98, rm=(0.9, 0.8, 0.7), m=2),
    "2-of-2": NodeDesign(rh=0.999, rv=0.98, rm=(0.9,) * 2, m=2),
    "3-of-5": NodeDesign(rh=0.999, rv=0.98, rm=(0.8,) * 5, m=3),
    "2-of-3 with beta": NodeDesign(rh=0.999, rv=0.98, rm=(0.9,) * 3, m=2, beta=0.2),
    "1-of-9 with beta": NodeDesign(rh=0.999, rv=0.98, rm=(0.5,) * 9, m=1, beta=0.1),
    "C1": NodeDesign(rh=0.999, rv=0.98, rm=(0.75,) * 6, m=1, rf=0.75),
    "C1, one VM": NodeDesign(rh=0.999, rv=0.98, rm=(0.75,), m=1, rf=0.75),
    "C2": NodeDesign(rh=0.999, rv=0.98, rm=(0.75,) * 6, m=1, r_moved=0.9932),
    "f in 2-of-3": NodeDesign(rh=0.999, rv=0.98, rm=(0.9, 0.8, 0.7), m=2, rf=0.95, r_moved=0.9),
}

designs = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS.keys())


@designs
@pytest.mark.skipif(shutil.which("scram") is None, reason="scram is not installed (apt)")
def test_scram_agrees(design: NodeDesign, tmp_path: Path) -> None:
    model = tmp_path / "node.xml"
    model.write_text(to_open_psa(design), encoding="utf-8")
    done = subprocess.run(
        ["scram", "--bdd", "--probability", "1", "--ccf", "1", "--cut-off", "0", str(model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r'<sum-of-products[^>]* probability="([^"]+)"', done.stdout)
    assert found, done.stdout
    # SCRAM prints six digits.
    assert float(found[1]) == pytest.approx(design.reliability.down, rel=1e-5)


@designs
def test_storm_agrees(design: NodeDesign, tmp_path: Path) -> None:
    stormpy: Any = pytest.importorskip("stormpy", reason="stormpy is not installed")
    dft: Any = pytest.importorskip("stormpy.dft", reason="stormpy has no fault trees")
    model = tmp_path / "node.dft"
    model.write_text(to_galileo(design), encoding="utf-8")
    tree = dft.load_dft_galileo_file(str(model))
    question = stormpy.parse_properties('P=? [F<=1 "failed"]')[0]
    found = dft.analyze_dft(tree, [question.get_raw_formula()])[0]
    assert found == pytest.approx(design.reliability.down, rel=1e-9)


def test_node_reliability_is_the_papers_formula() -> None:
    assert float(DESIGNS["2-of-3"].reliability) == pytest.approx(
        float(m_of_n(0.999, 0.98, 0.9, 2, 3))
    )


def test_relocated_node_reliability_is_the_papers_formula() -> None:
    one = moved_c1(0.999, 0.98, 0.75, 0.75, 6)
    two = moved_c2(0.999, 0.98, 0.9932, 0.75, 6)
    assert float(DESIGNS["C1"].reliability) == pytest.approx(float(one), rel=1e-12)
    assert float(DESIGNS["C2"].reliability) == pytest.approx(float(two), rel=1e-12)


def test_open_psa_has_an_atleast_gate_and_a_beta_factor_group() -> None:
    tree = ElementTree.fromstring(to_open_psa(DESIGNS["3-of-5"]))
    gate = tree.find(".//atleast")
    assert gate is not None and gate.get("min") == "3" and len(gate) == 5
    group = ElementTree.fromstring(to_open_psa(DESIGNS["2-of-3 with beta"])).find(
        ".//define-CCF-group"
    )
    assert group is not None and group.get("model") == "beta-factor"


def test_galileo_states_how_many_must_fail() -> None:
    assert '"Guests" 2of3 "M1" "M2" "M3";' in to_galileo(DESIGNS["2-of-3"])
    assert '"Guests" and "M1" "M2" "M3" "M4";' in to_galileo(DESIGNS["1-of-4"])


def test_inexpressible_designs_raise() -> None:
    with raises("TV0602", match="M1 has reliability 0"):
        to_galileo(NodeDesign(rh=1, rv=1, rm=(0.0, 0.5), m=1))
    with pytest.raises(ModelError, match="two or more equal VMs"):
        NodeDesign(rh=1, rv=1, rm=(0.9, 0.8, 0.7), m=2, beta=0.1)
    with pytest.raises(ModelError, match="R_F is 2"):
        NodeDesign(rh=1, rv=1, rm=(0.9,), m=1, r_moved=2.0)
    with pytest.raises(ModelError, match="without R_f"):
        NodeDesign(rh=1, rv=1, rm=(0.9, 0.9), m=1, rf=0.9, beta=0.1)
    with pytest.raises(ModelError, match="n is 0"):
        NodeDesign(rh=1, rv=1, rm=(), m=1)
