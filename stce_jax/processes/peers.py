"""Several processes, one run: finding each other, agreeing on what is run, stopping together, ending together.

Order in a process: `start` -> `agree` -> work, within `together` -> `leave`. In a run of one process all of them do
nothing. What only runs of several processes need is imported by the functions that need it, JAX too, so that the
command line can use this module.
"""

import contextlib
import functools
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stce_jax.errors import ConfigError, PreemptedError, StceError
from stce_jax.platform import terminal

if TYPE_CHECKING:
    from stce_jax.processes.heartbeat import Heartbeat

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# JAX's own ways to notice a dead process end it with a wall of text; they are the last resort.
HEARTBEAT_TIMEOUT, SHUTDOWN_TIMEOUT = 100, 10  # seconds
_heartbeat: "Heartbeat | None" = None  # of this process, while it is one of several
_shared, _met = itertools.count(), itertools.count()


def start(timeout: float = 300) -> None:
    """Joins the run's other processes if the environment names any, see `clusters.detect`; called before JAX is used.

    From then on this process ends, with a line that says why, once another ends or does not answer.

    Args:
      timeout: seconds to wait for all processes to come.

    Raises:
      ConfigError: contradictory variables, an address that cannot be used, or processes that do not fit together.
      PreemptedError: not all come in time.
    """
    global _heartbeat
    if _heartbeat:
        return
    import threading

    import jax
    from jax._src import distributed  # the key-value store has no public name

    from stce_jax.platform import compile_cache, jax_settings
    from stce_jax.platform.c_signals import on_abort
    from stce_jax.processes import clusters, joining
    from stce_jax.processes.heartbeat import Heartbeat

    found = clusters.detect()
    if found is None:
        return
    address, count, index = found["coordinator_address"], found["num_processes"], found["process_id"]
    joining.join(address, count, index, timeout)
    jax_settings.leave_signals_to_python()
    compile_cache.serve_all_processes()
    refuse = functools.partial(_refuse_start, f"process {index} of {count} could not join the others at {address}")
    # JAX aborts with a wall of text where it could raise an error, so its own patience is never reached.
    patience = threading.Timer(timeout, refuse, [f"within {timeout:g} s; see whether all {count} were started"])
    patience.daemon = True
    patience.start()
    on_abort(lambda: refuse("(see above what JAX says)"))
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            local_device_ids=found["local_device_ids"],
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"process {index} of {count} could not join the others at {address}: {reason}") from error
    finally:
        patience.cancel()
    _heartbeat = Heartbeat(distributed.global_state.client, index, count, address)
    jax.devices()  # now, for processes that ask for them one after the other wait only minutes for one another


def _refuse_start(message: str, reason: str) -> NoReturn:
    terminal.warn(f"{message} {reason}")
    os._exit(PreemptedError.exit_code)  # worth another try


def several() -> bool:
    """Whether this process is one of several that `start` joined and that have not left."""
    return _heartbeat is not None


def is_main() -> bool:
    """Whether this process is the one that writes the workdir."""
    import jax

    return jax.process_index() == 0


def own_name() -> str:
    """This process for people, "process 1 on node7"; "" in a run of one process."""
    return _heartbeat.name(_heartbeat.index) if _heartbeat else ""


def agree(facts: dict[str, str]) -> None:
    """Checks that all processes were started with the same facts; each process must call it, exactly once.

    Args:
      facts: {name: text}, such as {"config": its JSON, "code": `code_digest()`, "data": a fingerprint}.

    Raises:
      ConfigError: in all processes: which fact differs, and in which process.
    """
    if not _heartbeat:
        return
    import hashlib
    import json

    client = _heartbeat.client
    for name, text in facts.items():
        client.key_value_set(f"stce/fact/{_heartbeat.index}/{name}", text)
    own = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in facts.items()}
    client.key_value_set(f"stce/facts/{_heartbeat.index}", json.dumps(own))
    reference, *others = map(json.loads, _gather(_heartbeat, "stce/facts/"))
    problem = None
    for index, digests in enumerate(others, start=1):
        differing = [name for name in reference if digests.get(name) != reference[name]]
        if differing and not problem:
            # Small enough to compare whole, though the processes be many: only these two are fetched.
            texts = [client.key_value_try_get(f"stce/fact/{p}/{differing[0]}") for p in (0, index)]
            problem = (
                f"{_heartbeat.name(index)} was started with another {differing[0]} than {_heartbeat.name(0)}"
                f"{_first_difference(*texts)}; start all processes with the same"
            )
    meet()  # process 0 holds the store: it may end only when all have read it
    if problem:
        raise ConfigError(problem)


def meet() -> None:
    """Returns once all processes have called this as often as this one; waits for them as long as they live."""
    if _heartbeat:
        folder = f"stce/met/{next(_met)}/"
        _heartbeat.client.key_value_set(f"{folder}{_heartbeat.index}", "")
        _gather(_heartbeat, folder)


