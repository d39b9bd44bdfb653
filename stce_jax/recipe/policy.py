"""RandAugment's policies in timm's notation, such as `rand-m9-mstd0.5-inc1`. Starts no JAX."""

import dataclasses
import math
import re

from stce_jax.errors import ConfigError, shown

# Probabilities of the operations under option w0, up to their sum; from timm.
WEIGHTS: dict[str, float] = {
    "rotate": 0.3,
    "shear_x": 0.2,
    "shear_y": 0.2,
    "translate_x": 0.1,
    "translate_y": 0.1,
    "color": 0.025,
    "sharpness": 0.025,
    "autocontrast": 0.025,
    "solarize": 0.005,
    "solarize_add": 0.005,
    "contrast": 0.005,
    "brightness": 0.005,
    "equalize": 0.005,
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """How to draw operations. In brackets the option that sets it.

    Attributes:
      operations: number drawn for an image, 1 or more (n).
      magnitude: mean magnitude, 0..max_magnitude (m).
      deviation: standard deviation of the magnitudes, 0 or more; infinite: uniform over 0..magnitude (mstd).
      max_magnitude: magnitudes are clipped to 0..max_magnitude (mmax). Their scale is such that 10 is strong.
      increasing: whether a larger magnitude always changes the image more (inc).
      probability: of each drawn operation to be applied, 0..1 (p).
      weighted: draw with WEIGHTS and without replacement, rather than uniformly and with replacement (w).
    """

    operations: int = 2
    magnitude: float = 10.0
    deviation: float = 0.0
    max_magnitude: float = 10.0
    increasing: bool = False
    probability: float = 0.5
    weighted: bool = False


def parse_policy(text: str) -> Policy:
    """Reads a policy: `rand` and then options in any order, joined by `-`, each a name and a number.

    n: operations per image, from 1; m: magnitude, from 0 to mmax; mstd: its standard deviation, from 0, uniform over
    0..m if above 100; mmax: maximum of the magnitude, 0 to 100; inc: 0 or 1; p: probability, 0 to 1; w: 0, the only set
    of weights. Other options have the defaults of `Policy`. As in timm, except that `inc0` means what it says.

    Raises:
      ConfigError: unknown policy or option, or a value out of range.
    """
    first, *options = text.split("-")
    if first != "rand":
        raise ConfigError(f"RandAugment policy {shown(text)} does not begin with 'rand'; try 'rand-m9-mstd0.5-inc1'")
    numbers: dict[str, float] = {}
    for option in options:
        match = re.fullmatch(r"(n|m|mstd|mmax|inc|p|w)(\d+\.?\d*|\.\d+)", option)
        if not match:
            raise ConfigError(
                f"RandAugment policy {shown(text)}: {shown(option)} is not an option; the options are n, m, "
                "mstd, mmax, inc, p and w, each followed by a number"
            )
        if match[1] in numbers:
            raise ConfigError(f"RandAugment policy {shown(text)}: {shown(option)} sets {match[1]!r} a second time")
        numbers[match[1]] = float(match[2])
    max_magnitude = numbers.get("mmax", Policy.max_magnitude)
    ranges = {
        "n": (1, len(WEIGHTS) if "w" in numbers else 100),
        "m": (0, max_magnitude),
        "mstd": (0, math.inf),
        "mmax": (0, 100),
        "inc": (0, 1),
        "p": (0, 1),
        "w": (0, 0),
    }
    for name, number in numbers.items():
        low, high = ranges[name]
        whole = name in ("n", "inc", "w")
        if not low <= number <= high or (whole and number != int(number)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"RandAugment policy {shown(text)}: {name!r} must be {kind} from {low} to {high:g}")
    return Policy(
        operations=int(numbers.get("n", Policy.operations)),
        magnitude=numbers.get("m", min(Policy.magnitude, max_magnitude)),
        deviation=math.inf if numbers.get("mstd", 0) > 100 else numbers.get("mstd", Policy.deviation),
        max_magnitude=max_magnitude,
        increasing=bool(numbers.get("inc", Policy.increasing)),
        probability=numbers.get("p", Policy.probability),
        weighted="w" in numbers,
    )
