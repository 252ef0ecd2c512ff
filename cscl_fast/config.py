"""The configuration of a run: typed dataclasses, nothing else.

Every field is a key of the command line (`--adaptation.gamma 0.25`) and of a configuration file
(`adaptation: {gamma: 0.25}`). A preset (`presets.py`) is a value of `Config`, not a subclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from cscl_fast.data.config import DatasetConfig

Part = Literal["transfer", "pseudo-labels", "divergence"]
PresetName = Literal[
    "demo",
    "small",
    "gta5-cityscapes",
    "gta5-cityscapes-vgg16",
    "synthia-cityscapes",
    "synthia-cityscapes-vgg16",
    "cityscapes-rome",
    "cityscapes-rio",
    "cityscapes-tokyo",
    "cityscapes-taipei",
]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and what it needs."""


@dataclass
class ModelConfig:
    architecture: Literal[
        "deeplabv2-resnet18",
        "deeplabv2-resnet50",
        "deeplabv2-resnet101",
        "deeplabv2-resnet101-caffe",
        "fcn8s-vgg16",
    ] = "deeplabv2-resnet101"
    """Encoder and pixel classifier."""
    init: str = "imagenet"
    """Weights to start from: imagenet, none, or the path of a checkpoint."""
    batchnorm_affine: Literal["auto", "frozen", "trained"] = "auto"
    """Scale and shift of the batch normalisations; auto freezes them with pretrained weights."""
    activation_checkpointing: bool = False
    """Compute the encoder's activations again in the backward pass: less memory, more time."""


@dataclass
class OptimizerConfig:
    """One schedule for both phases: SGD or Adam with polynomial decay."""

    name: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the encoder and the classifier."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of the encoder and the classifier (Adam: as an L2 term, as SGD's)."""
    classifier_factor: float = 10.0
    """The classifier learns this many times faster than the encoder."""
    power: float = 0.9
    """Exponent of the polynomial decay (1 - step/steps)^power."""
    clip_norm: float = 0.0
    """Largest gradient norm of encoder and classifier; 0 does not clip."""
    implementation: Literal["auto", "fused", "foreach", "loop", "apex"] = "auto"
    """auto: PyTorch's fused step where the device has one, else foreach; apex: NVIDIA Apex's."""


@dataclass
class WarmupConfig:
    """Source-only training before the adaptation."""

    steps: int = 20000
    """Optimizer steps on labelled source images."""
    batch_size: int = 1
    learning_rate: float = 2.5e-4


@dataclass
class LossWeights:
    """Weights of the objective, Eq. 14: L_seg + L_reg + xi1 L_cri + xi2 L_adv + xi3 L_div."""

    regression: float = 1.0
    """L_reg, the critic's own regression (Eq. 6)."""
    critic: float = 0.3
    """xi1: L_cri (Eq. 5), what the critic tells the quantizer."""
    adversarial: float = 1e-3
    """xi2: L_adv (Eq. 1), the encoder's adversarial term."""
    divergence: float = 10.0
    """xi3: L_div (Eq. 13), the symmetric soft divergence of the class centroids."""
    target: float = 1.0
    """The self-training loss on the target domain (second term of Eq. 7)."""


