"""What cases need of memory, what a machine has free, and what is never started together."""

from __future__ import annotations

import threading

import pytest
from process_cases import digits_case
from test_schedule import Imagined, a_case, ends, run_all

from attnbench.errors import UserInputError
from attnbench.models.recipes import resolve
from attnbench.profiling.kept_tensors import kept_bytes
from attnbench.profiling.memory_plan import plan_memory
from attnbench.profiling.protocol import Workload
from attnbench.running import memory as memory_module
from attnbench.running.estimates import num_params
from attnbench.running.executors import slurm_queue
from attnbench.running.executors.cluster_shares import Node, asked_memory, check_memory
from attnbench.running.executors.interface import Asked, Order
from attnbench.running.executors.jobs import Jobs
from attnbench.running.memory import MemoryNeed, check_holds, free_bytes, memory_need

SMALL = resolve("tiny-dit", {"depth": 1, "dim": 16, "num_heads": 2})
GIB = 2**30


def test_what_is_kept_is_alive_at_the_peak_that_fake_tensors_plan():
    """Everything saved lives when the forward pass ends: the planned peak cannot be less; both scale."""
    kept = kept_bytes(SMALL, 8, 10)
    workload = Workload(config=SMALL, input_size=8, num_classes=10, batch_size=64, mode="train")
    planned = plan_memory(workload).activations_mib * 2**20
    assert 0 < 64 * kept <= planned
    # what is not kept: gradients of all weights, and of activations at most as much as is kept
    assert planned <= 2 * 64 * kept + 4 * num_params(SMALL, 8, 10)


def scored_here(**train):
    """Return a case that needs no network but its own and the small one of the digits."""
    case = digits_case()
    evaluate = case.evaluate.model_copy(update={"extractor": "digits-cnn"})
    settings = case.train.model_copy(update=train)
    return case.model_copy(update={"evaluate": evaluate, "train": settings})


def test_a_need_is_its_parts():
    """Weights, gradients, two moments, the averages; then a part of the batch; a process is no certainty."""
    case = scored_here()
    base, params = memory_module.PROCESS_BYTES["cpu"], num_params(case.model, 8, 10)
    kept, copies = kept_bytes(case.model, 8, 10), 5 + len(case.train.extra_ema_decays)
    least = memory_need(case, "cpu").least
    assert least == 4 * copies * params
    large = memory_need(scored_here(batch_size=4096), "cpu")
    assert (large.estimate, large.is_whole) == (base + least + 4096 * kept, True)
    cut = memory_need(scored_here(batch_size=4096, grad_accumulation=4, precision="bf16"), "cpu")
    assert cut.estimate == base + least + 512 * kept
    on_gpu = memory_need(scored_here(batch_size=4096), "cuda")
    assert (on_gpu.gpu, on_gpu.least) == (memory_module.CUDA_BYTES + least + 4096 * kept, 0)


def test_other_machines_hold_their_own_part():
    """Of 64 processes 8 are here: weights of these alone, an eighth of the batch; cut weights are of all."""
    case = scored_here(batch_size=4096)
    least, kept = memory_need(case, "cpu").least, kept_bytes(case.model, 8, 10)
    here = memory_need(case, "cpu", 8, 56)
    assert here.least == 8 * least
    assert here.estimate == 8 * (memory_module.PROCESS_BYTES["cpu"] + least) + 4096 * kept // 8
    cut = memory_need(scored_here(batch_size=4096, sharding="fsdp2"), "cpu", 8, 56)
    assert cut.least == 8 * (least // 64)


def test_a_network_that_is_not_counted_is_guessed_and_said():
    """EfficientNet scores a tiny model's images with more memory than its training takes."""
    need = memory_need(digits_case(), "cpu")
    assert not need.is_whole
    assert need.estimate == memory_module.PROCESS_BYTES["cpu"] + memory_module.SCORING_BYTES


def test_free_memory_is_the_least_of_the_machines_and_the_cgroups(tmp_path, monkeypatch):
    """Cached files count as free, `max` as no limit."""
    monkeypatch.setattr(memory_module, "CGROUP", tmp_path)
    monkeypatch.setattr(memory_module, "_available", lambda: 8 * GIB)
    assert free_bytes() == 8 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    assert free_bytes() == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert (free_bytes(), memory_module.total_bytes()) == (2 * GIB, 4 * GIB)


def order(need: int, tmp_path) -> Order:
    memory = MemoryNeed(least=0, estimate=need)
    return Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log", memory=memory)


def test_jobs_keep_apart_what_does_not_fit_together(tmp_path, monkeypatch):
    """One alone always starts: an estimate refuses nothing."""
    monkeypatch.setattr("attnbench.running.executors.jobs.free_bytes", lambda: 4 * GIB)
    jobs = Jobs(Asked(jobs=1))
    jobs.check([])
    small, large = order(GIB, tmp_path), order(9 * GIB, tmp_path)
    assert jobs.fits(large, [])
    assert jobs.fits(small, [small, small, small])
    assert not jobs.fits(small, [small, small, small, small])
    assert not jobs.fits(small, [large])


def test_a_run_starts_together_only_what_fits(tmp_path):
    """Of a large and three small cases the large one is alone; all of them end."""
    most, lock = [0], threading.Lock()

    class Small(Imagined):
        at_once = 4

        def fits(self, order, under_way):
            with lock:
                together = [order.case.label, *(other.case.label for other in under_way)]
                fits = len(together) == 1 or "large" not in together
                most[0] = max(most[0], len(together) if fits else 0)
            return fits

    executor = Small(ends)
    cases = [a_case(label, seed) for seed, label in enumerate(("a", "large", "b", "c"))]
    results, _ = run_all(tmp_path, cases, executor, {"large": 9.0})
    assert [one.label for one in results] == ["a", "large", "b", "c"]
    assert executor.started[0] == "large"
    assert most[0] <= 3


def test_what_no_machine_holds_is_refused_by_what_is_certain(tmp_path):
    need = MemoryNeed(least=3 * GIB, estimate=90 * GIB)
    check_holds([(digits_case(), need), (digits_case(), None)], 3 * GIB, "this machine")
    with pytest.raises(UserInputError, match=r"needs at least 3\.0 GiB .* this machine has 2\.0 GiB; lower"):
        check_holds([(digits_case(), need)], 2 * GIB, "this machine")


def test_a_cluster_is_asked_for_what_its_nodes_have(tmp_path, monkeypatch):
    """1 MiB is Slurm's word for a node of which nobody has said it."""
    said = "a|4|(null)|idle|8000|main\nb|4|gpu:2|mix|16000+|main\nc|4|(null)|idle|1|main\n"
    monkeypatch.setattr(slurm_queue, "_ask", lambda *words, **named: said)
    nodes = slurm_queue.nodes_of("main")
    assert [node.memory // 2**20 for node in nodes] == [8000, 16000, 0]
    assert asked_memory(GIB, nodes) == GIB
    assert asked_memory(99 * GIB, nodes) == 16000 * 2**20
    assert asked_memory(GIB, nodes[2:]) == 0
    certain = Order(
        case=digits_case(), store=tmp_path, device="cpu", log=tmp_path,
        memory=MemoryNeed(least=20 * GIB, estimate=20 * GIB),
    )  # fmt: skip
    with pytest.raises(UserInputError, match=r"the largest node of the cluster has 15\.6 GiB"):
        check_memory([certain], nodes)
    check_memory([certain], [Node(id="d", address="d", cpus=1, gpus=0)])
