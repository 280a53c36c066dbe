"""How evenly routers choose while a model trains: what is counted, when, and that nothing else changes."""

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from process_cases import digits_case
from safetensors.torch import load_file

from attnbench.diffusion.objective import build_objective
from attnbench.models import build_model
from attnbench.report.router_curves import KINDS, balance, curve_name, routers_of
from attnbench.specs import AttentionSpec, ModelConfig, TrainSpec
from attnbench.stages import train
from attnbench.stages.training import loss as training_loss
from attnbench.stages.training.batches import MicroBatch
from attnbench.stages.training.log import RecordedStatistics
from attnbench.stages.training.router_balance import MOST_POINTS, RouterBalance
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.store import Workspace

OPTIONS = {"mode": "token", "num_projectors": 3, "num_kernels": 4, "num_factors": 5}
SIZES = {"projector_q": 3, "projector_k": 3, "kernel": 4, "factor": 5}


def routed_case(**settings):
    """Token-wise DyDiLA of two blocks for six steps, logged at every second, in two micro-batches."""
    return digits_case("dydila", options=OPTIONS, grad_accumulation=2, held_out_images=0, **settings)


def run(root, case, processes=1):
    """Train; return the curves, the log's records and all weights."""
    workspace = Workspace(root=root, device=torch.device("cpu"), processes=processes)
    curves = train.run(case, workspace).curves
    folder = workspace.folder("train", case)
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return curves, log, load_file(folder / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A training that was not interrupted; sums over more threads would round differently."""
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("router"), routed_case())


def test_curves_are_the_balance_of_the_shares_in_the_log(followed):
    """A point at each logged step, of the entropy of the shares of all options, chosen or not."""
    curves, log, _ = followed
    assert routers_of(curves) == list(SIZES)
    for router, options in SIZES.items():
        for number, record in enumerate(log):
            found = []
            for block in range(2):
                share = record["recorded"][f"blocks.{block}.{router}"]["share"]
                entropy = -sum(s * math.log(s) for s in share if s)
                found.append((entropy / math.log(options), max(share)))
            expected = {
                "evenness": sum(even for even, _ in found) / 2,
                "least_evenness": min(even for even, _ in found),
                "largest_share": max(most for _, most in found),
            }
            for kind in KINDS:
                step, value = curves[curve_name(router, kind)][number]
                assert (step, value) == (
                    record["step"],
                    pytest.approx(expected[kind], abs=1e-6),
                )  # fp32 shares
    assert [step for step, _ in curves["routing:kernel:evenness"]] == [2, 4, 6]
    assert len({value for _, value in curves["routing:factor:evenness"]}) > 1


def test_listening_changes_no_bit_of_a_training(followed, monkeypatch, tmp_path):
    """With nobody listening, losses and all weights, averages and moments are the same bits."""
    curves, _, weights = followed
    monkeypatch.setattr(Trainer, "_recorder", lambda *_: None)
    deaf, _, others = run(tmp_path, routed_case())
    assert (routers_of(deaf), deaf["loss"]) == ([], curves["loss"])
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def test_the_curves_go_on_after_a_kill(followed, monkeypatch, tmp_path):
    """Stopped between two points and started again: the curves of a training without a stop."""
    make_step = Trainer._step

    def fail_at_5(trainer, step, *rest):
        if step == 5:
            raise MemoryError
        return make_step(trainer, step, *rest)

    monkeypatch.setattr(Trainer, "_step", fail_at_5)
    case = routed_case(checkpoint_every=3)
    with pytest.raises(MemoryError):
        run(tmp_path, case)
    monkeypatch.setattr(Trainer, "_step", make_step)
    assert run(tmp_path, case)[0] == followed[0]


def test_all_processes_are_counted(monkeypatch):
    """What two processes recorded of their halves is what one records of the batch."""
    choices, mask = torch.randint(3, (8, 4)), torch.rand(8, 4, 3) < 0.5
    whole, halves = RecordedStatistics(8), [RecordedStatistics(4) for _ in range(2)]
    for recorder, rows in ((whole, slice(0, 8)), (halves[0], slice(0, 4)), (halves[1], slice(4, 8))):
        recorder("blocks.0.router", choices[rows])
        recorder("blocks.0.mask", mask[rows])
        recorder("blocks.0.number", torch.arange(8)[rows])
    world = SimpleNamespace(size=2, gather=lambda own: halves)
    together = Trainer._gather(SimpleNamespace(world=world), halves[0])
    assert together.choices().keys() == {"blocks.0.router", "blocks.0.mask"}
    assert {n: c.tolist() for n, c in together.choices().items()} == {
        n: c.tolist() for n, c in whole.choices().items()
    }


@pytest.mark.slow
def test_two_processes_follow_what_one_follows(followed, tmp_path):
    """Choices are of the same tokens; of 8 x 16, rounding may turn one or two."""
    curves, _, _ = run(tmp_path, routed_case(), processes=2)
    assert curves.keys() == followed[0].keys()
    for name in (curve_name(router, "largest_share") for router in SIZES):
        assert curves[name] == [(s, pytest.approx(v, abs=2 / 128)) for s, v in followed[0][name]]


def test_what_is_no_choice_is_left_alone():
    """Numbers of images, factors, a single option, far more, other names, blocks that are not there."""
    model = ModelConfig(name="m", depth=2, dim=8, num_heads=2, attention=AttentionSpec(name="linear"))
    followed = RouterBalance({}, model, TrainSpec(steps=4, log_every=2))
    recorder = RecordedStatistics(2)
    recorder("blocks.0.mediators", torch.tensor([4, 1]))
    recorder("blocks.0.lambda", torch.tensor([0.5]))
    recorder("blocks.0.alone", torch.zeros(2, 3, dtype=torch.int64))
    recorder("blocks.0.token", torch.tensor([[5, 4000]]))
    recorder("blocks.9.router", torch.tensor([[0, 1]]))
    recorder("elsewhere", torch.tensor([[0, 1]]))
    recorder("blocks.0.nothing", torch.zeros(2, 3, 4, dtype=torch.bool))
    recorder("blocks.0.heads", torch.tensor([[[True, True, False]], [[True, False, True]]]))
    recorder("blocks.1.heads", torch.tensor([[[True, True, True]], [[True, True, True]]]))
    followed.add(2, recorder.choices())
    assert routers_of(followed.curves) == ["heads"]
    even = (1.0 * math.log(2) + 2 * 0.25 * math.log(4) - 0.5 * math.log(2)) / math.log(3)
    assert followed.curves == {
        "routing:heads:evenness": [(2, pytest.approx((even + 1) / 2))],
        "routing:heads:least_evenness": [(2, pytest.approx(even))],
        "routing:heads:largest_share": [(2, 0.5)],
    }


def test_a_long_training_leaves_no_more_points_than_a_short_one():
    """8,000 logged steps: every fortieth, and the last."""
    model = digits_case().model
    followed = RouterBalance({}, model, TrainSpec(steps=400_001, log_every=50))
    for step in [*range(50, 400_001, 50), 400_001]:
        followed.add(step, {"blocks.0.router": torch.tensor([1, 1])})
    steps = [step for step, _ in followed.curves["routing:router:evenness"]]
    assert len(steps) <= MOST_POINTS + 1
    assert steps[:2] == [2050, 4100]
    assert steps[-1] == 400_001


@pytest.mark.slow
def test_a_recorded_pass_compiles_nothing_again(monkeypatch):
    """With train.compile, passes with a listener run uncompiled: the graph stays whole and is kept."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch._dynamo.reset()
    case = routed_case()
    model = build_model(case.model.model_copy(update={"depth": 1}), 8, 10)
    settings = TrainSpec(objective="flow", compile=True)
    objective = build_objective(settings, learned_variance=False, device=torch.device("cpu"))
    loss = training_loss.TrainingLoss(model, objective, settings, torch.device("cpu"), 1)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    part = MicroBatch(first=0, x0=x, times=torch.tensor([0.3, 0.7]), noise=-x, labels=torch.tensor([1, 2]))
    heard = RecordedStatistics(2)
    loss(part)
    before = len(graphs)
    recorded, again = loss(part, heard), loss(part)
    assert before == len(graphs) > 0
    assert {name.removeprefix("blocks.0.") for name in heard.choices()} == set(SIZES)
    assert recorded.item() == pytest.approx(again.item(), rel=1e-5)  # a graph may sum in another order


def test_balance_by_hand():
    """Two blocks, one of which has collapsed."""
    assert balance([[0.5, 0.5], [1.0, 0.0]]) == {
        "evenness": 0.5, "least_evenness": 0.0, "largest_share": 1.0,
    }  # fmt: skip
