"""Public settings as frozen values, checked when they are made.

Everything here is public: it may be sent to devices, printed and written to a run folder. Nothing is derived from a
user's data, private example counts included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ownlet.shared.context import ContextField
from ownlet.shared.errors import require
from ownlet.shared.federation_rules import check_federation
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.schedule import SCHEDULES
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.server_config import AdaptiveClip, NoisePlan, Robust, ServerOptimizer
from ownlet.shared.straggler_config import Buffer, Stragglers
from ownlet.shared.wire_config import WireConfig

__all__ = [
    "PERSONAL_PLAN",
    "AdapterConfig",
    "FederationConfig",
    "MethodName",
    "ModelConfig",
    "Plan",
    "WindowConfig",
    "simulated_federation",
]

MethodName = Literal["lora", "lora-frozen-a", "fedsvd", "rolora", "iak", "bottleneck", "prefix"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the base recommender.

    Args:
        dim: width d of the hidden states.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``dim``.
        max_length: the longest history, in events, that the base reads.
        dropout: dropout probability while the base is trained; a frozen base never drops.
        context: what the base reads of the moment of each question, beside the history; nothing by default.
    """

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    max_length: int = 50
    dropout: float = 0.2
    context: tuple[ContextField, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "max_length"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(self.dim % self.num_heads == 0, "num_heads must divide dim", dim=self.dim, num_heads=self.num_heads)
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", dropout=self.dropout)
        names = [field.name for field in self.context]
        require(len(set(names)) == len(names), "context must have fields of different names", names=names)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read what ``to_plain`` made of one, also where it went through JSON.

        Raises:
            ConfigError: a number out of its range.
            TypeError: not the fields of this class.
        """
        return cls(**{**raw, "context": tuple(ContextField.of(field) for field in raw.get("context", ()))})

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as plain values; of a base without context the same as before there was any."""
        plain = {**asdict(self), "context": [field.to_plain() for field in self.context]}
        return {key: value for key, value in plain.items() if key != "context" or self.context}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which method adapts which places of the base, and how large the adapter is.

    Args:
        method: see ``shared/methods.py``. The default trains B only: averages stay exact and noise stays linear.
        target_modules: last parts of the names of layers, as in PEFT; None is what suits the method.
        rank: r: rank of LoRA, width of a bottleneck, length of a prefix.
        alpha: lora_alpha; what the adapter adds is scaled by alpha / rank.
    """

    method: MethodName = "lora-frozen-a"
    target_modules: tuple[str, ...] | None = None
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        names = get_args(MethodName)
        require(self.method in names, f"method must be one of {', '.join(names)}", method=self.method)
        require(self.rank >= 1, "rank must be at least 1", rank=self.rank)
        require(0 < self.alpha < math.inf, "alpha must be positive", alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a history is cut into windows.

    Args:
        window_length: at most this many events in a window.
        context_length: at most this many earlier events that a window may see. Must be 0 where the window is the
            privacy unit, because an event that is context elsewhere would be in several examples.
    """

    window_length: int = 20
    context_length: int = 0

    def __post_init__(self) -> None:
        require(self.window_length >= 2, "window_length must be at least 2", window_length=self.window_length)
        require(self.context_length >= 0, "context_length must not be negative", context_length=self.context_length)

    @property
    def row_length(self) -> int:
        """Positions in the array row of one window."""
        return self.window_length + self.context_length


@dataclass(frozen=True, kw_only=True)
class Plan(ObjectiveConfig):
    """The public numbers of one local training; those of its objective are ``ObjectiveConfig``'s.

    Args:
        steps: T, gradient steps.
        learning_rate: step size of plain SGD on the adapter.
        sample_rate: q, the chance of each window to be in a step's batch (Poisson sampling).
        expected_batch: the public number that every gradient sum is divided by; never the user's own count.
        clip_norm: C, the bound on each window's gradient norm; infinity means no bound.
        noise_multiplier: sigma = standard deviation of the noise on the gradient sum, divided by C.
        weight_decay: every step also shrinks what is trained by learning_rate * weight_decay of itself, towards the
            base. Decoupled: it is outside of clipping and noise, and as it reads no data it costs no privacy.
    """

    steps: int = 3
    learning_rate: float = 0.1
    sample_rate: float = 1.0
    expected_batch: float = 1.0
    clip_norm: float = math.inf
    noise_multiplier: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "steps must be at least 1", steps=self.steps)
        require(0 < self.learning_rate < math.inf, "learning_rate must be positive", learning_rate=self.learning_rate)
        require(0 < self.sample_rate <= 1, "sample_rate must be in (0, 1]", sample_rate=self.sample_rate)
        require(
            0 < self.expected_batch < math.inf, "expected_batch must be positive", expected_batch=self.expected_batch
        )
        require(self.clip_norm > 0, "clip_norm must be positive", clip_norm=self.clip_norm)
        require(self.weight_decay >= 0, "weight_decay must not be negative", weight_decay=self.weight_decay)
        require(
            self.decay < 1,
            "learning_rate * weight_decay must be below 1",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        require(
            0 <= self.noise_multiplier < math.inf,
            "noise_multiplier must not be negative",
            noise_multiplier=self.noise_multiplier,
        )
        require(
            self.noise_multiplier == 0 or math.isfinite(self.clip_norm),
            "clip_norm must be finite where noise is added",
            clip_norm=self.clip_norm,
        )
        require(
            self.negatives != "in-batch" or math.isinf(self.clip_norm),
            "negatives must not be in-batch where windows are clipped: a window's gradient would depend on the others",
            clip_norm=self.clip_norm,
        )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on a step's gradient sum, sigma times C."""
        return self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0

    @property
    def decay(self) -> float:
        """The share of itself by which a step shrinks what is trained."""
        return self.learning_rate * self.weight_decay


PERSONAL_PLAN = Plan(steps=1, learning_rate=0.03)
"""Training of a personal adapter that stays on its device: without noise, and gentle (docs/decisions.md)."""


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """The public numbers of a federated run.

    Args:
        rounds: how many rounds to run at the most.
        cohort_rate: the chance of each user to be in a round (Poisson sampling of users); unused with ``turns``.
        turns: every user is in exactly this many of the rounds, chosen at random; 0 samples by ``cohort_rate``. Each
            turn is charged in full and the most asked user decides, so equal turns waste none. With unit ``user`` it
            is for fleets that can bound participation but not sample in secret: then nothing is gained by sampling.
        unit: the privacy unit. ``user``: whole delta clipped, noise added by the server. ``window``: local DP-SGD on
            the device, noise in the plan. ``none``: neither; for comparison only.
        clip_norm: C, the bound on a user's whole delta; in ``window`` mode on what of it is not noise.
        adaptive_clip: lets C follow the users' deltas from there; only with unit ``user``.
        noise_multiplier: sigma of the server's noise, standard deviation divided by C; only with unit ``user``.
        noise_plan: how the server's noise of one round goes with that of the others. With ``blt`` the noise multiplier
            is that of the whole run: all its rounds together are one Gaussian mechanism.
        ranks: of the devices, where they differ: user u has ``ranks[u % len(ranks)]``, and trains that part of the
            adapter (``shared/ranks.py``). Public. The number of nodes must be a multiple of how many there are.
        robust: what limits the harm that single nodes can do.
        server_learning_rate: step of the server's optimiser on the average delta.
        server_optimizer: what the server makes of the average delta; momentum by default.
        server_momentum: momentum (beta1) of the server's optimiser.
        schedule: how the server's learning rate falls over ``rounds``: ``constant``, ``linear`` or ``cosine`` to
            nearly 0. It is the server's rate and not the plan's, because a smaller delta would drown in noise of the
            same clip, and because devices are then asked for the same terms in every round.
        warmup_rounds: rounds in which the server's learning rate rises linearly to its full value.
        patience: stop after this many evaluations on held-out public users without a better one, and end with the
            best adapter; 0 runs all rounds and ends with the last. Every round that ran stays charged.
        svd_every: rounds between two turns of A by FedSVD (``server/fedsvd.py``); 0 is never.
        alternate: rounds train B and A in turn, B first (RoLoRA, ``shared/alternate.py``); the adapter must train both.
        quorum: the share of asked nodes that must answer with an admitted reply; below it the round is void.
        dp_delta: the privacy parameter delta at which epsilon is reported.
        target_epsilon: the run stops before a round that would exceed it.
        secure: whether the server may see single replies, or only their sum; not with unit ``none``.
        wire: in which form a device's delta travels; not under secure aggregation, which has a coding of its own.
        stragglers: when a round stops waiting for slow devices, and how many more are asked.
        buffer: asynchronous rounds, each of a number of updates, whenever they were asked for. Only where updates are
            private before they are sent, or nothing is promised. ``turns`` is then the most often that a user is asked.
        reply_timeout_seconds: how long a message lives, and a round waits for replies at the most.
        seed: makes a simulation reproducible. None draws cohorts and noise from the operating system, as a deployment
            must.
        plan: what each user does in a round.
        windows: how each user's history is cut.
    """

    rounds: int = 40
    cohort_rate: float = 0.1
    turns: int = 0
    unit: Literal["user", "window", "none"] = "user"
    clip_norm: float = 0.3
    adaptive_clip: AdaptiveClip = field(default_factory=AdaptiveClip)
    noise_multiplier: float = 1.0
    noise_plan: NoisePlan = field(default_factory=NoisePlan)
    ranks: tuple[int, ...] = ()
    robust: Robust = field(default_factory=Robust)
    server_learning_rate: float = 1.0
    server_optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    server_momentum: float = 0.9
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: int = 0
    patience: int = 0
    svd_every: int = 0
    alternate: bool = False
    quorum: float = 0.5
    dp_delta: float = 1e-5
    target_epsilon: float = math.inf
    secure: SecureConfig = field(default_factory=SecureConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    stragglers: Stragglers = field(default_factory=Stragglers)
    buffer: Buffer = field(default_factory=Buffer)
    reply_timeout_seconds: float = 600.0
    seed: int | None = None
    plan: Plan = field(default_factory=Plan)
    windows: WindowConfig = field(default_factory=WindowConfig)

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds must be at least 1", rounds=self.rounds)
        require(0 < self.cohort_rate <= 1, "cohort_rate must be in (0, 1]", cohort_rate=self.cohort_rate)
        require(self.unit in ("user", "window", "none"), "unit must be user, window or none", unit=self.unit)
        require(0 <= self.turns <= self.rounds, f"turns must be in 0..{self.rounds}", turns=self.turns)
        require(self.clip_norm > 0, "clip_norm must be positive", clip_norm=self.clip_norm)
        require(
            0 <= self.noise_multiplier < math.inf,
            "noise_multiplier must not be negative",
            noise_multiplier=self.noise_multiplier,
        )
        require(
            self.server_learning_rate > 0,
            "server_learning_rate must be positive",
            server_learning_rate=self.server_learning_rate,
        )
        require(
            0 <= self.server_momentum < 1, "server_momentum must be in [0, 1)", server_momentum=self.server_momentum
        )
        require(all(rank >= 1 for rank in self.ranks), "ranks must be at least 1", ranks=self.ranks)
        require(self.schedule in SCHEDULES, f"schedule must be one of {SCHEDULES}", schedule=self.schedule)
        for name in ("warmup_rounds", "patience"):
            require(getattr(self, name) >= 0, f"{name} must not be negative", **{name: getattr(self, name)})
        require(self.svd_every >= 0, "svd_every must not be negative", svd_every=self.svd_every)
        require(0 < self.quorum <= 1, "quorum must be in (0, 1]", quorum=self.quorum)
        require(0 < self.dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=self.dp_delta)
        require(self.target_epsilon > 0, "target_epsilon must be positive", target_epsilon=self.target_epsilon)
        check_federation(self)

    @property
    def asked_rate(self) -> float:
        """The chance of each user to be asked in a round, where cohorts are Poisson samples: what is charged."""
        return min(1.0, self.cohort_rate * self.stragglers.over_selection)

    @property
    def deadline_seconds(self) -> float:
        """How long a round waits for replies."""
        return min(self.stragglers.deadline_seconds, self.reply_timeout_seconds)

    @property
    def expected_share(self) -> float:
        """The expected size of a cohort, as a share of all users: a public number."""
        if self.correlated:
            return 1 / self.noise_plan.min_separation
        return self.turns / self.rounds if self.turns else self.cohort_rate

    @property
    def correlated(self) -> bool:
        """Whether the noise of one round depends on that of others."""
        return self.noise_plan.name == "blt"

    @property
    def max_participations(self) -> int:
        """With correlated noise: the most rounds that a user can be in."""
        return -(-self.rounds // self.noise_plan.min_separation)

    @property
    def counts(self) -> bool:
        """Whether replies tell how many deltas were within the clip norm."""
        return self.adaptive_clip.quantile > 0

    def delta_bound(self, num_trainable: int, clip_norm: float | None = None) -> float:
        """Return the largest norm of a user's delta that is sent and admitted.

        Under the unit ``window`` a delta carries its own noise, which is far longer than what it tells: a bound without
        room for it would scale down both. The noise of T steps exceeds its room with probability below 4e-6, as
        ``P(|N(0, I_n)| > sqrt(n) + t) <= exp(-t² / 2)``.

        Args:
            num_trainable: numbers in a delta.
            clip_norm: C of the round, where it is another than the first one's.
        """
        if self.unit == "none":
            return math.inf
        bound = self.clip_norm if clip_norm is None else clip_norm
        if self.unit == "user":
            return bound
        rate = self.plan.learning_rate / self.plan.expected_batch
        return bound + rate * self.plan.noise_std * math.sqrt(self.plan.steps) * (math.sqrt(num_trainable) + 5)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> FederationConfig:
        """Read what ``dataclasses.asdict`` made of one, also where it went through JSON, with infinity as text.

        Raises:
            ConfigError: a number out of its range.
            KeyError, TypeError: not the fields of this class.
        """
        inner = {
            "plan": Plan(**_numbers(raw["plan"])),
            "windows": WindowConfig(**raw["windows"]),
            "adaptive_clip": AdaptiveClip(**raw.get("adaptive_clip", {})),  # older files have none
            "noise_plan": NoisePlan(**raw.get("noise_plan", {})),
            "secure": SecureConfig(**raw.get("secure", {})),
            "robust": Robust(**raw.get("robust", {})),
            "server_optimizer": ServerOptimizer(**raw.get("server_optimizer", {})),
            "stragglers": Stragglers(**_numbers(raw.get("stragglers", {}))),
            "buffer": Buffer(**raw.get("buffer", {})),
            "wire": WireConfig(**raw.get("wire", {})),
        }
        return cls(**{**_numbers(raw), **inner, "ranks": tuple(raw.get("ranks", ()))})


def simulated_federation(*, seed: int | None = None) -> FederationConfig:
    """Return the numbers that were best on held-out public users (docs/decisions.md): the defaults of the commands."""
    return FederationConfig(rounds=30, cohort_rate=0.2, seed=seed, plan=Plan(steps=1, learning_rate=0.3))


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.inf if value == "inf" else value for key, value in values.items()}
