"""Batches made ahead by threads: bits as one by one, in order, errors in their place, nothing left."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbench.diffusion.objective import FlowObjective
from attnbench.stages.latents import encoding as latents
from attnbench.stages.latents.encoding import LatentSource
from attnbench.stages.training.batches import AHEAD, BatchSchedule, MicroBatch, PartMaker, prefetched

CPU = torch.device("cpu")
PATIENCE_S = 30  # for what another thread is to do at once
SCALE = 0.18215  # not a power of two: it rounds


def part_of(step: int) -> list[MicroBatch]:
    numbers = torch.full((2, 1, 1, 1), float(step))
    return [MicroBatch(first=0, x0=numbers, noise=numbers, times=numbers, labels=numbers)]


def number_of(parts: list[MicroBatch]) -> int:
    return int(parts[0].x0[0])


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def latent_maker(*, examples: int = 11, batch_size: int = 5, shift: float = 0.25) -> PartMaker:
    """A maker on random latents in two shards; epochs end inside batches."""
    numbers = np.random.default_rng(0).standard_normal((examples, 2, 6, 4, 4)).astype(np.float16)
    shards = tuple(np.split(numbers, range(latents.SHARD_SIZE, examples, latents.SHARD_SIZE)))
    return PartMaker(
        schedule=BatchSchedule(num_examples=examples, batch_size=batch_size, seed=3, flip=True),
        source=LatentSource(shards, torch.arange(examples) % 4, SCALE, shift, True),
        objective=FlowObjective(density="uniform"),
        device=CPU,
        null_label=4,
        class_dropout=0.2,
    )


@given(first=st.integers(0, 9), count=st.integers(-2, 9))
def test_every_step_comes_once_and_in_order(first, count):
    """Steps [first, last) arrive in order with their own parts, each made once; an empty range makes none."""
    made = []

    def make(step: int) -> list[MicroBatch]:
        made.append(step)
        return part_of(step)

    found = [(step, number_of(parts)) for step, parts, _ in prefetched(make, first, first + count)]
    expected = list(range(first, first + count))
    assert found == [(step, step) for step in expected]
    assert sorted(made) == expected
    assert threads_left() == []


def test_order_does_not_depend_on_which_thread_is_done_first():
    """A step that is made after its follower still comes before it."""
    follower_done = threading.Event()

    def make(step: int) -> list[MicroBatch]:
        if step == 0:
            assert follower_done.wait(PATIENCE_S), "no second thread made step 1 meanwhile"
        if step == 1:
            follower_done.set()
        return part_of(step)

    assert [number_of(parts) for _, parts, _ in prefetched(make, 0, 4)] == [0, 1, 2, 3]


def test_no_more_than_the_next_steps_are_made_ahead():
    """While the caller works on step s, exactly the steps to s + AHEAD are made: memory is bounded."""
    made, told = [], threading.Condition()

    def make(step: int) -> list[MicroBatch]:
        with told:
            made.append(step)
            told.notify()
        return part_of(step)

    for step, _, _ in prefetched(make, 0, 8):
        due = list(range(min(step + AHEAD, 7) + 1))
        with told:
            assert told.wait_for(lambda due=due: len(made) >= len(due), PATIENCE_S)
            assert not told.wait_for(lambda due=due: len(made) > len(due), 0.02)
            assert sorted(made) == due


def test_an_error_is_raised_at_its_step():
    """Steps before the failing one arrive whole; then its error does, and no thread is left."""
    failed, found, made = threading.Event(), [], []

    def make(step: int) -> list[MicroBatch]:
        made.append(step)
        if step == 3:
            failed.set()
            raise OSError("the disk is gone")
        if step == 2:
            assert failed.wait(PATIENCE_S)  # step 3 fails while step 2 is still being made
        return part_of(step)

    def work() -> None:
        for step, parts, _ in prefetched(make, 0, 100):
            found.append((step, number_of(parts)))

    with pytest.raises(OSError, match="the disk is gone"):
        work()
    assert found == [(0, 0), (1, 1), (2, 2)]
    assert max(made) <= 2 + AHEAD
    assert threads_left() == []


@pytest.mark.parametrize("end", ["error", "break", "first step fails"])
def test_a_caller_that_stops_leaves_nothing_running(end):
    """An error of the caller's, a break, or one of the first step: makers end before the loop is left."""
    running, made, release = [], [], threading.Event()

    def make(step: int) -> list[MicroBatch]:
        made.append(step)
        if step == 0:
            if end == "first step fails":
                release.set()
                raise KeyError(step)
            return part_of(step)
        running.append(step)
        release.wait(PATIENCE_S)
        running.remove(step)
        return part_of(step)

    def work() -> None:
        for _ in prefetched(make, 0, 50):
            threading.Timer(0.05, release.set).start()  # after the loop has begun to end
            if end == "break":
                break
            raise KeyError("the caller's")

    if end == "break":
        work()
    else:
        with pytest.raises(KeyError):
            work()
    assert running == []
    assert threads_left() == []
    assert max(made) <= AHEAD


