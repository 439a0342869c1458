"""The audit's results and how they are written as JSON: an attacker's score, a mechanism's row, a whole report.

The field names are the JSON's keys. A part that was not measured is None here, and absent there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from export.errors import ExportError

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | int | bool | None"
Interval: TypeAlias = tuple[float, float]
"""95 %: the low end and the high end."""
Quartiles: TypeAlias = dict[str, tuple[float, float, float]]
"""Of P(M), for each true class: "F" and "M"."""
T = TypeVar("T")

OURS, RAW = "edgesan", "raw"  # two rows of every report


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seeds: int = 3  # of every fresh attacker
    baseline_train: int = 4000  # pictures that attackers of baselines learn on: fewer flatter the baselines, not us
    epochs: int = 6
    draws: int = 2  # of each training picture
    mean_draws: int = 8  # that are averaged, for the attacker who gets one still many times
    limit: int | None = None  # pictures of the closed set: a quick look, no claim
    open_limit: int = 3000  # pictures to learn on, of another attribute's audit
    brief: bool = False  # without the attackers of `protocol.own_attacks`
    track: int = 200  # faces that are followed over 150 frames
    again: int = 400  # faces that are looked for again in the output frame


@dataclass(frozen=True)
class Pooled:
    """An attacker who averages several pictures of one person."""

    balanced: float
    people: int  # who have so many pictures


@dataclass(frozen=True)
class Score:
    """One attacker's figures, with 95 % intervals over people."""

    accuracy: float
    balanced: float
    auc: float
    leak_nats: float
    n: int
    accuracy_95: Interval
    balanced_95: Interval
    leak_95: Interval
    pooled: dict[str, Pooled] | None = None  # by the number of pictures
    slices: dict[str, float] | None = None  # accuracy by part of the test pictures, such as "gender F"


@dataclass(frozen=True)
class Mean:
    """One attacker's figures, averaged over its seeds. The interval is that of the first seed."""

    accuracy: float
    balanced: float
    auc: float
    leak_nats: float
    seeds: int
    range: tuple[float, float]  # of the accuracy: the worst seed and the best one
    accuracy_95: Interval
    pooled: dict[str, float]
    slices: dict[str, float]

    @classmethod
    def of(cls, scores: Sequence[Score]) -> "Mean":
        """Average the scores of one attacker."""
        first, accuracies = scores[0], [s.accuracy for s in scores]
        pooled = {n: [(s.pooled or {})[n].balanced for s in scores] for n in first.pooled or {}}
        slices = {part: [(s.slices or {})[part] for s in scores] for part in first.slices or {}}
        return cls(
            accuracy=float(np.mean(accuracies)),
            balanced=float(np.mean([s.balanced for s in scores])),
            auc=float(np.mean([s.auc for s in scores])),
            leak_nats=float(np.mean([s.leak_nats for s in scores])),
            seeds=len(scores),
            range=(min(accuracies), max(accuracies)),
            accuracy_95=first.accuracy_95,
            pooled={n: float(np.mean(values)) for n, values in pooled.items()},
            slices={part: float(np.mean(values)) for part, values in slices.items()},
        )


@dataclass(frozen=True)
class Utility:
    """The service: the share of pictures whose person is its first guess, or among its first five."""

    top1: float
    top5: float
    nats: float  # cross-entropy of the person


@dataclass(frozen=True)
class Looks:
    """The distance to the raw face: structural similarity, and 1 - cosine of a matcher's embeddings."""

    ssim: float
    matcher_distance: float


@dataclass(frozen=True)
class Track:
    """One attacker over many frames of one track: balanced accuracy by the number of frames."""

    balanced_by_frames: dict[str, float]
    faces: int


@dataclass(frozen=True)
class FoundAgain:
    """The provider's detector on output frames: of the faces found raw, how many it finds again, and how far off."""

    found_raw: int
    found_again: int
    share: float
    landmark_error_px: float  # pixels of the chip


@dataclass(frozen=True)
class Row:
    """One mechanism: the service, and every attacker; a fresh one has a score for each seed."""

    utility: Utility
    looks: Looks
    frozen: dict[str, Score]
    fresh: dict[str, list[Score]]

    def strongest(self) -> tuple[str, Mean]:
        """Return the fresh attacker of the highest mean accuracy, and its name."""
        means = {name: Mean.of(scores) for name, scores in self.fresh.items()}
        return max(means.items(), key=lambda item: item[1].accuracy)


@dataclass(frozen=True, kw_only=True)
class OwnRow(Row):
    """The audited model's row, which holds more than a baseline's."""

    track: Track | None = None
    context: dict[str, Score] | None = None  # by canvas
    found_again: FoundAgain


