"""``trivisor model``: the paper's formulas, their inversions and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from faultinject.calculator.designs import NAMES
from faultinject.calculator.values import Chance
from faultinject.model.paired import ModelError, Paired
from voter.commands.parameters import (
    Integer,
    Number,
    existing_path,
    output_directory,
    output_file,
)
from voter.commands.terminal import CommandError, ExitCode, print_json, warn

__all__ = ["model"]

ONE = "1"
_count = Integer(0, 10_000)
"""Of VMs; each formula has its own least and most."""


def _chance(
    *names: str, shown: str, default: str | None = None, several: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        *names, type=Chance(), default=default, show_default=default is not None,
        multiple=several, help=shown,
    )  # fmt: skip


_rm = _chance("--rm", shown="R_M, of a VM (for c1, c2 and moved: R_M', of the rest of a VM).")
_rms = _chance("--rm", shown="R_M, of a VM; repeat it for each VM if they differ.", several=True)
_rv = _chance("--rv", shown="R_V, of the layer under the VMs.")
_rh = _chance("--rh", shown="R_H, of the hardware.", default=ONE)
_rf = _chance("--rf", shown="R_f, of the function f inside each VM.")
_moved = _chance("--r-moved", shown="R_F, of the function F next to the hypervisor.")
_beta = _chance(
    "--beta", shown="Share of a VM's failures that affect all VMs at once.", default="0"
)
_lying = _chance("--lying", shown="Share of a VM's failures that are wrong replies.", default="0")
_alike = _chance("--alike", shown="Probability that lying VMs return the same reply.", default=ONE)
_n = click.option("--n", type=_count, metavar="N", help="Number of VMs.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _design(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--design", required=True, metavar="DESIGN", help=text)


def _output(answer: Any, as_json: bool, show: Callable[[Any], None]) -> ExitCode:
    import msgspec  # noqa: PLC0415

    if as_json:
        print_json(msgspec.to_builtins(answer))
    else:
        show(answer)
    return ExitCode.OK


@click.group()
def model() -> None:
    """Section 4 of the paper as a calculator: reliability, bounds, figures, recommendations.

    A reliability is the probability of a mission without failure.  Write it as 0.999, 1e-9, or
    1-1e-15 (without loss of digits).  Failures are independent unless --beta is given.
    """


@model.command()
@_design(f"One of: {NAMES}; c1, c2: with a function f in the VMs, or moved.")
@_n
@_rms
@_rv
@_rh
@_rf
@_moved
@_beta
@_lying
@_alike
@_json
def reliability(design: str, as_json: bool, **given: Any) -> ExitCode:
    """Compute R_sys of a design, and compare it with one VM on the bare node (NV).

    \b
    trivisor model reliability --design 2of3 --rm 0.9 --rv 0.999
    trivisor model reliability --design 1ofn --n 4 --rm 0.1 --rv 0.3
    trivisor model reliability --design 2of3 --rm 0.9 --rm 0.8 --rm 0.7 --rv 0.999
    trivisor model reliability --design 2of2 --rm 0.9 --rv 0.999 --lying 0.5
    trivisor model reliability --design c1 --n 6 --rm 0.75 --rf 0.75 --r-moved 0.99
    """
    from faultinject.calculator.printing import print_moved, print_reliability  # noqa: PLC0415
    from faultinject.calculator.reliability import (  # noqa: PLC0415
        answer_moved,
        answer_reliability,
    )
    from faultinject.model.outcomes import FailureMode  # noqa: PLC0415

    how = FailureMode(lying=given["lying"], alike=given["alike"], beta=given["beta"])
    if design.strip().lower() in {"c1", "c2"}:
        if how != FailureMode(alike=given["alike"]):
            raise ModelError(
                "--beta and --lying are not available for c1 and c2", error_code="TV0602"
            )
        if given["n"] is None or given["rf"] is None or len(given["rm"]) != 1:
            raise ModelError(f"{design} needs --n, --rf (R_f) and one --rm (R_M')")
        if design.strip().lower() == "c2" and given["r_moved"] is None:
            raise ModelError("c2 needs --r-moved (R_F); without it use c1", error_code="TV0602")
        answer = answer_moved(
            given["n"], given["rm"][0], given["rf"], given["r_moved"],
            Paired(1.0) if given["rv"] is None else given["rv"], given["rh"],
        )  # fmt: skip
        return _output(answer, as_json, print_moved)
    if given["rf"] is not None or given["r_moved"] is not None:
        raise ModelError(
            "R_f and R_F need a design with a function f or F: --design c1 or c2",
            error_code="TV0602",
        )
    found = answer_reliability(design, given["n"], given["rm"], given["rv"], given["rh"], how)
    return _output(found, as_json, print_reliability)


@model.command()
@_design(f"One of: {NAMES.replace('nv, ', '')}, moved.")
@_n
@_rm
@_rv
@_rh
@_rf
@_moved
@_chance("--r", shown="R, the required node reliability.")
@_beta
@_json
def bound(design: str, as_json: bool, **given: Any) -> ExitCode:
    """Compute the R_V, R_M, R_F, R_f or n that a design needs: the missing quantity is found.

    \b
    trivisor model bound --design 2of3 --rm 0.9             which R_V (Inequality 4)
    trivisor model bound --design 2of3 --rv 0.98            which R_M
    trivisor model bound --design 1ofn --rm 0.1 --n 4       which R_V (Inequality 1)
    trivisor model bound --design 1ofn --rm 0.1 --rv 0.3    how many VMs
    trivisor model bound --design 1ofn --r 0.98 --rv 0.999 --rm 0.5   (Inequality 2)
    trivisor model bound --design 1ofn --r 0.98 --rv 0.999 --n 9      which R_M
    trivisor model bound --design moved --rf 0.75 --rm 0.75 --n 6     (Inequality 3)
    trivisor model bound --design moved --rf 0.75 --rm 0.75 --r-moved 0.9995   how many VMs

    With all quantities given, it reports whether the inequality holds.
    """
    from faultinject.calculator.bound import Given, answer_bound  # noqa: PLC0415
    from faultinject.calculator.printing import print_bound  # noqa: PLC0415

    return _output(answer_bound(Given(design=design, **given)), as_json, print_bound)


@model.command()
@_rm
@_rv
@_rh
@click.option("--n", type=_count, default=9, show_default=True, metavar="N",
              help="The largest number of VMs on the host (30 at most).")  # fmt: skip
@_chance("--r", shown="R, a required node reliability.")
@_beta
@_lying
@_alike
@_json
def advise(as_json: bool, **given: Any) -> ExitCode:
    """Recommend a design and a number of VMs, with the gain and the conditions.

    \b
    trivisor model advise --rm 0.95 --rv 0.999 --lying 0.2
    trivisor model advise --rm 0.4 --rv 0.99 --n 5 --r 0.9
    """
    from faultinject.calculator.advice import answer_advice  # noqa: PLC0415
    from faultinject.calculator.printing import print_advice  # noqa: PLC0415
    from faultinject.model.outcomes import FailureMode  # noqa: PLC0415

    if given["rm"] is None or given["rv"] is None:
        raise ModelError("advise needs --rm (R_M) and --rv (R_V), measured or assumed")
    how = FailureMode(lying=given["lying"], alike=given["alike"], beta=given["beta"])
    found = answer_advice(given["rm"], given["rv"], given["rh"], given["n"], how, given["r"])
    return _output(found, as_json, print_advice)


def _mean(name: str, text: str, required: bool = False) -> Callable[..., Any]:
    return click.option(
        name, type=Number(0, 1e300, above=True), metavar="TIME", required=required, help=text
    )


@model.command()
@_design(f"One of: {NAMES.replace('nv, ', '')}.")
@_n
@_mean("--mttf", "A VM's mean time to failure.", True)
@_mean("--mttr", "A VM's mean time to repair, from its start.", True)
@click.option("--repairers", type=_count, default=1, show_default=True, metavar="C",
              help="VMs repaired at the same time; 0: all.")  # fmt: skip
@_mean(
    "--voter-mttf", "The mean time to failure of the layer under the VMs (default: it never fails)."
)
@_mean("--voter-mttr", "Its mean time to repair (default: it is never repaired).")
@_mean("--mission", "How long a mission lasts.")
@_json
def repairable(
    design: str, n: int | None, repairers: int, mission: float | None, as_json: bool, **given: Any
) -> ExitCode:
    """Compute availability, mean times and mission reliability with repair.

    Beyond the paper, whose section 4 does not model time: a continuous-time Markov chain.  All
    times are in one unit of your choice.

    \b
    trivisor model repairable --design 2of3 --mttf 720 --mttr 0.02 --mission 8760
    trivisor model repairable --design 2of3 --mttf 720 --mttr 0.02 --voter-mttf 9000 --voter-mttr 1
    """
    from faultinject.calculator.printing import print_repair  # noqa: PLC0415
    from faultinject.calculator.repair import Times, answer_repair  # noqa: PLC0415

    found = answer_repair(design, n, Times(**given), repairers, mission)
    return _output(found, as_json, print_repair)


@model.command()
@click.argument("figure", type=click.Choice(["3", "4", "6a", "6b", "7", "map", "all"]))
@click.option("--out", type=output_directory(or_file=True), metavar="FILE",
              help="FILE.svg, .png or .pdf; for `all` a directory (SVG files).")  # fmt: skip
@click.option("--results", type=existing_path(), metavar="PATH",
              help="Measurements to draw on top: a file of points, a campaign's "
              "findings.json, or a folder of results.")  # fmt: skip
@click.option("--n", type=_count, metavar="N", help="VMs: of 6a (else 3) and map (else 5).")
@_json
def figure(
    figure: str, out: Path | None, results: Path | None, n: int | None, as_json: bool
) -> ExitCode:
    """Draw a figure of the paper, or a map of designs (not in the paper).

    Without --out, write figureN.svg to the current directory.  --json prints the curves as numbers,
    and draws only if --out is given.

    \b
    trivisor model figure 7 --out figure7.png
    trivisor model figure 7 --out figure7.svg --results measured.json
    trivisor model figure all --out docs/figures

    Format of measured points (see examples/measured.json):

    \b
    {"format": "trivisor-measured-1", "source": "...", "confidence": 0.95, "points": [
      {"figures": ["7", "map"], "label": "crash", "verdict": "better",
       "rm": {"value": 0.9, "low": 0.88, "high": 0.92},
       "rv": {"value": 0.97, "low": 0.96, "high": 0.98}}]}
    """
    import msgspec  # noqa: PLC0415

    from faultinject.calculator.figures import FIGURES, plot_of, write_figure  # noqa: PLC0415
    from faultinject.calculator.overlay import collect  # noqa: PLC0415

    measured = None if results is None else collect(results)
    chosen = [each for each in FIGURES if figure in {each, "all"}]
    if figure == "all":
        if n is not None:
            raise CommandError(
                "--n is for one figure: 6a or map", code=ExitCode.USAGE, error_code="TV0607"
            )
        if out is not None and out.suffix and not out.is_dir():
            raise CommandError(
                f"{out}: for `all` --out is a directory", code=ExitCode.USAGE, error_code="TV0607"
            )
    plots = [plot_of(each, n) for each in chosen]
    paths: list[Path] = []
    if out is not None or not as_json:
        for each in chosen:
            if figure == "all":
                path = (out or Path(".")) / f"{each}.svg"
            else:
                path = out or Path(f"figure{each}.svg")
            # The map covers all designs; a second one only those that were measured.
            both = figure == "all" and each == "map" and measured is not None
            write_figure(each, path, None if both else measured, n)
            paths.append(path)
            if both and measured is not None and measured.on("map"):
                path = path.with_name("map-measured.svg")
                write_figure(each, path, measured, n)
                paths.append(path)
    if as_json:
        shown = [msgspec.to_builtins(each) for each in plots]
        points = [] if measured is None else msgspec.to_builtins(measured.points)
        print_json({"figures": shown, "measured": points, "written": [str(each) for each in paths]})
        return ExitCode.OK
    for path in paths:
        click.echo(path)
    if measured is not None and not any(measured.on(each) for each in chosen):
        warn(f"warning TV0610: {results} has no point for figure {figure}")
    return ExitCode.OK


@model.command()
@click.argument("language", type=click.Choice(["mef", "galileo"]))
@_design(f"One of: {NAMES}; c1, c2.")
@_n
@_rms
@_rv
@_rh
@_rf
@_moved
@_beta
@click.option("--out", type=output_file(), metavar="FILE",
              help="Write to FILE instead of standard output.")  # fmt: skip
@_json
def export(language: str, design: str, out: Path | None, as_json: bool, **given: Any) -> ExitCode:
    """Write a design as a fault tree: Open-PSA MEF (for SCRAM) or Galileo (for Storm, time 1).

    \b
    trivisor model export mef --design 2of3 --rm 0.9 --rv 0.98 --beta 0.1 --out node.xml
    scram --probability 1 --ccf 1 node.xml
    """
    from faultinject.calculator.reliability import answer_export  # noqa: PLC0415

    answer = answer_export(language, design, given)
    if out is not None:
        out.write_text(answer.text, encoding="utf-8")
    if as_json or out is None:
        _output(answer, as_json, lambda each: click.echo(each.text, nl=False))
    else:
        click.echo(out)
    return ExitCode.OK
