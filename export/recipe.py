"""A recipe: every choice of a training, as one TOML file. Same recipe, same data, same seed: same model."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from export.errors import RecipeError
from export.networks import Shape

STAGES = ("distill", "privatize", "decode", "unet")
# The keys of earlier versions: a recipe or a checkpoint that holds one is refused, and the error names the new key.
OLD_KEYS = {
    **{
        f"{old}_{what}": f"{new}_{what}"
        for old, new in zip(("read", "hide", "paint", "play"), STAGES, strict=True)
        for what in ("steps", "batch", "lr")
    },
    "unseen": "distill_augmented",
    "privacy": "privacy_weight",
    "alike": "identity_cosine_weight",
    "keep": "utility_floor",
    "look": "appearance_weight",
    "power": "code_power",
    "match": "recognition_weight",
    "detect": "detection_weight",
    "reconstruct": "reconstruction_weight",
    "smooth": "smoothness_weight",
    "face_steps": "warmup_steps",
}

CHOICES: dict[str, tuple[object, ...]] = {
    "code_norm": ("power", "unit"),
    "code_bits": (0, 8),
    "decoder_bits": (0, 8),
    "utility_loss": ("prototypes", "infonce"),
    "encoder": ("small", "resnet"),
    "augmented_targets": ("network", "picture"),
}

NOT_NEGATIVE = (
    "privatizer_hidden",
    "decoder_hidden",
    "distribution_weight",
    "attacker_renewal",
    "spectrum_weight",
    "realism_weight",
    "chroma_weight",
    "mean_weight",
)


@dataclass(frozen=True)
class Recipe:
    """The keys of a recipe file, with their defaults; the comment at each key is its documentation."""

    name: str
    version: int = 1  # of the model file: only goes up
    seed: int = 0
    # data
    sets: tuple[str, ...] = ("lfw", "glint", "pins", "celeba", "aaf", "utk")
    private: str = "gender"  # the CSV column that must not be inferred
    private_bins: tuple[float, ...] = ()  # a column of numbers as groups, by their edges: [30, 45] makes three
    # the provider's networks, by their names in providers.toml, or as paths of .onnx files
    utility: tuple[str, ...] = ("id_mobilefacenet_paddle",)  # several are one teacher: `providers.Ensemble`
    frozen: tuple[str, ...] = ()  # frozen classifiers of the private attribute (plug-and-play)
    # the sanitizer
    code: int = 64  # numbers between the privatizer and the decoder
    noise: float = 1.0  # standard deviation of what is added to each of them, at alpha = 1
    stochastic: bool = True  # false: a deterministic sanitizer, without noise
    encoder: str = "small"  # or "resnet", which begins from the weights of dlib's network among the providers' networks
    decoder_widths: tuple[int, ...] = (80, 64, 48)  # channels from 7x7 upwards; four levels end at 56x56
    decoder_hidden: int = 0  # units of a layer that sees the whole code before there is a map; 0: none
    coarse_colour: bool = False  # the decoder makes brightness pixel by pixel, and colour in patches
    anew: tuple[str, ...] = ()  # parts that begin at random although --from has them: of "privatizer", "decoder"
    # the dial
    alpha_default: float = (
        0.8  # where `alpha_focus` trains; the model file's default, unless export.compile gets another
    )
    alpha_focus: float = 0.5  # share of pictures trained at alpha_default; the rest is uniform in 0..1
    # the utility variable: who it is, or a CSV column
    utility_column: str = ""  # as `private`: this column is kept, where the provider's embedding shows it
    utility_bins: tuple[float, ...] = ()
    people_min: int = 4  # a person with this many pictures is one of its classes
    cosine_scale: float = 16.0  # utility logits = scale * cosine to each person's mean raw embedding
    # the encoder: knowledge distillation
    views: int = 5  # of each picture: as it is, mirrored, and jittered ones
    distill_steps: int = 8000
    distill_batch: int = 64
    distill_lr: float = 2e-3
    distill_augmented: int = 0  # new pictures beside each batch (moved, lit, coarser)
    augmented_targets: str = "network"  # which is asked about them, some mixed; or "picture": they keep their picture's
    # the privatizer: the game against the attackers
    attackers: tuple[int, ...] = (256, 384, 128)  # one per entry, of so many hidden units; none = plug-and-play
    attacker_steps: int = 2  # updates of the attackers for each of the privatizer
    attacker_lr: float = 1e-3
    privacy_weight: float = 5.0  # of the attackers' loss in Loss_S
    privacy_ramp: float = 7.0  # the weights against attackers rise in the first 1 / 7 of the steps
    identity_cosine_weight: float = 2.0  # of the cosine to the raw embedding; 0 where a column is kept, and no identity
    utility_floor: float = 0.15  # weight of the utility that stays at alpha = 1: the face stays somebody's
    appearance_weight: float = 0.5  # of landmarks and lighting
    code_power: float = 2.0  # mean square of the code that costs nothing: beyond it, the code would outgrow the noise
    code_norm: str = "power"  # or "unit": a face's code is divided by the root mean square of its numbers
    code_bits: int = 0  # 8: codes are rounded in the training as in the model file
    privatizer_hidden: int = 0  # units of each of two hidden layers; 0: one layer of 32
    utility_loss: str = "prototypes"  # or "infonce": like another picture of the person, among the others of the batch
    distribution_weight: float = 0.0  # of the distance between the codes of the private attribute's classes
    attacker_renewal: int = 0  # steps after which one of the attackers, in turn, begins anew; 0: never
    privatize_steps: int = 3500
    privatize_batch: int = 256
    privatize_lr: float = 1.5e-3
    # the decoder
    recognition_weight: float = 1.75  # of what the provider's network should recognise
    detection_weight: float = 0.5  # of what a face detector loses: score and landmarks
    reconstruction_weight: float = 8.0  # of the L1 distance to the raw face: the output stays a face
    smoothness_weight: float = 1.5  # of the total variation
    chroma_weight: float = 0.0  # of that of the colour alone
    spectrum_weight: float = 0.0  # of the distance between the power spectra of drawn and of raw faces
    mean_weight: float = 0.0  # of the square distance between the means of a batch of drawn and of raw faces
    realism_weight: float = 0.0  # of what a critic, which learns with the decoder, holds against drawn faces
    critic_lr: float = 4e-4
    decoder_bits: int = 0  # 8: numbers between its layers are rounded in the training as in the model file
    warmup_steps: int = 500  # steps before the provider's network comes in
    decode_steps: int = 4500
    decode_batch: int = 24
    decode_lr: float = 1e-3
    # the baseline: the authors' U-Net, trained in one stage on pictures instead of the three above
    unet: bool = False
    unet_steps: int = 1500
    unet_batch: int = 16
    unet_lr: float = 1e-3
    # the loop
    weight_decay: float = 1e-3
    evaluate_every: int = 250
    digest: str = field(default="", compare=False)  # SHA-256 of the file, set by `read`


KEYS = {f.name: f for f in fields(Recipe) if f.name != "digest"}


def read(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file is missing or no TOML, a key is unknown or of an earlier version, or a value is of another
            type or out of range.
    """
    if not path.is_file():
        raise RecipeError(f"no recipe at {path}; the project's own are in export/recipes")
    content = path.read_bytes()
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    check_keys(path, table)
    values: dict[str, Any] = {key: _typed(path, key, value) for key, value in table.items()}
    recipe = Recipe(**{"name": path.stem} | values, digest=hashlib.sha256(content).hexdigest())
    _check_ranges(path, recipe)
    _check_choices(path, recipe)
    _check_anew(path, recipe)
    return recipe


