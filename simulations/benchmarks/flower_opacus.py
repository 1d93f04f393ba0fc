"""The competitor: what a user builds from stock Flower, Ray and Opacus, one Opacus client per user of the cohort.

The server is Flower's ``FedAvg`` as it comes, only with a clock; a client is a ``ClientApp`` whose ``train`` gives one
user's windows to a model that Opacus has made private; Ray runs the clients in one process per core. The work is that
of ``workload``: the same base, adapter, windows and plan as in the other benchmarks.

Where there is a choice, it is the one that is faster for the competitor: only the trained part of the adapter travels,
in one array, since many small arrays are several times slower in Flower; epsilon, which Flower's Opacus example
computes in every client, is left out; waiting for replies is timed, averaging them is not. Two variants differ in what
a client does before it trains. ``fresh`` copies the model and calls ``PrivacyEngine.make_private`` for every user, as
that example does (https://github.com/adap/flower/tree/main/examples/opacus). ``cached`` keeps one private model in each
process and puts the received weights in it, which the example does not do but anybody would who has measured.

The rate falls as the cohort grows: again and again, Flower's simulation looks for each node's messages among those of
all nodes (``get_message_ins`` of its in-memory state), which costs the square of the cohort.

Flower and Ray keep state in the process, so a measurement runs in a process of its own:
``python -m ownlet.simulations.benchmarks.flower_opacus --cohort 500 --rounds 3``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict

import ownlet.shared.quiet  # noqa: F401  (before anything that imports flwr or ray; sets what children inherit)

# isort: split

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import FederationError, require
from ownlet.shared.interactions import History
from ownlet.shared.model import SASRec
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.benchmarks.processes import last_json, run_command
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload

__all__ = ["client_app", "main", "measure_flower_opacus", "train_user"]

_DEFAULT = Workload()


def measure_flower_opacus(cohort: int, rounds: int = 3, *, cached: bool = True, workload: Workload = _DEFAULT) -> float:
    """Time rounds of stock Flower with one Opacus client per user, in a process of its own.

    Args:
        cohort: users in a round, all there are; at least 2.
        rounds: at least 2; the first, in which Ray and its processes start, does not count.
        cached: whether a process keeps its private model, or makes a new one for every user.
        workload: the users and the base.

    Returns:
        Users per second, from sending the messages until all replies are there; the median over the rounds.

    Raises:
        ConfigError: too few users or rounds.
        FederationError: the process failed.
    """
    _check(cohort, rounds)
    command = [sys.executable, "-m", "ownlet.simulations.benchmarks.flower_opacus", f"--cohort={cohort}"]
    command += [f"--rounds={rounds}", f"--workload={json.dumps(asdict(workload))}", *([] if cached else ["--fresh"])]
    return float(last_json(run_command(command))["users_per_second"])


def main(arguments: list[str] | None = None) -> None:
    """Measure in this process and print one line of JSON."""
    parser = argparse.ArgumentParser(description="users per second of stock Flower, Ray and Opacus")
    parser.add_argument("--cohort", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="make a private model for every user")
    parser.add_argument("--workload", type=json.loads, default={}, help="fields of Workload, as JSON")
    options = parser.parse_args(arguments)
    _check(options.cohort, options.rounds)
    workload = Workload(**options.workload)
    seconds = _run_rounds(options.cohort, options.rounds, not options.fresh, workload)
    result = {
        "cohort": options.cohort,
        "cached": not options.fresh,
        "users_per_second": statistics.median(options.cohort / s for s in seconds[1:]),
        "round_seconds": seconds,
    }
    print(json.dumps(result))


def _check(cohort: int, rounds: int) -> None:
    require(cohort >= 2, "cohort must be at least 2", cohort=cohort)  # FedAvg's own minimum
    require(rounds >= 2, "rounds must be at least 2", rounds=rounds)


# The server


def _run_rounds(cohort: int, rounds: int, cached: bool, workload: Workload) -> list[float]:
    """Return the seconds of each round."""
    logging.getLogger("flwr").setLevel(logging.ERROR)  # run_simulation is deprecated, but drives Ray in process
    strategy = _TimedFedAvg(cohort)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        _, spec, vector = workload.base()
        strategy.start(
            grid,
            ArrayRecord([vector[spec.trainable]]),
            num_rounds=rounds,
            train_config=ConfigRecord({"cached": cached, "workload": json.dumps(asdict(workload))}),
        )

    # one client per core, which is what Ray itself makes of this
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": os.cpu_count() or 1}}
    run_simulation(server_app, client_app, num_supernodes=cohort, backend_config=resources)  # type: ignore[arg-type]
    return strategy.seconds


class _TimedFedAvg(FedAvg):
    """``FedAvg`` on all nodes, with a clock from before sending until all replies are there."""

    def __init__(self, cohort: int) -> None:
        # nodes appear one by one, and a round begins when the minimum is there
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
        self.seconds: list[float] = []
        self._cohort = cohort
        self._sent = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages of a round and start the clock."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._sent = time.perf_counter()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stop the clock and average.

        Raises:
            FederationError: a user did not answer; the time would mean nothing.
        """
        self.seconds.append(time.perf_counter() - self._sent)
        replies = list(replies)
        answered = sum(not reply.has_error() for reply in replies)
        if answered != self._cohort:
            raise FederationError(f"all {self._cohort} users must answer round {server_round}, got {answered}")
        return super().aggregate_train(server_round, replies)


