"""torchrun on two machines: one is lost at work, another takes its place, and the training ends the same."""

import os
from functools import partial

import pytest
import torch
from ray_cluster import wait_for
from safetensors.torch import load_file
from struck_runs import SUITE
from two_machines import Machine, two_machines

from attnbench.stages import train
from attnbench.storage.names import CHECKPOINT, DONE, STORE
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

ASKED = "ATTNBENCH_TEST_MACHINES"
LIMIT_S = 250.0  # agents, commands and processes start twice


@pytest.mark.slow
@pytest.mark.skipif(ASKED not in os.environ, reason=f"takes minutes; {ASKED}=1 runs it")
@pytest.mark.timeout(2 * LIMIT_S + 60)
def test_a_lost_machine_is_replaced_and_changes_no_bit(tmp_path):
    """All of the second machine is killed; torchrun's agents meet again, and go on from the checkpoint."""
    suite = tmp_path / "struck.yaml"
    shorter = {"[softmax, linear]": "[softmax]", "steps: 600": "steps: 240", "_every: 50": "_every: 20"}
    text = SUITE
    for old, new in shorter.items():
        text = text.replace(old, new)
    suite.write_text(text)
    (case,) = load_suite(str(suite)).cases
    words = ["run", suite, "--runs", tmp_path / "runs", "--device", "cpu", "--threads", 1]
    folder = tmp_path / "runs" / STORE / "train" / case.key("train")
    with two_machines() as (first, second, port):
        where = {"first": first, "port": port, "log": tmp_path / "said"}
        start = partial(Machine.torchrun, words=words, restarts=2, **where)
        agents = [start(one) for one in (first, second)]
        try:
            wait_for(lambda: (folder / CHECKPOINT).exists() or agents[0].has_ended, LIMIT_S, "a checkpoint")
            agents[1].kill()
            assert not (folder / DONE).exists(), "it was too late to lose a machine"
            agents.append(start(second))
            wait_for(lambda: (folder / DONE).exists() or agents[0].has_ended, LIMIT_S, "the end")
        finally:
            for agent in agents:
                agent.kill()
        said = (tmp_path / "said").read_text()
    assert "is lost: it is gone or cannot be reached; the run stops" in said
    assert (folder / DONE).exists(), said
    undisturbed = Workspace(root=tmp_path / "undisturbed", device=torch.device("cpu"), processes=2)
    train.run(case, undisturbed)
    expected, found = (load_file(place / CHECKPOINT) for place in (undisturbed.folder("train", case), folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
