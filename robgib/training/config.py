"""The training keys of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from robgib.attacks.threat_model import Norm, Radius

__all__ = [
    "Adversary",
    "Penalty",
    "Training",
]


class Adversary(BaseModel):
    """Adversarial training (Madry et al. 2018): each batch is replaced by what an attack makes of it.

    One step is fast adversarial training (Wong, Rice & Kolter 2020): from a random start, 1.25 eps long. With
    ``trades`` the loss is that of the clean batch plus ``trades`` times the Kullback–Leibler divergence of the
    predictions on the attacked one, which the attack raises (TRADES: Zhang et al. 2019, equation 5). With ``mart`` it
    is a boosted cross-entropy of the attacked batch plus ``mart`` times that divergence, in which images that the
    network is unsure of count more (MART: Wang et al. 2020, equation 11). With ``awp`` each step descends the gradient
    at weights that were first moved up the loss, each matrix or kernel by ``awp`` times its norm (adversarial weight
    perturbation: Wu et al. 2020, equations 8 to 10).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    norm: Norm = "linf"
    eps: Radius
    """Radius of the ball, pixel scale."""
    steps: PositiveInt = 7
    """Gradient steps, each 2.5 eps / steps long."""
    trades: PositiveFloat | None = None
    mart: PositiveFloat | None = None
    awp: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_loss(self) -> Adversary:
        if self.trades and self.mart:
            raise ValueError("trades and mart are two losses; give one of them")
        return self


class Penalty(BaseModel):
    """What the code before the classes may cost; the architecture needs ``bottleneck: UNITS``.

    ``vib``: the Kullback–Leibler divergence of the code's distribution from N(0, 1), an upper bound of I(X;Z) (Alemi et
    al. 2017, equation 17). ``ib``: I(X;Z), and ``gib``: C(X;Z) / 2, both of the Gaussian that has the batch's
    covariances, X being the mean brightness of ``features`` × ``features`` patches. Added to the loss times ``beta``
    (both in nats), so that the network descends −IB_β or −GIB_β. ``ib`` and ``gib`` need a batch of at least twice as
    many samples as there are features and units together, for a covariance to speak of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["vib", "ib", "gib"]
    beta: NonNegativeFloat
    features: PositiveInt = 4


class Training(BaseModel):
    """The training keys of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: NonNegativeFloat | None = None
    """Epochs in which the rate rises from near 0; a fifth of all for onecycle, none for the others, when not given."""
    weight_decay: NonNegativeFloat = 1e-2
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    shift: NonNegativeInt = 0
    """Largest random translation in pixels, zero-filled."""
    flip: bool = False
    """Random horizontal mirroring."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on the images, pixel scale."""
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    adversary: Adversary | None = None
    """Train on adversarial images instead of clean ones."""
    penalty: Penalty | None = None
    """What the information in the code before the classes costs."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is then the model."""
    early_stopping: bool = False
    """Keep the weights of the epoch with the highest accuracy on 500 held-out images, attacked as in training where it
    is adversarial (Rice, Wong & Kolter 2020)."""
    amp: bool = False
    """Passes in bfloat16 (autocast); weights and loss stay float32."""
    compile: bool = False
    """Compile the passes with torch.compile."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.warmup is not None and self.warmup >= self.epochs:
            raise ValueError("warmup must end before the last epoch")
        return self
