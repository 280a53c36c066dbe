"""Several MLPs, each on rows of its own; which is said by choices, by as many rows for each, or by a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.layers.routed import routed_projection


class Experts(nn.Module):
    """E MLPs (Linear, tanh-GELU, Linear): weights [E, C, h] and [E, h, C], biases [E, h] and [E, C].

    A token's rows are added in the order of the experts, so that sums are the same each time, also on a GPU.
    """

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.expand_bias = nn.Parameter(torch.empty(num_experts, hidden))
        self.reduce = nn.Parameter(torch.empty(num_experts, hidden, dim))
        self.reduce_bias = nn.Parameter(torch.empty(num_experts, dim))

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, each by its own widths, and biases 0."""
        for weight in (self.expand, self.reduce):
            for matrix in weight:
                nn.init.xavier_uniform_(matrix)
        for bias in (self.expand_bias, self.reduce_bias):
            nn.init.zeros_(bias)

    def by_choice(self, x: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        """Return each token through its experts: x [T, C], expert int64 [T, k] -> [T, k, C]."""
        hidden = gelu(routed_projection(x, self.expand, expert) + self.expand_bias[expert])
        rows = routed_projection(hidden.flatten(0, 1), self.reduce, expert.view(-1, 1))
        return rows.view(*expert.shape, -1) + self.reduce_bias[expert]

    def by_index(self, x: torch.Tensor, gates: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return sum_e gate MLP_e(x): x [T, C], gates [T, E], index [E, R], the tokens of each expert."""
        hidden = gelu(torch.baddbmm(self.expand_bias.unsqueeze(1), x[index], self.expand))  # [E, R, h]
        rows = torch.baddbmm(self.reduce_bias.unsqueeze(1), hidden, self.reduce)
        rows = rows * gates.T.gather(1, index).unsqueeze(-1)
        y = rows.new_zeros(x.shape)
        for taken, row in zip(index, rows, strict=True):
            y = y.index_add(0, taken, row)
        return y

    def by_mask(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return sum_e gate MLP_e(x) over the experts of each token: x [T, C], gates and chosen [T, E].

        How many rows an expert has is data. Compiled without gradients it is one operation.
        """
        weights = (self.expand, self.expand_bias, self.reduce, self.reduce_bias)
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return _masked_experts(x, gates, chosen, *weights)
        return masked_experts(x, gates, chosen, *weights)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """DiT's activation."""
    return F.gelu(x, approximate="tanh")


def masked_experts(
    x: torch.Tensor,
    gates: torch.Tensor,
    chosen: torch.Tensor,
    expand: torch.Tensor,
    expand_bias: torch.Tensor,
    reduce: torch.Tensor,
    reduce_bias: torch.Tensor,
) -> torch.Tensor:
    """Run one expert after another on the rows that it has; in the gates' dtype."""
    y = torch.zeros_like(x, dtype=gates.dtype)
    for e in range(len(expand)):
        taken = chosen[:, e].nonzero().squeeze(1)
        hidden = gelu(torch.addmm(expand_bias[e], x[taken], expand[e]))
        row = torch.addmm(reduce_bias[e], hidden, reduce[e])
        y = y.index_add(0, taken, gates[taken, e].unsqueeze(-1) * row)
    return y


_masked_experts = torch.library.custom_op("attnbench::masked_experts", masked_experts, mutates_args=())


@_masked_experts.register_fake
def _(x: torch.Tensor, gates: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, dtype=gates.dtype)
