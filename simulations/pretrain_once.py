"""A base that is trained once and kept in a file."""

from __future__ import annotations

from pathlib import Path

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.model import SASRec
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.setting import Setting

__all__ = ["pretrain_once"]


def pretrain_once(
    path: Path, name: str, setting: Setting, model: ModelConfig, recipe: PretrainConfig, progress: Progress
) -> SASRec:
    """Return the base in a file; where there is none, train it on a setting's public users and save it.

    A training that was interrupted goes on from ``path`` with the ending ``.ckpt``.

    Args:
        path: the file, ``*.pt``.
        name: of the stage that is shown.
        setting: its public users train the base, held-out ones decide when to stop.
        model: shape.
        recipe: of the training.
        progress: told of epochs.
    """
    if path.exists():
        return load_base(path)
    with progress.stage(name, recipe.max_epochs) as step:
        base = pretrain(
            setting.public,
            setting.validation,
            content_vectors(setting.data.items),
            model,
            recipe,
            context=setting.public_context,
            checkpoint=path.with_suffix(".ckpt"),
            on_epoch=lambda epoch: step(str(epoch)),
        )
    save_base(path, base, setting.data.items)
    return base
