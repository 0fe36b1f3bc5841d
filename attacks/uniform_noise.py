"""A plug-in attack, complete: the best of several random draws from the ball."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robgib import Attack, SampleRNG


@dataclass(frozen=True)
class UniformNoise(Attack):
    """Random search: the first of `tries` uniform draws from the ball that is misclassified."""

    tries: int = 10

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the first draw that fools the model, else the last draw."""
        result = x.clone()
        left = torch.arange(len(x), device=x.device)
        for _ in range(self.tries):
            result[left] = self.threat.random_start(x[left], rng.select(left))
            with torch.no_grad():
                left = left[model(result[left]).argmax(1) == y[left]]
            if not len(left):
                break
        return result
