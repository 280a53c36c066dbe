"""Classifier-free guidance: its algebra, its channels and its cost."""

import pytest
import torch
from torch import nn

from attnbench.diffusion.guidance import guided_denoiser
from attnbench.errors import UserInputError

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


@pytest.mark.parametrize("channels", [0, 5])
def test_impossible_channels_are_told(channels: int):
    """More channels than the input has is an error that says how many there are."""
    with pytest.raises(UserInputError, match=f"1 to 4.*got {channels}"):
        guide(2.0, channels)
