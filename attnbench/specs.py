"""The settings of a benchmark as frozen, strict models: what to build, train, sample and measure.

Everything here is plain data; it imports no torch, so that suites validate fast and anywhere.
A field's description is what `attnbench schema` and error messages show.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Precision = Literal["fp32", "bf16"]
Table = Literal["table1", "table2", "table3", "table4", "table5", "table6", "table7", "table8"]
Measure = Literal["macs", "params", "latency", "memory", "memory-plan", "roofline", "energy"]
Mode = Literal["forward", "train", "sample"]
Scope = Literal["attention", "block", "model", "end-to-end"]
Metric = Literal["fd", "sfd", "kd", "skd", "is", "precision", "recall"]
Protocol = Literal["adm", "clean"]


ORIGINS = ("paper", "public code", "inferred", "ours")
# OWNER/NAME as the hub's own client takes it: no `--`, no `..`, no end in a sign, at most 96 characters
HUB_NAME = re.compile(r"(?=.{3,96}$)(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
HUB_PART = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # a branch, a tag, a folder: never `..`
OUTSIDE_KEY = {
    "train": {"activation_checkpointing", "sharding", "checkpoint_every", "checkpoint_minutes", "log"},
    "sample": {"batch_size"},
}
"""Settings of a stage that change no result, only how it is computed: no part of its content address."""


_OUTSIDE_TRAINING = frozenset({*OUTSIDE_KEY["train"], "init_from"})
_OUTSIDE_SAMPLES = frozenset(OUTSIDE_KEY["sample"])
UNWRITTEN_NOISE: Literal["ziggurat"] = "ziggurat"
"""Noise of samples whose settings do not say: those of versions that drew no other."""
NOISE: Literal["box-muller"] = "box-muller"
"""Noise of a suite that does not say."""
MUCH_OF_ITS_START = 0.1
"""Share of its start from which on an average is warned of: 7 % and less is what good settings leave."""
ABOUT_A_SETTING = "about_a_setting"


def about(setting: str, message: str) -> PydanticCustomError:
    """Return what a validator of several settings raises: reports get the one it is about by itself."""
    parts = {"setting": setting, "message": message}
    return PydanticCustomError(ABOUT_A_SETTING, "{setting} {message}", parts)


_KNOWN = "_known"
"""Beside the fields of a `Spec`, what has been found of them; part of no comparison, dump or copy."""
_Found = TypeVar("_Found")


class Spec(BaseModel):
    """Base of all settings: frozen, strict, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def once(self, name: Hashable, find: Callable[[], _Found]) -> _Found:
        """Return what `find` makes of these settings and nothing else: found once, as they are frozen."""
        known: dict[Hashable, Any] = self.__dict__.setdefault(_KNOWN, {})
        if name not in known:
            known[name] = find()
        found: _Found = known[name]
        return found

    def text(self, without: Iterable[str] = ()) -> str:
        """Return the canonical JSON of the settings, less some of them."""
        left_out = frozenset(without)
        name = ("text", left_out)
        return self.once(name, lambda: canonical(self.model_dump(mode="json", exclude=set(left_out))))

    def __copy__(self) -> Self:
        return _without_known(super().__copy__())  # `model_copy` changes settings in it

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return _without_known(super().__deepcopy__(memo))

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {k: v for k, v in state["__dict__"].items() if k != _KNOWN}}


_AnySpec = TypeVar("_AnySpec", bound=Spec)


def _without_known(copied: _AnySpec) -> _AnySpec:
    copied.__dict__.pop(_KNOWN, None)
    return copied


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)


def canonical(value: Any) -> str:
    """Return a value's JSON, the same for equal values: keys in order, no spaces."""
    return _CANONICAL.encode(value)


def content_hash(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return _hash_of(canonical(value))


def list_hash(texts: Iterable[str]) -> str:
    """Return the `content_hash` of a list whose entries are given as their canonical JSON."""
    return _hash_of(f"[{','.join(texts)}]")


def object_hash(texts: Mapping[str, str]) -> str:
    """Return the `content_hash` of a mapping whose values are given as their canonical JSON."""
    return _hash_of(object_text(texts))


def object_text(texts: Mapping[str, str]) -> str:
    """Return the canonical JSON of a mapping whose values are given as theirs."""
    return f"{{{','.join(f'{canonical(name)}:{texts[name]}' for name in sorted(texts))}}}"


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_null(settings: Any, *names: str) -> Any:
    """Leave these settings out of written ones where they are null; a copy may hold what is no settings."""
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in names or value is not None}