# A client


client_app = ClientApp()


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    """Train the user whose number is the node's partition."""
    torch.set_num_threads(1)  # the processes share the cores
    config = message.content.config_records["config"]
    workload = Workload(**json.loads(str(config["workload"])))
    user, cohort = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    windows = cut_windows(_histories(workload, cohort)[user], workload.windows)
    (received,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    trained = train_user(received, windows, DP_PLAN, workload, cached=bool(config["cached"]))
    arrays, metrics = ArrayRecord([trained]), MetricRecord({"num-examples": len(windows)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def train_user(received: Vector, windows: Windows, plan: Plan, workload: Workload, *, cached: bool) -> Vector:
    """Train one user as stock Opacus does, on all windows in every step.

    Args:
        received: (num_trainable,) the trained part of the global adapter.
        windows: the user's, as many as the plan expects.
        plan: its sample rate must be 1.
        workload: names the base.
        cached: whether to use the process's private model, or to make one for this user.

    Returns:
        (num_trainable,) what that part became.
    """
    data = tuple(torch.from_numpy(array) for array in (windows.history, windows.target, windows.valid))
    batches: Iterable[tuple[Tensor, ...]]
    with warnings.catch_warnings():  # Opacus warns of its random numbers and of hooks on inputs without gradients
        warnings.simplefilter("ignore")
        if cached:
            model, optimizer = _private_once(workload, plan)
            batches = itertools.repeat(data, plan.steps)
        else:
            model, optimizer, loader = _private(workload, plan, TensorDataset(*data))
            batches = itertools.chain.from_iterable(loader for _ in range(plan.steps))
        weights = [p for p in model.parameters() if p.requires_grad]  # every B, in the order of the vector
        nn.utils.vector_to_parameters(torch.tensor(received), weights)
        for history, target, valid in batches:
            optimizer.zero_grad()
            softmax_loss(model(history), target, valid).mean().backward()
            optimizer.step()
    return nn.utils.parameters_to_vector(weights).detach().numpy()


def _private(workload: Workload, plan: Plan, data: TensorDataset) -> tuple[nn.Module, DPOptimizer, DataLoader[Tensor]]:
    """Make a model, an optimizer and a loader private, as Flower's example does for every user."""
    model = _trainable(workload)
    return PrivacyEngine().make_private(  # type: ignore[no-any-return]
        module=model,
        optimizer=_sgd(model, plan),
        data_loader=DataLoader(data, batch_size=len(data)),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip_norm,
        poisson_sampling=False,  # a batch is all there is
    )


@functools.lru_cache(maxsize=1)
def _private_once(workload: Workload, plan: Plan) -> tuple[nn.Module, DPOptimizer]:
    """Wrap a model and an optimizer once for all users of this process; plain SGD carries nothing between them."""
    model = GradSampleModule(_trainable(workload))
    optimizer = DPOptimizer(
        _sgd(model, plan),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip_norm,
        expected_batch_size=plan.expected_batch,
    )
    return model, optimizer


def _sgd(model: nn.Module, plan: Plan) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=plan.learning_rate)


class _LoRA(nn.Module):
    """A frozen linear layer plus two small ones, the form that Opacus knows; only ``up`` trains."""

    def __init__(self, frozen: nn.Linear, a: Tensor, scale: float) -> None:
        super().__init__()
        rank, in_features = a.shape
        self.frozen, self.scale = frozen, scale
        self.down = nn.Linear(in_features, rank, bias=False).requires_grad_(False)
        self.down.weight.copy_(a)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * self.up(self.down(x))  # type: ignore[no-any-return]


def _trainable(workload: Workload) -> SASRec:
    """Return a copy of the base with layers that Opacus can train."""
    frozen, spec, vector = _base(workload)
    model = copy.deepcopy(frozen).train()  # Opacus refuses a model in eval mode
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    for name, (a, _) in spec.split(torch.from_numpy(vector)).items():
        model.set_submodule(name, _LoRA(model.get_submodule(name), a, spec.alpha / spec.rank))  # type: ignore[arg-type]
    return model


@functools.lru_cache(maxsize=1)
def _base(workload: Workload) -> tuple[SASRec, AdapterSpec, Vector]:
    return workload.base()


@functools.lru_cache(maxsize=1)
def _histories(workload: Workload, num_users: int) -> list[History]:
    return workload.histories(num_users)


if __name__ == "__main__":
    # Ray finds the client's functions, and keeps what they cache, only in a module that has its own name.
    from ownlet.simulations.benchmarks import flower_opacus

    flower_opacus.main()
