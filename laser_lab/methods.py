"""The table of methods: how to think, what to minimise, in which stages. An ablation is a row."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from laser_lab.base.inputs import check_steps


def _choice(default: str, other: str) -> Any:
    """A setting with two values."""
    return field(default=default, metadata={"choices": (default, other)})


def _weight(default: float = 0.0) -> Any:
    """A setting that weighs a term of the loss."""
    return field(default=default, metadata={"kind": "weight"})


def _share(default: float = 0.0) -> Any:
    """A setting that is a share of the training steps."""
    return field(default=default, metadata={"kind": "share"})


@dataclass(frozen=True)
class Method:
    """What every row has: K, and InfoNCE on the thinking view. ValueError: a setting is out of its range."""

    thinking_steps: int = 3
    """K; 1 is a single pass. With halting, a budget."""
    document_steps: int | None = None
    """K of documents; None: as queries."""
    contrastive: float = _weight(1.0)
    """InfoNCE on the latent view (LaSER, eq. 3)."""
    temperature: float = 0.02
    """Of InfoNCE."""
    sampling: str = _choice("pairs", "first")
    """``"pairs"``: a row per query and positive, negatives drawn; ``"first"``, as released: a row per query
    (:func:`laser_lab.training.batches.training_pairs`)."""
    lora_dropout: float = 0.0
    """Of the adapter that training adds; 0.1 as released."""

    def __post_init__(self) -> None:
        check_steps(self.thinking_steps)
        if self.document_steps is not None:
            check_steps(self.document_steps)
        for name in (f.name for f in fields(self) if f.type is float):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        weights = {name: getattr(self, name) for name in self._of_kind("weight")}
        if not all(0 <= value < float("inf") for value in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights must not be negative, and one must be positive: {weights}")
        for f in fields(self):
            if (value := getattr(self, f.name)) not in (choices := f.metadata.get("choices", (value,))):
                raise ValueError(f"{f.name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be from 0 to below 1, got {self.lora_dropout!r}")
        for name in (f.name for f in fields(self) if f.name.endswith("temperature")):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"temperatures must be positive, got {name}={getattr(self, name)}")
        for name in self._of_kind("share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share of the steps, from 0 to below 1, got {getattr(self, name)}")

    def _of_kind(self, kind: str) -> list[str]:
        return [f.name for f in fields(self) if f.metadata.get("kind") == kind]

    @property
    def thinking(self) -> dict[str, Any]:
        """Arguments of :meth:`LatentEncoder.set_thinking`."""
        return {"thinking_steps": self.thinking_steps, "document_steps": self.document_steps}

    @property
    def index_steps(self) -> int:
        """K of documents."""
        return self.document_steps or self.thinking_steps

    @property
    def needs_explicit(self) -> bool:
        """Whether the explicit view runs at all."""
        return False

    @property
    def needs_reasoning(self) -> bool:
        """Whether the training data must hold reasoning."""
        return False

    def replace(self, **changes: Any) -> Self:
        """A row with some settings changed: a new ablation."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LatentMethod(Method):
    """A row that feeds soft tokens back: LaSER, GIRCSE, and ours. ValueError: as :class:`Method`, also for halting with
    another pooling than ``"all"`` or with GIRCSE's terms.

        L = contrastive·CL + explicit·CL(explicit) + output·KL_out + trajectory·KL_mid + lexical·CE
            + stepwise·mean_k CL_k + monotonicity·penalty
    """

    pooling: str = _choice("all", "generated")
    """``"all"`` states, or the ``"generated"`` ones (GIRCSE)."""
    halting: bool | str = False
    """Thoughts end themselves (docs/method.md, section 4): True, or the token that ends them."""
    explicit: float = _weight()
    """λ1: InfoNCE on the explicit view, which sees the reasoning."""
    output: float = _weight()
    """λ2: output distillation, KL_out (LaSER, eq. 6)."""
    trajectory: float = _weight()
    """λ3: trajectory alignment, KL_mid (LaSER, eq. 10)."""
    output_temperature: float = 0.02
    trajectory_temperature: float = 0.05
    """0.05 as released, 0.02 in the paper."""
    downsampling: str = _choice("released", "paper")
    """Which segment a step is aligned with (:func:`laser_lab.data.segments.downsample`)."""
    explicit_format: str = _choice("segments", "released")
    """The explicit view as ``"segments"`` (:func:`laser_lab.explicit.explicit_features`) or as ``"released"``
    (:func:`laser_lab.training.released.released_features`)."""
    mask_positives: bool = True
    """A query's other positives in the batch are no negatives; as released they are."""
    lexical: float = _weight()
    """Lexical alignment (ours): each soft token says the words of its share of the reasoning."""
    lexical_words: bool = True
    """False: no words, only the end."""
    lexical_novelty: bool = True
    """Leave out the words that the query or an earlier share holds."""
    lexical_idf: bool = True
    """Weigh words by inverse document frequency over the training reasoning."""
    lexical_end: bool = True
    """After the last segment, the target is the token that ends a thought; with halting also right after step K."""
    stepwise: float = _weight()
    """GIRCSE's InfoNCE after every step."""
    monotonicity: float = _weight()
    """GIRCSE's penalty on steps that make it worse."""
    distil_start: float = _share()
    """Share of the steps before λ2 and λ3 act at all."""
    distil_warmup: float = _share()
    """Share of the steps over which they then rise linearly from 0."""
    distil_documents: bool = False
    """Whether λ2 and λ3 also move the documents, as released. On HopWorld λ2=10 then diverges, as without a schedule:
    documents are drawn to a teacher that has not learned yet (docs/method.md, section 3)."""
    teacher_first: float = _share()
    """Share of the steps that train the explicit view alone; its frozen copy is then the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halting and self.pooling != "all":
            raise ValueError(f"halting weighs all states: it cannot be used with pooling={self.pooling!r}")
        if self.halting and (self.stepwise or self.monotonicity):
            raise ValueError("GIRCSE's terms pool all states evenly: they cannot be used with halting")
        if self.distil_start + self.distil_warmup > 1:
            raise ValueError("distil_start and distil_warmup are shares of one training: together at most 1")

    @property
    def thinking(self) -> dict[str, Any]:
        return super().thinking | {"pooling": self.pooling, "halting": self.halting}

    @property
    def needs_explicit(self) -> bool:
        return bool(self.explicit or self.output or self.trajectory)

    @property
    def needs_reasoning(self) -> bool:
        return self.needs_explicit or bool(self.lexical)


@dataclass(frozen=True)
class ReasonMethod(Method):
    """A row that thinks in one pass: L = contrastive·CL + reconstruction·CE + diversity·cos² (LaME).

    The paper gives terms and stages without numbers. Start word, K and the length of the first stage were searched on
    HopWorld's dev queries at one hop, one at a time, one seed (figures/data/lame_search.csv; ``python -m
    laser_lab.lab.recipes FILE.csv --search lame --seeds 1``); they matter in this order. K is that of the other
    methods, and the first stage the shortest tried. LaME still scores below `basic` at one hop.
    """

    reconstruction: float = _weight(1.0)
    """The decoder head: the positive document's text from the K states alone."""
    diversity: float = _weight(0.1)
    """Against reason tokens that collapse into one."""
    bottleneck_warmup: float = _share(0.1)
    """Share of the steps in which the backbone is frozen and the rest trains."""
    start_word: str = "think"
    """Word at whose embedding reason tokens and [EMBED] start; empty: drawn like rows of the table. After "think"
    HopWorld's model answers, and so does [EMBED] at once; drawn or end-of-text tokens memorise the training queries."""