def test_parts_made_by_threads_are_the_bits_of_parts_made_one_by_one():
    """Several threads on one maker, over many epochs: every number as from a fresh maker, alone."""
    maker, cuts = latent_maker(), [slice(0, 3), slice(3, 5)]
    for step, parts, _ in prefetched(partial(maker.make, slices=cuts), 0, 40):
        for part, alone in zip(parts, latent_maker().make(step, cuts), strict=True):
            assert part.first == alone.first
            for name in ("x0", "noise", "times", "labels"):
                assert torch.equal(getattr(part, name), getattr(alone, name)), (step, name)


class YieldingSchedule(BatchSchedule):
    """Lets other threads run after each attribute that is read or written."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        time.sleep(1e-5)
        return value

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        time.sleep(1e-5)


def test_a_schedule_asked_by_many_threads_is_that_of_one():
    """Threads in different epochs never see each other's permutation."""
    settings = {"num_examples": 5, "batch_size": 4, "seed": 0, "flip": False}
    steps = list(range(60)) * 2
    expected = [BatchSchedule(**settings).at(step).indices.tolist() for step in steps]
    shared = YieldingSchedule(**settings)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: shared.at(step).indices.tolist(), steps))
    assert found == expected


@pytest.mark.parametrize("shift", [0.0, 0.0609])
@pytest.mark.parametrize("has_posterior", [True, False])
def test_latents_are_the_plain_formula_bit_for_bit(has_posterior, shift):
    """scale x (mean + std x noise - shift), each row and its noise taken alone; maps stay as they are."""
    maker = latent_maker(examples=latents.SHARD_SIZE + 9, shift=shift)
    whole = maker.source
    source = LatentSource(whole.shards, whole.labels, whole.scale, shift, has_posterior)
    before = [shard.copy() for shard in source.shards]
    indices = torch.tensor([0, latents.SHARD_SIZE + 8, latents.SHARD_SIZE - 1, 7, 7])
    flips = torch.tensor([True, False, True, False, True])
    draws = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) if has_posterior else None
    kept = torch.stack(
        [
            torch.from_numpy(np.concatenate(source.shards)[int(index), int(flip)]).float()
            for index, flip in zip(indices, flips, strict=True)
        ]
    )
    if has_posterior:
        mean, log_variance = kept.chunk(2, dim=1)
        kept = mean + (0.5 * log_variance).exp() * draws
    for _ in range(2):  # what is computed in place must not be the map itself
        assert torch.equal(source.batch(indices, flips, draws), SCALE * (kept - shift))
    assert all(np.array_equal(a, b) for a, b in zip(before, source.shards, strict=True))


def test_posterior_draws_belong_to_the_step_and_the_place_in_the_batch():
    """However a batch is cut, an example is the same draw; another step, or another seed, draws anew."""
    maker = latent_maker(examples=5)  # every batch holds the same five
    (whole,) = maker.make(2, [slice(0, 5)])
    pieces = maker.make(2, [slice(0, 2), slice(2, 5)])
    assert torch.equal(torch.cat([piece.x0 for piece in pieces]), whole.x0)
    other = replace(maker, schedule=BatchSchedule(num_examples=5, batch_size=5, seed=4, flip=True))
    draws = [maker._posterior_draws(2), maker._posterior_draws(3), other._posterior_draws(2)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 3
