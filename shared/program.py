"""Runs the methods of a ``.pte`` file on NumPy arrays.

The one place that touches the ExecuTorch runtime. Its Python binding takes and returns torch tensors, so torch is
imported here to hold memory; no autograd, no module and no torch kernel takes part in a call.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.shared.errors import BundleError

__all__ = ["Program"]

Array = NDArray[Any]


class Program:
    """A loaded device program. Not safe for use by several threads at once: its methods own their memory."""

    def __init__(self, path: Path) -> None:
        """Load a program.

        Args:
            path: the ``.pte`` file.

        Raises:
            BundleError: the runtime cannot load it.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the binding announces itself as experimental at import
            from executorch.runtime import Runtime, Verification
        try:
            self._program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        except (RuntimeError, OSError, ValueError) as error:
            raise BundleError(f"program must be loadable by this ExecuTorch runtime, got {path}: {error}") from error

    @property
    def methods(self) -> frozenset[str]:
        """Names of the methods."""
        return frozenset(self._program.method_names)

    def run(self, method: str, *arguments: Array | float) -> tuple[Array, ...]:
        """Call a method.

        Args:
            method: its name.
            *arguments: arrays of the dtypes and shapes in the manifest; a Python float is a float32 scalar.

        Returns:
            The results as arrays of their own.

        Raises:
            BundleError: no such method, or the runtime refuses the arguments.
        """
        if method not in self.methods:
            raise BundleError(f"program must have method {method!r}, got {sorted(self.methods)}")
        tensors = [torch.from_numpy(np.array(_as_array(argument))) for argument in arguments]
        try:
            results = self._program.load_method(method).execute(tensors)
        except RuntimeError as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise BundleError(f"method {method} must accept its arguments, got shapes={shapes}: {error}") from error
        return tuple(result.numpy() for result in results)


def _as_array(argument: Array | float) -> Array:
    return np.float32(argument) if isinstance(argument, float) else argument  # type: ignore[return-value]