def _name_only(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class AttentionSpec(Spec):
    """An attention backend and its options; `softmax` is short for `{name: softmax}`."""

    name: str
    """Name of a backend, as `attnbench list backends` shows it."""
    options: dict[str, Any] = {}
    """Options of that backend, as `attnbench show NAME` shows them."""
    label: str | None = None
    """How reports call it; by default the name and the options."""

    @field_validator("label")
    @classmethod
    def _can_be_read(cls, label: str | None) -> str | None:
        if label and not label.strip():
            raise ValueError("must have a character that can be seen; leave it out for the default")
        return label

    @property
    def title(self) -> str:
        """How reports call this attention."""
        if self.label:
            return self.label
        shown = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({shown})" if shown else self.name


Attention = Annotated[AttentionSpec, BeforeValidator(_name_only)]


class MoeSpec(Spec):
    """A mixture of experts, each an MLP. The defaults are those of DiffMoE's released configurations."""

    routing: Literal["diffmoe", "token-choice"] = "diffmoe"
    """`diffmoe`: experts take the tokens of a whole batch that want them most; outside training a predictor
    says how many of each image. `token-choice`: every token takes `capacity` experts."""
    num_experts: int = Field(default=8, ge=2)
    """Experts of a block."""
    capacity: float = Field(default=1.0, gt=0)
    """Experts that a token takes: on average for diffmoe, a whole number for token-choice. At 1 the experts
    take as many multiply-adds as one MLP."""
    every_block: bool = False
    """Experts in every block; false: in the second, the fourth and so on, an MLP in the others."""
    predictor_weight: float = Field(default=1.0, ge=0)
    """Weight of the predictor's loss in diffmoe; it trains the predictor alone."""
    threshold_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the moving average that the predictor's thresholds are."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the load-balance loss of token-choice; 0 is off."""

    @model_validator(mode="after")
    def _fits(self) -> MoeSpec:
        if self.capacity > self.num_experts:
            raise about("capacity", f"exceeds num_experts {self.num_experts}, got {self.capacity:g}")
        if self.routing == "token-choice" and self.capacity != int(self.capacity):
            raise about(
                "capacity",
                f"of token-choice is a whole number of experts, got {self.capacity:g}; choose "
                f"{max(1, int(self.capacity))}, or routing: diffmoe",
            )
        other = {"diffmoe": ("balance_weight",), "token-choice": ("predictor_weight", "threshold_decay")}
        for name in other[self.routing]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise about(name, f"does nothing with routing {self.routing}; leave it out")
        return self


class FfnSpec(Spec):
    """The feed-forward network of a block."""

    kind: Literal["mlp", "glumbconv", "swiglu", "moe"] = "mlp"
    """`mlp`: Linear, tanh-GELU, Linear (DiT). `glumbconv`: Sana's Mix-FFN with a depthwise 3x3.
    `swiglu`: SiLU(gate) * value, three matrices without bias (DiG). `moe`: a mixture of MLPs (DiffMoE)."""
    ratio: float = Field(default=4.0, gt=0)
    """Hidden width over dim."""
    hidden: PositiveInt | None = None
    """Hidden width itself; null: ratio x dim, rounded down."""
    moe: MoeSpec | None = None
    """Of kind moe: its experts; ratio and hidden are those of one expert."""

    @model_validator(mode="before")
    @classmethod
    def _experts_by_default(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("kind") == "moe" and settings.get("moe") is None:
            return {**settings, "moe": {}}
        return settings

    @model_validator(mode="after")
    def _experts_of_a_mixture(self) -> FfnSpec:
        if self.moe is not None and self.kind != "moe":
            raise about("moe", f"does nothing with kind {self.kind}; leave it out, or set kind: moe")
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is null and newer than stored results, so that their keys and cases stay."""
        return _without_null(written(self), "moe")

    def kind_at(self, layer_idx: int) -> str:
        """Return the kind of network in block `layer_idx`: between blocks with experts there are MLPs."""
        if self.moe is not None and not self.moe.every_block and layer_idx % 2 == 0:
            return "mlp"
        return self.kind

    def hidden_width(self, dim: int) -> int:
        """Hidden width of the network in a model of width `dim`."""
        return int(self.ratio * dim) if self.hidden is None else self.hidden


class DecoupledSpec(Spec):
    """A model in two parts (DDT): the last blocks decode under what the first ones have encoded."""

    decoder_depth: PositiveInt
    """How many of the model's blocks are the decoder; each of its tokens has a modulation of its own."""


class ModelConfig(Spec):
    """One diffusion transformer, fully resolved (a recipe plus the suite's overrides)."""

    name: str
    """Name of the recipe this came from."""
    summary: str = ""
    """One line for `attnbench list models`."""
    source: str = ""
    """Where the sizes come from."""
    depth: PositiveInt
    """Number of blocks."""
    dim: PositiveInt
    """Width of the token stream."""
    num_heads: PositiveInt
    """Attention heads; divides dim."""
    patch_size: PositiveInt = 2
    """Side of a patch on the model's input."""
    input: Literal["latent", "pixel"] = "latent"
    """`latent`: an autoencoder's latent, whose side is that of the image over the autoencoder's factor (8
    where no autoencoder is named); `pixel`: the image itself."""
    in_channels: PositiveInt = 4
    """Channels of the model's input: those of the images, or of the autoencoder's latents."""
    ffn: FfnSpec = FfnSpec()
    """Feed-forward network."""
    position_embedding: Literal["sincos", "learned", "none"] = "sincos"
    """Fixed 2-D sine-cosine, learned, or none."""
    learned_variance: bool = True
    """Predict a variance beside each channel (DDPM with learned range, as in DiT)."""
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """Probability of replacing a label by the null class in training."""
    attention: Attention | list[Attention] = AttentionSpec(name="softmax")
    """One attention for all blocks, or a list of `depth` of them."""
    stream_conv: bool = False
    """A depthwise 3x3 convolution on the whole stream after each block, the identity at first (DiG)."""
    decoupled: DecoupledSpec | None = None
    """Encoder and decoder, as in DDT; null: one stack of blocks, as in DiT."""
    size: str = ""
    """S, B or L where the paper names a size."""
    published: dict[Table, float | None] = {}
    """Rows of arXiv:2601.13683 this recipe stands for, and the GFLOPs printed there (null: none)."""
    origin: dict[str, str] = {}
    """Where each choice comes from: `paper`, `public code`, `inferred` or `ours`, and a remark."""

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelConfig:
        if self.dim % self.num_heads:
            raise about("num_heads", f"must divide dim, got dim={self.dim}, num_heads={self.num_heads}")
        if self.position_embedding == "sincos" and self.dim % 4:
            raise about("dim", f"must be divisible by 4 for the sine-cosine embedding, got {self.dim}")
        if isinstance(self.attention, list) and len(self.attention) != self.depth:
            raise about(
                "attention", f"lists one entry per block: got {len(self.attention)} for depth {self.depth}"
            )
        if self.decoupled is not None and self.decoupled.decoder_depth >= self.depth:
            raise about(
                "decoupled",
                f"leaves no encoder: decoder_depth {self.decoupled.decoder_depth} of depth {self.depth}; "
                "choose fewer",
            )
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is null and newer than stored results, so that their keys and cases stay."""
        return _without_null(written(self), "decoupled")

    @field_validator("origin")
    @classmethod
    def _name_an_origin(cls, origin: dict[str, str]) -> dict[str, str]:
        for setting, said in origin.items():
            if said.split(":")[0] not in ORIGINS:
                raise ValueError(
                    f"{setting}: starts with one of {', '.join(ORIGINS)} and a colon, got {said!r}"
                )
        return origin

    def content(self) -> dict[str, Any]:
        """Return what a result depends on: everything but names, labels and remarks."""
        model = self.model_dump(
            mode="json", exclude={"name", "summary", "source", "size", "published", "origin"}
        )
        attention = model["attention"]
        for spec in attention if isinstance(attention, list) else [attention]:
            del spec["label"]
        return model

    def content_text(self) -> str:
        """Return `content` as canonical JSON."""
        return self.once("content", lambda: canonical(self.content()))

    @property
    def encoder_depth(self) -> int:
        """How many blocks come before the decoder's: all of them, where the model is not decoupled."""
        return self.depth - (0 if self.decoupled is None else self.decoupled.decoder_depth)

    def attention_names(self) -> set[str]:
        """Return the names of all backends in use."""
        return {self.attention_at(layer_idx).name for layer_idx in range(self.depth)}

    def attention_at(self, layer_idx: int) -> AttentionSpec:
        """Return the attention of block `layer_idx`."""
        return self.attention[layer_idx] if isinstance(self.attention, list) else self.attention


class DigitsData(Spec):
    """scikit-learn's 1,797 scanned handwritten digits, 8x8 grey, 10 classes."""

    name: Literal["digits"] = "digits"

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return 8


class PhotoPatchesData(Spec):
    """Square crops of the colour photographs that scikit-image and scikit-learn ship."""

    name: Literal["photo-patches"] = "photo-patches"
    image_size: Literal[16, 32] = 16
    """Side of a crop in pixels."""
    crops_per_class: PositiveInt = 1000
    """Training crops per photograph; a quarter as many are held out."""


class CodecSpec(Spec):
    """A latent autoencoder of diffusers' format: in a folder (`path`) or on the Hugging Face hub (`hub`)."""

    kind: Literal["autoencoder-kl", "autoencoder-tiny", "autoencoder-dc"] = "autoencoder-kl"
    """Class in diffusers: AutoencoderKL, AutoencoderTiny or AutoencoderDC (Sana's). Factor, channels, scale
    and shift of the latents are what its config.json says, with diffusers' defaults."""
    path: Path | None = Field(default=None, strict=False)
    """Folder with config.json and weights (save_pretrained), or, for autoencoder-tiny, with TAESD's released
    taesd_encoder.safetensors and taesd_decoder.safetensors."""
    hub: str | None = None
    """Repository on the hub, OWNER/NAME; the stage `prepare` fetches it into the hub's cache, once."""
    subfolder: str | None = None
    """Folder inside that repository, such as `vae`; null: its top."""
    revision: str | None = None
    """Branch, tag or commit of that repository; null: main, as it was when it was fetched."""

    @model_validator(mode="after")
    def _one_source(self) -> CodecSpec:
        if (self.path is None) == (self.hub is None):
            got = "neither" if self.path is None else "both"
            raise ValueError(
                f"takes either path (a folder) or hub (OWNER/NAME on the Hugging Face hub), got {got}"
            )
        if self.hub is not None and not HUB_NAME.fullmatch(self.hub):
            raise about("hub", f"must be a repository on the hub, OWNER/NAME, got {self.hub!r}")
        for name in ("subfolder", "revision"):
            value = getattr(self, name)
            if value is not None and self.hub is None:
                raise about(name, "is for hub alone, got path, too; remove it")
            if value is not None and not HUB_PART.fullmatch(value):
                raise about(name, f"must be plain names, with / between them, got {value!r}")
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is null, so that the content of a codec in a folder is its kind and path alone."""
        return {name: value for name, value in written(self).items() if value is not None}


class UserImages(Spec):
    """What datasets in a folder of the user's have in common."""

    path: Path = Field(strict=False)
    """The user's folder."""
    codec: CodecSpec | None = None
    """Latent autoencoder; required by recipes with `input: latent`."""


class ImageFolderData(UserImages):
    """The user's own images: `path/<class>/<image>`."""

    name: Literal["image-folder"] = "image-folder"
    path: Path = Field(strict=False)
    """Folder with one sub-folder per class."""
    image_size: PositiveInt = 256
    """Images are resized and centre-cropped (ADM's way) to this side in pixels."""
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Part of each class kept out of training, chosen by hash of the file name."""


class PreparedData(UserImages):
    """A training set that `attnbench data prepare` has written: cropped once, read without decoding."""

    name: Literal["prepared"] = "prepared"
    path: Path = Field(strict=False)
    """Folder that `attnbench data prepare SOURCE --to FOLDER` has written."""
    image_size: PositiveInt = 256
    """Side in pixels, as given to `attnbench data prepare --image-size`."""


DataSpec = Annotated[
    DigitsData | PhotoPatchesData | ImageFolderData | PreparedData, Field(discriminator="name")
]


class GrowthSpec(Spec):
    """How a deeper model starts from a shallower one's weights (growth of depth, Sana 1.5)."""

    strategy: Literal["preserve", "cyclic", "expand"] = "preserve"
    """`preserve`: the source's blocks, then fresh ones. `cyclic`: the source's blocks again and again, in
    their order. `expand`: after each of the source's blocks its copies."""
    keep: PositiveInt | None = None
    """Take the first so many blocks of the source; null: all. With fewer than all, the model does not compute
    at first what the source does (Sana 1.5 keeps 18 of 20)."""
    identity: bool = True
    """New blocks let the stream through unchanged at first, so that the model computes exactly what its
    source does. False: copies work at once; not for `preserve`, whose fresh blocks begin as DiT's do."""

    @model_validator(mode="after")
    def _fresh_blocks_are_identities(self) -> GrowthSpec:
        if self.strategy == "preserve" and not self.identity:
            raise about(
                "identity",
                "is true for strategy preserve, whose fresh blocks have DiT's zero gates; leave it out, or "
                "choose strategy: cyclic or expand",
            )
        return self


class TeacherSpec(Spec):
    """A trained model that another one is converted from: where it is, what is inherited, what is matched.

    Sources: LiT arXiv:2501.12976 (inherit all but the attention; noise 0.5, variance 0.05, everything
    trained); LinFusion arXiv:2409.02097 and its released code (noise 0.5, features 0.5 of the attention's
    outputs, the rest frozen).
    """

    model: Path | None = Field(default=None, strict=False)
    """A folder of `attnbench export`, `import` or `transfer`, or a finished case of a run as RUN:CASE (the
    run's folder, a label or id)."""
    case: dict[str, Any] | None = Field(default=None, min_length=1)
    """In place of model: a case of this suite by its place in the matrix, as in {model.attention: softmax,
    train.steps: 250}; on the axes not named the student's own place, without a teacher. Trained first."""
    label: str | None = None
    """How labels and reports call a case that is taught; by default `converted`."""
    inherit: Literal["none", "rest", "rest-and-projections"] = "rest"
    """What starts as the teacher's weights: `rest`: everything but the attention; `rest-and-projections`: all
    that `attnbench transfer` copies, its query, key, value and output projections too."""
    rest: Literal["trained", "frozen"] = "trained"
    """`frozen`: what was inherited outside the attention stays as it is."""
    noise: float = Field(default=0.5, ge=0)
    """Weight of the mean squared distance to the teacher's noise (under `flow`: its velocity)."""
    variance: float = Field(default=0.0, ge=0)
    """The same of the variance that a DDPM with learned variance predicts, as the network's output, before it
    is put between its bounds. LiT: 0.05."""
    features: float = Field(default=0.0, ge=0)
    """The same of what `features_of` names, mean over blocks."""
    features_of: Literal["attention", "block"] = "attention"
    """`attention`: output of each block's attention; `block`: the tokens that leave each block."""

    @field_validator("model", mode="before")
    @classmethod
    def _names_a_place(cls, model: Any) -> Any:
        if isinstance(model, str) and not model.strip():
            raise ValueError("is a folder, or a run's case as RUN:CASE, got an empty text; name one")
        return model

    @model_validator(mode="after")
    def _does_something(self) -> TeacherSpec:
        if (self.model is None) == (self.case is None):
            got = "neither" if self.model is None else "both"
            raise about("model", f"(a folder, or RUN:CASE) or case (of this suite): one of them, got {got}")
        if self.inherit == "none" and not self.is_asked:
            raise about(
                "noise", "variance and features are all 0 and inherit is none, so the teacher would do "
                "nothing; give one of them a weight, or remove train.teacher"
            )  # fmt: skip
        if self.inherit == "none" and self.rest == "frozen":
            raise about("rest", "frozen needs something inherited, got inherit: none; set inherit: rest")
        return self

    @property
    def is_asked(self) -> bool:
        """Whether the teacher makes a forward pass in each step."""
        return max(self.noise, self.variance, self.features) > 0


class TrainSpec(Spec):
    """How every case is trained; AdamW with betas (0.9, 0.999)."""

    init_from: Path | None = Field(default=None, strict=False)
    """Start from these weights: a folder of `attnbench export`, `import` or `transfer`; null: random."""
    growth: GrowthSpec | None = None
    """The model is deeper than that of init_from: how its blocks start from the fewer there; null: it is of
    the same depth."""

    teacher: TeacherSpec | None = None
    """A trained model to convert: its weights inherited, its outputs matched; null: none."""
    objective: Literal["ddpm", "flow"] = "ddpm"
    """`ddpm`: epsilon (and learned range variance), as in DiT; `flow`: rectified flow velocity."""
    steps: PositiveInt = 100_000
    """Optimizer steps."""
    batch_size: PositiveInt = 256
    """Images per step, over all processes and micro-batches."""
    grad_accumulation: PositiveInt = 1
    """Micro-batches per step; must divide batch_size. Saves memory; the gradient is that of the whole batch
    but for rounding, except where an attention uses statistics of its batch (BatchNorm, balancing losses)."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate after warm-up; constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Clip the gradient's global norm; null: off, as in DiT."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the weight average that is sampled from (buffers too)."""
    ema_warmup: bool = False
    """Average with decay (1+s)/(10+s) at step s while that is less: for trainings of a few hundred steps."""
    extra_ema_decays: list[Annotated[float, Field(ge=0, lt=1)]] = []
    """Further averages of the same training, each kept in `ema-DECAY.safetensors` beside `ema.safetensors`;
    nothing is sampled from them."""
    horizontal_flip: bool | None = None
    """Random flips; null: on for photographs, off where a mirrored class is another (digits)."""
    timestep_density: Literal["uniform", "logit-normal"] = "uniform"
    """Density of training times for `flow`."""
    precision: Precision = "fp32"
    """`bf16`: autocast of the forward pass; weights and optimizer stay fp32."""
    compile: bool = False
    """torch.compile of the model in training; worth its minute on a GPU, rarely on a CPU."""
    activation_checkpointing: bool = False
    """Compute each block's activations twice instead of keeping them: less memory, the same numbers."""
    sharding: Literal["none", "fsdp2"] = "none"
    """With several processes: `none`: each holds all weights (DDP); `fsdp2`: weights, gradients, averages and
    optimizer state are cut over them, for models that outgrow a GPU (torch 2.13). Changes no number beyond
    rounding."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A checkpoint when the last one is this old; a killed run resumes from it, to the same bits."""
    checkpoint_every: PositiveInt | None = None
    """A checkpoint also every so many steps; null: by the clock alone."""
    log_every: PositiveInt = 50
    """Steps between points of the loss curve (means over the interval)."""
    log: list[Literal["jsonl", "tensorboard"]] = ["jsonl"]
    """What is written beside the weights: `jsonl`: train.jsonl; `tensorboard`: event files (needs the
    package tensorboard)."""
    held_out_every: PositiveInt = 5000
    """Steps between measurements of the denoising loss on held-out images; there is one at the end, too."""
    held_out_images: int = Field(default=256, ge=0)
    """At most so many held-out images, fewer where they would cost more than 1 % of the training; 0: off."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is null and newer than stored results, so that their keys and cases stay."""
        return _without_null(written(self), "growth", "teacher")

    @model_validator(mode="after")
    def _growth_has_a_source(self) -> TrainSpec:
        if self.growth is not None and self.init_from is None:
            raise about("growth", "needs weights to grow from: name their folder in train.init_from")
        return self

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainSpec:
        if self.batch_size % self.grad_accumulation:
            raise about(
                "batch_size",
                f"{self.batch_size} is no multiple of grad_accumulation {self.grad_accumulation}; change one "
                "of them",
            )
        if self.compile and self.activation_checkpointing:
            raise about(
                "compile",
                "and activation_checkpointing do not go together: set one of them to false; "
                "grad_accumulation saves memory, too",
            )
        if self.init_from is not None and self.teacher is not None and self.teacher.inherit != "none":
            raise about(
                "init_from",
                f"and teacher.inherit: {self.teacher.inherit} both give the first weights; set "
                "teacher.inherit: none, or remove init_from",
            )
        if self.compile and self.teacher is not None and self.teacher.features > 0:
            raise about(
                "compile",
                "and teacher.features do not go together: what leaves a block is heard between its layers, "
                "which a compiled model does not have; set compile: false, or features: 0",
            )
        decays = [self.ema_decay, *self.extra_ema_decays]
        if len(set(decays)) < len(decays):
            raise about("ema_decay", f"and extra_ema_decays must differ from one another, got {decays}")
        return self

    def start_left_in(self, decay: float) -> float:
        """Return which share of an average, after all steps, is still the weights it began with."""
        if not self.ema_warmup:
            return decay**self.steps
        share = 1.0
        for step in range(self.steps):
            share *= min(decay, (1 + step) / (10 + step))
            if share < MUCH_OF_ITS_START:
                break
        return share

    def warnings(self) -> Iterator[str]:
        """Yield what these settings do that nobody wants and no error tells, with the numbers."""
        start = "random weights" if self.init_from is None else "the weights of train.init_from"
        if self.teacher is not None and self.teacher.inherit != "none":
            start = "what was inherited and random weights"
        for decay in (self.ema_decay, *self.extra_ema_decays):
            share = self.start_left_in(decay)
            if share >= MUCH_OF_ITS_START:
                setting, what = "extra_ema_decays", "this average"
                if decay == self.ema_decay:
                    setting, what = "ema_decay", "the average that is sampled from"
                power = f" ({decay}^{self.steps} = {share:.3f})" if not self.ema_warmup else ""
                yield (
                    f"train.{setting} {decay}: after train.steps {self.steps:,}, {what} is still "
                    f"{100 * share:.0f} % its start, {start}{power}; set ema_warmup: true, "
                    f"a decay of {max(0.0, 1 - 5 / self.steps):.4g}, or more steps"
                )
        if self.warmup_steps > self.steps:
            yield (
                f"train.warmup_steps {self.warmup_steps:,} exceeds train.steps {self.steps:,}: the learning "
                f"rate ends at {100 * self.steps / self.warmup_steps:.0f} % of train.lr; set fewer"
            )
        if self.lr >= 0.1:
            yield (
                f"train.lr {self.lr:g}: a step of AdamW moves every weight by about that, which is more than "
                "the weights of a layer are at the start (0.05 at width 384); set 1e-4 to 4e-3"
            )


class SampleSpec(Spec):
    """How images are drawn; noise is keyed by (seed, sample index)."""

    sampler: Literal["ddpm", "ddim", "dpm-solver++", "euler", "heun"] = "ddpm"
    """For objective ddpm: `ddpm` (ancestral), `ddim`, `dpm-solver++` (2M); for flow: `euler`, `heun`."""
    num_steps: PositiveInt = 250
    """Model evaluations per image (x2 with guidance), whatever the sampler: `heun` takes an odd number, since
    it makes two for each of its steps but the last."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Classifier-free guidance; 1 is off."""
    guidance_channels: Literal["all"] | PositiveInt = "all"
    """Guide all latent channels or the first n (DiT's released code guides 3 of 4)."""
    per_class: PositiveInt = 50
    """Images per class; on average where labels are random."""
    labels: Literal["balanced", "random"] = "balanced"
    """`balanced`: of K classes sample i has class i mod K; `random`: uniform, keyed by (seed, i)."""
    batch_size: PositiveInt = 100
    """Images per model call; changes no picture."""
    precision: Precision = "fp32"
    """Precision of the model calls."""
    compile: bool = False
    """Compile the model (torch.compile) before sampling: the same images but for rounding."""
    noise: Literal["box-muller", "ziggurat"] = UNWRITTEN_NOISE
    """How Philox's words become normal numbers: `box-muller`, a batch at a time, on a GPU there; `ziggurat`,
    image by image on the CPU, as versions before this setting did. Two cases have the same noise only where
    this is the same; to go on with samples that such a version has drawn, set `ziggurat`."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the noise of versions that had one kind of it, so that their keys and cases stay."""
        settings: dict[str, Any] = written(self)
        return {k: v for k, v in settings.items() if (k, v) != ("noise", UNWRITTEN_NOISE)}


class EvaluateSpec(Spec):
    """What is computed on the samples."""

    extractor: str = "efficientnet-lite0"
    """Feature network, as `attnbench list extractors` shows it."""
    weights: Path | None = Field(default=None, strict=False)
    """Weights file of that network, where it needs the user's."""
    protocol: Protocol = "adm"
    """How images are resized for the network: `adm` as the network does itself, `clean` as clean-fid does."""
    metrics: list[Metric] = ["fd", "sfd", "kd", "skd", "is", "precision", "recall"]
    """Frechet and kernel distance (`s`: on spatial features), inception score, precision, recall."""
    reference: Literal["train", "held-out"] = "train"
    """The real images compared with; the other part is the floor."""
    reference_images: PositiveInt = 10_000
    """At most so many of them, drawn by hash, for kernel distances, precision and recall (ADM's protocol);
    the Gaussians of the Frechet distances are of all."""
    class_accuracy: bool = True
    """Class accuracy of the conditional samples by a classifier trained on the training part."""
    kd_subsets: PositiveInt = 100
    """Subsets of the kernel distance."""
    kd_subset_size: PositiveInt = 1000
    """Images per subset; must not exceed either set."""
    neighbours: PositiveInt = 3
    """k of precision and recall."""
    is_order: Literal["permuted", "given"] = "permuted"
    """Splits of the inception score: after a seeded permutation, or in the order given (ADM's code)."""
    per_class: bool = False
    """Kernel distance, precision and recall of each class, too."""


class ProfileSpec(Spec):
    """What is measured of each case's cost, all cases interleaved in one session."""

    resolutions: list[PositiveInt] | None = None
    """Sides in pixels of the decoded image; null: the data's."""
    measure: list[Measure] = ["macs", "params", "latency", "memory"]
    """Quantities. `memory-plan` is the memory that fake tensors take, nothing run; `roofline` the bytes that
    a pass must move and its share of what the machine can do; `energy` is CUDA's."""
    mode: Mode = "forward"
    """What is timed: a forward pass, a training step (with backward and AdamW), a guided sampler step."""
    scope: Scope = "model"
    """Of what: the attention or the whole of the middle block, the model, or the model with its decoder."""
    batch_size: PositiveInt = 1
    """Images per pass for latency and memory."""
    rounds: int = Field(default=6, ge=1)
    """Interleaved rounds of the latency measurement, at least; below 6 there is no 95 % interval. Where all
    passes are short (below 50 ms, CPU), two and a half times as many, by five processes."""
    interval: float = Field(default=0.05, gt=0)
    """Where passes are longer, more rounds until the 95 % interval of the median is this share of it wide."""
    precision: Precision | None = None
    """As in training and sampling: weights in fp32, bf16 by autocast; null: what the mode is run in."""
    threads: PositiveInt | None = None
    """CPU threads of a pass; null: as many as are free and of use."""
    compile: bool = False
    """Compile what is timed; its compile time is a quantity of its own."""
    cuda_graphs: bool = False
    """Replay a captured CUDA graph: without the launches, as a server would."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Time limit of one row: no round is begun beyond it, and a row with too few rounds is skipped."""

    @model_validator(mode="after")
    def _goes_together(self) -> ProfileSpec:
        if self.mode == "sample" and self.scope in ("attention", "block"):
            words = "does not go with mode sample, which runs whole models; use model"
            raise about("scope", f"{self.scope} {words}")
        if self.mode == "train" and self.scope == "end-to-end":
            raise about("scope", "end-to-end does not go with mode train, which decodes no images; use model")
        return self

    def text_in_ids(self) -> str:
        """Return the settings as ids of cases hold them, as canonical JSON."""
        return self.once("in ids", lambda: canonical(self._in_ids()))

    def _in_ids(self) -> dict[str, Any]:
        settings = self.model_dump(mode="json")
        for name, known_as in _PROFILE_IN_IDS.items():
            if settings[name] == type(self).model_fields[name].default:
                settings.pop(name)
                settings |= {} if known_as is None else {name: known_as}
        return settings


class DiagnoseSpec(Spec):
    """What is looked at inside the trained model, after everything else; no other stage depends on it."""

    images: PositiveInt = 64
    """Training images that are noised and shown to the model, classes in turn; all where there are fewer."""
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]] = Field(default=[100, 500, 900], min_length=1)
    """Noise levels as the model is told them, 0 (clean) to 999; under `flow` 1000 times the time."""
    map_images: PositiveInt = 8
    """Of so many of these images, at most, the attention maps are found."""
    queries: PositiveInt = 64
    """Of so many output tokens, at most, evenly spaced; their weights over all input tokens."""

    @model_validator(mode="after")
    def _once_each(self) -> DiagnoseSpec:
        if len(set(self.timesteps)) < len(self.timesteps):
            raise about("timesteps", f"must differ from one another, got {self.timesteps}")
        return self


