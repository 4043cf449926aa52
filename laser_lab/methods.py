"""The table of methods. A method is data: how to think, what to minimise, in which stages. An ablation is a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from laser_lab.base.inputs import check_steps


@dataclass(frozen=True)
class Method:
    """One row: L = contrastive·CL + explicit·CL(explicit) + output·KL_out + process·KL_mid + GIRCSE's (METHOD 3, 4).

    Raises:
        ValueError: A weight is negative, all are zero, or a temperature is not positive.
    """

    thinking_steps: int = 3
    """K; 1 is a single pass."""
    pooling: str = "all"
    """``"all"`` states, or the ``"generated"`` ones (GIRCSE)."""
    contrastive: float = 1.0
    """Weight of InfoNCE on the latent view."""
    explicit: float = 0.0
    """λ1: weight of InfoNCE on the explicit view, which sees the reasoning."""
    output: float = 0.0
    """λ2: weight of the output distillation."""
    process: float = 0.0
    """λ3: weight of the trajectory alignment."""
    stepwise: float = 0.0
    """Weight of GIRCSE's InfoNCE after every step."""
    monotonicity: float = 0.0
    """Weight of GIRCSE's penalty on steps that make it worse."""
    temperature: float = 0.02
    output_temperature: float = 0.02
    process_temperature: float = 0.05
    """0.05 in the released code, 0.02 in the paper."""
    downsampling: str = "released"
    """Which segment a step is aligned with (:func:`laser_lab.explicit.downsample`)."""
    distil_start: float = 0.0
    """Share of the steps before λ2 and λ3 act at all."""
    distil_warmup: float = 0.0
    """Share of the steps over which they then rise linearly from 0."""
    distil_documents: bool = False
    """Whether λ2 and λ3 also move the documents, or the query's thoughts alone.

    The paper prints no schedule and does not say which. On HopWorld λ2=10 trains without diverging only with both
    choices made here: without the schedule, and more so with moving documents, it drags the documents towards a
    teacher that has not learned yet, and the explicit view with them."""
    teacher_first: float = 0.0
    """Share of the steps in which the explicit view alone is trained. Its frozen copy is then the teacher."""

    def __post_init__(self) -> None:
        check_steps(self.thinking_steps)
        weights = {name: getattr(self, name) for name in self.weights}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"weights must not be negative, and one must be positive: {weights}")
        if min(self.temperature, self.output_temperature, self.process_temperature) <= 0:
            raise ValueError("temperatures must be positive")
        for name in self.shares:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share of the steps, from 0 to below 1, got {getattr(self, name)}")

    @property
    def weights(self) -> tuple[str, ...]:
        """The settings that weigh a term of the loss."""
        return WEIGHTS

    @property
    def shares(self) -> tuple[str, ...]:
        """The settings that are a share of the steps."""
        return ("distil_start", "distil_warmup", "teacher_first")

    @property
    def needs_reasoning(self) -> bool:
        """Whether the explicit view runs at all."""
        return bool(self.explicit or self.output or self.process)

    def replace(self, **changes: Any) -> Method:
        """A row with some settings changed: a new ablation."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


WEIGHTS = ("contrastive", "explicit", "output", "process", "stepwise", "monotonicity")


@dataclass(frozen=True)
class ReasonMethod(Method):
    """A row that thinks in one pass: L = contrastive·CL + reconstruction·CE + diversity·cos² (LaME; METHOD 4).

    The seed names the terms and the two stages and gives no number. Where tokens start, K and the length of the first
    stage were searched on HopWorld's dev queries at one hop, one setting at a time, one seed
    (figures/data/lame_search.csv, by ``python -m laser_lab.lab.cells FILE.csv --search lame --seeds 1``). The word
    decides most; then K, the fewer the better; then the first stage, the shorter the better. K is that of the other
    methods, and the first stage the shortest tried that is one. The other settings made no clear difference. What is
    left behind the last-token retriever at one hop, the search did not close.

    Raises:
        ValueError: As :class:`Method`, or a term needs what one pass does not have.
    """

    reconstruction: float = 1.0
    """Weight of the decoder head: the positive document's text from the K bottleneck states alone."""
    diversity: float = 0.1
    """Weight of the term against reason tokens that collapse into one."""
    bottleneck_warmup: float = 0.1
    """Share of the steps in which the backbone is frozen: reason tokens, [EMBED] and heads train alone."""
    start_word: str = "think"
    """Word at whose embedding reason tokens and [EMBED] start; empty: they are drawn like rows of the table.

    Behind "think" the language model of HopWorld goes on to answer, and so does [EMBED] from the first step on. A token
    that is drawn, or that ends a text, has none of that: it learns the training queries by heart."""
    pooling: str = "generated"
    """The K states are those of the K tokens behind the input, as GIRCSE's; the embedding is read at [EMBED]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if alien := [name for name in (*WEIGHTS[1:], "teacher_first") if getattr(self, name)]:
            raise ValueError(f"{', '.join(alien)} cannot be used with reason tokens")
        if self.pooling != "generated":
            raise ValueError(f"reason tokens have states of their own: pooling='generated', got {self.pooling!r}")

    @property
    def weights(self) -> tuple[str, ...]:
        return (*WEIGHTS, "reconstruction", "diversity")

    @property
    def shares(self) -> tuple[str, ...]:
        return (*super().shares, "bottleneck_warmup")


_LASER = Method(explicit=1.0, output=10.0, process=0.1, distil_start=0.25, distil_warmup=0.25)
_LAME = ReasonMethod()

METHODS: dict[str, Method] = {
    # the systems
    "basic": Method(thinking_steps=1),
    "latent": Method(),
    "gircse": Method(pooling="generated", contrastive=0.0, stepwise=1.0, monotonicity=1.0),
    "laser": _LASER,
    # the retriever of rewrite-then-retrieve: trained on [query ; reasoning ; eos], in one pass
    "rewrite": Method(thinking_steps=1, contrastive=0.0, explicit=1.0),
    "lame": _LAME,
    # Table 5 of the LaSER paper
    "laser-no-explicit": _LASER.replace(explicit=0.0, output=0.0, process=0.0),
    "laser-no-latent": _LASER.replace(thinking_steps=1),
    "laser-no-process": _LASER.replace(process=0.0),
    "laser-no-output": _LASER.replace(output=0.0),
    "laser-no-colearning": _LASER.replace(teacher_first=0.5, distil_start=0.0, distil_warmup=0.0),
    # LaME's own
    "lame-no-decoder": _LAME.replace(reconstruction=0.0),
    "lame-no-diversity": _LAME.replace(diversity=0.0),
    "lame-no-warmup": _LAME.replace(bottleneck_warmup=0.0),
}
"""Name to row. ``METHODS["laser"].replace(thinking_steps=6)`` is a row of your own."""


def method_of(method: str | Method, **changes: Any) -> Method:
    """A row by name or as it is, with changes.

    Raises:
        ValueError: No such row.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
        method = METHODS[method]
    return method.replace(**changes) if changes else method
