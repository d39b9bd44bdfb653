"""How the processes of a run are found: variables, Slurm, TPU pods."""

import contextlib
import http.server
import os
import threading

import jax
import pytest
from helpers import slurm, triple
from jax._src.clusters import cloud_tpu_cluster

from stce_jax.errors import ConfigError
from stce_jax.processes import peers as processes
from stce_jax.processes.clusters import VARIABLES, detect

# --- being found


@pytest.fixture
def environment(monkeypatch):
    """The environment without anything that tells of processes; gives `set(NAME=value)`."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE")) or name in VARIABLES:
            monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_nothing_set_is_a_run_of_one_process(environment):
    assert detect() is None
    processes.start()
    assert not processes.several() and processes.own_name() == "" and not jax.distributed.is_initialized()
    processes.agree({"config": "alone"})
    with pytest.raises(ValueError, match="UNKNOWN"), processes.together():
        raise ValueError("UNKNOWN: no peers, so nobody to wait for")
    processes.leave()


def test_the_three_variables_are_read(environment):
    environment(**triple())
    expected = {"coordinator_address": "node0:1234", "num_processes": 2, "process_id": 1, "local_device_ids": None}
    assert detect() == expected


def test_a_single_process_by_variables_is_alone(environment):
    environment(**triple(count="1", index="0"))
    assert detect() is None


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        (triple(index=""), "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES set, but not JAX_PROCESS_ID"),
        (triple(count="two"), "JAX_NUM_PROCESSES is 'two'"),
        (triple(index="-1"), "JAX_PROCESS_ID is '-1'"),
        (triple(index="2"), "numbered from 0 to 1"),
        (triple(count="0", index="0"), "JAX_NUM_PROCESSES is 0"),
        (triple(address="node0"), "must be HOST:PORT"),
        (triple(address="node0:port"), "must be HOST:PORT"),
    ],
    ids=["one alone", "one empty", "no number", "negative", "too large", "none", "no port", "bad port"],
)
def test_variables_that_make_no_sense_are_refused(environment, variables, message):
    environment(**variables)
    with pytest.raises(ConfigError) as error:
        processes.start()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not jax.distributed.is_initialized()


def test_a_slurm_batch_script_is_alone(environment):
    environment(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="n[1-4]")
    assert detect() is None


def step(**more):
    """Task 3 of a step of four on two nodes."""
    variables = slurm(8476)(1) | {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_NODEID": "1"}
    return variables | {"SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"} | more


def test_a_slurm_step_is_found(environment):
    environment(**step())
    expected = {"coordinator_address": "node07:8476", "num_processes": 4, "process_id": 3, "local_device_ids": None}
    assert detect() == expected


def test_a_slurm_step_of_one_task_is_alone(environment):
    environment(**step(SLURM_NTASKS="1", SLURM_PROCID="0"))
    assert detect() is None


@pytest.mark.parametrize(
    "more, devices",
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "3,1"}, None),
    ],
    ids=["shared", "one each", "bound to one", "bound to two", "alone on its node"],
)
def test_tasks_of_a_node_share_its_gpus(environment, more, devices):
    environment(**step(**more))
    assert detect()["local_device_ids"] == devices


def test_gpus_that_cannot_be_shared_are_refused(environment):
    environment(**step(CUDA_VISIBLE_DEVICES="0,1,2"))
    with pytest.raises(ConfigError, match="2 tasks of a node cannot share its 3 GPUs"):
        detect()


@pytest.fixture
def tpu_machine(environment, monkeypatch):
    """As if this were a machine with TPUs."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environment(JAX_PLATFORMS="")
    return environment


def test_a_tpu_pod_of_kubernetes_is_found(tpu_machine):
    tpu_machine(TPU_WORKER_HOSTNAMES="localhost,other", TPU_WORKER_ID="1", TPU_SKIP_MDS_QUERY="1")
    with serving_metadata({"tpu-env": ""}, tpu_machine):
        found = detect()
    expected = {"coordinator_address": "localhost:8482", "num_processes": 2, "process_id": 1, "local_device_ids": None}
    assert found == expected


def test_one_tpu_host_of_kubernetes_is_alone(tpu_machine):
    tpu_machine(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    with serving_metadata({"tpu-env": ""}, tpu_machine):
        assert detect() is None


@contextlib.contextmanager
def serving_metadata(values, environment):
    """A server that answers as a TPU machine's metadata server does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            self.send_response(200 if name in values else 404)
            self.end_headers()
            self.wfile.write(values.get(name, "").encode())

        def log_message(self, *_):
            pass

    pytest.importorskip("requests", reason="jax asks the metadata server through requests, part of jax[tpu]")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment(GCE_METADATA_IP=f"127.0.0.1:{server.server_port}", NO_PROXY="127.0.0.1")
        yield
        server.shutdown()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tpu_pod_is_found_by_its_metadata(tpu_machine, workers):
    endpoints = "a:0:127.0.0.1,b:1:10.0.0.2" if workers == 2 else "a:0:127.0.0.1"
    values = {"agent-worker-number": str(workers - 1), "worker-network-endpoints": endpoints, "tpu-env": "ZONE: 'x'"}
    with serving_metadata(values, tpu_machine):
        found = detect()
    expected = {"coordinator_address": "127.0.0.1:8482", "num_processes": 2, "process_id": 1, "local_device_ids": None}
    assert found == (expected if workers == 2 else None)


def test_the_cpus_of_a_tpu_machine_are_no_pod(tpu_machine):
    tpu_machine(TPU_WORKER_HOSTNAMES="localhost,other", TPU_WORKER_ID="1", JAX_PLATFORMS="cpu")
    assert detect() is None
