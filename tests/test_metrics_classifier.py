"""The small classifier: accuracy on real digits, cache, seed, and its use as an extractor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnbench.contract import ExtractorInputs
from attnbench.data import load_dataset
from attnbench.errors import StorageError, UserInputError
from attnbench.metrics import classifier
from attnbench.metrics.classifier import LabelledImages, Recipe, load_or_train_classifier
from attnbench.specs import DigitsData

CPU = torch.device("cpu")
QUICK = Recipe(steps=3, batch_size=8, width=4)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DigitsData())


def labelled(images=None, seed=0, side=8, channels=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (20, side, side, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return LabelledImages(images=images, labels=torch.arange(20) % 4, num_classes=4)


def weights(found):
    return torch.cat([p.flatten() for p in found.network.state_dict().values() if p.is_floating_point()])


def test_held_out_digits_are_recognised(digits, tmp_path):
    """Trained on the training part, at least 95 % of the held-out digits get their class."""
    data = LabelledImages(images=digits.train.images, labels=digits.train.labels, num_classes=10)
    found = load_or_train_classifier(data, tmp_path, seed=0, device=CPU)
    assert found.accuracy(digits.held_out.images, digits.held_out.labels) >= 0.95


def test_accuracy_counts_images_across_batches(tmp_path):
    """Accuracy is right images over all images, with a last batch that is smaller."""
    data = labelled()
    found = load_or_train_classifier(data, tmp_path, seed=0, device=CPU, recipe=QUICK)
    given = found.features(data.images).logits.argmax(1)
    given[:5] = (given[:5] + 1) % 4
    assert found.accuracy(data.images, given, batch_size=7) == 15 / 20


def test_the_same_content_is_trained_once(monkeypatch, tmp_path):
    """A second request reads the weights; other images, labels, seed or recipe train anew."""
    first = load_or_train_classifier(labelled(), tmp_path, seed=0, device=CPU, recipe=QUICK)
    trained = []
    train = classifier._train
    monkeypatch.setattr(classifier, "_train", lambda *args: (trained.append(1), train(*args)))
    again = load_or_train_classifier(labelled(), tmp_path, seed=0, device=CPU, recipe=QUICK)
    assert torch.equal(weights(first), weights(again))
    assert trained == []
    load_or_train_classifier(labelled(), tmp_path, seed=1, device=CPU, recipe=QUICK)
    load_or_train_classifier(labelled(seed=1), tmp_path, seed=0, device=CPU, recipe=QUICK)
    load_or_train_classifier(labelled(), tmp_path, seed=0, device=CPU, recipe=Recipe(steps=4, width=4))
    assert len(trained) == 3


def test_training_is_seeded_and_leaves_the_callers_generator_alone(tmp_path):
    """Two trainings give equal weights, and the global random state is as before."""
    state = torch.get_rng_state()
    first = load_or_train_classifier(labelled(), tmp_path / "a", seed=0, device=CPU, recipe=QUICK)
    second = load_or_train_classifier(labelled(), tmp_path / "b", seed=0, device=CPU, recipe=QUICK)
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_cache_file_is_trained_again(tmp_path):
    """Weights that cannot be read are replaced by the same weights."""
    first = load_or_train_classifier(labelled(), tmp_path, seed=0, device=CPU, recipe=QUICK)
    (path,) = tmp_path.glob("classifier-*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = load_or_train_classifier(labelled(), tmp_path, seed=0, device=CPU, recipe=QUICK)
    assert torch.equal(weights(first), weights(again))


def test_a_changed_bit_is_trained_again_and_told(tmp_path):
    """No other network judges in silence; one of an earlier version has no checksum and is taken."""
    told: list[str] = []

    def load():
        return load_or_train_classifier(
            labelled(), tmp_path, seed=0, device=CPU, recipe=QUICK, warn=told.append
        )

    first = weights(load())
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert torch.equal(weights(load()), first)
    assert [text.endswith("the network is trained again") for text in told] == [True]
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    assert not torch.equal(weights(load()), first)
    assert len(told) == 1


def test_an_unwritable_cache_is_a_storage_error(tmp_path):
    """Where the weights cannot be written the error names the file."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="classifier-"):
        load_or_train_classifier(labelled(), tmp_path / "file", seed=0, device=CPU, recipe=QUICK)


@pytest.mark.parametrize(("side", "channels"), [(4, 1), (16, 3), (21, 3), (64, 3)])
def test_sides_and_channels(tmp_path, side, channels):
    """Grey or colour, tiny, odd or larger than the network's 16 pixels: 128 features, 4 logits."""
    data = labelled(side=side, channels=channels)
    found = load_or_train_classifier(data, tmp_path, seed=0, device=CPU, recipe=QUICK)
    features = found.features(data.images)
    assert (features.pooled.shape, features.logits.shape) == ((20, 128), (20, 4))


def test_as_an_extractor(monkeypatch, tmp_path):
    """`digits-cnn` is made from what the inputs hold and gives features; without images it says so."""
    monkeypatch.setattr(classifier, "_train", lambda *args: None)  # what it learns is tested above
    (extractor,) = classifier.attnbench_extractors()
    inputs = {"device": CPU, "seed": 0, "cache_dir": tmp_path, "num_classes": 4}
    data = labelled()
    extract = extractor.load(ExtractorInputs(train_images=data.images, train_labels=data.labels, **inputs))
    assert extract(data.images).pooled.shape == (20, 128)
    with pytest.raises(UserInputError, match="no training images"):
        extractor.load(ExtractorInputs(**inputs))


@pytest.mark.parametrize(("side", "shape"), [(4, (8, 4, 4)), (8, (8, 4, 4)), (12, (14, 3, 3))])
def test_spatial_features(tmp_path, side, shape):
    """As many channels of the last maps as fit into 128 numbers, in NHWC order; their means are pooled."""
    data = labelled(side=side)
    found = load_or_train_classifier(data, tmp_path, seed=0, device=CPU, recipe=QUICK)
    features = found.features(data.images)
    channels, height, width = shape
    assert features.spatial.shape == (20, channels * height * width)
    by_place = features.spatial.reshape(20, height * width, channels)
    torch.testing.assert_close(by_place.mean(dim=1), features.pooled[:, :channels])


def test_identity_is_that_of_the_training_data():
    """Other images, labels or another seed train another network; without images it cannot be told."""
    (extractor,) = classifier.attnbench_extractors()

    def identity(seed=0, **settings):
        data = labelled(**settings)
        inputs = {"device": CPU, "seed": seed, "cache_dir": Path("unused"), "num_classes": 4}
        return extractor.identity(
            ExtractorInputs(train_images=data.images, train_labels=data.labels, **inputs)
        )

    assert identity() == identity()
    assert len({identity(), identity(seed=1), identity(side=9), identity(channels=3)}) == 4
    with pytest.raises(UserInputError, match="no training images"):
        extractor.identity(ExtractorInputs(device=CPU, seed=0, cache_dir=Path("unused")))


def test_weights_keep_their_names():
    """A cached file of an earlier version still fits: the names of the weights are an interface."""
    network = classifier.SmallCnn(channels=1, side=8, num_classes=4, width=4)
    convolutions = [name for name, weight in network.state_dict().items() if weight.ndim == 4]
    assert convolutions == ["features.0.weight", "features.3.weight", "features.7.weight"]


def test_labels_must_fit_the_images():
    """Fewer labels than images is an error that says both."""
    with pytest.raises(UserInputError, match="3 images and 2 labels"):
        LabelledImages(images=torch.zeros(3, 4, 4, 1), labels=torch.zeros(2), num_classes=1)