def compile_together(step: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function whose first call compiles it, then meets the others, and only then runs it.

    One process may find a program in the cache that another compiles for minutes. Collectives do not wait so long.

    Args:
      step: jitted; called with the same shapes each time, and by all processes in the same order.
    """
    if not _heartbeat:
        return step
    jitted: Any = step
    compiled = False

    @functools.wraps(step)
    def first_compiled(*arguments: Any, **options: Any) -> Any:
        nonlocal compiled
        if not compiled:
            jitted.lower(*arguments, **options).compile()  # the call finds it
            meet()
            compiled = True
        return jitted(*arguments, **options)

    first_compiled.jitted = jitted  # type: ignore[attr-defined]
    return first_compiled


def compile_now(step: Any, *arguments: Any) -> None:
    """Compiles a function of `compile_together` before its first call, and meets the others.

    Args:
      step: jitted, or what `compile_together` made of it.
      arguments: of its calls, or their shapes, dtypes and shardings.
    """
    getattr(step, "jitted", step).lower(*arguments).compile()  # the call finds it
    meet()


def _gather(heartbeat: "Heartbeat", folder: str) -> list[str]:
    """The values that all processes have set in a folder of the store, in the processes' order."""
    while len(found := heartbeat.client.key_value_dir_get(folder)) < heartbeat.count:  # a lost process ends this one
        time.sleep(0.05)
    return [text for _, text in sorted(found, key=lambda pair: int(pair[0].rpartition("/")[2]))]


def _first_difference(reference: str, text: str) -> str:
    """The first line in which texts of several lines differ, cut to fit in a message; "" for texts of one."""
    lines = [text.splitlines(), reference.splitlines()]
    if max(map(len, lines)) < 2:
        return ""
    length = max(map(len, lines))
    padded = [[line.strip().rstrip(",")[:100] for line in part] + ["nothing"] * (length - len(part)) for part in lines]
    return next(f": {ours} instead of {theirs}" for ours, theirs in zip(*padded, strict=True) if ours != theirs)


def share(value: Any) -> Any:
    """What process 0 passes, a JSON-able value, in all processes; they wait for it as long as process 0 lives.

    It goes through the store and not the devices, whose collectives time out.
    """
    if not _heartbeat:
        return value
    import json

    client, folder = _heartbeat.client, f"stce/shared/{next(_shared)}/"
    if _heartbeat.index == 0:
        client.key_value_set(f"{folder}0", json.dumps(value))
        return value
    while not (found := client.key_value_dir_get(folder)):
        time.sleep(0.1)
    return json.loads(found[0][1])


def code_digest() -> str:
    """SHA-256 over this package's source files and the versions of what computes, as 64 hexadecimal digits."""
    import hashlib
    import importlib.metadata

    package = Path(__file__).parents[1]
    digest = hashlib.sha256(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
    for name in PACKAGES:
        digest.update(f"\n{name} {importlib.metadata.version(name)}".encode())
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).parts):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what several processes do together: an error in one ends all, each with one line; see `fail`.

    Enter it as the innermost of the context managers whose exits may wait for the other processes, and around all as
    well. PreemptedError passes through: all processes raise it, once their state is saved.
    """
    try:
        yield
    except PreemptedError:
        raise
    except BaseException as error:
        if several():
            blame(error)
            if not isinstance(error, StceError):
                terminal.print_traceback(type(error), error, error.__traceback__)
            fail(str(error) or repr(error), error.exit_code if isinstance(error, StceError) else 1)
        raise


def fail(message: str, exit_code: int) -> None:
    """Ends this process of several at once: prints "stce: MESSAGE"; the others end in the same way, naming this one.

    At once, without a return to the caller: threads and collectives that wait for the others would delay it by minutes.
    """
    assert _heartbeat, "only one of several processes fails for the others"
    _heartbeat.fail(terminal.one_line(message), exit_code)


def blame(error: BaseException | None) -> None:
    """Waits, if an error looks like a collective that broke, until the process that broke it is found.

    Finding it ends this process with a line that names it. Returns if the error is of another kind, or nobody is lost.
    """
    while _heartbeat and error:
        # By its message, for JAX raises some as ValueError; running out of memory is this process's own error.
        if re.match(r"(?!RESOURCE_EXHAUSTED)[A-Z_]+: ", str(error)):
            from stce_jax.processes.heartbeat import BEAT, PEER_TIMEOUT

            time.sleep(PEER_TIMEOUT + 5 * BEAT)
            return
        error = error.__cause__ or error.__context__


def leave() -> None:
    """Ends this process's part in the run, once all others have come to their end as well.

    Who is killed once the run's work is done costs the others seconds, and not their exit code.
    """
    global _heartbeat
    if not _heartbeat:
        return
    from stce_jax.processes import leaving

    _heartbeat.leave(1)
    with leaving.without_stderr():  # JAX has pages to say when a process has gone that is no longer needed
        _heartbeat.leave(2)
        leaving.shut_down(complete=_heartbeat.close(), timeout=2 * SHUTDOWN_TIMEOUT)
    _heartbeat = None