@dataclass(frozen=True)
class StrangersPlan:
    """How much is measured on strangers."""

    photos: int = 10  # of each stranger, at most
    fewest: int = 1  # pictures of a stranger who takes part
    unknown: int = 1000  # pictures of a set that does not know who somebody is, at most
    draws: int = 5  # of the noise, for the figures of recognition
    learn: int = 8000  # pictures of `train` people that attackers learn on
    learn_draws: int = 2  # of each
    epochs: int = 6  # of the attackers on pictures
    seeds: int = 3  # of every attacker
    looked: int = 400  # faces whose spectrum is compared
    pixels: tuple[str, ...] = ("CNN 4, begun on raw faces", "CNN 2", "gender_faceapi, trained on")
    probed: tuple[str, ...] = ("id_mobilefacenet_b", "id_sface", "id_dlib_resnet", "id_mobilefacenet_paddle")
    matchers: tuple[str, ...] = ("id_mobilefacenet_b", "id_sface", "id_dlib_resnet", "id_mobilefacenet_paddle")
    once: tuple[str, ...] = ()  # of the matchers: those that see one draw only
    frozen: tuple[str, ...] = ("gender_faceapi", "gender_dlib", "gender_gear")


@dataclass(frozen=True)
class Share:
    """A share, averaged over draws of the noise, with its 95 % interval over people."""

    value: float
    interval_95: Interval
    people: int


@dataclass(frozen=True)
class Recognised:
    """What one matcher recognises of strangers. TAR: by FAR, then by the gallery, "raw" or "sanitized"."""

    household: Share  # named among eight, of each of whom three pictures are enrolled
    household_by_set: dict[str, Share]
    tar: dict[str, dict[str, Share]]
    draws: int
    taught: bool = False  # it took part in the training


@dataclass(frozen=True)
class Attacked:
    """One attacker's scores on strangers: of each set, of all of them, and over several pictures of one stranger."""

    by_set: dict[str, Score]
    all: Score
    pooled: dict[str, Pooled]

    def worst(self) -> tuple[str, float]:
        """Return the set in which the attacker is right most often, and its balanced accuracy there."""
        return max(((name, s.balanced) for name, s in self.by_set.items()), key=lambda item: item[1])


@dataclass(frozen=True)
class Realism:
    """Painted faces beside raw ones that took the same way: power by band (low to high) and chroma noise, as ratios."""

    faces: int
    power: list[float]
    chroma_noise: float

    @property
    def worst_band(self) -> float:
        """The factor by which the power is off where it is off most."""
        return max(max(ratio, 1 / ratio) for ratio in self.power)


@dataclass(frozen=True)
class Strangers:
    """What is measured on people whom nobody has seen, on the frames that the device sends."""

    plan: StrangersPlan
    people: int
    pictures: int
    by_set: dict[str, int]  # pictures
    raw: dict[str, Recognised]
    matchers: dict[str, Recognised]
    fresh: dict[str, list[Attacked]]  # a score for each seed
    frozen: dict[str, Attacked]
    frozen_taught: list[str]  # of the frozen classifiers: those that took part in the training
    gender_raw: dict[str, Attacked]  # the frozen classifiers and a fresh probe on raw faces: what there is to hide
    realism: Realism
    found_again: FoundAgain

    @property
    def unseen(self) -> dict[str, Recognised]:
        """The matchers that took no part in the training."""
        return {name: m for name, m in self.matchers.items() if not m.taught}

    def strongest(self) -> tuple[str, str, float]:
        """Return the fresh attacker and the set of the highest balanced accuracy, a mean over seeds."""
        found = [
            (name, part, float(np.mean([s.by_set[part].balanced for s in seeds])))
            for name, seeds in self.fresh.items()
            for part in seeds[0].by_set
        ]
        return max(found, key=lambda item: item[2])

    def strongest_of_raw(self) -> tuple[str, str, float]:
        """Return the same of the attackers on raw faces."""
        found = [(name, *attacked.worst()) for name, attacked in self.gender_raw.items()]
        return max(found, key=lambda item: item[2])

    def pooled(self, pictures: str) -> tuple[str, float] | None:
        """Return the fresh attacker who is right most often over so many pictures of a stranger; None: not measured."""
        means = [
            (name, float(np.mean([s.pooled[pictures].balanced for s in seeds])))
            for name, seeds in self.fresh.items()
            if pictures in seeds[0].pooled
        ]
        return max(means, key=lambda item: item[1], default=None)


@dataclass(frozen=True)
class StrangersReport:
    """The audit of strangers alone."""

    model: "ModelId"
    alpha: float
    strangers: Strangers
    minutes: float


@dataclass(frozen=True)
class Brief:
    """An attacker's score in one point of the dial's curve."""

    accuracy: float
    balanced: float
    auc: float
    leak_nats: float


