"""Two tiers: the quick one starts no process and runs something of every module of the package; the rest is slow.

A test is slow if it lies in tests/slow, carries the mark, or requests a fixture that starts processes. A quick test
that starts one fails. A complete quick run (`pytest -m "not slow"`) fails if no function of some module was called.
"""

import ast
import gc
import importlib.machinery
import multiprocessing.process
import sys
from pathlib import Path

import pytest

SLOW = Path(__file__).parent / "slow"
PACKAGE = Path(__file__).parents[1] / "stce_jax"
QUICK = "not slow"
SLOW_FIXTURES = {"stce", "small_disk"}
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}  # audit events
ALLOWED = {"fc-list", "uname"}  # Matplotlib's search for fonts, once a user; Python's platform.processor()
# What no quick test can call; tests/slow does, in processes of their own, and tests/loggers, with other packages.
BY_PROCESSES = {
    "stce_jax.training.candidates",  # a table; its one function makes it while the module is imported
    "stce_jax.platform.freed_memory",  # settings of a whole process that cannot be taken back
    "stce_jax.reproduce.subprocesses",  # starts processes
    *(f"stce_jax.workdir.loggers.{service}" for service in ("wandb", "trackio", "mlflow")),  # tests/loggers
}
_quick, _started = False, []
_called, _without_functions = set(), set()  # names of modules


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW in item.path.parents or SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: SLOW not in item.path.parents)  # the longest first, so that no worker ends late


# --- no process in a quick test


def _refuse(what):
    _started.append(what)
    raise RuntimeError(f"a quick test may start no process ({what}): mark it slow or move it to tests/slow")


def _audit(event, arguments):
    if _quick and event in STARTS and Path(str(arguments[0] if arguments else "")).name not in ALLOWED:
        _refuse(f"{event} {arguments[0] if arguments else ''}".strip())


def _start_nothing(process):
    if _quick:
        _refuse(type(process).__name__)
    return _start(process)


sys.addaudithook(_audit)
# The spawn method of multiprocessing raises no audit event.
_start, multiprocessing.process.BaseProcess.start = multiprocessing.process.BaseProcess.start, _start_nothing


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    global _quick
    _quick = item.get_closest_marker("slow") is None
    _started.clear()
    try:
        return (yield)
    finally:
        _quick = False


def pytest_runtest_teardown():
    """Fails a test that caught the refusal and passed in spite of it."""
    assert not _started, f"a quick test started {', '.join(_started)}: mark it slow or move it to tests/slow"


# --- every module in the quick tier


class _NotingLoader(importlib.machinery.SourceFileLoader):
    """Each function of the module begins with a note that it was called."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        functions = [node for node in functions if ast.unparse(node.body[-1]) != "..."]  # of protocols
        for function in functions:
            first = 0 if ast.get_docstring(function, clean=False) is None else 1
            where = function.body[min(first, len(function.body) - 1)]
            note = ast.parse("__called__.add(__name__)").body[0]
            for node in ast.walk(note):
                ast.copy_location(node, where)
            function.body.insert(first, note)
        if not functions:
            _without_functions.add(fullname)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module):
        module.__called__ = _called
        super().exec_module(module)


class _NotingFinder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target) if fullname.partition(".")[0] == PACKAGE.name else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _NotingLoader(spec.loader.name, spec.loader.path)
        return spec


def pytest_configure(config):
    if config.option.markexpr == QUICK:
        assert PACKAGE.name not in sys.modules, "the package was imported before its calls could be noted"
        sys.meta_path.insert(0, _NotingFinder)


def pytest_collection_finish():
    _called.clear()  # what is called while modules are imported is no test
    gc.freeze()  # what is there by now stays to the end; looking through it again and again takes time
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker of pytest-xdist noted."""
    _called.update(getattr(node, "workeroutput", {}).get("called", ()))


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["called"] = [*_called, *_without_functions]
        return
    _called.update(_without_functions)
    chosen = config.args_source != config.ArgsSource.TESTPATHS or config.option.keyword or config.option.collectonly
    if config.option.markexpr != QUICK or chosen or exitstatus != pytest.ExitCode.OK:
        return
    names = {path: path.relative_to(PACKAGE.parent).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names.values()}
    if missing := sorted(names - _called - BY_PROCESSES):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("")
        reporter.write_line(f"no quick test calls anything of {', '.join(missing)}", red=True)