def check_keys(source: Path | str, keys: Iterable[str]) -> None:
    """Refuse a key that no recipe has.

    Raises:
        RecipeError: a key is of an earlier version (the error names the new one), or unknown.
    """
    old = [f"`{key}` is now `{OLD_KEYS[key]}`" for key in keys if key in OLD_KEYS]
    if old:
        raise RecipeError(f"{source} has keys of an earlier version: {', '.join(old)}")
    unknown = sorted(set(keys) - KEYS.keys())
    if unknown:
        raise RecipeError(f"{source} has the unknown key {', '.join(unknown)}; known are {', '.join(KEYS)}")


def from_saved(source: Path, table: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a checkpoint was saved with, as `dataclasses.asdict` wrote it.

    Raises:
        RecipeError: an earlier version saved it, with other keys.
    """
    check_keys(source, [key for key in table if key != "digest"])
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    if isinstance(values.get("utility"), str):
        values["utility"] = (values["utility"],)
    return Recipe(**values)


def shape(recipe: Recipe) -> Shape:
    """Return the sanitizer's shape by its recipe."""
    return Shape(
        code=recipe.code,
        noise=recipe.noise,
        stochastic=recipe.stochastic,
        encoder=recipe.encoder,
        privatizer_hidden=recipe.privatizer_hidden,
        unit_code=recipe.code_norm == "unit",
        decoder_widths=recipe.decoder_widths,
        decoder_hidden=recipe.decoder_hidden,
        coarse_colour=recipe.coarse_colour,
    )


def _typed(path: Path, key: str, value: object) -> object:
    """Return a value of a TOML file as its key's type."""
    default = KEYS[key].default
    if key == "utility" and isinstance(value, str):
        value = (value,)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = str if key == "name" else type(default)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise RecipeError(f"{path}: {key} must be of type {kind.__name__}, not {value!r}")
    return value


def _check_ranges(path: Path, recipe: Recipe) -> None:
    for key in ("alpha_default", "alpha_focus"):
        if not 0 <= getattr(recipe, key) <= 1:
            raise RecipeError(f"{path}: {key} must lie within 0..1, not {getattr(recipe, key)}")
    for key in ("code", "views", "evaluate_every", *(f"{stage}_batch" for stage in STAGES)):
        if getattr(recipe, key) < 1:
            raise RecipeError(f"{path}: {key} must be positive, not {getattr(recipe, key)}")
    for key in (f"{stage}_steps" for stage in STAGES):
        if getattr(recipe, key) < 0:
            raise RecipeError(f"{path}: {key} must be positive, or 0 for a stage that --from takes over")
    for key in ("private_bins", "utility_bins"):
        edges = getattr(recipe, key)
        if not all(isinstance(edge, int | float) for edge in edges) or list(edges) != sorted(set(edges)):
            raise RecipeError(f"{path}: {key} must be numbers that ascend, not {list(edges)}")
    if recipe.private == recipe.utility_column:
        raise RecipeError(f"{path}: {recipe.private} is both `private` and `utility_column`: hide one, keep another")


def _check_choices(path: Path, recipe: Recipe) -> None:
    for key in NOT_NEGATIVE:
        if getattr(recipe, key) < 0:
            raise RecipeError(f"{path}: {key} must be positive, or 0 to go without it, not {getattr(recipe, key)}")
    if not recipe.utility:
        raise RecipeError(f"{path}: utility names no network; name at least one")
    if len(recipe.decoder_widths) not in (3, 4) or not all(isinstance(w, int) and w > 0 for w in recipe.decoder_widths):
        raise RecipeError(f"{path}: decoder_widths must be 3 or 4 positive numbers, not {list(recipe.decoder_widths)}")
    if recipe.privacy_ramp < 1:
        raise RecipeError(f"{path}: privacy_ramp must be at least 1, not {recipe.privacy_ramp}")
    for key, choices in CHOICES.items():
        value = getattr(recipe, key)
        if value not in choices:
            raise RecipeError(f"{path}: {key} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    if recipe.utility_column and recipe.utility_loss == "infonce":
        raise RecipeError(f"{path}: utility_loss = 'infonce' keeps who somebody is: leave out `utility_column`")


def _check_anew(path: Path, recipe: Recipe) -> None:
    for part in recipe.anew:
        steps = {"privatizer": recipe.privatize_steps, "decoder": recipe.decode_steps}.get(part)
        if not steps:
            raise RecipeError(
                f'{path}: anew holds {part!r}; it may hold "privatizer" and "decoder", if they have steps'
            )
