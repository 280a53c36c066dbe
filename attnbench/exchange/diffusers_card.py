"""The README.md beside weights in diffusers' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.exchange.config import ExportedConfig

CORRECTION = """for block in transformer.transformer_blocks:
    block.norm1.emb.time_proj.downscale_freq_shift = 0"""

WITH_PIPELINE = """from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("path/to/this/folder")
transformer = pipeline.transformer
{correction}
images = pipeline(class_labels=[0, 1], guidance_scale=1.0, num_inference_steps=50).images"""

WITHOUT = """from diffusers import DDIMScheduler, DiTTransformer2DModel

transformer = DiTTransformer2DModel.from_pretrained("path/to/this/folder/transformer")
scheduler = DDIMScheduler.from_pretrained("path/to/this/folder/scheduler")
{correction}"""


def pipeline_card(config: ExportedConfig, no_pipeline: str) -> str:
    """Return the model card of a folder in diffusers' layout as Markdown."""
    missing = f"\nNo `model_index.json` is here: {no_pipeline}.\n" if no_pipeline else ""
    code = (WITHOUT if no_pipeline else WITH_PIPELINE).format(correction=CORRECTION)
    return f"""# {config.model.name} for diffusers

A DiT of {config.model.depth} blocks and width {config.model.dim} with {config.input.num_classes} classes,
written by attnbench {config.attnbench}; `attnbench.json` says how it was trained.
{missing}
```python
{code}
```

**The loop over the blocks is needed.** diffusers' class computes the timestep's sinusoid with frequencies
10000^(-i/127); DiT's released code and this model were trained with 10000^(-i/128), and no weights can make
up for it.

Rows {config.input.num_classes} to 1000 of the label table are all the null class, because `DiTPipeline`
guides with class 1000. The pipeline drops a learned variance; the scheduler is DDIM, which needs none.
"""
