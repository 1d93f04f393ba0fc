"""A competitor of the cohort engine: the same training in pfl-research (https://github.com/apple/pfl-research).

Federated averaging with central differential privacy: every user takes the plan's steps on all of their windows, the
whole update is clipped, the sum gets Gaussian noise. Run it in the environment of ``pfl_environment``, never in the
project's own. Under ``python -m torch.distributed.run`` several processes share the users, which is how pfl uses more
than one core (https://apple.github.io/pfl-research/guides/simulation_distributed.html).

Choices in favour of pfl: users' tensors are ready in memory and hold no padding, the frozen base is no parameter so
that no optimiser walks over it, its item vectors are computed once, the loss is torch's fused cross-entropy, and no
round but the warm-up evaluates anything.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.data.pytorch import PyTorchTensorDataset  # type: ignore[import-not-found]
from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found]
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # type: ignore[import-not-found]
from pfl.metrics import Metrics, Weighted  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from pfl.privacy import (  # type: ignore[import-not-found]
    CentrallyAppliedPrivacyMechanism,
    GaussianMechanism,
    NormClippingOnly,
)
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import require
from ownlet.shared.model import SASRec
from ownlet.shared.windows import cut_windows
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload

__all__ = ["Training", "train"]

_DEFAULT = Workload()


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run gave.

    Args:
        round_seconds: of every central iteration, from one to the next.
        trained: (num_trainable,) the trained part of the global adapter.
    """

    round_seconds: list[float]
    trained: NDArray[np.float32]


class _AdaptedSASRec(nn.Module):
    """A frozen base whose only parameters are the B of its adapter, with the methods that pfl calls."""

    def __init__(self, base: SASRec, spec: AdapterSpec, vector: Vector) -> None:
        super().__init__()
        self.lora_b = nn.ParameterList()
        for name, (a, b) in spec.split(torch.from_numpy(vector)).items():
            self.lora_b.append(nn.Parameter(b.clone()))
            base.get_submodule(name).pair = (a, self.lora_b[-1])  # type: ignore[assignment]
        with torch.no_grad():
            items = base.item_vectors()
        self._frozen = (base, items)  # a tuple is not registered: the base's weights are not among the parameters

    def loss(self, history: Tensor, answer: Tensor) -> Tensor:
        """Mean of ``softmax_loss`` over full windows: history (windows, length), answer the same, items from 0."""
        base, items = self._frozen
        scores = base.encode(history, items) @ items[1:].T  # (windows, length, num_items), padding left out
        return nn.functional.cross_entropy(scores.flatten(0, 1), answer.flatten())

    @torch.no_grad()
    def metrics(self, history: Tensor, answer: Tensor) -> dict[str, Any]:
        """Return the loss; pfl asks for it in its first central iteration whatever the settings."""
        return {"loss": Weighted(self.loss(history, answer).item() * len(history), len(history))}


class _Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when each central iteration ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *, model: Any) -> Any:
        """Start the clock."""
        self.times.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Note the time; never stop the training."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def train(
    cohort: int, rounds: int, *, clip_norm: float, noise_multiplier: float, workload: Workload = _DEFAULT
) -> Training:
    """Train a cohort in which every user takes part in every round.

    Args:
        cohort: users, over all processes.
        rounds: pfl's central iterations; the first also evaluates, which pfl offers no way to avoid.
        clip_norm: bound on the L2 norm of a user's update.
        noise_multiplier: standard deviation of the noise on the sum, divided by ``clip_norm``; 0 adds none.
        workload: the users and the base.

    Returns:
        Times and the trained adapter.

    Raises:
        ConfigError: pfl cannot express the plan, or a window is not full.
    """
    np.random.seed(0)  # pfl's seeds come from numpy's global state, and must be equal in every process
    whole = DP_PLAN.sample_rate == 1.0 and DP_PLAN.expected_batch == workload.windows_per_user
    require(whole, "the plan must take the mean over all windows of a user", plan=DP_PLAN)
    base, spec, vector = workload.base()
    module = _AdaptedSASRec(base, spec, vector)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = _federated(workload, cohort)
    mechanism = GaussianMechanism(clip_norm, noise_multiplier) if noise_multiplier else NormClippingOnly(2.0, clip_norm)
    backend = SimulatedBackend(users, users, postprocessors=[CentrallyAppliedPrivacyMechanism(mechanism)])
    clock = _Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,  # in the first only
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(  # without a batch size an epoch is one step on all windows
            local_num_epochs=DP_PLAN.steps, local_learning_rate=DP_PLAN.learning_rate, local_batch_size=None
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    trained = torch.cat([b.detach().flatten() for b in module.lora_b]).numpy()  # the order of the adapter's vector
    return Training(round_seconds=np.diff(clock.times).tolist(), trained=trained)


def _federated(workload: Workload, cohort: int) -> Any:
    """Return pfl's data set: all users' windows in memory, every user once per round."""
    users = []
    for history in workload.histories(cohort):
        windows = cut_windows(history, workload.windows)
        positions = slice(0, workload.window_length - 1)  # the last column of a row is padding
        require(bool(windows.valid[:, positions].all()), "windows must be full")
        parts = (windows.history[:, positions], windows.target[:, positions] - 1)  # answers count items from 0
        users.append(tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
    return FederatedDataset(
        lambda user: PyTorchTensorDataset(users[user], user_id=str(user)),
        get_user_sampler("minimize_reuse", range(cohort)),
    )


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description="users per second of pfl-research")
    parser.add_argument("--cohort", type=int, default=500, help="users, over all processes")
    parser.add_argument("--rounds", type=int, default=3, help="at least 2; the first does not count")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--clip-norm", type=float, default=0.3)
    parser.add_argument("--noise-multiplier", type=float, default=1.0)
    parser.add_argument("--workload", type=json.loads, default={}, help="fields of Workload, as JSON")
    parser.add_argument("--trained", type=Path, help="where to write the trained part of the adapter, as .npy")
    options = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    require(options.rounds >= 2, "rounds must be at least 2", rounds=options.rounds)
    shared = options.cohort >= 1 and options.cohort % processes == 0  # pfl would train some users twice, others never
    require(shared, "cohort must be a multiple of the processes", cohort=options.cohort, processes=processes)
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"  # pfl would take a GPU if it saw one
    torch.set_num_threads(options.threads)
    result = train(
        options.cohort,
        options.rounds,
        clip_norm=options.clip_norm,
        noise_multiplier=options.noise_multiplier,
        workload=Workload(**options.workload),
    )
    if os.environ.get("RANK", "0") != "0":
        return
    if options.trained:
        np.save(options.trained, result.trained)
    line = {
        "users_per_second": statistics.median(options.cohort / s for s in result.round_seconds[1:]),
        "cohort": options.cohort,
        "round_seconds": result.round_seconds,
        "processes": processes,
        "threads_per_process": options.threads,
        "pfl": importlib.metadata.version("pfl"),
        "torch": torch.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
