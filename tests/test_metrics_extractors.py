"""Feature networks: what goes in, which layers come out, and what their results are called."""

import dataclasses
import hashlib
import importlib.util
from unittest.mock import patch

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from extractor_cases import inputs, load, noise, record
from skimage import data as photographs

from attnbench.errors import UnsupportedError
from attnbench.metrics import efficientnet_lite0, inception_tf
from attnbench.metrics.clean_resize import clean_resize
from attnbench.metrics.names import BETTER, metric_name
from attnbench.specs import EvaluateSpec
from attnbench.torchvision_ops import define_missing_ops

ESPRESSO = 967  # of ImageNet's classes


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def efflite0():
    return load(efficientnet_lite0)


@pytest.fixture(scope="module")
def coffee():
    middle = PIL.Image.fromarray(photographs.coffee()[:, 100:500])  # of 400 x 600
    return torch.from_numpy(np.array(middle.resize((224, 224), PIL.Image.Resampling.BICUBIC)))[None]


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
        efficientnet_lite0, "scaled_input", lambda images, protocol: wrong(images.permute(0, 3, 1, 2).float())
    )
    assert efflite0(coffee).logits.softmax(1)[0, ESPRESSO] < right - 0.05


@pytest.mark.parametrize("protocol", ["adm", "clean"])
def test_input_scaling_and_size(protocol):
    """0 and 255 become -127/128 and 1; grey is repeated; any side becomes 224."""
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 16, 16, 1)
    x = efficientnet_lite0.scaled_input(images, protocol)
    assert x.shape == (2, 3, 224, 224)
    assert x.amin(dim=(1, 2, 3)).tolist() == x.amax(dim=(1, 2, 3)).tolist() == [-127 / 128, 1.0]


def test_efflite0_with_clean_fids_resize(efflite0):
    """Protocol clean feeds clean-fid's image; from 32 px its features differ from the network's own."""
    images = noise(1, 32)
    x = efficientnet_lite0.scaled_input(images, "clean")
    assert torch.equal(x, (clean_resize(images, 224) - 127) / 128)
    clean = load(efficientnet_lite0, protocol="clean")
    assert not torch.allclose(clean(images).pooled, efflite0(images).pooled, rtol=1e-2)


def test_efflite0_spatial_features(efflite0, coffee):
    """26 channels of the 7 x 7 maps in NHWC order, 1274; their mean over places is the pooled feature."""
    features = efflite0(coffee)
    assert features.spatial.shape == (1, 26 * 7 * 7)
    by_place = features.spatial.reshape(1, 49, 26)
    torch.testing.assert_close(by_place.mean(dim=1), features.pooled[:, :26])


def test_features_are_deterministic_and_independent_of_the_batch(efflite0, coffee):
    """Twice the same image gives equal features; in a larger batch they agree to float32 rounding."""
    alone, again = efflite0(coffee), efflite0(coffee)
    assert torch.equal(alone.pooled, again.pooled)
    together = efflite0(torch.cat([coffee.flip(1), coffee, coffee.flip(2)]))
    torch.testing.assert_close(together.pooled[1:2], alone.pooled, rtol=1e-4, atol=1e-4)


def test_efflite0_identity_is_the_version_of_its_weights():
    """Another release of the weights package is another network."""
    assert record(efficientnet_lite0).identity(inputs()) == "0.1.0"


def test_nothing_is_printed(capsys):
    """Loading prints nothing: `--json` shares standard output."""
    load(efficientnet_lite0)
    assert capsys.readouterr().out == ""


# Inception: its network, with random weights


