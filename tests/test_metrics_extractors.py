"""Feature networks: input scaling, determinism, and what is said when weights or packages are missing."""

import hashlib
import importlib.util
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from skimage import data as photographs

from attnbench.contract import ExtractorInputs
from attnbench.data.image_folder import centre_crop
from attnbench.errors import DataError, UnsupportedError, UserInputError
from attnbench.metrics import efficientnet_lite0, inception_tf
from attnbench.metrics.names import metric_name
from attnbench.specs import EvaluateSpec

ESPRESSO, DAISY = 967, 985  # ImageNet classes


def load(plugin, **settings):
    inputs = {"device": torch.device("cpu"), "seed": 0, "cache_dir": Path("unused")} | settings
    (extractor,) = plugin.attnbench_extractors()
    return extractor.load(ExtractorInputs(**inputs))


@pytest.fixture(scope="module")
def efflite0():
    return load(efficientnet_lite0)


@pytest.fixture(scope="module")
def coffee():
    import PIL.Image

    return torch.from_numpy(np.array(centre_crop(PIL.Image.fromarray(photographs.coffee()), 224)))[None]


def test_a_cup_of_coffee_is_an_espresso(efflite0, coffee):
    """With (x - 127) / 128 the network is sure of scikit-image's cup, and gives 1280 features."""
    features = efflite0(coffee)
    assert features.pooled.shape == (1, 1280)
    assert features.logits.softmax(1)[0, ESPRESSO] > 0.9


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ImageNet mean and deviation", lambda x: (x / 255 - 0.449) / 0.226),
        ("0 ... 1", lambda x: x / 255),
        ("0 ... 255", lambda x: x),
    ],
)
def test_other_input_scalings_are_worse(monkeypatch, efflite0, coffee, name, wrong):
    """Every other usual scaling lowers the probability of the right class: the scaling is part of it."""
    right = efflite0(coffee).logits.softmax(1)[0, ESPRESSO]
    monkeypatch.setattr(
        efficientnet_lite0, "scaled_input", lambda images: wrong(images.permute(0, 3, 1, 2).float())
    )
    assert efflite0(coffee).logits.softmax(1)[0, ESPRESSO] < right - 0.05


def test_input_scaling_and_size():
    """0 and 255 become -127/128 and 1; grey is repeated; any side becomes 224."""
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 16, 16, 1)
    x = efficientnet_lite0.scaled_input(images)
    assert x.shape == (2, 3, 224, 224)
    assert x.amin(dim=(1, 2, 3)).tolist() == x.amax(dim=(1, 2, 3)).tolist() == [-127 / 128, 1.0]


def test_features_are_deterministic_and_independent_of_the_batch(efflite0, coffee):
    """Twice the same image gives equal features; in a larger batch they agree to float32 rounding."""
    alone, again = efflite0(coffee), efflite0(coffee)
    assert torch.equal(alone.pooled, again.pooled)
    together = efflite0(torch.cat([coffee.flip(1), coffee, coffee.flip(2)]))
    torch.testing.assert_close(together.pooled[1:2], alone.pooled, rtol=1e-4, atol=1e-4)


def test_nothing_is_printed(capsys):
    """Loading prints nothing: `--json` shares standard output."""
    load(efficientnet_lite0)
    assert capsys.readouterr().out == ""


def test_inception_needs_weights():
    """Without weights the error says which file."""
    with pytest.raises(UserInputError, match=r"pt_inception-2015-12-05-6726825d\.pth"):
        load(inception_tf)


def test_inception_weights_must_exist(tmp_path):
    """A missing file is named."""
    with pytest.raises(DataError, match=r"no weights file at .*gone\.pth"):
        load(inception_tf, weights=tmp_path / "gone.pth")


def test_inception_weights_must_be_the_right_ones(tmp_path):
    """Another file is refused by its hash."""
    path = tmp_path / inception_tf.WEIGHTS_NAME
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"SHA-256 begins with [0-9a-f]{8}, expected 6726825d"):
        load(inception_tf, weights=path)


def test_inception_without_torch_fidelity(monkeypatch, tmp_path):
    """A missing optional package becomes a skipped row that says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install attnbench\[inception\]"):
        load(inception_tf, weights=tmp_path)


def test_inception_features(monkeypatch, tmp_path):
    """With weights (random ones here) it gives 2048 features and 1008 logits of grey and colour images."""
    path = tmp_path / "random.pth"
    torch.save(_random_inception(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_tf, "WEIGHTS_SHA256_PREFIX", digest[:8])
    extract = load(inception_tf, weights=path)
    grey = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1)
    features = extract(grey)
    assert (features.pooled.shape, features.logits.shape) == ((1, 2048), (1, 1008))
    torch.testing.assert_close(extract(grey.expand(-1, -1, -1, 3)).pooled, features.pooled)


def _random_inception():
    """State of torch-fidelity's network before its weights are loaded."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with (
        patch.object(theirs, "load_state_dict_from_url"),
        patch.object(theirs.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        return theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("", ["FID", "KID", "IS", "Precision", "Recall"]),
        ("x", ["FD-x", "KD-x", "IS-x", "P-x", "R-x"]),
    ],
)
def test_names(suffix, names):
    """Only features without a suffix, Inception's, give the names of the literature."""
    assert [metric_name(metric, suffix) for metric in EvaluateSpec().metrics] == names


def test_only_inception_has_no_suffix():
    """No other built-in extractor may call its distance FID."""
    from attnbench.plugins import registry

    without = [name for name, found in registry().extractors.items() if found.record.suffix == ""]
    assert without == ["inception-tf"]
