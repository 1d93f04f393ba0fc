"""On which conditions a promise holds, as fields of a report (trust, sampling, randomness), and what it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ownlet.shared.config import FederationConfig
from ownlet.simulations.audit.result import Check
from ownlet.simulations.audit.subject import BundleSubject, FleetSubject, LedgerSubject, RunSubject, Subject

__all__ = [
    "Field",
    "a_field",
    "not_protected",
    "randomness",
    "sampling_assumed",
    "sampling_implemented",
    "sentence",
    "terms_of",
    "trust",
    "units_of",
]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One line of the report.

    Args:
        name: one of ``FIELD_NAMES``.
        title: for people.
        value: the fact.
        statement: what it means, and what it does not.
    """

    name: str
    title: str
    value: str
    statement: str


def a_field(name: str, title: str, value: str, statement: str) -> Field:
    """Return a field; its parts in the order in which they are read."""
    return Field(name=name, title=title, value=value, statement=statement)


def sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def not_protected(subject: Subject, units: Sequence[str]) -> tuple[str, ...]:
    """Return plain sentences, each a thing that the promise does not cover."""
    if not units:
        return (
            "Nothing is promised: whoever sees what was released may learn any event of anybody who took part.",
            "What the accounts below do not mention was released without noise.",
        )
    sentences = [
        "Epsilon bounds what one more or one less unit changes. It does not hide what is true of many people, such as "
        "how popular an item is.",
        "That a device takes part at all is visible to the server and to the network.",
        "Events of public users are not protected: the base was trained on them openly.",
        "A personal adapter is trained without noise and stays on its device. It is as private as that device.",
        "The history and the recommendations themselves, on the device, are protected by the device and the app's key.",
    ]
    if "user" in units:
        sentences.insert(0, _seen_by_the_server(subject))
    if "window" in units:
        sentences.insert(
            0,
            "A window is a slice of one user's history. A habit that shows in many windows of a user is not hidden as "
            "one window is: k windows together have a guarantee about k times weaker.",
        )
    if isinstance(subject, LedgerSubject | FleetSubject):
        sentences.append(
            "A ledger that was cut back to an earlier, whole state together with its folder verifies. Only who "
            "remembers a later entry number and head can tell."
        )
    if isinstance(subject, RunSubject) and subject.seed is not None:
        sentences.append(
            "Cohorts and noise of this run are made from a seed that stands in its settings: whoever knows it can "
            "remove the noise. Its figures hold for an equal run without a seed."
        )
    sentences.append("Settings chosen by looking at protected users' results would spend privacy that is not counted.")
    return tuple(sentences)


def _seen_by_the_server(subject: Subject) -> str:
    terms = terms_of(subject)
    if terms is None or not terms.secure.enabled:
        return (
            "The server sees each node's reply, and their sum before it adds the noise. This does not protect users "
            "from the server."
        )
    stated = subject.stated.get("server_epsilon") if isinstance(subject, RunSubject) else None
    spent = "" if stated is None else f" For it, epsilon is {stated:.3f}."
    return (
        "The server sees the sum of each round with its noise, and knows whom it asked: sampling hides nobody from it."
        + spent
    )


def terms_of(subject: Subject) -> FederationConfig | None:
    """Return the public numbers of the run that the subject is, or belongs to; a ledger has none."""
    match subject:
        case RunSubject():
            return subject.terms
        case BundleSubject():
            return subject.manifest.federation
    return None


def units_of(subject: Subject) -> tuple[str, ...]:
    """Return the unit that the subject's terms protect, if they protect one."""
    if isinstance(subject, FleetSubject):
        return tuple(subject.summary.units)
    terms = terms_of(subject)
    return (terms.unit,) if terms is not None and terms.unit != "none" else ()