@pytest.fixture(scope="module")
def inception():
    """torch-fidelity's own network with random weights and biases."""
    define_missing_ops()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    with (
        patch.object(theirs, "load_state_dict_from_url"),
        patch.object(theirs.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    for name, norm in network.named_modules():
        if name.endswith("bn"):  # so that a map before batch norm or ReLU is no multiple of one after
            norm.weight.uniform_(1, 3)
            norm.bias.normal_()
    return network


@pytest.fixture(scope="module")
def inception_weights(inception, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(inception.state_dict(), path)
    return path


@pytest.fixture
def accepted(monkeypatch, inception_weights):
    """Accept the random weights: their hash stands for the true one."""
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    file = dataclasses.replace(inception_tf.WEIGHTS, sha256=digest)
    monkeypatch.setattr(inception_tf, "WEIGHTS", file)
    return file


def captured(network, images, *layers):
    """Return each layer's input and output when the network sees uint8 [B, H, W, C]."""
    seen, hooks = {}, []
    for name in layers:

        def keep(module, args, output, name=name):
            seen[name] = (args[0].clone(), output.clone())  # the ReLU behind it works in place

        hooks.append(network.get_submodule(name).register_forward_hook(keep))
    network(images.permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in layers]


def test_inception_features_are_those_of_torch_fidelity(accepted, inception, inception_weights):
    """Pool and unbiased logits are torch-fidelity's to the bit; grey is three equal channels."""
    extract = load(inception_tf, weights=inception_weights)
    images = noise(2, 32)
    features = extract(images)
    pooled, logits = inception(images.permute(0, 3, 1, 2))
    assert torch.equal(features.pooled, pooled)
    assert torch.equal(features.logits, logits)
    grey = noise(1, 16, channels=1)
    assert torch.equal(extract(grey).pooled, extract(grey.expand(-1, -1, -1, 3)).pooled)


def test_inception_logits_have_no_bias(accepted, inception, inception_weights):
    """The 1008 logits are pool times weight; the bias, which this network has, is left out."""
    features = load(inception_tf, weights=inception_weights)(noise(1, 32))
    assert features.logits.shape == (1, 1008)
    assert torch.equal(features.logits, features.pooled @ inception.fc.weight.T)
    assert inception.fc.bias.abs().max() > 0


def test_inception_spatial_features_are_mixed_6_conv(accepted, inception, inception_weights):
    """sFID's features: 7 channels of Mixed_6d.branch1x1 after ReLU, 17 x 17, in NHWC order: 2023."""
    images = noise(2, 32)
    spatial = load(inception_tf, weights=inception_weights)(images).spatial
    assert spatial.shape == (2, 2023)
    layers = ("Mixed_6d.branch1x1", "Mixed_6c.branch1x1", "Mixed_6e.branch1x1", "Mixed_6d.branch1x1.bn")
    right, *wrong = (maps[:, :7] for _, maps in captured(inception, images, *layers))
    by_place = spatial.reshape(2, 17, 17, 7)
    assert torch.equal(by_place, right.permute(0, 2, 3, 1))
    for maps in wrong:
        assert not torch.allclose(by_place, maps.permute(0, 2, 3, 1))
    assert not torch.allclose(spatial, right.flatten(1))  # NCHW order


def test_inception_blocks_are_numbered_as_in_the_graph(inception):
    """mixed, mixed_1, ... mixed_10 are the blocks in order, so mixed_6 is the seventh, Mixed_6d."""
    blocks = [name for name, _ in inception.named_children() if name.startswith("Mixed_")]
    assert len(blocks) == 11
    assert blocks[6] == inception_tf.SPATIAL_BLOCK


def tensorflow1_positions(side):
    """Where TF1's resize_bilinear (no half-pixel centres) samples a side for 299 outputs."""
    return np.minimum(np.arange(299) * (side / 299), side - 1)


@pytest.mark.parametrize("side", [64, 256, 400])
def test_inception_input_is_resized_as_in_tensorflow_1(inception, side):
    """On a ramp, linear interpolation is the ramp at the sampled place: i x side / 299, not PyTorch's.

    Tolerance: positions up to 400 in float32 are off by 400 x 2^-24 = 2.4e-5 pixels a rounding, two
    roundings, on a slope of at most 3 a pixel / 128.
    """
    slope = 255 // side or 1
    ramp = (torch.arange(side) * slope).clamp(max=255).to(torch.uint8)
    images = ramp.repeat(side, 1)[None, :, :, None].expand(1, -1, -1, 3)
    ours = inception_tf.scaled_input(images, "adm")
    expected = np.interp(tensorflow1_positions(side), np.arange(side), ramp.numpy())
    wanted = torch.from_numpy((expected - 128) / 128).float().expand(1, 3, 299, 299)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=2 * 400 * 2**-24 * 3 / 128 + 2**-24)
    assert torch.equal(ours, captured(inception, images, "Conv2d_1a_3x3")[0][0])
    shift = abs(side / 299 - 1) / 2 * slope / 128  # by which half-pixel centres are off
    for antialias in (False, True):
        x = images.permute(0, 3, 1, 2).float()
        usual = F.interpolate(x, (299, 299), mode="bilinear", antialias=antialias)
        assert (ours - (usual - 128) / 128).abs().max() > shift / 2


@pytest.mark.parametrize("protocol", ["adm", "clean"])
def test_inception_input_is_rgb_in_minus_one_to_one(protocol):
    """Red, green, blue stay in this order; 255, 0, 128 become 127/128, -1, 0."""
    images = torch.tensor([255, 0, 128], dtype=torch.uint8).expand(1, 20, 20, 3)
    x = inception_tf.scaled_input(images, protocol)
    assert x.shape == (1, 3, 299, 299)
    assert x.amin(dim=(0, 2, 3)).tolist() == x.amax(dim=(0, 2, 3)).tolist() == [127 / 128, -1.0, 0.0]


def test_inception_with_clean_fids_resize(accepted, inception, inception_weights):
    """Protocol clean feeds clean-fid's unrounded 299 px image to the same layers."""
    images = noise(1, 32)
    features = load(inception_tf, weights=inception_weights, protocol="clean")(images)
    with inception.Conv2d_1a_3x3.register_forward_pre_hook(
        lambda module, args: ((clean_resize(images, 299) - 128) / 128,)
    ):
        pooled, logits = inception(torch.zeros(1, 3, 299, 299, dtype=torch.uint8))
    assert torch.equal(features.pooled, pooled)
    assert torch.equal(features.logits, logits)
    adm = load(inception_tf, weights=inception_weights)(images)
    assert not torch.allclose(features.pooled, adm.pooled)


def test_inception_without_torch_fidelity(monkeypatch, tmp_path):
    """A missing optional package becomes a skipped row that says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install attnbench\[inception\]"):
        load(inception_tf, weights=tmp_path)


# names


@pytest.mark.parametrize(
    ("suffix", "protocol", "names"),
    [
        ("", "adm", "FID sFID KID sKID IS Precision Recall"),
        ("x", "adm", "FD-x sFD-x KD-x sKD-x IS-x P-x R-x"),
        ("", "clean", "clean-FID clean-sFID clean-KID clean-sKID clean-IS clean-Precision clean-Recall"),
        ("x", "clean", "clean-FD-x clean-sFD-x clean-KD-x clean-sKD-x clean-IS-x clean-P-x clean-R-x"),
    ],
)
def test_names(suffix, protocol, names):
    """Only features without a suffix, Inception's, in protocol adm give the names of the literature."""
    metrics = EvaluateSpec().metrics
    assert " ".join(metric_name(metric, suffix, protocol) for metric in metrics) == names


def test_distances_are_better_when_lower():
    """The four distances are better when lower, the other three when higher."""
    better = [BETTER[metric] for metric in ("fd", "sfd", "kd", "skd", "is", "precision", "recall")]
    assert better == ["lower"] * 4 + ["higher"] * 3


def test_only_inception_has_no_suffix():
    """No other built-in extractor may call its distance FID; suffixes differ."""
    from attnbench.plugins import registry

    suffixes = {name: found.record.suffix for name, found in registry().extractors.items()}
    assert [name for name, suffix in suffixes.items() if not suffix] == ["inception-tf"]
    assert len(set(suffixes.values())) == len(suffixes)
    assert suffixes["dinov2"] == "dinov2"