@dataclass(frozen=True)
class Point:
    """One mechanism in short: the service, and the best of a few fresh attackers."""

    top1: float
    top5: float
    nats: float
    attacker: float  # accuracy of the best
    attacker_95: Interval
    leak_nats: float  # the most of any
    attackers: dict[str, Brief]
    frozen: float  # accuracy of the frozen classifier
    distribution: Quartiles  # as the frozen classifier says it
    fresh_distribution: Quartiles  # as the best fresh attacker says it, calibrated


@dataclass(frozen=True)
class Dial:
    """Where on the dial."""

    alpha: float


@dataclass(frozen=True)
class DialPoint(Point, Dial):
    """A point of the dial's curve; the JSON begins with its alpha."""


@dataclass(frozen=True)
class Bound:
    """The information-theoretic bound: points of (leak in nats, H(person | picture) in nats)."""

    entropy_nats: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class ModelId:
    """Which model it is; the digest is of its graph alone."""

    name: str
    version: int
    graph_sha256: str


@dataclass(frozen=True)
class ClosedSetSize:
    """The closed set in numbers; the prior is the share of men."""

    people: int
    pictures: int
    test: int
    prior: float


@dataclass(frozen=True)
class Report:
    """Everything that one audit measured."""

    format: int
    model: ModelId
    alpha: float
    private: str
    closed_set: ClosedSetSize
    plan: Plan
    table: dict[str, OwnRow | Row]
    bound: Bound
    curve: list[DialPoint]
    minutes: float
    strangers: Strangers | None = None

    @property
    def ours(self) -> OwnRow:
        """The audited model's row."""
        row = self.table[OURS]
        assert isinstance(row, OwnRow)
        return row

    @property
    def raw(self) -> Row:
        """The row of faces as they are."""
        return self.table[RAW]


# The figures of the talk: `export.figures`.


@dataclass(frozen=True)
class TalkSet:
    """The part of the closed set that was measured, in numbers."""

    people: int
    train: int
    test: int
    prior: float


@dataclass(frozen=True)
class TalkPlan:
    """How the attackers were trained."""

    epochs: int
    seeds: int
    attackers: list[str]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Which training a column shows."""

    version: int | None = None
    steps: int
    graph_sha256: str | None = None


@dataclass(frozen=True)
class Column:
    """One training along the dial."""

    model: Training
    points: list[DialPoint]


@dataclass(frozen=True)
class Unfiltered:
    """P(M) of one network on raw faces: histograms of 20 bins, and quartiles."""

    histogram: dict[str, list[int]]
    quartiles: Quartiles
    accuracy: float


@dataclass(frozen=True)
class Talk:
    """All that the talk's figures show."""

    closed_set: TalkSet
    plan: TalkPlan
    bound: Bound
    raw: Point
    unfiltered: dict[str, Unfiltered]
    columns: dict[str, Column]


def to_json(value: object) -> Any:
    """Return a result as plain JSON, its keys in the order of the fields; what was not measured is left out."""
    if isinstance(value, Plan | StrangersPlan):
        return asdict(value)  # here None says something: no limit
    if is_dataclass(value):
        named = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: to_json(part) for name, part in named if part is not None}
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return value


def from_json(kind: type[T], value: Json) -> T:
    """Return the result of a type that this JSON describes.

    Raises:
        TypeError: it describes something else.
    """
    return cast(T, _typed(kind, value))


def _typed(kind: Any, value: Json) -> object:
    """Build a value of a type, or of the first of a union's types that has all its parts in the JSON."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in {UnionType, Union}:
        fitting = [k for k in args if k is not NoneType and _complete(k, value)]
        return _typed(fitting[0], value) if fitting and value is not None else None
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        return cast(Any, kind)(**{name: _typed(hints.get(name), part) for name, part in value.items()})
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(args[1], part) for key, part in value.items()}
    if origin in {list, tuple} and isinstance(value, list | tuple):
        return origin(_typed(args[0], part) for part in value)
    if origin is not None or is_dataclass(kind):
        raise TypeError(f"{value!r} is no {kind}")
    return value


def _complete(kind: Any, value: Json) -> bool:
    if not is_dataclass(kind):
        return True
    return isinstance(value, Mapping) and all(f.name in value for f in fields(kind) if f.default is MISSING)


def read(kind: type[T], path: Path) -> T:
    """Read a result from a JSON file.

    Raises:
        ExportError: the file holds something else.
    """
    try:
        return from_json(kind, json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ExportError(f"{path} is not what this version writes there: {error}; measure it again") from error


def write(result: object, path: Path) -> None:
    """Write a result as a JSON file."""
    path.write_text(json.dumps(to_json(result), indent=2) + "\n")
