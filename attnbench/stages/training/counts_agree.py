"""What the last stage of a suite counts, asked before the first step of a training."""

from __future__ import annotations

from attnbench.data import class_names
from attnbench.errors import PluginError
from attnbench.models.resolution import input_size
from attnbench.profiling.counting import counts
from attnbench.specs import Case, content_hash
from attnbench.stages.latents.model_space import latent_factor

_AGREED: set[str] = set()  # in this process: cases of several seeds share a model


def check_counts(case: Case) -> None:
    """Refuse a model whose closed form of multiply-adds is not what two counters see, at every resolution.

    Tenths of a second, on the meta device; nothing where the suite asks for no multiply-adds. Raises
    PluginError naming the resolution, or UncountedOpError.
    """
    if "macs" not in case.profile.measure:
        return
    factor, num_classes = latent_factor(case), len(class_names(case.data))
    for resolution in case.profile.resolutions or [case.data.image_size]:
        side = input_size(case.model, resolution, factor)
        key = content_hash([case.model.content(), case.code, side, num_classes])
        if key in _AGREED:
            continue
        try:
            for _ in counts(case.model, side, num_classes, "model", ["macs"]):
                _AGREED.add(key)
        except PluginError as error:
            raise PluginError(f"nothing was trained: at {resolution} px {error}") from error