@dataclass
class AdaptationConfig:
    """CSCL on source and target images, after the warm-up."""

    epochs: int = 4
    """Each epoch begins with new thresholds (Algorithm 1)."""
    steps: int = 2975
    """Optimizer steps an epoch."""
    batch_size: int = 1
    """Source images and target images a step, each."""
    learning_rate: float = 2.5e-4
    """Of the encoder (classifier: times optimizer.classifier_factor)."""
    schedule: Literal["joint", "alternating"] = "joint"
    """joint: one trained forward per image and step; alternating: Algorithm 2, line by line."""
    labels: Literal["snapshot", "ema", "live"] = "snapshot"
    """Which network gives the pseudo-labels."""
    thresholds: Literal["epoch", "online"] = "epoch"
    """epoch: a pass over the target set at each start; online: from the training steps."""
    online_window: int = 500
    """Steps that the online thresholds look back."""
    gamma: float = 0.25
    """Sharpness of the soft pseudo-labels (Eq. 8)."""
    portion: float = 0.35
    """S_A of the first epoch: the share of each class's pixels that is selected."""
    portion_step: float = 0.05
    """S_A grows by this an epoch ..."""
    portion_max: float = 0.5
    """... up to this."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are always evaluated; labels="ema" comes from them."""
    bn: Literal["per-domain", "shared", "frozen"] = "per-domain"
    """per-domain: the running statistics are the target's alone; shared: both domains move them;
    frozen: nothing moves them, and training normalises by them as evaluation does."""
    bn_batches: int = 100
    """Random target batches for new statistics at the start; 0 keeps the source's."""
    normalise: Literal["softmax", "l1"] = "softmax"
    """How a centroid becomes a distribution over its channels."""
    centroid_momentum: float = 0.0
    """Above 0: running class centroids, for batches too small to show every class."""
    discriminator_strides: tuple[int, int, int, int, int] | None = None
    """None: so that D works at 1/32 of the image: 2 2 1 1 1 for DeepLab, 1 1 1 1 1 for FCN-8s."""
    discriminator_rate: float = 1.5e-4
    """Learning rate (Adam) of D."""
    transfer_rate: float = 1.5e-4
    """Learning rate (Adam) of T_Q and T_C."""
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass
class Config:
    """Unsupervised domain adaptation of semantic segmentation with CSCL.

    With no arguments: the demo, street scenes that the package draws itself.
    """

    preset: PresetName = "demo"
    """Where the values begin; everything else on the command line overrides it."""
    config: Path | None = None
    """YAML file with the same keys; overrides the preset, is overridden by the command line."""
    run: Path | None = None
    """Folder for configuration, CSV, checkpoints and panels; None: runs/PRESET-seedN."""
    resume: Path | None = None
    """Run folder to go on with; its configuration is used."""
    overwrite: bool = False
    """Start again in a run folder that has a run in it."""
    seed: int = 0
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the networks under autocast; losses are float32 always. float16 scales its gradients."""
    compile: bool = False
    """Compile encoder and classifier with torch.compile."""
    accumulate: int = 1
    """Batches whose gradients are added up for one optimizer step."""
    deterministic: bool = False
    """Only algorithms whose result does not change from run to run, on a GPU too; slower there."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's number."""
    workers: int = 0
    """Worker processes that load data; 0 loads in the training process."""
    cache: Literal["none", "ram", "disk"] | None = None
    """Decoded images of all three data sets; None: what each data set's own key says."""
    sync_batchnorm: bool = False
    """Several processes on GPUs: batch normalisation over the batches of all of them."""
    global_centroids: bool = False
    """Several processes: class centroids (Eq. 11-13) over the batches of all of them."""
    distributed_timeout: float = 600.0
    """Several processes: seconds to wait for another one before the run ends with a message."""
    source_only: bool = False
    """Stop after the source-only training and its evaluation."""
    without: Annotated[tuple[Part, ...], tyro.conf.arg(metavar="PART ...")] = ()
    """Ablations of the paper: transfer, pseudo-labels, divergence (any of them)."""
    evaluate_every: int = 0
    """Steps between two evaluations during the adaptation; 0: at each epoch's end."""
    evaluation_batch: int = 4
    """Images at a time where nothing is learned; 1 where images differ in size."""
    log_every: int = 10
    """Steps between two lines of the CSV."""
    save_every: int = 500
    """Steps between two checkpoints (and at each epoch's end)."""
    panels: int = 6
    """Evaluation images in the panels."""
    gap_batches: int = 8
    """Batches of each domain for the domain gap at each evaluation; 0: not measured."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    ablation: bool = False
    """A study: source only, the paper's three ablations and full CSCL, for each of the seeds."""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE,VALUE ...")] = ()
    """A study: a key of adaptation over values, xi1=0.1,0.3 or adaptation.portion=0.2,0.35."""
    seeds: tuple[int, ...] = ()
    """The seeds of a study; none given: three, from `seed` on."""
    jobs: int = 1
    """Runs of a study at a time, each a process of its own."""
    deep_check: bool = False
    """Decode every file of the data sets before the first step, not a sample."""
    model: ModelConfig = field(default_factory=ModelConfig)
    source: DatasetConfig = field(default_factory=DatasetConfig)
    target: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)

    @property
    def is_study(self) -> bool:
        """Whether this configuration is of several runs (cscl_fast/studies)."""
        return self.ablation or bool(self.sweep)

    @property
    def run_folder(self) -> Path:
        return self.run if self.run is not None else Path("runs") / f"{self.preset}-seed{self.seed}"

    def validate(self) -> None:
        """Check names against their choices, and the values that a type cannot say.

        Raises:
            ConfigError: names the key, its value and what it needs.
        """
        require_choices(self)
        a, w = self.adaptation, self.warmup
        positive = {
            "warmup.batch_size": w.batch_size,
            "warmup.learning_rate": w.learning_rate,
            "adaptation.batch_size": a.batch_size,
            "adaptation.gamma": a.gamma,
            "adaptation.online_window": a.online_window,
            "evaluation_batch": self.evaluation_batch,
            "log_every": self.log_every,
            "save_every": self.save_every,
            "accumulate": self.accumulate,
            "distributed_timeout": self.distributed_timeout,
        }
        for key, value in positive.items():
            if not value > 0:
                raise ConfigError(f"{key} is {value}; it has to be above 0")
        not_negative = {
            "warmup.steps": w.steps,
            "adaptation.epochs": a.epochs,
            "adaptation.steps": a.steps,
            "adaptation.learning_rate": a.learning_rate,
            "adaptation.bn_batches": a.bn_batches,
            "adaptation.discriminator_rate": a.discriminator_rate,
            "adaptation.transfer_rate": a.transfer_rate,
            "adaptation.portion_step": a.portion_step,
            **{f"adaptation.weights.{key}": value for key, value in vars(a.weights).items()},
            "optimizer.weight_decay": self.optimizer.weight_decay,
            "optimizer.classifier_factor": self.optimizer.classifier_factor,
            "optimizer.power": self.optimizer.power,
            "optimizer.clip_norm": self.optimizer.clip_norm,
            "seed": self.seed,
            "evaluate_every": self.evaluate_every,
            "workers": self.workers,
            "threads": self.threads,
            "panels": self.panels,
            "gap_batches": self.gap_batches,
        }
        for key, value in not_negative.items():
            if not value >= 0:
                raise ConfigError(f"{key} is {value}; it must not be negative")
        for key, share in (("portion", a.portion), ("portion_max", a.portion_max)):
            if not 0 < share <= 1:
                raise ConfigError(f"adaptation.{key} is {share}; S_A is a share in (0, 1]")
        below_one = {
            "adaptation.ema_decay": a.ema_decay,
            "adaptation.centroid_momentum": a.centroid_momentum,
            "optimizer.momentum": self.optimizer.momentum,
        }
        for key, value in below_one.items():
            if not 0 <= value < 1:
                raise ConfigError(f"{key} is {value}; it has to be in [0, 1)")
        self._validate_study()
        strides = a.discriminator_strides
        if strides is not None and any(stride not in (1, 2) for stride in strides):
            raise ConfigError(
                f"adaptation.discriminator_strides is {strides}; each stride is 1 or 2"
            )
        if a.labels == "live" and a.thresholds != "online":
            raise ConfigError(
                "adaptation.labels is live, which needs adaptation.thresholds online: with the "
                "thresholds of an epoch the kept share feeds on itself and classes collapse"
            )
        if w.steps == 0 and self.model.init == "none":
            raise ConfigError(
                "warmup.steps is 0 and model.init is none: there is nothing to adapt; "
                "train on the source first or give model.init a checkpoint"
            )

    def _validate_study(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"jobs is {self.jobs}; it is at least 1")
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}; they must differ and not be negative")
        if not self.is_study:
            for key, given in (("seeds", bool(self.seeds)), ("jobs", self.jobs > 1)):
                if given:
                    raise ConfigError(
                        f"{key} is {getattr(self, key)}; it is for a study: give ablation or sweep "
                        "too, or `seed` for a single run"
                    )
            return
        if self.source_only:
            raise ConfigError(
                "source_only is True; a study has a source-only run for each seed anyway"
            )
        if self.ablation and self.without:
            raise ConfigError(
                f"without is {self.without}; ablation leaves out each part in turn by itself"
            )
        if self.adaptation.epochs * self.adaptation.steps == 0:
            raise ConfigError(
                f"adaptation.epochs is {self.adaptation.epochs} and adaptation.steps "
                f"{self.adaptation.steps}; a study needs steps to compare"
            )


