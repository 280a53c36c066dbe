"""Bytes moved against closed forms, and the roofline's arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnbench.errors import UnsupportedError
from attnbench.models import build_model
from attnbench.profiling import roofline as module
from attnbench.profiling.protocol import Workload
from attnbench.profiling.roofline import Ceilings, measure_ceilings, roofline
from attnbench.profiling.traffic import Traffic, count_traffic, pass_traffic
from attnbench.specs import ModelConfig

C, H, SIDE, LABELS = 32, 4, 8, 5
N = SIDE**2  # patches of one
HIDDEN = 4 * C


def workload(attention: object = "softmax", **changes: object) -> Workload:
    """One block or a whole tiny model of width 32 and four heads on 64 tokens."""
    config = ModelConfig.model_validate(
        {
            "name": "m", "depth": 2, "dim": C, "num_heads": H, "patch_size": 1,
            "attention": attention if isinstance(attention, dict) else {"name": attention},
        }
    )  # fmt: skip
    return Workload(**({"config": config, "input_size": SIDE, "num_classes": LABELS} | changes))


# of one image: the projections to q, k, v and back read and write tokens
PROJECTIONS = (N * C + 3 * N * C) + (N * C + N * C)
ATTENTION_WEIGHTS = (3 * C * C + 3 * C) + (C * C + C)


def test_softmax_attention_moves_its_tokens_and_no_map():
    """Fused attention: q, k, v in, one output out, whatever N is; weights with their biases once."""
    found = pass_traffic(workload(scope="attention"))
    assert found == Traffic(weights=4 * ATTENTION_WEIGHTS, activations=4 * (PROJECTIONS + 4 * N * C))
    assert found.total == found.weights + found.activations


def test_a_map_that_is_kept_moves_twice():
    """The formula as two products writes and reads H maps of N x N more than the fused kernel."""
    fused = pass_traffic(workload(scope="attention"))
    in_two = pass_traffic(
        workload({"name": "softmax", "options": {"implementation": "math"}}, scope="attention")
    )
    assert in_two.activations - fused.activations == 4 * 2 * H * N * N


def test_linear_attention_moves_its_state():
    """k^T v: k and v in, H states of D x D out; then q and those in, the output out."""
    linear = {"name": "linear", "options": {"association": "linear"}}
    found = pass_traffic(workload(linear, scope="attention"))
    states = H * (C // H) ** 2
    assert found.activations == 4 * (PROJECTIONS + (2 * N * C + states) + (N * C + states + N * C))
    assert found.weights == 4 * (ATTENTION_WEIGHTS - 3 * C)  # no bias of q, k, v


def test_a_block_adds_its_feed_forward_and_modulation():
    """Two linear layers of the feed-forward network on tokens, one of the modulation on an image's vector."""
    attention, block = (pass_traffic(workload(scope=scope)) for scope in ("attention", "block"))
    assert block.activations - attention.activations == 4 * (2 * N * (C + HIDDEN) + (C + 6 * C))
    weights = (C * HIDDEN + HIDDEN) + (HIDDEN * C + C) + (C * 6 * C + 6 * C)
    assert block.weights - attention.weights == 4 * weights


def test_a_model_reads_every_weight_but_those_it_looks_up_or_adds():
    """All parameters once, without the table of labels."""
    config = workload().config
    model = build_model(config, SIDE, LABELS, device="meta")
    table = model.label_embed.table.weight.numel()
    weights = sum(p.numel() for p in model.parameters()) - table
    assert pass_traffic(workload()).weights == 4 * weights


