"""JAX's settings and XLA's compiler options, by backend. JAX is imported by the functions that need it, not here."""

from typing import Any

Options = dict[str, Any]

# An order of work that needs less memory in place of one that offers more work at a time: a seventh less.
_CPU_STEP = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# It also keeps XLA from timing kernels to choose among them, which may end differently in each process.
_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# LLVM's best code would take twice as long to compile, to compute the same numbers.
_CPU_ONCE = {"xla_backend_optimization_level": 1}


def train_options(backend: str, *, deterministic: bool) -> Options:
    """Compiler options of a training step on a backend ("cpu", "gpu", "tpu")."""
    return (_DETERMINISTIC if deterministic else {}) | (_CPU_STEP if backend == "cpu" else {})


def eval_options(*, deterministic: bool) -> Options:
    """Compiler options of an evaluation step, on any backend."""
    return dict(_DETERMINISTIC) if deterministic else {}


def options_to_run_once(backend: str) -> Options:
    """Compiler options of a program that runs a single time, such as a model's initialisation."""
    return dict(_CPU_ONCE) if backend == "cpu" else {}


def leave_signals_to_python() -> None:
    """Turns JAX's preemption service off, which would swallow SIGTERM; to be called before JAX is distributed."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)


def use_cpus_only() -> None:
    """Leaves accelerators to other processes; to be called before JAX's first computation."""
    import jax

    jax.config.update("jax_platforms", "cpu")