_LASER = LatentMethod(explicit=1.0, output=10.0, trajectory=0.1, distil_start=0.25, distil_warmup=0.25)
_RELEASED = dict(distil_start=0.0, distil_warmup=0.0, distil_documents=True, sampling="first", lora_dropout=0.1)
_RELEASED |= dict(explicit_format="released", mask_positives=False)
# the reasoning also teaches when to end, and the alignment acts from the first step: without either, or with λ2 = 10,
# trainings at K=5 failed on dev (`lab.recipes --search halting`)
_HALTING = dict(halting=True, output=1.0, trajectory=1.0, lexical=1.0, lexical_words=False)
_LASER_HALTING = _LASER.replace(**_HALTING, distil_start=0.0, distil_warmup=0.0)
# documents end at once where they may think (`latent-halting`), so here they get one pass, which reads no head
_LEXICAL = LatentMethod(lexical=3.0, halting=True, document_steps=1)
_LAME = ReasonMethod()

METHODS: dict[str, Method] = {
    # the published systems
    "basic": LatentMethod(thinking_steps=1),
    "latent": LatentMethod(),
    "gircse": LatentMethod(pooling="generated", contrastive=0.0, stepwise=1.0, monotonicity=1.0),
    "laser": _LASER,
    # as the released code trains it; `laser` adds a schedule, and the distillation leaves its documents alone
    "laser-released": _LASER.replace(**_RELEASED),
    # the retriever of rewrite-then-retrieve: trained on [query ; reasoning ; eos], in one pass
    "rewrite": LatentMethod(thinking_steps=1, contrastive=0.0, explicit=1.0),
    "lame": _LAME,
    # ours: thoughts that hold their words and end themselves
    "lexical": _LEXICAL,
    "laser-lexical": _LASER_HALTING.replace(lexical=3.0, lexical_words=True, document_steps=1),
    "laser-halting": _LASER_HALTING,
    "latent-halting": LatentMethod(halting=True),
    "lexical-no-halting": _LEXICAL.replace(halting=False, document_steps=None),
    "lexical-no-novelty": _LEXICAL.replace(lexical_novelty=False),
    "lexical-no-idf": _LEXICAL.replace(lexical_idf=False),
    "lexical-no-eos": _LEXICAL.replace(lexical_end=False),
    # Table 5 of the LaSER paper
    "laser-no-explicit": _LASER.replace(explicit=0.0, output=0.0, trajectory=0.0),
    "laser-no-latent": _LASER.replace(thinking_steps=1),
    "laser-no-trajectory": _LASER.replace(trajectory=0.0),
    "laser-no-output": _LASER.replace(output=0.0),
    "laser-no-colearning": _LASER.replace(teacher_first=0.5, distil_start=0.0, distil_warmup=0.0),
    # LaME's own
    "lame-no-decoder": _LAME.replace(reconstruction=0.0),
    "lame-no-diversity": _LAME.replace(diversity=0.0),
    "lame-no-warmup": _LAME.replace(bottleneck_warmup=0.0),
}
"""Name to row; ``METHODS["laser"].replace(thinking_steps=6)`` is a row of your own."""


def method_of(method: str | Method, **changes: Any) -> Method:
    """A row by name or as it is, with changes. ValueError: no such row."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
        method = METHODS[method]
    return method.replace(**changes) if changes else method