def require_choices(section: Any, prefix: str = "") -> None:
    """Refuse a value that is none of the names which its field's type lists, in every section.

    The command line does so by itself; this is for configurations that Python code makes.
    """
    hints = get_type_hints(type(section))
    for entry in fields(section):
        key, value, hint = f"{prefix}{entry.name}", getattr(section, entry.name), hints[entry.name]
        if is_dataclass(value):
            require_choices(value, f"{key}.")
        elif (names := _names(hint)) and not _may_be(value, hint):
            needed = "a tuple of any of" if get_origin(hint) is tuple else "one of"
            rest = " or a tuple" if any(get_origin(h) is tuple for h in get_args(hint)) else ""
            raise ConfigError(f"{key} is {value!r}; it is {needed} {', '.join(names)}{rest}")


def _names(hint: Any) -> list[str]:
    """The values of every Literal in a type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [name for argument in get_args(hint) for name in _names(argument)]


def _may_be(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that has names in it; what has none is not looked into."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind in (Union, UnionType):
        return any(_may_be(value, alternative) for alternative in get_args(hint))
    if kind is tuple:
        elements = get_args(hint)[0]
        return isinstance(value, tuple | list) and (
            not _names(elements) or all(_may_be(element, elements) for element in value)
        )
    return isinstance(value, kind)
