"""Who a process is among many: what clusters say of it, and when they are not asked."""

import socket

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from sharding import processes
from sharding.error_types import FloorlineError, LayoutError, UsageError
from sharding.mesh import make_mesh, parse_mesh, request_cpu_devices
from sharding.processes import Membership

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_LOCALID": "0"}


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine with TPU chips, whose metadata server answers what is put into the dict."""
    answers = {}
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(
        cloud_tpu_cluster,
        "get_metadata",
        lambda key: (answers.get(key, ""), 200 if key in answers else 404),
    )
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    yield answers
    jax.config.update("jax_platforms", platforms)


def test_a_plain_machine_is_one_process_and_asks_no_server(monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", pytest.fail)
    assert processes._detect() == Membership()


@pytest.mark.parametrize(
    ("tasks", "expected"), [("1", Membership()), ("4", Membership(4, 3, "n1:61447"))]
)
def test_slurm_says_which_task_this_is(tasks, expected, monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": tasks, "SLURM_PROCID": "3"}).items():
        monkeypatch.setenv(name, value)
    assert processes._detect() == expected


@pytest.mark.parametrize(
    ("hosts", "expected"), [("10.0.0.1", Membership()), ("10.0.0.1,10.0.0.2", Membership(2, 1))]
)
def test_a_tpu_slice_has_a_process_per_host(hosts, expected, tpu_vm):
    tpu_vm |= {"agent-worker-number": "1", "worker-network-endpoints": hosts}
    assert processes._detect() == expected


def test_a_tpu_slice_on_kubernetes_says_so_in_its_environment(tpu_vm, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    assert processes._detect() == Membership(4, 2)


def test_a_tpu_vm_on_its_cpu_asks_nothing(tpu_vm, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", pytest.fail)
    jax.config.update("jax_platforms", "cpu")
    assert processes._detect() == Membership()


def test_a_cluster_that_does_not_say_is_reported(tpu_vm):
    tpu_vm |= {"agent-worker-number": "1", "worker-network-endpoints": "a:b"}
    with pytest.raises(
        FloorlineError, match=r"cluster is gcetpu, which does not tell.*unsupported"
    ):
        processes._detect()


@pytest.mark.parametrize(
    "address", ["", "a", "a:", ":1", "a:0", "a:65536", "a b:1", "::1:8", "a/b:1"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="coordinator is"):
        Membership(2, 0, address).check()


@pytest.mark.parametrize("address", ["a:1", "10.0.0.1:65535", "[::1]:8476", "node-1.example:80"])
def test_addresses_are_taken(address):
    Membership(2, 1, address).check()


@pytest.mark.parametrize("index", [-1, 2])
def test_an_id_out_of_range_is_refused(index):
    with pytest.raises(UsageError, match=f"process id is {index} of 2; use 0 to 1"):
        Membership(2, index, "a:1").check()


def test_devices_that_processes_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "_membership", Membership(3, 0))
    for refuse in (lambda: request_cpu_devices(8), lambda: make_mesh(parse_mesh("8"))):
        with pytest.raises(LayoutError, match="is 8, which 3 processes do not divide"):
            refuse()


def test_alone_nothing_is_asked_of_others():
    assert processes.from_first_process(lambda: 5) == 5
    processes.wait_for_all()
    with pytest.raises(SystemExit) as end:
        processes.exit_failed(2)
    assert end.value.code == 2


def test_a_coordinators_port_that_another_program_has_is_refused_before_jax_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FloorlineError, match=f"process 0 of 2 is failing .port {port}: Addr"):
            processes._try_port(Membership(2, 0, f"127.0.0.1:{port}"))
    processes._try_port(Membership(2, 0, f"127.0.0.1:{port}"))
