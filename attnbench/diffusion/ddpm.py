"""The Gaussian diffusion process: tables, forward noising, reverse posterior and training loss.

Sources: DDPM arXiv:2006.11239; learned range variance arXiv:2102.09672 (section 3.1), in the form of
ADM (arXiv:2105.05233) and DiT (arXiv:2212.09748).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attnbench.diffusion.likelihood import discretised_gaussian_nll, gaussian_kl
from attnbench.errors import UserInputError

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x [B, C, H, W], time [B]) -> output

NUM_TIMESTEPS = 1000


def linear_betas() -> torch.Tensor:
    """Return DDPM's linear schedule, 1e-4 to 2e-2, [1000] fp64."""
    return torch.linspace(1e-4, 2e-2, NUM_TIMESTEPS, dtype=torch.float64)


def space_timesteps(num_steps: int) -> list[int]:
    """Return ascending original timesteps for sampling in `num_steps` steps, first 0 and last 999.

    The stride is fractional and accumulated before rounding, as in ADM. Raises UserInputError.
    """
    if not 2 <= num_steps <= NUM_TIMESTEPS:
        raise UserInputError(
            f"sampling a DDPM takes 2 to {NUM_TIMESTEPS} steps, got {num_steps}; change sample.num_steps"
        )
    stride = (NUM_TIMESTEPS - 1) / (num_steps - 1)
    positions = itertools.accumulate(itertools.repeat(stride, num_steps - 1), initial=0.0)
    return [round(position) for position in positions]


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """p(x_{t-1} | x_t) as the model predicts it, and the x_0 behind it; all [B, C, H, W]."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    x0: torch.Tensor


class GaussianDiffusion:
    """Epsilon prediction with learned range variance, or with a fixed one.

    `steps` index the process; `timesteps[step]` is the time the model sees, always one of the
    original 1000. Without learned variance the posterior's own (`fixed_small`) is used: with few
    steps the upper bound `fixed_large` is far noisier (arXiv:2010.02502, Table 1).
    Tables are computed in fp64 and kept in `dtype` on `device`.
    """

    def __init__(
        self,
        *,
        learned_variance: bool,
        timesteps: Sequence[int] = range(NUM_TIMESTEPS),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.timestep_list = list(timesteps)  # for the host: reading one from the device waits for it
        kept = torch.tensor(self.timestep_list)
        alphas_cumprod = torch.cumprod(1 - linear_betas(), dim=0)[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        betas = 1 - alphas_cumprod / previous  # of the respaced chain
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        # The last reverse step has variance 0; its logarithm takes the value of the step before.
        clipped = torch.cat([variance[1:2], variance[1:]])

        def table(values: torch.Tensor) -> torch.Tensor:
            return values.to(device=device, dtype=dtype)

        self.learned_variance = learned_variance
        self.timesteps = kept.to(device)
        self.alphas_cumprod = table(alphas_cumprod)
        self.alphas_cumprod_prev = table(previous)
        self._signal, self._noise = table(alphas_cumprod.sqrt()), table((1 - alphas_cumprod).sqrt())
        self._inverse_signal = table((1 / alphas_cumprod).sqrt())
        self._noise_to_signal = table((1 / alphas_cumprod - 1).sqrt())
        self._mean_of_x0 = table(betas * previous.sqrt() / (1 - alphas_cumprod))
        self._mean_of_xt = table((1 - previous) * (alphas_cumprod / previous).sqrt() / (1 - alphas_cumprod))
        self._log_variance_small, self._log_variance_large = table(clipped.log()), table(betas.log())

    @property
    def num_steps(self) -> int:
        """Steps of this (respaced) chain."""
        return len(self.timesteps)

    def time_of(self, step: torch.Tensor) -> torch.Tensor:
        """Return what the model sees for steps [B]: original timesteps as floats, [B] in [0, 1000)."""
        return self.timesteps[step].to(self.alphas_cumprod.dtype)

    def add_noise(self, x0: torch.Tensor, step: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return x_t ~ q(x_t | x_0), [B, C, H, W]. Source: arXiv:2006.11239, eq. 4."""
        return _at(self._signal, step) * x0 + _at(self._noise, step) * noise

    def x0_from_noise(self, x: torch.Tensor, step: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the x_0 that x_t and epsilon imply, [B, C, H, W]."""
        return _at(self._inverse_signal, step) * x - _at(self._noise_to_signal, step) * noise

    def noise_from_x0(self, x: torch.Tensor, step: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Return the epsilon that x_t and x_0 imply, [B, C, H, W]."""
        return (_at(self._inverse_signal, step) * x - x0) / _at(self._noise_to_signal, step)

    def posterior_mean(self, x0: torch.Tensor, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0). Source: arXiv:2006.11239, eq. 7."""
        return _at(self._mean_of_x0, step) * x0 + _at(self._mean_of_xt, step) * x

    def split_output(self, output: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Split a model's output into epsilon and the raw variance (None when fixed).

        Raises UserInputError when the output has another shape than this process expects.
        """
        batch, channels, height, width = x.shape
        expected = (batch, channels * (2 if self.learned_variance else 1), height, width)
        if output.shape != expected:
            raise UserInputError(
                f"a denoiser with learned_variance={self.learned_variance} must return {list(expected)} "
                f"for an input of {list(x.shape)}, got {list(output.shape)}; set learned_variance to match"
            )
        if not self.learned_variance:
            return output, None
        eps, raw_variance = output.chunk(2, dim=1)
        return eps, raw_variance

    def posterior(
        self, output: torch.Tensor, x: torch.Tensor, step: torch.Tensor, clip: bool = False
    ) -> Posterior:
        """Return p(x_{t-1} | x_t) from a model's output; `clip` keeps x_0 in [-1, 1] (pixel space).

        Source: arXiv:2102.09672, eq. 15, with the raw variance in [-1, 1] as in ADM.
        """
        eps, raw_variance = self.split_output(output, x)
        return self._posterior(eps, raw_variance, x, step, clip)

    def _posterior(
        self,
        eps: torch.Tensor,
        raw_variance: torch.Tensor | None,
        x: torch.Tensor,
        step: torch.Tensor,
        clip: bool = False,
    ) -> Posterior:
        x0 = self.x0_from_noise(x, step, eps)
        if clip:
            x0 = x0.clamp(-1, 1)
        log_variance = _at(self._log_variance_small, step).expand_as(x)
        if raw_variance is not None:
            fraction = (raw_variance + 1) / 2  # 0: smallest sensible variance, 1: largest
            log_variance = fraction * _at(self._log_variance_large, step) + (1 - fraction) * log_variance
        return Posterior(mean=self.posterior_mean(x0, x, step), log_variance=log_variance, x0=x0)

    def variational_bound(
        self, predicted: Posterior, x0: torch.Tensor, x: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        """Return this step's term of the variational bound, [B], in bits per dimension.

        A KL divergence, and at step 0 the negative log-likelihood of 8-bit data.
        Source: arXiv:2102.09672, eq. 4 to 7.
        """
        true_log_variance = _at(self._log_variance_small, step)
        kl = gaussian_kl(
            self.posterior_mean(x0, x, step), true_log_variance, predicted.mean, predicted.log_variance
        )
        nll = discretised_gaussian_nll(x0, predicted.mean, 0.5 * predicted.log_variance)
        nats = torch.where(step == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))
        return nats / math.log(2)

    def training_loss(
        self, denoiser: Denoiser, x0: torch.Tensor, step: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each sample, [B] fp32: MSE of epsilon, plus the bound when learning variance.

        The bound trains the variance alone: epsilon enters it without gradient. Unweighted, in bits
        per dimension, as in DiT. Source: arXiv:2102.09672, eq. 16 (ADM's `LossType.MSE`).
        """
        x = self.add_noise(x0, step, noise)
        eps, raw_variance = self.split_output(denoiser(x, self.time_of(step)).to(x.dtype), x)
        loss = (noise - eps).square().flatten(1).mean(1)
        if raw_variance is None:
            return loss
        predicted = self._posterior(eps.detach(), raw_variance, x, step)
        return loss + self.variational_bound(predicted, x0, x, step)


def _at(table: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return table[step].view(-1, 1, 1, 1)  # [B, 1, 1, 1]
