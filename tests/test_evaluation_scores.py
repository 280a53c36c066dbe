"""All metrics of a set together: the order of its images, which side is which, and what notes say."""

from dataclasses import replace

import pytest
import torch

from attnbench.errors import UnsupportedError, UserInputError
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.reference import Provenance, reference_of
from attnbench.evaluation.requirements import check_sizes
from attnbench.evaluation.scores import measure
from attnbench.specs import EvaluateSpec

PROVENANCE = Provenance(extractor="some", protocol="adm", identity="", height=1, width=1, channels=3)
SETTINGS = EvaluateSpec(kd_subsets=4, kd_subset_size=20)


def features(count, seed, spread=1.0):
    """Random features of images with random digests."""
    generator = torch.Generator().manual_seed(seed)
    pooled, spatial, logits = (
        spread * torch.randn(count, width, generator=generator) for width in (12, 10, 5)
    )
    digests = torch.randint(0, 256, (count, 16), generator=generator, dtype=torch.uint8)
    return ExtractedFeatures(pooled=pooled, spatial=spatial, logits=logits, digests=digests)


def reference(count=60, seed=0, **changes):
    return reference_of("real", features(count, seed), PROVENANCE, **changes)


def scored(settings=SETTINGS, real=None, samples=None):
    found = measure(settings, "", real or reference(), samples or features(50, 1, 1.3))
    return {m.name: m for m in found}


def test_the_order_of_images_changes_no_bit():
    """Reference and samples shuffled: every value and interval of the seven metrics is the same."""
    samples, real = features(50, 1, 1.3), features(60, 0)
    turned = [
        s.select(torch.randperm(len(s), generator=torch.Generator().manual_seed(3))) for s in (real, samples)
    ]
    found = scored(real=reference_of("real", real, PROVENANCE), samples=samples)
    again = scored(real=reference_of("real", turned[0], PROVENANCE), samples=turned[1])
    assert found == again
    assert list(found) == ["FID", "sFID", "KID", "KID std", "sKID", "sKID std", "IS", "Precision", "Recall"]


def test_the_inception_score_in_the_order_given_is_the_exception(monkeypatch):
    """ADM's contiguous splits see the order, and the note says so."""
    monkeypatch.setattr("attnbench.evaluation.scores.SPLIT_SIZE", 25)
    samples = features(50, 1)
    order = samples.logits[:, 0].argsort()
    given = SETTINGS.model_copy(update={"is_order": "given"})
    mixed, in_order = (scored(given, samples=s)["IS"] for s in (samples, samples.select(order)))
    assert mixed.value != in_order.value
    assert "in the order given" in mixed.note


def test_precision_is_of_samples_and_recall_of_real_images():
    """Samples that keep to half of the reference's places are precise and miss the rest."""
    places = torch.arange(60.0)[:, None].expand(60, 12)
    real, samples = features(60, 0, 0.01), features(60, 1, 0.01)
    real = reference_of(
        "real",
        ExtractedFeatures(pooled=real.pooled + 100 * (places > 29), digests=real.digests),
        PROVENANCE,
    )
    settings = SETTINGS.model_copy(update={"metrics": ["precision", "recall"]})
    found = scored(settings, real, ExtractedFeatures(pooled=samples.pooled, digests=samples.digests))
    assert found["Precision"].value > 0.8
    assert found["Recall"].value <= 0.5
    assert all("60 samples and 60 real images" in m.note for m in found.values())


def test_every_metric_has_an_interval_around_it():
    """A finite one, of some width."""
    for name, measurement in scored().items():
        if not name.endswith(" std"):
            low, high = measurement.interval
            assert low < measurement.value < high, name


def test_an_interval_that_cannot_be_known_is_left_out_with_words():
    """One subset of a kernel distance, too few samples for recall: no number, and the note says why."""
    one_subset = scored(SETTINGS.model_copy(update={"kd_subsets": 1}))["KID"]
    assert one_subset.interval is None
    assert "no interval: one subset" in one_subset.note
    few = scored(SETTINGS.model_copy(update={"metrics": ["recall"]}), samples=features(12, 1))["Recall"]
    assert few.interval is None
    assert "no interval: a quarter of 12 samples" in few.note


def test_no_share_is_certain():
    """All samples inside: the interval ends at 1 and has a width."""
    found = scored(SETTINGS.model_copy(update={"metrics": ["precision"]}), samples=features(50, 1, 0.01))
    low, high = found["Precision"].interval
    assert (found["Precision"].value, high) == (1.0, 1.0)
    assert low == pytest.approx(50 / (50 + 1.959964**2))


@pytest.mark.parametrize("n", [0, 20_000])
def test_few_samples_are_warned_of_whatever_the_reference(n):
    """Below 10,000 samples the distance is biased, also where the reference's number is not stated."""
    real = reference()
    real = replace(real, pooled=replace(real.pooled, n=n))
    assert "biased upwards below 10,000" in scored(real=real)["FID"].note


def test_a_network_without_maps_or_logits_says_which_metrics_to_leave_out():
    """One clear error per missing kind."""
    bare = ExtractedFeatures(pooled=features(50, 1).pooled, digests=features(50, 1).digests)
    for metric, message in (("is", "no logits"), ("sfd", "no maps"), ("skd", "no maps")):
        with pytest.raises(UnsupportedError, match=message):
            scored(SETTINGS.model_copy(update={"metrics": [metric]}), samples=bare)


def test_sizes_are_checked_for_the_metrics_asked_for_only():
    """A subset larger than a set matters to kernel distances, k to the manifolds."""
    for metrics, message in ((["kd"], "kd_subset_size is 20"), (["recall"], "neighbours is 3")):
        settings = SETTINGS.model_copy(update={"metrics": metrics})
        with pytest.raises(UserInputError, match=message):
            check_sizes(settings, 3, 60)
    check_sizes(SETTINGS.model_copy(update={"metrics": ["fd"]}), 3, 60)
