"""Ranges of the numbers in a config, given in the types of its fields.

    learning_rate: Positive = 8e-5
"""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `above` excludes `least`, `below` excludes `most`; never inf or nan."""
    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number):
        return (math.isfinite(number) and self.least <= number <= self.most
                and not (self.above and number == self.least) and not (self.below and number == self.most))

    def __str__(self):
        low = f'{"above" if self.above else "at least"} {self.least}'
        return low if self.most == math.inf else f'{low} and {"below" if self.below else "at most"} {self.most}'


AtLeastOne = Annotated[int, Range(1)]
AtLeastZero = Annotated[int, Range(0)]
TensorSize = Annotated[int, Range(1, 2 ** 16)]         # sizes of a network; their products fit an int64
LayerCount = Annotated[int, Range(1, 100)]
UpToHundred = Annotated[int, Range(0, 100)]            # numbers of optional layers
Seed = Annotated[int, Range(0, 2 ** 63 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Scale = Annotated[float, Range(0.001, 1)]              # of a size, never enlarged
Decay = Annotated[float, Range(0, 1, below=True)]      # weight of the old value in a running average
