"""DINOv2: its input, its position embedding, its features, on a small network of the same make."""

import hashlib
import math

import PIL.Image
import pytest
import torch
from extractor_cases import empty_caches, inputs, load, noise, record
from safetensors.torch import save_file

from attnbench.errors import DataError, UserInputError
from attnbench.metrics import dinov2
from attnbench.metrics.clean_resize import clean_resize
from attnbench.torchvision_ops import define_missing_ops


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    empty_caches(tmp_path, monkeypatch)


@pytest.fixture
def small_dinov2(monkeypatch, tmp_path):
    """Let a ViT of width 64 and depth 2 stand for ViT-L/14; returns the network and its weights file."""
    define_missing_ops()
    import timm

    torch.manual_seed(0)
    settings = {"embed_dim": 64, "depth": 2, "num_heads": 2, "init_values": 1.0, "num_classes": 0}

    def build(name="vit_large_patch14_dinov2.lvd142m", **kwargs):
        return create(name, **(settings | kwargs))

    create = timm.create_model
    network = build()
    torch.nn.init.normal_(network.pos_embed)
    monkeypatch.setattr(timm, "create_model", build)
    path = tmp_path / "small.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_dinov2_features_are_the_class_token_after_the_norm(small_dinov2):
    """Pooled: the class token after the final norm; spatial: the patch tokens' grid; no logits."""
    network, path = small_dinov2
    images = noise(2, 40)
    features = load(dinov2, weights=path)(images)
    network.patch_embed.set_input_size((224, 224))
    network.pos_embed = torch.nn.Parameter(dinov2.position_embedding(network.pos_embed.detach(), 16))
    with torch.no_grad():
        tokens = network.eval().norm(
            network.blocks(network._pos_embed(network.patch_embed(dinov2.scaled_input(images, "adm"))))
        )
    torch.testing.assert_close(features.pooled, tokens[:, 0])
    assert features.logits is None
    torch.testing.assert_close(features.spatial, tokens[:, 1:, 0])  # 64 features hold one channel of 16 x 16


def test_dinov2_is_a_vit_large_with_1024_features():
    """The architecture asked for has 1024 features, patches of 14 px and 4 spatial channels at 224 px."""
    define_missing_ops()
    import timm

    with torch.device("meta"):
        network = timm.create_model(dinov2.ARCHITECTURE, pretrained=False, num_classes=0)
    assert (network.embed_dim, len(network.blocks), network.patch_embed.patch_size) == (1024, 24, (14, 14))
    assert network.pos_embed.shape == (1, 1 + 37 * 37, 1024)
    maps = torch.empty(1, 1024, dinov2.GRID, dinov2.GRID)
    assert dinov2.first_channels(maps, 1024).shape == (1, 4 * 16 * 16)


def test_dinov2_accepts_the_authors_file(small_dinov2, tmp_path):
    """A .pth with the training's mask token gives the same features as the safetensors file."""
    network, path = small_dinov2
    theirs = tmp_path / "dinov2_vitl14_pretrain.pth"
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 64)}, theirs)
    images = noise(1, 30)
    assert torch.equal(load(dinov2, weights=theirs)(images).pooled, load(dinov2, weights=path)(images).pooled)


def test_dinov2_weights_of_another_network_are_refused(small_dinov2, tmp_path):
    """Missing weights are an error that names the architecture and some of what is missing."""
    network, _ = small_dinov2
    state = network.state_dict()
    del state["blocks.1.norm1.weight"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"does not hold vit_large_patch14_dinov2.*blocks\.1\.norm1\.weight"):
        load(dinov2, weights=tmp_path / "other.safetensors")


def test_dinov2_weights_are_found_in_the_hubs_cache(small_dinov2, tmp_path):
    """The hub's cache on disk is looked at, without network."""
    folder = tmp_path / "hub" / "models--timm--vit_large_patch14_dinov2.lvd142m"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(small_dinov2[1].read_bytes())
    assert load(dinov2)(noise(1, 20)).pooled.shape == (1, 64)
    assert record(dinov2).identity(inputs()) == hashlib.sha256(small_dinov2[1].read_bytes()).hexdigest()


def test_dinov2_without_weights_says_what_to_download():
    """One error with the repository, the address, the variable and the places."""
    with pytest.raises(UserInputError, match="hf download timm/vit_large_patch14") as error:
        load(dinov2)
    for said in ("dl.fbaipublicfiles.com", "ATTNBENCH_DINOV2_WEIGHTS", "models--timm--vit_large_patch14"):
        assert said in str(error.value)


@pytest.mark.parametrize("side", [32, 224, 301])
def test_dinov2_input_is_that_of_dgm_eval(side):
    """Protocol adm is torchvision's Resize, ToTensor, Normalize on a Pillow image, to float32 rounding."""
    define_missing_ops()
    from torchvision import transforms

    theirs = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(dinov2.MEAN, dinov2.STD),
        ]
    )
    images = noise(2, side)
    wanted = torch.stack([theirs(PIL.Image.fromarray(image.numpy())) for image in images])
    torch.testing.assert_close(dinov2.scaled_input(images, "adm"), wanted)


def test_dinov2_input_is_rounded_in_protocol_adm_only():
    """Before normalisation adm's values are whole numbers of 0 ... 255, clean's are clean-fid's."""
    images = noise(1, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (dinov2.MEAN, dinov2.STD))
    adm, clean = ((dinov2.scaled_input(images, p) * std + mean) * 255 for p in ("adm", "clean"))
    torch.testing.assert_close(adm, adm.round(), rtol=0, atol=1e-4)  # a few float32 roundings of up to 255
    torch.testing.assert_close(clean, clean_resize(images, 224), rtol=0, atol=1e-4)
    assert (clean - clean.round()).abs().max() > 0.4


@pytest.mark.parametrize("protocol", ["adm", "clean"])
def test_dinov2_grey_is_three_equal_channels(protocol):
    """A grey image goes in as the colour image of equal channels does."""
    grey = noise(1, 32, channels=1)
    colour = grey.expand(-1, -1, -1, 3)
    assert torch.equal(dinov2.scaled_input(grey, protocol), dinov2.scaled_input(colour, protocol))


def cubic(values, place):
    """Cubic convolution (Keys, a = -0.75 as in PyTorch) of a list at one place inside it."""
    start = math.floor(place)
    total = 0.0
    for index in range(start - 1, start + 3):
        d = abs(place - index)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        total += values[index] * (near if d <= 1 else far)
    return total


def test_dinov2_position_embedding_is_sampled_as_by_its_authors():
    """Bicubic, no antialias, at places (i + 0.5) 37 / 16.1 - 0.5: with the 0.1 that the authors add."""
    row = torch.randn(37, generator=torch.Generator().manual_seed(0))
    embedding = torch.cat([torch.tensor([7.0]), row.repeat(37)])[None, :, None]
    resized = dinov2.position_embedding(embedding, 16)
    assert resized.shape == (1, 257, 1)
    assert resized[0, 0, 0] == 7
    inside = resized[0, 1:, 0].reshape(16, 16)[8, 1:-1]
    wanted = [cubic(row.double().tolist(), (i + 0.5) * 37 / 16.1 - 0.5) for i in range(1, 15)]
    # places up to 37 are rounded to 37 x 2^-24, slopes are at most about 5
    torch.testing.assert_close(inside, torch.tensor(wanted), rtol=0, atol=5 * 37 * 2**-24 * 4)
    assert dinov2.position_embedding(embedding, 37) is embedding