_PROFILE_IN_IDS: dict[str, Any] = {
    "rounds": 5,
    "precision": "fp32",
    **dict.fromkeys(("mode", "scope", "interval", "threads", "compile", "cuda_graphs")),
}
"""What ids of cases hold for a default that is newer than they are, or None: nothing. So the ids of results
that are there stay; the key of a profile's session holds the settings themselves."""


class TeacherOrigin(Spec):
    """The model that teaches a case, as it was found when the suite was checked."""

    identity: str
    """SHA-256 of its weights; of a case of the same suite, whose weights there may not be yet, the key of its
    training, which the weights follow from. Part of the key of what it teaches."""
    folder: Path | None = Field(default=None, strict=False)
    """The exported folder, absolute; None: a case."""
    store: Path | None = Field(default=None, strict=False)
    """The store of a case of another run, absolute; None: the student's own."""
    case: Case | None = None
    """The training; None: an exported folder."""
    exported: ModelConfig | None = None
    """The model of an exported folder."""

    @property
    def model(self) -> ModelConfig:
        """Its model."""
        model = self.exported if self.case is None else self.case.model
        assert model is not None
        return model

    @property
    def trains_here(self) -> Case | None:
        """Return the case of the student's own run that has to be trained first, or None."""
        return self.case if self.store is None else None


