"""oneDNN on a CPU: which library computes products and convolutions, XLA's own or oneDNN.

jaxlib's builds for Linux on x86 contain oneDNN, and XLA has calls of it, but makes none by itself. Its own convolutions
take longer, and so do its products of attention's small matrices (`benchmarks/cpu_library.py`). But jaxlib cannot write
programs with these calls to JAX's cache of compiled programs: it takes them for something else, and fails at best. So
oneDNN computes only where there is no such cache. JAX must be imported already.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from stce_jax.platform.backends import has_one_cpu

# XLA has the calls for itself and promises nothing: another jaxlib may understand another description, and end the
# process over this one. So jaxlib is asked by its version. Add one with which tests/models/ops/test_onednn.py passes.
JAXLIB_VERSIONS = ("0.10.2", "0.12.0.1")
# Multiply-adds from which on it pays to compile at every start: a minute or two of two cores.
ENOUGH_WORK = 1e13
_allowed = jax.make_user_context(True)  # what is traced with another is traced anew


def onednn_computes() -> bool:
    """Whether oneDNN computes what is traced now, in float32: on a single CPU device, without kept programs."""
    settings: Any = jax.config
    return _allowed.value and not settings.jax_compilation_cache_dir and has_one_cpu() and _is_there()


@contextlib.contextmanager
def chosen_for(multiply_adds: float) -> Iterator[bool]:
    """Within, oneDNN computes if there is enough to compute, and JAX keeps no compiled programs then.

    To be entered before anything of it is traced, by one thread at a time, for JAX's cache is the process's. The choice
    follows from the work, the devices and jaxlib, so that a run that is resumed computes as before.

    Args:
      multiply_adds: of all that is to be computed within, about; those in float32. 0: XLA computes.

    Yields:
      Whether oneDNN does.
    """
    settings: Any = jax.config
    directory = settings.jax_compilation_cache_dir
    enough = multiply_adds >= ENOUGH_WORK
    try:
        with _allowed(enough):
            if enough and directory and has_one_cpu():
                _keep_programs_in("")
                if not onednn_computes():
                    _keep_programs_in(directory)
            yield onednn_computes()
    finally:
        if enough and directory:
            _keep_programs_in(directory)


def _keep_programs_in(directory: str) -> None:
    """ "": in none."""
    settings: Any = jax.config
    if (settings.jax_compilation_cache_dir or "") != directory:
        settings.update("jax_compilation_cache_dir", directory or None)
        compilation_cache.reset_cache()  # JAX looks at its settings once


@functools.cache
def _is_there() -> bool:
    """Whether jaxlib has oneDNN: a build of the same version may have been made without it."""
    if jaxlib.__version__ not in JAXLIB_VERSIONS:
        return False
    matrix = np.eye(2, dtype=np.float32)
    multiply = jax.jit(functools.partial(call_onednn, "matmul", {"onednn_matmul_config": {}}, matrix))
    with jax.ensure_compile_time_eval():
        try:
            return bool((np.asarray(multiply(matrix, matrix)) == matrix).all())
        except jax.errors.JaxRuntimeError:
            return False


def call_onednn(target: str, config: Mapping[str, Any], output: Any, left: Any, right: Any) -> Any:
    """XLA's call.

    Args:
      target: "matmul" or "convolution".
      config: fields of XLA's BackendConfig, whose names are those of its onednn_config.proto.
      output: has the result's shape and dtype.
      left, right: the operands, row by row in memory.
    """
    result = jax.ShapeDtypeStruct(output.shape, output.dtype)
    function = jax.ffi.ffi_call(
        f"__onednn${target}", result, custom_call_api_version=2, legacy_backend_config=json.dumps(config)
    )
    return function(left, right)
