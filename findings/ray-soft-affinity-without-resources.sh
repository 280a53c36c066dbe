#!/usr/bin/env bash
# ray 2.60.0: NodeAffinitySchedulingStrategy(soft=True) is no affinity at all for an actor that asks for no resources.
#
# Expected: as its documentation says of both values of `soft`, "If the node exists and is feasible, the task or actor
#   will only be scheduled there"; every node holds an actor with num_cpus=0.
# What happens: the actor begins on any node, by chance, without a word; with soft=False, or where it asks for the
#   smallest amount of anything, it is where it was put. Ray's scheduler takes actors without resources aside before
#   it looks at the strategy, except at a hard one.
# Who is hurt: whoever puts a light actor beside its driver (a queue, a lock, a progress bar), as this project did:
#   it is on a machine that may be taken back, and every message crosses the network; see
#   attnbench/running/executors/ray.py, which asks for soft=False.
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet ray==2.60.0
cat > "$place/check.py" <<'PY'
import os
import secrets

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TIMES = 12  # all on one of three nodes by chance: 3 ** -12, two in a million
of_each = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**of_each, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(**of_each)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
here = ray.get_runtime_context().get_node_id()


class Light:
    def node(self):
        return ray.get_runtime_context().get_node_id()


def beside_the_driver(soft, times, **asked):
    strategy = NodeAffinitySchedulingStrategy(node_id=here, soft=soft)
    found = 0
    for _ in range(times):
        actor = ray.remote(**asked)(Light).options(scheduling_strategy=strategy).remote()
        found += ray.get(actor.node.remote()) == here
        ray.kill(actor)
    print(f"soft={soft}, {asked}: {found} of {times} on the node that was asked for", flush=True)
    return found


light = beside_the_driver(True, TIMES, num_cpus=0)
hard, asking = beside_the_driver(False, 4, num_cpus=0), beside_the_driver(True, 4, num_cpus=0.001)
ray.shutdown()
cluster.shutdown()
assert (hard, asking) == (4, 4), "the other two are no longer where they were put"
assert light < TIMES, "soft affinity now holds for actors without resources"
PY
"$place/venv/bin/python" "$place/check.py"
echo "finding holds"
