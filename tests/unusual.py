"""Networks that are out of the ordinary, each around an ordinary one: where attacks go wrong unsaid."""

from __future__ import annotations

import copy
import types

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Around(nn.Module):
    """Another network behind something: what it does to the images, and to the logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + 10 * x.abs()) ** 2


class StraightThrough(Around):
    """Rounds to sixteenths; the gradient is that of the identity."""

    def forward(self, x):
        return self.model(_Through.apply(x))


class DetachTrick(Around):
    """The same by a detached difference."""

    def forward(self, x):
        return self.model(x + ((x * 16).round() / 16 - x).detach())


class QuantisationAware(Around):
    """The same by PyTorch's module for quantisation-aware training."""

    def __init__(self, model):
        super().__init__(model)
        from torch.ao.quantization import FakeQuantize, MinMaxObserver

        self.rounds = FakeQuantize(MinMaxObserver, quant_min=0, quant_max=255)
        self.rounds(torch.linspace(0, 1, 9))
        self.rounds.disable_observer()
        self.rounds.scale.fill_(1 / 16)
        self.rounds.zero_point.fill_(0)

    def forward(self, x):
        return self.model(self.rounds(x))


class Hooked(Around):
    """A hook on a convolution makes its gradients tiny and wrong; only a faster form that loses it climbs freely."""

    def __init__(self, model):
        super().__init__(copy.deepcopy(model))
        first = next(m for m in self.model.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda module, inputs, out: _Through.apply(out))


class RootHooked(Around):
    """A forward hook on the whole changes what it says."""

    def __init__(self, model):
        super().__init__(model)
        self.register_forward_hook(lambda module, inputs, out: out.flip(1))


class Checkpointed(Around):
    """Activations are computed again on the way back."""

    def forward(self, x):
        return checkpoint(self.model, _Through.apply(x), use_reentrant=False)


class Overwriting(Around):
    """Normalises its images in place."""

    def forward(self, x):
        return self.model(x.sub_(0.1).div_(0.9))


class Spiking(nn.Module):
    """Two layers of neurons that fire or do not, with a surrogate gradient (a digit net of its own weights)."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 64, 3, padding=1), nn.Linear(64 * 16, 10)

    def forward(self, x):
        return self.head(F.avg_pool2d(_Spike.apply(self.conv(x) - 0.1), 2).flatten(1))


class Quantised(Around):
    """Rounds to quarters; no gradient."""

    def forward(self, x):
        return self.model((x * 4).round() / 4)


class CoarseLogits(Around):
    """Logits in whole halves, where the true class ties with others."""

    def forward(self, x):
        return (self.model(x) / 0.5).round() * 0.5


class Noisy(Around):
    """Noise on the images, drawn at each call."""

    def __init__(self, model, size=0.05):
        super().__init__(model)
        self.size = size

    def forward(self, x):
        return self.model(x + self.size * torch.randn_like(x))


class RarelyNoisy(Around):
    """Noise in one call of ten."""

    def forward(self, x):
        return self.model(x + 0.3 * torch.randn_like(x) if torch.rand(()) < 0.1 else x)


class NoisyBetween(Around):
    """Noise on images that are not of whole sixteenths, which those of the digits are."""

    def forward(self, x):
        between = (16 * x - (16 * x).round()).abs().flatten(1).amax(1) > 1e-4
        return self.model(x + 0.3 * between.view(-1, 1, 1, 1) * torch.randn_like(x))


class OwnNoise(Around):
    """Noise in one call of ten, from a generator that nobody can seed."""

    def __init__(self, model):
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        if torch.rand((), generator=self.generator) < 0.1:
            x = x + 0.3 * torch.randn(x.shape, generator=self.generator)
        return self.model(x)


class Saturated(Around):
    """Logits so large that the cross-entropy is 0 in float32."""

    def forward(self, x):
        return 1000 * self.model(x)


class Detached(Around):
    """What it says comes from a branch without gradient; the gradient comes from elsewhere."""

    def forward(self, x):
        return self.model(x.detach()) + 1e-3 * x.flatten(1)[:, :10]


class Cut(Around):
    """No gradient at all."""

    def forward(self, x):
        return self.model(x.detach())


class Probabilities(Around):
    """A softmax at the end, as a module."""

    def __init__(self, model, scale=1.0):
        super().__init__(model)
        self.scale, self.last = scale, nn.Softmax(1)

    def forward(self, x):
        return self.last(self.scale * self.model(x))


class RoundedProbabilities(Probabilities):
    """A softmax that is not the last thing that it does."""

    def forward(self, x):
        return super().forward(x) * 1.0


class Company(Around):
    """What it says of an image depends on the others of the batch."""

    def forward(self, x):
        return self.model((x - 0.5 * x.mean(0, keepdim=True)).clamp(0, 1))


class Undecided(Around):
    """No answer where the lead is below 3."""

    def forward(self, x):
        logits = self.model(x)
        first, second = logits.topk(2, 1).values.unbind(1)
        return torch.where((first - second < 3)[:, None], torch.nan, logits)


class BrokenGradient(Around):
    """The root of a variance that is 0 where the image is even; ``least`` added to the variance mends it."""

    def __init__(self, model, least=0.0):
        super().__init__(model)
        self.least = least

    def forward(self, x):
        mean = F.avg_pool2d(x, 3, 1, 1)
        variance = (F.avg_pool2d(x * x, 3, 1, 1) - mean * mean).clamp_min(0)
        return self.model(x - 0.1 * (variance + self.least).sqrt())


class Optimises(Around):
    """Steps towards a clearer answer before it answers."""

    def forward(self, x):
        with torch.enable_grad():
            moved = x.detach().requires_grad_(True)
            loss = self.model(moved).logsumexp(1).sum()
            (slope,) = torch.autograd.grad(loss, moved)
        return self.model((x + 0.02 * slope.sign()).clamp(0, 1))


class Masked(Around):
    """Two classes masked, as a part of the classes is all that it may say."""

    def forward(self, x):
        logits = self.model(x)
        mask = torch.zeros_like(logits).bool()
        mask[:, 8:] = True
        return logits.masked_fill(mask, float("-inf"))


class OneLogit(Around):
    """Is it a digit above 4: one logit."""

    def forward(self, x):
        logits = self.model(x)
        return (logits[:, 5:].logsumexp(1) - logits[:, :5].logsumexp(1))[:, None]


class OneProbability(OneLogit):
    """The same as a probability."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x)).squeeze(1)


