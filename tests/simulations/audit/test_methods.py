from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import initial_adapter, save_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.errors import AdapterError, DataError
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.audit.measure import run_audits
from ownlet.simulations.audit.methods import Effort, audits_for
from ownlet.simulations.audit.report import assemble
from ownlet.simulations.audit.subject import RunSubject, open_subject
from ownlet.simulations.audit.trainer import find_base, trainer_of
from ownlet.simulations.base_file import load_base, save_base
from ownlet.simulations.progress import Silent

from .conftest import APP_KEY, NONE, USER, WINDOW, MakeRun

EFFORT = Effort(thorough=False, seed=0, progress=Silent())


def names(path: Path, key: bytes | None = None) -> list[str]:
    return [audit.name for audit in audits_for(open_subject(path, key), EFFORT).audits]


def test_each_subject_has_the_audits_that_fit_it(make_run: MakeRun, ledger_file: Path) -> None:
    server, engine = "server, cohort engine", "cohort engine"
    assert names(make_run(USER, name="user"))[:2] == [
        f"component audit of the {server}",
        f"federated audit of the {server}",
    ]
    assert names(make_run(WINDOW, name="window")) == [
        f"component audit of the {engine}",
        f"one-run audit of the {engine}",
    ]
    masked = make_run(replace(USER, secure=SecureConfig(enabled=True)), name="masked", realised=[2.5] * 6)
    assert names(masked)[0] == f"federated audit of the {server}"
    for path, key in ((make_run(NONE, name="none"), None), (ledger_file, APP_KEY)):
        fitting = audits_for(open_subject(path, key), EFFORT)
        assert fitting.audits == ()
        assert fitting.skipped[0].startswith("Nothing was measured: ")


def test_a_run_whose_base_is_gone_does_not_pass_as_measured(make_run: MakeRun) -> None:
    folder = make_run(WINDOW)
    report = assemble(folder, Silent())
    assert (report.status, report.exit_code, report.results) == ("fail", 1, ())
    failed = [check for check in report.checks if not check.passed]
    assert [check.name for check in failed] == ["ran", "ran"]
    assert all("base of the run must be there" in check.statement for check in failed)
    alone = assemble(folder, Silent(), measuring=False)
    assert (alone.status, alone.skipped) == (
        "pass",
        ("Nothing was measured: the audit was asked for the record alone.",),
    )


def test_a_base_that_moved_with_its_run_is_found(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.pt").touch()
    (tmp_path / "run").mkdir()
    assert find_base(tmp_path / "run", Path("elsewhere/base/base.pt")) == tmp_path / "base" / "base.pt"
    with pytest.raises(DataError, match="name it with --base"):
        find_base(tmp_path / "run", Path("elsewhere/other/base.pt"))


@pytest.fixture
def base_file(tmp_path: Path) -> Path:
    """A tiny base of 30 items, as `ownlet pretrain` saves one."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        content = torch.cat([torch.zeros(1, 4), torch.randn(30, 4)])
        model = SASRec(ModelConfig(dim=8, num_layers=1, max_length=12), content).eval()
        with torch.no_grad():
            model.item_embedding.weight[1:].normal_(std=0.3)
    path = tmp_path / "base.pt"
    save_base(path, model, ())
    return path


def publish(folder: Path, base: Path) -> None:
    """Put an adapter of the base into a run folder."""
    spec = attach_adapter(load_base(base), AdapterConfig())
    save_adapter(folder / "adapter.safetensors", spec, initial_adapter(spec, 0), version=1)


def test_the_engine_of_a_run_is_rebuilt_over_its_own_base_only(make_run: MakeRun, base_file: Path) -> None:
    folder = make_run(WINDOW)
    publish(folder, base_file)
    subject = open_subject(folder)
    assert isinstance(subject, RunSubject)
    trainer = trainer_of(subject, base_file)
    assert trainer.num_items == 30
    assert np.array_equal(trainer.vector, initial_adapter(trainer.engine.spec, 0))
    other = SASRec(ModelConfig(dim=8, num_layers=1, max_length=12), torch.ones(31, 4))
    save_base(base_file, other, ())
    with pytest.raises(AdapterError, match="base must be"):
        trainer_of(subject, base_file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "terms",
    [
        replace(USER, windows=replace(USER.windows, window_length=6)),
        replace(WINDOW, windows=replace(WINDOW.windows, window_length=6)),
    ],
)
def test_a_correct_run_is_measured_below_its_claim(make_run: MakeRun, base_file: Path, terms: FederationConfig) -> None:
    folder = make_run(terms)
    publish(folder, base_file)
    fitting = audits_for(open_subject(folder), EFFORT, base_file)
    measured = run_audits(fitting.audits[:2], Silent())
    assert measured.failures == ()
    assert next(result.method for result in measured.results) == "component"
    assert not any(result.flagged for result in measured.results)
    component = measured.results[0]
    assert 0.8 * component.claim.epsilon < component.epsilon_lower <= component.claim.epsilon


@pytest.mark.slow
def test_masked_rounds_are_measured_as_they_are(make_run: MakeRun, base_file: Path) -> None:
    windows = replace(USER.windows, window_length=6)
    terms = replace(USER, noise_multiplier=0.1, secure=SecureConfig(enabled=True), windows=windows)
    folder = make_run(terms, realised=[0.12] * 6)
    publish(folder, base_file)
    measured = run_audits(audits_for(open_subject(folder), EFFORT, base_file).audits[:1], Silent())
    assert measured.failures == ()
    (federated,) = measured.results
    assert federated.figures["mean_cosine_sent"] > federated.figures["mean_cosine_unsent"]
    assert federated.epsilon_lower <= federated.claim.epsilon


@pytest.mark.slow
def test_a_bundle_without_terms_is_measured_under_a_reference_plan(tiny_bundle: Path) -> None:
    report = assemble(tiny_bundle, Silent())
    assert report.status == "nothing-promised"
    assert [result.method for result in report.results] == ["component", "one-run"]
    assert "reference plan" in report.skipped[0]