def trust(units: Sequence[str], terms: FederationConfig | None) -> Field:
    """Say who must be trusted."""
    if terms is not None and terms.secure.enabled and terms.unit == "user":
        return a_field(
            "trust_model",
            "Trust model",
            "distributed (user)",
            "Each node adds a share of the noise, and the server learns only sums that have it. It is trusted with "
            f"nothing, as long as at most {terms.secure.colluding:.0%} of the nodes work with it and it did not "
            "invent nodes; each node is trusted with its own users.",
        )
    texts = {
        "user": "the server adds the noise and sees sums without it. This does not protect from the server.",
        "window": "the device adds the noise before anything leaves. Nobody else has to be trusted, but the "
        "device and its app are.",
    }
    names = {"user": "central", "window": "local"}
    if not units:
        return a_field("trust_model", "Trust model", "everybody", "Whoever receives an update must be trusted with it.")
    value = " and ".join(f"{names[unit]} ({unit})" for unit in units)
    return a_field("trust_model", "Trust model", value, " ".join(sentence(texts[unit]) for unit in units))


def sampling_assumed(units: Sequence[str], terms: FederationConfig | None, subject: Subject) -> Field:
    """Say which sampling the accounting assumes."""
    title = "Sampling assumed"
    if terms is None and isinstance(subject, LedgerSubject | FleetSubject):
        return a_field(
            "sampling_assumed",
            title,
            "as each charge's event says",
            "A device charges itself in full for user-level rounds, without amplification by the server's sampling, "
            "because it cannot check that.",
        )
    if not units or terms is None:
        return a_field("sampling_assumed", title, "none", "No amplification by sampling is claimed.")
    if terms.correlated:
        return a_field(
            "sampling_assumed",
            title,
            f"none; {terms.noise_plan.min_separation} groups of users take part in turn",
            "Nothing is gained from who takes part: all rounds together are one Gaussian mechanism, in which a user's "
            "rounds lie that far apart.",
        )
    if terms.unit == "user" and terms.turns:
        return a_field(
            "sampling_assumed",
            title,
            f"none; at most {terms.turns} rounds per user",
            "Nothing is gained from who takes part: every turn is charged in full, and nobody has more turns.",
        )
    if terms.unit == "user":
        return a_field(
            "sampling_assumed",
            title,
            f"Poisson over users, rate {terms.asked_rate:g}",
            "Each user is in a round independently of all others, and nobody but the server learns who was. Cohorts of "
            "a fixed size would make the stated epsilon wrong.",
        )
    return a_field(
        "sampling_assumed",
        title,
        f"Poisson over windows, rate {terms.plan.sample_rate:g}; none over devices",
        "Each window is in a step independently of all others. The server sees each update, so nothing is gained from "
        "which devices take part.",
    )


def sampling_implemented(subject: Subject, checks: Sequence[Check]) -> Field:
    """Say which sampling the code does, and how its record looks."""
    seen = [check for check in checks if check.name in ("cohort-rate", "cohort-spread", "turns")]
    title = "Sampling implemented"
    if isinstance(subject, RunSubject):
        value = (
            f"equal turns, {subject.terms.turns} per device" if subject.terms.turns else "independent coins per user"
        )
        windows = subject.terms.unit == "window"
        value = f"{subject.terms.noise_plan.min_separation} groups in turn" if subject.terms.correlated else value
        value += "; independent coins per window on the device" if windows else ""
        told = " ".join(check.statement for check in seen)
        return a_field("sampling_implemented", title, value, told or "The run left no record of its cohorts.")
    return a_field(
        "sampling_implemented",
        title,
        "independent coins per window on the device",
        "By this version's engines; empty batches add noise and are charged. "
        + ("What ran on the device is not in its ledger." if isinstance(subject, LedgerSubject) else "See the audits."),
    )


def randomness(subject: Subject) -> Field:
    """Say where sampling and noise come from."""
    seeded = isinstance(subject, RunSubject) and subject.seed is not None
    return a_field(
        "randomness",
        "Random numbers",
        "AES-256-CTR, from a seed (simulation)" if seeded else "AES-256-CTR, keyed by the operating system",
        "A seed makes a simulation repeatable, and its noise removable by who knows the seed: this does not protect "
        "real people. A deployment has no seed."
        if seeded
        else "256 bits of secret per training, for sampling and for noise. Torch's CPU generator, whose 32-bit seed "
        "can be searched through, is not used for either.",
    )
