"""Every name of a file or folder below a runs folder: what lies where, in one place.

runs/<suite>/             results.jsonl, results.damaged.jsonl, run.json, report.md, report.html,
                          report.sha256, pictures/, paper-figures/, lock, logs/: what each case printed
runs/store/prepare/<key>/ done.json, made_from.json, latents.json, checked.json, latents-00000.npy
runs/store/train/<key>/   done.json, checkpoint.safetensors, ema.safetensors, train.jsonl, timing.jsonl
runs/store/sample/<key>/  done.json, samples-00000.npz, samples-00000.json, grid.png
runs/store/evaluate/<key>/ done.json, environment.json, classes.png, classes.csv
runs/store/diagnose/<key>/ done.json, diagnosis.json
runs/store/features/      reference.npz, images.safetensors, a folder per feature network
runs/store/profile/<key>/ session.json
runs/store/<stage>/<key>/ error.txt, while a stage fails in a way nobody expected
runs/store/cells/<key>/   lock, of the run that works on a case; claim.json: which stages it is made of
                          evaluation-<key>/: lock and `made`, of what cases of one dataset are scored with
runs/store/lock           of every run that is going on, shared; of `attnbench store prune`, alone
"""

from __future__ import annotations

# a run's folder, and the store beside it
RESULTS, DAMAGED_RESULTS = "results.jsonl", "results.damaged.jsonl"
RUN = "run.json"  # what the last run of the suite was asked for
REPORT_MARKDOWN, REPORT_HTML = "report.md", "report.html"
REPORT_STATE = "report.sha256"  # of the report and all that it was made of, when it was written
PROFILE_MARKDOWN = "profile.md"  # in the folder that `attnbench profile --report` names
PICTURES = "pictures"
LOGS = "logs"
SLURM = "slurm"  # below a run: a folder for each submission, and how its tasks do
SLURM_TASKS = "tasks.json"
PAPER_FIGURES = "paper-figures"  # of `attnbench figures`, where it is not told another folder
STORE = "store"

# any folder that one process at a time works in
LOCK = "lock"

# the store
DONE = "done.json"  # the stage is finished
ERROR = "error.txt"  # a traceback of what nobody expected; gone once the stage has succeeded
CLAIMS = "cells"  # earlier versions hold their cases under this name, too
CLAIM = "claim.json"
GROUND = "made"  # beside a lock of what cases of the same data are scored with: it is there
FEATURES = "features"
PROFILE, SESSION = "profile", "session.json"

# prepare
MADE_FROM = "made_from.json"
LATENT_INDEX, CHECKED_SHARDS = "latents.json", "checked.json"

# train
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.safetensors", "checkpoint.previous.safetensors"
AVERAGED = "ema.safetensors"
TRAIN_LOG, TIMING, TENSORBOARD = "train.jsonl", "timing.jsonl", "tensorboard"

# sample
GRID = "grid.png"
SAMPLE_SHARDS = "samples-*.npz"

# evaluate, and what it keeps for all cases of the same data
ENVIRONMENT = "environment.json"
CLASSES = "classes"
REFERENCE, TRAINING_IMAGES = "reference.npz", "images.safetensors"

# diagnose
DIAGNOSIS = "diagnosis.json"


def latent_shard(number: int) -> str:
    """Return the file of the latents of some consecutive training images."""
    return f"latents-{number:05d}.npy"


def sample_shard(number: int) -> str:
    """Return the file of some consecutive samples."""
    return f"samples-{number:05d}.npz"


def further_average(decay: float) -> str:
    """Return the file of a further average of the weights, as `train.extra_ema_decays` asks for it."""
    return f"ema-{decay}.safetensors"
