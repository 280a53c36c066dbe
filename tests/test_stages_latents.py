"""Latents on disk survive kills and notice damage; TAESD's own files load into diffusers' network."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stage_cases import make_workspace
from test_stages_prepare import save_codec
from torch import nn

from attnbench.data.arrays import ArrayImages
from attnbench.data.pixels import to_model_space
from attnbench.errors import DataError
from attnbench.specs import CodecSpec
from attnbench.stages.latents import encoding as latents
from attnbench.stages.latents.codec import load_codec
from attnbench.stages.latents.taesd import TAESD_FILES, load_taesd
from attnbench.storage.records import read_record

SIDE, COUNT = 8, 11
CPU = torch.device("cpu")
LABELS = torch.arange(COUNT) % 2
TAESD = os.environ.get("ATTNBENCH_TAESD", "")
needs_taesd = pytest.mark.skipif(
    not TAESD, reason=f"set ATTNBENCH_TAESD to a folder with {' and '.join(TAESD_FILES)} to run"
)


def noise_images(count: int = COUNT, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def image_set(count: int = COUNT, seed: int = 0) -> ArrayImages:
    return ArrayImages(images=noise_images(count, seed=seed), labels=torch.arange(count) % 2)


@pytest.fixture
def encode(monkeypatch, tmp_path):
    """A function that encodes eleven images into shards of four, and the autoencoder's settings."""
    monkeypatch.setattr(latents, "SHARD_SIZE", 4)
    save_codec(tmp_path / "vae")
    spec = CodecSpec(path=tmp_path / "vae")

    def run(folder: Path, count: int = COUNT, seed: int = 0) -> CodecSpec:
        images = image_set(count, seed)
        latents.encode_all(images, spec, folder, make_workspace(tmp_path))
        return spec

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the shards, and the index without its checksum, in which the folder's name is."""
    index = read_record(folder / latents.LATENT_INDEX, latents.LatentIndex)
    shards = {path.name: path.read_bytes() for path in folder.glob("latents*.npy")}
    return shards | {latents.LATENT_INDEX: index.model_dump_json().encode()}


@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_shard_is_noticed(encode, tmp_path, damage):
    """A shard that is cut short, has one other byte or is not there stops the opening, by its name."""
    spec = encode(tmp_path / "latents")
    path = tmp_path / "latents" / "latents-00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "altered" else content[:-100])
    said = "is missing" if damage == "gone" else "was cut short or altered"
    with pytest.raises(DataError, match=rf"latents-00001\.npy {said}.*run the same command again"):
        latents.open_latents(tmp_path / "latents", spec, LABELS)


def test_opening_reads_no_shard_that_looks_as_when_it_was_written(encode, monkeypatch, tmp_path):
    """Checksums are taken again only of a shard whose size or time of change is another."""
    spec = encode(tmp_path / "latents")
    read: list[str] = []
    checksum = latents.file_sha256

    def reading(path: Path) -> str:
        read.append(path.name)
        return checksum(path)

    monkeypatch.setattr(latents, "file_sha256", reading)
    latents.open_latents(tmp_path / "latents", spec, LABELS)
    assert read == []
    os.utime(tmp_path / "latents" / "latents-00001.npy")
    latents.open_latents(tmp_path / "latents", spec, LABELS)
    assert read == ["latents-00001.npy"]


def test_encoding_again_repairs_what_is_damaged(encode, tmp_path):
    """From the first damaged shard on everything is encoded anew; what is whole before it is kept."""
    encode(tmp_path / "latents")
    expected = files_of(tmp_path / "latents")
    first, second = (tmp_path / "latents" / f"latents-0000{number}.npy" for number in (0, 1))
    second.write_bytes(second.read_bytes()[:-100])
    kept = first.stat().st_mtime_ns
    encode(tmp_path / "latents")
    assert files_of(tmp_path / "latents") == expected
    assert first.stat().st_mtime_ns == kept


