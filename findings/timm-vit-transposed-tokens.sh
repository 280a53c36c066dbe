#!/usr/bin/env bash
# timm 1.0.31 (torch 2.13.0): without a class token, the tokens of a VisionTransformer are transposed in every block.
#
# Expected: the model computes on [batch, tokens, channels] tensors whose channels lie side by side, so that a LayerNorm
#   reads rows, with a class token and without.
# What happens: PatchEmbed returns the convolution's output transposed, as a view. With a class token torch.cat makes it
#   contiguous by chance; without one (class_token=False, global_pool="avg") sums keep the layout of their first operand,
#   so that the residual stream stays transposed through all twelve blocks, and each of its 24 LayerNorms copies its
#   input first. No warning; the numbers are right.
# Who is hurt: whoever builds on timm's PatchEmbed without a class token, as DiT does: every LayerNorm and every sum of
#   the residual stream pays, in both directions. One .contiguous() behind the patch embedding ends it, with the same
#   bits (attnbench's skeleton does that: DESIGN 57).
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6
cat > "$place/check.py" <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile

if torch.version.cuda is None:  # torchvision's operators are built for the CUDA build: timm only names them
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm

images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def contiguous_blocks_and_copies(**how):
    model = timm.create_model("vit_tiny_patch16_224", **how).eval()
    found = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: found.append(output.is_contiguous()))
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        model(images)
    return sum(found), {event.key: event.count for event in seen.key_averages()}.get("aten::contiguous", 0)


with_token = contiguous_blocks_and_copies()
without = contiguous_blocks_and_copies(class_token=False, global_pool="avg")
print(f"timm {timm.__version__}, torch {torch.__version__}: contiguous outputs of 12 blocks, copies before use: "
      f"{with_token} with a class token, {without} without")
assert with_token == (12, 0), "with a class token tokens are no longer contiguous"
assert without == (0, 24), "without a class token tokens are contiguous now"
PY
"$place/venv/bin/python" "$place/check.py" 2>/dev/null
echo "finding holds"
