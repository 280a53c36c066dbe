"""Classifier-free guidance: its algebra, its channels and its cost."""

import pytest
import torch
from torch import nn

from attnbench.diffusion.guidance import guided_denoiser
from attnbench.errors import UserInputError
from attnbench.models import build_model
from attnbench.specs import ModelConfig

NULL = 10
LABELS = torch.tensor([1, 2, 3])
X, TIME = torch.zeros(3, 4, 2, 2), torch.zeros(3)


class LabelModel(nn.Module):
    """Returns the label times the channel's number plus one, [B, 8, 2, 2]; remembers its batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        channel = torch.arange(1.0, 9.0).view(1, 8, 1, 1)
        return (labels.view(-1, 1, 1, 1) * channel).expand(-1, 8, 2, 2)


def guide(scale: float, channels: object = "all") -> tuple[torch.Tensor, list[int]]:
    model = LabelModel()
    output = guided_denoiser(model, LABELS, null_label=NULL, scale=scale, channels=channels)(X, TIME)
    return output, model.batches


def test_scale_one_is_the_conditional_model_in_one_pass():
    """Scale 1 costs no second evaluation."""
    output, batches = guide(1.0)
    assert torch.equal(output, LabelModel()(X, TIME, LABELS))
    assert batches == [3]


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guided_channels_extrapolate(scale: float):
    """The data channels are null + scale (labelled - null), in one pass of twice the batch."""
    output, batches = guide(scale)
    labelled, null = LabelModel()(X, TIME, LABELS), LabelModel()(X, TIME, torch.full_like(LABELS, NULL))
    torch.testing.assert_close(output[:, :4], (null + scale * (labelled - null))[:, :4])
    assert batches == [6]


def test_variance_channels_stay_conditional():
    """A learned variance is never extrapolated."""
    output, _ = guide(4.0)
    assert torch.equal(output[:, 4:], LabelModel()(X, TIME, LABELS)[:, 4:])


def test_three_channels_as_dit_released():
    """With channels=3 the fourth latent channel stays conditional, as in DiT's released sampler."""
    three, everything = guide(4.0, 3)[0], guide(4.0)[0]
    assert torch.equal(three[:, :3], everything[:, :3])
    assert torch.equal(three[:, 3:], LabelModel()(X, TIME, LABELS)[:, 3:])


def released(model: nn.Module, x: torch.Tensor, time: torch.Tensor, scale: float, split: int) -> torch.Tensor:
    """DiT's forward_with_cfg in words: the first `split` channels are guided, the rest left alone.

    Both halves of the batch go in with the same x; the labelled half comes out of sampling. Source:
    facebookresearch/DiT, models.py (split 3; its comment names in_channels as the standard approach).
    """
    doubled, labels = torch.cat([x, x]), torch.cat([LABELS, torch.full_like(LABELS, NULL)])
    output = model(doubled, torch.cat([time, time]), labels)
    labelled, null = output[: len(x), :split], output[len(x) :, :split]
    eps = null + scale * (labelled - null)
    return torch.cat([torch.cat([eps, eps]), output[:, split:]], dim=1)[: len(x)]


@pytest.mark.parametrize(("channels", "split"), [(3, 3), ("all", 4)])
@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_both_ways_equal_dits_released_guidance(channels: object, split: int, scale: float):
    """Three channels are DiT's release, all four its standard approach, on a real transformer."""
    config = ModelConfig(name="small", depth=1, dim=16, num_heads=2, in_channels=4)
    model = build_model(config, 4, NULL, dtype=torch.float64).eval().requires_grad_(False)
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time = torch.full((3,), 500.0, dtype=torch.float64)
    guided = guided_denoiser(model, LABELS, null_label=NULL, scale=scale, channels=channels)(x, time)
    # The same numbers but for one rounding of the extrapolation.
    torch.testing.assert_close(guided, released(model, x, time, scale, split), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("channels", [0, 5])
def test_impossible_channels_are_told(channels: int):
    """More channels than the input has is an error that says how many there are."""
    with pytest.raises(UserInputError, match=f"1 to 4.*got {channels}"):
        guide(2.0, channels)