def test_a_half_encoded_folder_of_another_autoencoder_is_not_continued(encode, tmp_path):
    """Weights that changed between a kill and its resume never mix: everything is encoded anew."""
    folder = tmp_path / "latents"
    encode(folder)
    index = read_record(folder / latents.LATENT_INDEX, latents.LatentIndex)
    half = index.model_copy(update={"sha256": index.sha256[:1]})
    (folder / latents.LATENT_INDEX).write_text(half.model_dump_json())
    old = files_of(folder)
    save_codec(tmp_path / "vae", seed=1)
    spec = encode(folder)
    assert files_of(folder)["latents-00000.npy"] != old["latents-00000.npy"]
    assert len(latents.open_latents(folder, spec, LABELS)) == COUNT


def test_unfinished_latents_are_not_opened(encode, tmp_path):
    """An index with fewer shards than images need says how many there are."""
    spec = encode(tmp_path / "latents")
    path = tmp_path / "latents" / latents.LATENT_INDEX
    index = read_record(path, latents.LatentIndex)
    path.write_text(index.model_copy(update={"sha256": index.sha256[:2]}).model_dump_json())
    with pytest.raises(DataError, match="2 of 3 shards"):
        latents.open_latents(tmp_path / "latents", spec, LABELS)


def test_a_killed_process_is_taken_over(encode, tmp_path):
    """After SIGKILL in the third shard, encoding again keeps two and ends in the bytes of one go."""
    encode(tmp_path / "whole")
    words = [sys.executable, __file__, str(tmp_path / "vae"), str(tmp_path / "killed")]
    assert subprocess.run(words, cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").glob("*.npy"))) == 2
    encode(tmp_path / "killed")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_two_sets_lie_in_folders_of_their_own(encode, tmp_path):
    """Held-out images go into a sub-folder that encoding makes, and are opened with their own labels."""
    encode(tmp_path / "latents")
    spec = encode(tmp_path / "latents" / "held-out", count=5, seed=1)
    training = latents.open_latents(tmp_path / "latents", spec, LABELS)
    held_out = latents.open_latents(tmp_path / "latents" / "held-out", spec, torch.arange(5) % 2)
    assert (len(training), len(held_out), held_out.shape) == (COUNT, 5, (4, SIDE // 2, SIDE // 2))


@pytest.mark.parametrize("kind", ["autoencoder-kl", "autoencoder-tiny"])
def test_reconstruction_decodes_the_mean(tmp_path, kind):
    """Reconstructing is the network's decoding of its posterior's mean (or of its latents)."""
    network = save_codec(tmp_path / "vae", kind)
    codec = load_codec(CodecSpec(kind=kind, path=tmp_path / "vae"), CPU)
    images = noise_images(9)  # more than one call
    with torch.no_grad():
        encoded = network.encode(to_model_space(images))
        z = encoded.latent_dist.mean if kind == "autoencoder-kl" else encoded.latents
        expected = (127.5 * network.decode(z).sample + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    found = codec.reconstruct(images)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    # other batch sizes, and scaling there and back, round differently in fp32: one grey level at most
    assert (found - expected).abs().max() <= 1


class RawBlock(nn.Module):
    """TAESD's block: three convolutions beside the identity, then a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + x)


class RawClamp(nn.Module):
    """TAESD's soft clamp in front of its decoder."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(x / 3)


def raw_taesd() -> tuple[nn.Sequential, nn.Sequential]:
    """TAESD's two sequences with random weights, in the layout of its released files."""

    def down() -> list[nn.Module]:
        return [nn.Conv2d(64, 64, 3, 2, 1, bias=False), RawBlock(), RawBlock(), RawBlock()]

    def up() -> list[nn.Module]:
        blocks = [RawBlock(), RawBlock(), RawBlock()]
        return [*blocks, nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]

    torch.manual_seed(0)
    encoder = [nn.Conv2d(3, 64, 3, padding=1), RawBlock(), *down(), *down(), *down()]
    decoder = [RawClamp(), nn.Conv2d(4, 64, 3, padding=1), nn.ReLU(), *up(), *up(), *up(), RawBlock()]
    last = nn.Conv2d(64, 4, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    return nn.Sequential(*encoder, last[0]).eval(), nn.Sequential(*decoder, last[1]).eval()


def save_raw(folder: Path) -> tuple[nn.Sequential, nn.Sequential]:
    folder.mkdir()
    networks = raw_taesd()
    for network, name in zip(networks, TAESD_FILES, strict=True):
        save_file(network.state_dict(), folder / name)
    return networks


def test_taesds_layout_is_renamed(tmp_path):
    """Encoding and decoding through diffusers equal TAESD's own sequences, whose range is [0, 1]."""
    encoder, decoder = save_raw(tmp_path / "taesd")
    codec = load_codec(CodecSpec(kind="autoencoder-tiny", path=tmp_path / "taesd"), CPU)
    assert (codec.factor, codec.channels, codec.scale, codec.shift) == (8, 4, 1.0, 0.0)
    images = noise_images(2, side=16)
    with torch.no_grad():
        expected = encoder(images.permute(0, 3, 1, 2) / 255)
        z = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        picture = (255 * decoder(z)).round().clamp(0, 255).permute(0, 2, 3, 1)
    torch.testing.assert_close(codec.encode(images), expected, rtol=1e-4, atol=1e-5)
    assert (codec.decode(z) - picture).abs().max() <= 1  # another order of scaling: one grey level


def test_a_decoder_numbered_like_diffusers_is_refused(tmp_path):
    """Numbers that are off by one do not load, and the error shows which names are missing."""
    _, decoder = save_raw(tmp_path / "taesd")
    shifted = {
        f"{int(key.split('.')[0]) - 1}.{key.split('.', 1)[1]}": value
        for key, value in decoder.state_dict().items()
    }
    save_file(shifted, tmp_path / "taesd" / TAESD_FILES[1])
    with pytest.raises(
        DataError, match=r"does not hold TAESD's.*31 of \d+ tensors.*decoder\.layers\.0\.bias"
    ):
        load_taesd(tmp_path / "taesd")


def test_a_cut_taesd_file_is_told(tmp_path):
    """Half a file is an error with its path."""
    save_raw(tmp_path / "taesd")
    path = tmp_path / "taesd" / TAESD_FILES[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"taesd_encoder\.safetensors is not a file of TAESD's weights"):
        load_taesd(tmp_path / "taesd")


def test_a_folder_with_half_of_taesd(tmp_path):
    """Without the decoder the folder is no autoencoder, and the error names both ways to have one."""
    save_raw(tmp_path / "taesd")
    (tmp_path / "taesd" / TAESD_FILES[1]).unlink()
    with pytest.raises(DataError, match=r"AutoencoderTiny\.save_pretrained, or with TAESD's taesd_encoder"):
        load_codec(CodecSpec(kind="autoencoder-tiny", path=tmp_path / "taesd"), CPU)


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    error = (images.double() - others.double()).square().mean().item()
    return 10 * np.log10(255**2 / error)


@needs_taesd
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_taesd_reconstructs_a_photograph(name):
    """At 256 px TAESD keeps more of a photograph than its four latent channels as 8x8-box averages do."""
    import skimage.data
    import skimage.transform

    photo = getattr(skimage.data, name)()
    side = min(photo.shape[:2])
    square = skimage.transform.resize(photo[:side, :side], (256, 256), anti_aliasing=True)
    images = torch.from_numpy((255 * square).round().astype(np.uint8))[None]
    x = images.permute(0, 3, 1, 2).float()
    coarse = nn.functional.interpolate(nn.functional.avg_pool2d(x, 8), scale_factor=8, mode="bicubic")
    codec = load_codec(CodecSpec(kind="autoencoder-tiny", path=Path(TAESD)), CPU)
    found = psnr(codec.reconstruct(images), images)
    assert found > 20
    assert found > psnr(coarse.clamp(0, 255).permute(0, 2, 3, 1), images) + 2


def encode_and_be_killed(vae: str, folder: str) -> None:
    """Encode the eleven images; SIGKILL strikes when the third shard begins."""
    torch.set_num_threads(1)
    latents.SHARD_SIZE = 4
    images = image_set()

    class Dying:
        labels = images.labels

        def __len__(self) -> int:
            return len(images)

        def get(self, indices: torch.Tensor) -> torch.Tensor:
            if indices[0] >= 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return images.get(indices)

    latents.encode_all(Dying(), CodecSpec(path=Path(vae)), Path(folder), make_workspace(Path(folder)))


if __name__ == "__main__":
    encode_and_be_killed(sys.argv[1], sys.argv[2])