def test_batch_precision_and_guidance():
    """Images multiply activations and no weights; autocast halves what is computed, not what is stored."""
    one = pass_traffic(workload())
    three = pass_traffic(workload(batch_size=3))
    assert three == Traffic(weights=one.weights, activations=3 * one.activations)
    half = pass_traffic(workload(precision="bf16"))
    assert half == Traffic(weights=one.weights, activations=one.activations // 2)
    assert pass_traffic(workload(mode="sample")) == pass_traffic(workload(batch_size=2))


def test_routed_projections_count_as_one_operation():
    """DyDiLA's operator is seen with its tokens in and out, and all experts' weights."""
    found, dense = (pass_traffic(workload(a, scope="attention")) for a in ("dydila", "linear"))
    assert found.weights > dense.weights
    assert found.activations > dense.activations
    double = pass_traffic(workload("dydila", scope="attention", batch_size=2))
    assert double == Traffic(weights=found.weights, activations=2 * found.activations)


def test_shared_and_sliced_weights_count_once_and_only_their_part():
    """A weight used twice is read once; half of one is half."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x)) @ self.layer.weight[:3].T

    with torch.device("meta"):
        twice, x = Twice(), torch.empty(10, 6)
    found = count_traffic(twice, lambda: twice(x))
    assert found == Traffic(weights=4 * 36, activations=4 * (4 * 60 + 60 + 30))
    with torch.device("meta"):
        mixing, batch = torch.empty(1, 4, 10).expand(2, 4, 10), torch.empty(2, 10, 6)
    mixed = count_traffic(twice, lambda: torch.bmm(mixing, batch))
    assert mixed.activations == 4 * (40 + 120 + 48)  # one matrix for both images is read once
    part = count_traffic(twice, lambda: x @ twice.layer.weight[:3].T)
    assert part == Traffic(weights=4 * 18, activations=4 * (60 + 30))


@pytest.mark.parametrize("changes", [{"mode": "train"}, {"scope": "end-to-end"}])
def test_what_is_not_modelled_is_refused(changes):
    """A training step has no number rather than a wrong one."""
    with pytest.raises(UnsupportedError, match="bytes moved are known of"):
        pass_traffic(workload(**changes))


CEILINGS = Ceilings(device="cpu", precision="fp32", threads=1, macs_per_s=1e9, bytes_per_s=1e8)


@pytest.mark.parametrize(
    ("macs", "moved", "expected"),
    [
        (10**6, 10**4, (0.5, "arithmetic")),
        (10**5, 10**5, (0.5, "memory")),
        (10**6, 10**5, (0.5, "arithmetic")),
    ],
)
def test_the_longer_of_both_bounds(macs, moved, expected):
    """2 ms for what takes 1 ms at the ceiling is half; at the ridge it is called arithmetic."""
    assert roofline(macs, moved, 2.0, CEILINGS) == (pytest.approx(expected[0]), expected[1])


def test_a_time_of_nothing_is_refused():
    """A latency of 0 would make an infinite share."""
    with pytest.raises(ValueError, match="takes time"):
        roofline(1, 1, 0.0, CEILINGS)


def test_ceilings_are_work_over_the_best_time(monkeypatch):
    """With a clock that says 0.5, 0.05, 0.06, ...: rates are those of the best run after the first."""
    times = {"mm": 0.05, "copy": 0.01, "sum": 0.02}
    calls: list[str] = []

    def timed(run, device):
        run()
        calls.append("call")
        return next(clock)

    def ticks():
        yield times["mm"]  # long enough at once: the smallest side
        for name in ("mm", "copy", "sum"):
            yield 0.001  # the first touch, which does not count
            yield from (2 * times[name], times[name], 3 * times[name])

    clock = ticks()
    monkeypatch.setattr(module, "_timed", timed)
    monkeypatch.setattr(module, "_BUDGET_S", 0.0)
    monkeypatch.setattr(module, "_LEAST_BYTES", 2**20)
    monkeypatch.setattr(module, "_cache_bytes", lambda device: 0)
    found = measure_ceilings("cpu", "bf16", torch.get_num_threads())
    assert len(calls) == 13
    assert found.macs_per_s == pytest.approx(512**3 / 0.05)
    assert found.bytes_per_s == pytest.approx(2 * 2**20 / 0.01)  # the sum: half the bytes in twice the time
    assert Ceilings.model_validate_json(found.model_dump_json()) == found
