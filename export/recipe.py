"""A recipe: every choice of a training, as one TOML file. Same recipe, same data, same seed: same model."""

import hashlib
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from export.errors import RecipeError


@dataclass(frozen=True)
class Recipe:
    """The keys of a recipe file; `docs` of each key are the comments here."""

    name: str
    version: int = 1  # of the model file: only goes up
    seed: int = 0
    # data
    sets: tuple[str, ...] = ("lfw", "glint", "pins", "celeba", "aaf", "utk")
    private: str = "gender"  # the CSV column that must not be inferred
    # the provider's networks, by their names in providers.toml
    utility: str = "id_mobilefacenet_paddle"
    frozen: tuple[str, ...] = ()  # frozen classifiers of the private attribute (plug-and-play)
    # the opponents that train in turn with S (adversarial); none = plug-and-play
    attackers: tuple[int, ...] = (4, 1)  # one convolutional attacker per entry: its stem (1, 2 or 4)
    probe: bool = True  # an attacker on the utility network's embedding
    attacker_warm_up: int = 400  # steps on raw faces before the game: an opponent that knows faces learns faster
    attacker_steps: int = 1  # updates of the attackers for each of S
    attacker_batch: int = 48
    attacker_lr: float = 1e-3
    renew_every: int = 0  # steps after which the next attacker starts again as it was before the game; 0 = never
    replay: int = 1536  # sanitized pictures that the attackers remember
    # the sanitizer
    width: int = 64
    depth: int = 96
    code: int = 16
    noise: tuple[float, float] = (0.1, 0.6)  # sigma at alpha = 0 and at alpha = 1
    stochastic: bool = True  # false: a deterministic sanitizer, without noise
    # the dial
    alpha_default: float = 0.5
    alpha_focus: float = 0.5  # share of pictures trained at alpha_default; the rest is uniform in 0..1
    # the losses
    people_min: int = 5  # a person with this many pictures is a class of the utility variable
    cosine_scale: float = 16.0  # utility logits = scale * cosine to each person's mean raw embedding
    spread: float = 0.2  # of the noise that hides the provider's embedding at alpha = 1, per dimension of a unit vector
    match: float = 3.0  # weight of `channel_loss`
    detect: float = 0.5  # weight of what a face detector loses: score and landmarks
    reconstruct: float = 4.0  # weight of the L1 distance to the raw face: the output stays a face
    # the loop
    start: str = ""  # a run to begin from: its sanitizer and its opponents, not its optimizers
    steps: int = 3000
    batch: int = 32
    lr: float = 4e-4
    warm_up: int = 600  # steps: half of reconstruction alone, then the utility comes in, then the opponents
    evaluate_every: int = 250
    average: float = 0.998  # decay of the weights' running mean: what is evaluated and compiled
    digest: str = field(default="", compare=False)  # SHA-256 of the file, set by `read`


def read(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file is missing or no TOML, a key is unknown, or a value is of another type or out of range.
    """
    if not path.is_file():
        raise RecipeError(f"no recipe at {path}; the project's own are in export/recipes")
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    known = {f.name: f for f in fields(Recipe) if f.name != "digest"}
    unknown = sorted(table.keys() - known.keys())
    if unknown:
        raise RecipeError(f"{path} has the unknown key {', '.join(unknown)}; known are {', '.join(known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for key, value in values.items():
        default = known[key].default
        if isinstance(default, float) and isinstance(value, int):
            values[key] = float(value)
        elif key != "name" and not isinstance(value, type(default)):
            raise RecipeError(f"{path}: {key} must be a {type(default).__name__}, not {value!r}")
    recipe = Recipe(**{"name": path.stem} | values, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    for key in ("alpha_default", "alpha_focus", "average"):
        if not 0 <= getattr(recipe, key) <= 1:
            raise RecipeError(f"{path}: {key} must lie within 0..1, not {getattr(recipe, key)}")
    if recipe.steps < 1 or recipe.batch < 1 or recipe.replay < recipe.attacker_batch:
        raise RecipeError(f"{path}: steps and batch must be positive, and replay at least attacker_batch")
    return recipe
