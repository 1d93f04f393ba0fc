"""Compression learns A; without noise and divergence it is the training of a plain LoRA."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.server.compression import CompressionConfig, compress, divergence, train_kernels
from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.errors import AdapterError, ConfigError
from ownlet.shared.lora import applied, attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.windows import cut_windows

SHORT = CompressionConfig(steps=20, batch_size=8, learning_rate=0.02)


def base(method="iak"):
    torch.manual_seed(0)
    content = torch.cat([torch.zeros(1, 4), torch.randn(20, 4)])
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=8), content).eval()
    return model, attach_adapter(model, AdapterConfig(method=method, rank=4, alpha=8.0))


def windows(count=12):
    events = np.random.default_rng(0).integers(1, 21, 6 * count)
    return cut_windows(events, WindowConfig(window_length=6))


def test_without_noise_and_divergence_it_is_plain_lora_to_the_last_step():
    """Opacus trains A and B of a plain LoRA, without clipping or noise: an implementation that shares no line."""
    model, spec = base("lora")
    some = windows()
    engine = OpacusEngine(model, spec)
    plan = Plan(steps=5, learning_rate=0.5, expected_batch=float(len(some)))
    plain = engine.train(initial_adapter(spec, 3), [some], plan, [AesNoise.seeded(0)])[0]
    config = CompressionConfig(
        steps=5, batch_size=len(some), learning_rate=0.5, optimizer="sgd", beta=0.0, noise_std=0.0
    )
    joint = train_kernels(model, spec, some, config, 3)
    assert np.abs(plain - initial_adapter(spec, 3)).max() > 1e-3
    np.testing.assert_allclose(joint, plain, rtol=1e-5, atol=1e-6)


def test_what_devices_start_from_changes_nothing_and_has_orthonormal_rows():
    model, spec = base()
    before = hash_state(model.state_dict())
    vector = compress(model, spec, windows(), SHORT, 0)
    pieces = spec.split(torch.from_numpy(vector))
    random = spec.split(torch.from_numpy(initial_adapter(spec, 0)))
    for name, (a, b) in pieces.items():
        assert not b.any()
        np.testing.assert_allclose((a @ a.T).numpy(), np.eye(4), atol=1e-5)
        overlap = (a @ random[name][0].T).square().sum() / 4  # 1 where both span the same
        assert overlap < 0.999
    history = torch.randint(1, 21, (3, 8))
    with applied(model, pieces):
        changed = model(history)
    torch.testing.assert_close(changed, model(history))
    assert hash_state(model.state_dict()) == before


def test_the_learned_kernel_lowers_the_loss_of_its_windows():
    model, spec = base()
    some = windows()
    rows = [torch.from_numpy(array) for array in (some.history, some.target, some.valid)]
    learned = train_kernels(model, spec, some, replace(SHORT, steps=60), 0)
    with torch.no_grad():
        before = softmax_loss(model(rows[0]), rows[1], rows[2]).mean()
        with applied(model, spec.split(torch.from_numpy(learned))):
            after = softmax_loss(model(rows[0]), rows[1], rows[2]).mean()
    assert after < before - 0.05


def test_divergence_is_that_of_the_normals():
    mean, log_variance = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    want = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence(mean, log_variance), want)


def test_a_large_beta_is_minimised_by_z_that_says_nothing():
    model, spec = base()
    losses: list[float] = []
    config = replace(SHORT, beta=50.0, steps=40)
    compress(model, spec, windows(), config, 0, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.6 * losses[0]


def test_equal_seeds_give_equal_adapters_and_others_do_not():
    model, spec = base()
    first, again, other = (compress(model, spec, windows(), SHORT, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"learning_rate": 0.0}, {"optimizer": "lbfgs"}, {"beta": -1.0}, {"noise_std": 0.0}]
)
def test_settings_are_checked(change):
    with pytest.raises(ConfigError):
        CompressionConfig(**change)


def test_what_cannot_be_compressed_is_refused():
    model, spec = base("bottleneck")
    with pytest.raises(ConfigError, match="form"):
        compress(model, spec, windows(), SHORT, 0)
    model, spec = base()
    with pytest.raises(ConfigError, match="public windows"):
        compress(model, spec, windows()[:0], SHORT, 0)
    with pytest.raises(AdapterError, match="finite"):
        compress(model, spec, windows(), replace(SHORT, optimizer="sgd", learning_rate=1e30), 0)