class Named(Around):
    """A dictionary."""

    def forward(self, x):
        return {"features": x.flatten(1), "logits": self.model(x)}


class Pair(Around):
    """Logits and features."""

    def forward(self, x):
        return self.model(x), x.flatten(1)


class Record(Around):
    """An object."""

    def forward(self, x):
        return types.SimpleNamespace(logits=self.model(x), loss=None)


class Low(Around):
    """Weights and images of another type; it takes no other."""

    def __init__(self, model, dtype):
        super().__init__(copy.deepcopy(model).to(dtype))


class LowLogits(Around):
    """Logits in bfloat16."""

    def forward(self, x):
        return self.model(x).bfloat16()


class OfSixteen(Around):
    """Takes sixteen images, no more and no fewer."""

    def forward(self, x):
        return self.model(x.view(16, 1, 8, 8))


class OfOne(Around):
    """Takes one image."""

    def forward(self, x):
        if len(x) != 1:
            raise ValueError("one image, please")
        return self.model(x)


class HardOfHearing(nn.Module):
    """Hears a pixel only beyond 0.2 from grey, the first best of all: flat where the clean image is."""

    def forward(self, x):
        heard = torch.relu((x.flatten(1) - 0.5).abs() - 0.2)
        weights = 0.5 ** torch.arange(heard.shape[1], dtype=x.dtype)
        return torch.stack([torch.full((len(x),), 0.05, dtype=x.dtype), heard @ weights], dim=1)


class Terraces(Around):
    """The network on coarse colours with soft edges: flat within ``flat`` of each, steep between."""

    def __init__(self, model, flat):
        super().__init__(model)
        self.flat = flat

    def forward(self, x):
        near = (x * 4).round() / 4
        away = x - near
        return self.model(near + away.sign() * torch.relu(away.abs() - self.flat) * 0.125 / (0.125 - self.flat))


class Rippled(Around):
    """The network behind ripples on every pixel: ascents end at many local maxima."""

    def forward(self, x):
        return self.model(x + 0.01 * torch.sin(600 * x))
