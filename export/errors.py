"""What can be wrong with the material that a training is given."""


class ExportError(Exception):
    """Base of every error that `export` raises on purpose: bad data, a bad recipe, a network that does not fit."""


class DataError(ExportError):
    """A data set is missing, incomplete or not in one of the two layouts that `export.data` reads."""


class RecipeError(ExportError):
    """A recipe has an unknown key, lacks one, or holds a value out of range."""


class NetworkError(ExportError):
    """A provider's ONNX network cannot be turned into a differentiable torch module."""
