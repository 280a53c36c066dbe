"""Which operations may go uncounted."""

from __future__ import annotations

import pytest

from attnbench.errors import UncountedOpError
from attnbench.profiling.heavy_ops import is_light, refuse_uncounted

HEAVY = [
    "aten::mm",
    "aten::_scaled_mm",
    "aten::_grouped_mm",
    "aten::addbmm",
    "aten::_int_mm",
    "aten::mkldnn_linear",
    "aten::einsum",
    "aten::_trilinear",
    "aten::conv2d",
    "aten::_slow_conv2d_forward",
    "aten::cudnn_convolution_relu",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
    "aten::lstm",
    "aten::_thnn_fused_gru_cell",
    "aten::_cdist_forward",
    "aten::_fft_r2c",
    "aten::linalg_solve_ex",
    "aten::_weight_int4pack_mm",
    "aten::_linalg_svd",
    "aten::linalg_inv_ex",
    "aten::_pdist_forward",
    "aten::cholesky",
    "aten::pinverse",
    "aten::linalg_matrix_power",
]
LIGHT = [
    "aten::softmax",
    "aten::cumsum",
    "aten::topk",
    "aten::native_layer_norm",
    "aten::upsample_bilinear2d.vec",
    "aten::linspace",
    "aten::linalg_vector_norm",
    "aten::linalg_cross",
    "aten::_fused_sdp_choice",
    "aten::matrix_H",
    "aten::_convert_indices_from_coo_to_csr",
    "prims::convert_element_type",
    "prim::ListConstruct",
]


@pytest.mark.parametrize("op", HEAVY)
def test_contractions_are_heavy(op):
    """Everything that multiplies and adds over an axis is heavy, under all the names torch has for it."""
    assert not is_light(op)


@pytest.mark.parametrize("op", LIGHT)
def test_elementwise_and_moving_are_light(op):
    """Norms, softmax, interpolation and bookkeeping do no work of a matmul."""
    assert is_light(op)


@pytest.mark.parametrize("op", ["toy::relu", "prim::PythonOp.Secret", "prim::CallMethod"])
def test_hidden_work_is_never_light(op):
    """What a custom operation, Python function or scripted call does cannot be known from its name."""
    assert not is_light(op)


def test_refusal_names_every_operation_once():
    """The error names the counter and each unknown operation, and says how to register a formula."""
    with pytest.raises(UncountedOpError) as caught:
        refuse_uncounted("fvcore", ["toy::b", "aten::relu", "toy::a", "toy::b"])
    assert "fvcore has no formula for toy::a, toy::b," in str(caught.value)
    assert "register_flop_formula" in str(caught.value)
    refuse_uncounted("fvcore", ["aten::relu"])
