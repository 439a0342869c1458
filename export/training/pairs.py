"""Pictures in pairs of one person, as many of each class of the private attribute."""

import torch
from torch import Tensor

MOST = 12  # pictures of a person that count: who has more is drawn no more often


class Pairs:
    """Training rows, drawn with another picture of the same person."""

    def __init__(self, rows: Tensor, people: Tensor, classes: Tensor) -> None:
        """Order rows by person; rows whose class is unknown are never drawn.

        Args:
            rows: int64 [R], those to draw from.
            people: int64 [N], who is on each picture; -1 for somebody who is on no other picture.
            classes: int64 [N], of the private attribute; -1 where unknown.
        """
        rows = rows[classes[rows] >= 0]
        who = people[rows].clone()
        alone = who < 0
        who[alone] = people.max() + 1 + torch.arange(int(alone.sum()))
        who, order = who.unique(return_inverse=True)[1].sort(stable=True)
        self.rows, self.who = rows[order], who
        counts = who.bincount()
        self.count = counts[who]
        self.first = (counts.cumsum(0) - counts)[who]
        weight = self.count.clamp(max=MOST) / self.count
        known = classes[self.rows]
        self.weights = [torch.where(known == i, weight, 0.0) for i in known.unique()]

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw n pictures, or some fewer, so that each class has equally many.

        Returns:
            Their rows, the rows of other pictures of the same people (the same ones where there is no other), and who
            it is: int64, each as long.
        """
        share = max(1, n // len(self.weights))
        at = torch.cat([weight.multinomial(share, replacement=True) for weight in self.weights])
        count, first = self.count[at], self.first[at]
        away = 1 + (torch.rand(len(at)) * (count - 1)).long()
        other = first + (at - first + away) % count
        return self.rows[at], self.rows[other], self.who[at]
