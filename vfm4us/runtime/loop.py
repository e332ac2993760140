"""The learning rate as a function of the step."""

import math


def cosine_with_warmup(step: int, steps: int, warmup: float, peak: float) -> float:
    """Learning rate at `step` of `steps`: linear from 0 over the first share `warmup`, then a half cosine to 0."""
    rising = int(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
