"""Runs the methods of a ``.pte`` file on NumPy arrays.

The one place that touches the ExecuTorch runtime. Its Python binding takes and returns torch tensors, so torch is
imported here to hold memory, and before the binding, which needs its libraries; no autograd, no module and no torch
kernel takes part in a call.
"""

from __future__ import annotations

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
        # the binding itself: executorch.runtime would bring the whole exporter along, seconds at every start of an app
        from executorch.extension.pybindings import _portable_lib

        try:
            consistency = _portable_lib.Verification.InternalConsistency
            self._program = _portable_lib._load_program(str(path), program_verification=consistency)
        except (RuntimeError, OSError, ValueError) as error:
            raise BundleError(f"program must be loadable by this ExecuTorch runtime, got {path}: {error}") from error
        names = [self._program.get_method_name(number) for number in range(self._program.num_methods())]
        self._methods: dict[str, Any] = dict.fromkeys(names)  # loaded when they are first called

    @property
    def methods(self) -> frozenset[str]:
        """Names of the methods. Each takes its memory when it is first called."""
        return frozenset(self._methods)

    def run(self, method: str, *arguments: Array | float) -> tuple[Array, ...]:
        """Call a method.

        Args:
            method: its name.
            *arguments: arrays of the dtypes and shapes in the manifest, read where they lie; a Python float is a
                float32 scalar.

        Returns:
            The results as arrays of their own.

        Raises:
            BundleError: no such method, or the runtime refuses the arguments.
        """
        if method not in self._methods:
            raise BundleError(f"program must have method {method!r}, got {sorted(self._methods)}")
        tensors = [torch.from_numpy(_readable(argument)) for argument in arguments]
        try:
            if self._methods[method] is None:
                self._methods[method] = self._program.load_method(method)
            results = self._methods[method](tensors)  # copies of what the method's own memory holds
        except RuntimeError as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise BundleError(f"method {method} must accept its arguments, got shapes={shapes}: {error}") from error
        return tuple(result.numpy() for result in results)


def _readable(argument: Array | float) -> Array:
    """Return the argument as an array that PyTorch takes: contiguous, and writable though nothing writes to it."""
    array = np.asarray(argument, np.float32) if isinstance(argument, float) else argument
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy(order="C")
