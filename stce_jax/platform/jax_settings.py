"""JAX's settings and XLA's compiler options, by backend. JAX is imported by the functions that need it, not here."""

from typing import Any

Options = dict[str, Any]

# An order of work that needs less memory in place of one that offers more work at a time: a seventh less.
_CPU_STEP = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# Seconds that a process waits for the others in a collective: signs of life, not this, decide that one is lost.
_CPU_PATIENCE = {"xla_cpu_collective_timeout_seconds": 30 * 24 * 60 * 60}
# It also keeps XLA from timing kernels to choose among them, which may end differently in each process.
_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# LLVM's best code would take twice as long to compile, to compute the same numbers.
_CPU_ONCE = {"xla_backend_optimization_level": 1}


def train_options(backend: str, *, deterministic: bool, processes: int = 1) -> Options:
    """Compiler options of a training step on a backend ("cpu", "gpu", "tpu") of so many processes."""
    return eval_options(backend, deterministic=deterministic, processes=processes) | (
        _CPU_STEP if backend == "cpu" else {}
    )


def eval_options(backend: str, *, deterministic: bool, processes: int = 1) -> Options:
    """Compiler options of an evaluation step on a backend of so many processes."""
    patience = _CPU_PATIENCE if backend == "cpu" and processes > 1 else {}
    return (_DETERMINISTIC if deterministic else {}) | patience


def options_to_run_once(backend: str) -> Options:
    """Compiler options of a program that runs a single time, such as a model's initialisation."""
    import jax

    fastest = jax.config.read("jax_disable_most_optimizations")  # set by who wants less still; options would undo it
    return dict(_CPU_ONCE) if backend == "cpu" and not fastest else {}


def leave_signals_to_python() -> None:
    """Turns JAX's preemption service off, which would swallow SIGTERM; to be called before JAX is distributed."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)


def use_cpus_only() -> None:
    """Leaves accelerators to other processes; to be called before JAX's first computation."""
    import jax

    jax.config.update("jax_platforms", "cpu")
