"""The page of an audit: one HTML file that needs no network, for a desk, a phone and a printer.

It is written from an ``AuditReport`` alone, by a template that escapes every value. Equal reports give equal bytes.
"""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from ownlet.shared.store import write_atomic
from ownlet.shared.templates import page_template
from ownlet.simulations.audit import figures
from ownlet.simulations.audit.conditions import sentence
from ownlet.simulations.audit.fields import counted, number
from ownlet.simulations.audit.report import AuditReport

__all__ = ["METHODS", "VERDICTS", "write_page"]

VERDICTS = {"pass": "PASS", "fail": "FAIL", "nothing-promised": "NOTHING PROMISED"}

METHODS = {
    "component": "Replays training steps with and without a canary under the same noise, and so measures how much one "
    "unit can change, how large the noise really is, and how often a unit is in a step. It looks into the machine, and "
    "is the strongest of these audits.",
    "one-run": "Trains once with many canaries, of which a coin decided who takes part, and guesses from what was "
    "released who did. It needs to know nothing of the code.",
    "federated": "Random canary clients take part in federated rounds, and are looked for in what the server released.",
    "membership": "Guesses whether a record took part, at a low rate of false alarms. A sanity figure: the bound that "
    "comes of it is weak.",
}
"""Method -> what it does, in plain language."""

_KINDS = {
    "run": "simulated run",
    "ledger": "ledger of a device",
    "bundle": "bundle for devices",
    "fleet": "ledgers of a fleet",
}


def write_page(path: Path, report: AuditReport) -> Path:
    """Write the page, atomically.

    Args:
        path: the HTML file.
        report: what to show.

    Returns:
        the file.
    """
    package = "ownlet.simulations.audit"
    template = page_template(package, "audit.html.jinja", number=number, figure=_figure, told=_told, counted=counted)
    page = template.render(
        report=report,
        verdict=VERDICTS[report.status],
        kind=_KINDS[report.kind],
        methods=METHODS,
        headlines=_headlines(report),
        figures=_figures(report),
        bounds=_svg(figures.bounds_against_claims(report.results)),
        histograms=[_svg(figures.score_histogram(result, at)) for at, result in enumerate(report.results)],
    )
    write_atomic(path, page.encode())
    return path


def _headlines(report: AuditReport) -> list[dict[str, str]]:
    """Return the few numbers that a reader looks for first."""
    found = []
    for promise in report.promises:
        limit = f", limit {promise.limit:g}" if math.isfinite(promise.limit) else ""
        found.append(
            {
                "label": f"spent per {promise.unit}" + (", unverified" if report.exit_code == 2 else ""),
                "value": f"ε {number(promise.epsilon)}",
                "note": f"at δ = {promise.dp_delta:g} after {counted(promise.charges, promise.charge)}{limit}",
            }
        )
    if report.results:
        most = max(report.results, key=lambda result: result.epsilon_lower)
        found.append(
            {
                "label": "highest measured lower bound",
                "value": f"ε {number(most.epsilon_lower)}",
                "note": f"{most.method} audit of {most.subject}, claim {number(most.claim.epsilon)}, "
                f"confidence {most.confidence:.0%}",
            }
        )
    checks = [*report.checks, *(check for result in report.results for check in result.checks)]
    failed = sum(not check.passed for check in checks)
    found.append(
        {
            "label": "checks",
            "value": f"{len(checks) - failed} of {len(checks)}",
            "note": "passed, of the record and audits",
        }
    )
    return found


def _figures(report: AuditReport) -> list[dict[str, str | Markup]]:
    """Return the figures that the report allows, each with its heading, caption and SVG."""
    drawn = []
    for promise in report.promises:
        drawn.append(
            (
                f"ε over {promise.charge}s, {promise.unit}",
                "Computed from the recorded events; a dashed line is what must not be exceeded.",
                figures.epsilon_by_charge(promise),
            )
        )
        drawn.append(
            (
                f"ε and δ, {promise.unit}",
                "Every point of the curve holds at once: a smaller δ has a larger ε.",
                figures.epsilon_by_delta(promise),
            )
        )
    drawn.append(
        (
            "Budgets over devices",
            "How many devices have spent how much.",
            figures.budgets_over_devices(report.devices),
        )
    )
    return [{"heading": heading, "caption": caption, "svg": _svg(svg)} for heading, caption, svg in drawn if svg]


def _svg(svg: str) -> Markup:
    return Markup(svg)  # our own drawing, whose text matplotlib has escaped


def _told(text: str) -> str:
    """Return a statement as a sentence."""
    return sentence(text) + ("" if text.endswith((".", "!", "?")) else ".")


def _figure(value: float | None) -> str:
    """Return a number of a check for people."""
    if value is None:
        return ""
    return "∞" if math.isinf(value) else f"{value:.4g}"
