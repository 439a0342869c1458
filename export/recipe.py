"""A recipe: every choice of a training, as one TOML file. Same recipe, same data, same seed: same model."""

import hashlib
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from export.errors import RecipeError

STAGES = ("read", "hide", "paint", "play")


@dataclass(frozen=True)
class Recipe:
    """The keys of a recipe file; `docs` of each key are the comments here."""

    name: str
    version: int = 1  # of the model file: only goes up
    seed: int = 0
    # data
    sets: tuple[str, ...] = ("lfw", "glint", "pins", "celeba", "aaf", "utk")
    private: str = "gender"  # the CSV column that must not be inferred
    private_bins: tuple[float, ...] = ()  # a column of numbers as groups, by their edges: [30, 45] makes three
    # the provider's networks, by their names in providers.toml, or as paths of .onnx files
    utility: str = "id_mobilefacenet_paddle"
    frozen: tuple[str, ...] = ()  # frozen classifiers of the private attribute (plug-and-play)
    # the sanitizer
    code: int = 64  # numbers between the reader and the painter
    noise: float = 1.0  # standard deviation of what is added to each of them, at alpha = 1
    stochastic: bool = True  # false: a deterministic sanitizer, without noise
    # the dial
    alpha_default: float = 0.8
    alpha_focus: float = 0.5  # share of pictures trained at alpha_default; the rest is uniform in 0..1
    # the utility variable: who it is, or a CSV column
    utility_column: str = ""  # as `private`: this column is kept, as far as the provider's embedding tells it
    utility_bins: tuple[float, ...] = ()
    people_min: int = 4  # a person with this many pictures is one of its classes
    cosine_scale: float = 16.0  # utility logits = scale * cosine to each person's mean raw embedding
    # reading
    views: int = 5  # of each picture: as it is, mirrored, and jittered ones
    read_steps: int = 8000
    read_batch: int = 64
    read_lr: float = 2e-3
    unseen: int = (
        0  # pictures beside each batch that are moved, lit and mixed anew, and the provider's network is asked
    )
    # hiding
    attackers: tuple[int, ...] = (256, 384, 128)  # one per entry, of so many hidden units; none = plug-and-play
    attacker_steps: int = 2  # updates of the attackers for each of the hider
    attacker_lr: float = 1e-3
    privacy: float = 5.0  # weight of the attackers' verdict in Loss_S
    alike: float = 2.0  # weight of the cosine to the raw embedding: 0 where a column is kept, and nobody's identity
    keep: float = 0.15  # weight of the utility that stays at alpha = 1: a face of nobody serves nobody
    look: float = 0.5  # weight of landmarks and light: where a face looks, and how it is lit
    power: float = 2.0  # mean square of the code that costs nothing: nobody may shout the noise down
    hide_steps: int = 3500
    hide_batch: int = 256
    hide_lr: float = 1.5e-3
    # painting
    match: float = 1.75  # weight of what the provider's network should recognise
    detect: float = 0.5  # weight of what a face detector loses: score and landmarks
    reconstruct: float = 8.0  # weight of the L1 distance to the raw face: the output stays a face
    smooth: float = 1.5  # weight of the total variation
    face_steps: int = 500  # steps before the provider's network comes in
    paint_steps: int = 4500
    paint_batch: int = 24
    paint_lr: float = 1e-3
    # the baseline: the authors' network shape, trained in one stage on pictures; none of the three above
    unet: bool = False
    play_steps: int = 1500
    play_batch: int = 16
    play_lr: float = 1e-3
    # the loop
    weight_decay: float = 1e-3
    evaluate_every: int = 250
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
        elif key != "name" and (
            not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise RecipeError(f"{path}: {key} must be a {type(default).__name__}, not {value!r}")
    recipe = Recipe(**{"name": path.stem} | values, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    for key in ("alpha_default", "alpha_focus"):
        if not 0 <= getattr(recipe, key) <= 1:
            raise RecipeError(f"{path}: {key} must lie within 0..1, not {getattr(recipe, key)}")
    for key in ("code", "views", "evaluate_every", *(f"{s}_batch" for s in STAGES)):
        if getattr(recipe, key) < 1:
            raise RecipeError(f"{path}: {key} must be positive, not {getattr(recipe, key)}")
    for key in (f"{s}_steps" for s in STAGES):
        if getattr(recipe, key) < 0:
            raise RecipeError(f"{path}: {key} must be positive, or 0 for a stage that --from takes over")
    for key in ("private_bins", "utility_bins"):
        edges = getattr(recipe, key)
        if not all(isinstance(edge, int | float) for edge in edges) or list(edges) != sorted(set(edges)):
            raise RecipeError(f"{path}: {key} must be numbers that ascend, not {list(edges)}")
    if recipe.private == recipe.utility_column:
        raise RecipeError(f"{path}: {recipe.private} cannot be hidden and kept at once")
    return recipe