class Case(Spec):
    """One resolved case of a suite. Its identity is its content, not its label."""

    suite: str
    question: str = ""
    label: str
    axes: dict[str, str] = {}
    """Matrix coordinates, as reports show them."""
    exceptions: tuple[str, ...] = ()
    """What the suite sets for this case only, with the reason."""
    seed: int
    code: dict[str, str] = {}
    """Fingerprints of the attention backends' sources: results of changed code are not reused."""
    initial: str = ""
    """Fingerprint of the weights in train.init_from: a training from other weights is another training."""
    teacher: TeacherOrigin | None = None
    """Who train.teacher is; None: nobody, or not there yet."""
    model: ModelConfig
    data: DataSpec
    train: TrainSpec
    sample: SampleSpec
    evaluate: EvaluateSpec
    profile: ProfileSpec
    diagnose: DiagnoseSpec | None = None
    """None: not asked for. No part of the id: it changes no other number."""

    @model_serializer(mode="wrap")
    def _what_is_asked(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what nobody asks for, so that cases read as they did before there was a word for it."""
        settings: dict[str, Any] = written(self)
        unasked = ("diagnose", "teacher")
        return {name: value for name, value in settings.items() if name not in unasked or value is not None}

    @property
    def id(self) -> str:
        """Hash of everything that can change a result."""
        return self.once("id", self._id)

    def _id(self) -> str:
        costs = object_text(self._cost_texts(self.profile.text_in_ids()))
        return list_hash([canonical(self.key("evaluate")), costs])

    def key(self, stage: Literal["prepare", "train", "sample", "evaluate", "diagnose"]) -> str:
        """Return the content address of one stage: its own settings and everything upstream."""
        return self.once(stage, lambda: list_hash(self._key_texts(stage)))

    def _key_texts(self, stage: Literal["prepare", "train", "sample", "evaluate", "diagnose"]) -> list[str]:
        """Return what a key is the hash of, each entry as canonical JSON."""
        texts = [canonical(FORMAT), self.data.text()]
        if stage == "prepare":
            return texts
        # `initial` stands for train.init_from
        texts += [canonical(self.seed), canonical(self.initial), self.model.content_text()]
        texts += [self._code_text(), self._training_text()]
        if self.train.teacher is not None:
            texts.append(canonical(self.teacher.identity if self.teacher is not None else ""))
        if stage == "train":
            return texts
        if stage == "diagnose":
            asked = canonical(None) if self.diagnose is None else self.diagnose.text()
            return [*texts, canonical("diagnose"), canonical(DIAGNOSE_FORMAT), asked]
        texts.append(self.sample.text(_OUTSIDE_SAMPLES))
        return texts if stage == "sample" else [*texts, self.evaluate.text()]

    def _code_text(self) -> str:
        return self.once("code", lambda: canonical(self.code))

    def _training_text(self) -> str:
        """Return the settings of the training; of a teacher what is asked of it: who it is comes after it."""
        left_out = _OUTSIDE_TRAINING
        if self.train.teacher is None:
            return self.train.text(left_out)
        settings = self.train.model_dump(mode="json", exclude=set(left_out))
        for name in ("model", "case", "label"):  # where it lies and what it is called
            del settings["teacher"][name]
        return canonical(settings)

    def outside_key(self, stage: Literal["train", "sample"]) -> dict[str, Any]:
        """Return the settings of a stage that its key leaves out."""
        settings: Spec = getattr(self, stage)
        outside = OUTSIDE_KEY[stage]
        return dict(settings.once("outside", lambda: settings.model_dump(mode="json", include=outside)))

    def cost_key(self, **further: Any) -> str:
        """Return the content address of this case's cost: of everything that can change it."""
        named = {name: canonical(value) for name, value in further.items()}
        return object_hash(self._cost_texts(self.profile.text()) | named)

    def _cost_texts(self, profile: str) -> dict[str, str]:
        model = self.model.content_text()
        return {"code": self._code_text(), "data": self.data.text(), "model": model, "profile": profile}


TeacherOrigin.model_rebuild()  # a teacher may be a case, and a case may have a teacher
FORMAT = 2  # raised when a stage's meaning changes, so that old artefacts are not reused
DIAGNOSE_FORMAT = 1  # likewise, of the stage `diagnose` alone
