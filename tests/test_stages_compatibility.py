"""Which settings of training and sampling go together, and what is said where they do not."""

import subprocess
import sys
from pathlib import Path

import pytest
from stage_cases import make_case, make_workspace

from attnbench.errors import UserInputError
from attnbench.stages import sample
from attnbench.stages.compatibility import check_sampler

DDPM = {"objective": "ddpm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": DDPM}, "sampler 'euler'.*objective 'ddpm'.*ddpm or ddim or dpm-solver"),
        ({"sample": {"sampler": "ddim"}}, "sampler 'ddim'.*objective 'flow'.*set sample.sampler to euler"),
        ({"train": DDPM, "sample": {"sampler": "ddim", "num_steps": 1}}, "num_steps: .* 2 to 1000.*got 1$"),
        ({"train": DDPM, "sample": {"sampler": "ddpm", "num_steps": 1001}}, "num_steps: .*got 1001"),
        ({"train": DDPM, "sample": {"sampler": "dpm-solver++", "num_steps": 1000}}, "2 to 999 steps"),
        ({"sample": {"sampler": "heun", "num_steps": 50}}, "'heun'.*odd number, got 50; set 51"),
        ({"sample": {"guidance_channels": 3}}, "'all' or 1 to 1.*got 3"),
        ({"sample": {"guidance_scale": 2.0}, "model": {"class_dropout": 0.0}}, "class_dropout above 0"),
        ({"model": {"learned_variance": True}}, "learned_variance: false"),
    ],
)
def test_settings_that_do_not_go_together_are_told(tmp_path, changes, message):
    """Each mismatch is one error that names the setting to change, for suites and the stage alike."""
    case = make_case(**changes)
    with pytest.raises(UserInputError, match=message):
        check_sampler(case)
    with pytest.raises(UserInputError, match=message):
        sample.run(case, make_workspace(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample": {"guidance_scale": 2.0}},
        {"train": DDPM, "sample": {"sampler": "ddim", "num_steps": 1000}},
        {"train": DDPM, "sample": {"sampler": "dpm-solver++", "num_steps": 999}},
        {"sample": {"sampler": "heun", "num_steps": 49}},
    ],
)
def test_settings_that_go_together_pass(changes):
    """Sound combinations pass the check."""
    check_sampler(make_case(**changes))


def test_check_needs_no_torch():
    """Suites can be validated without importing torch."""
    code = "import sys, attnbench.stages.compatibility; sys.exit('torch' in sys.modules)"
    root = Path(sample.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
