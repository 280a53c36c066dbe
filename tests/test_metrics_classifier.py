"""The small classifier: accuracy on real digits, cache, seed, and its use as an extractor."""

import pytest
import torch

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


def test_labels_must_fit_the_images():
    """Fewer labels than images is an error that says both."""
    with pytest.raises(UserInputError, match="3 images and 2 labels"):
        LabelledImages(images=torch.zeros(3, 4, 4, 1), labels=torch.zeros(2), num_classes=1)
