"""Compile a trained sanitizer to the model file: `python -m export.compile runs/NAME --data DIR --out FILE`.

fp32 ONNX (the uint8 contract inside) -> calibration on real chips -> static QDQ int8 (uint8 activations, symmetric
int8 weights per channel) -> metadata with the known answer -> a parity report, fp32 against int8, on validation people.

A model file of an older format is brought to today's format, with the same outputs to the level:
`python -m export.compile MODEL --out NEW`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from edgesan import disk, ort
from edgesan.errors import ModelError
from edgesan.model.cut import cut
from edgesan.model.load import FORMAT, Metadata, known_inputs
from export import data
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import ExportError
from export.layout import lay_out, split_transposes
from export.networks import DeviceGraph, Sanitizer

OPSET = 17
TOLERANCE = 2  # levels that a known answer may differ by between processors
WITHIN_RANGE = 99.999  # per cent of a layer's values; the few beyond are clipped, or all others would be coarser
SAMPLES = 64  # of the known answer's picture
QUANTIZED = ["Conv", "AveragePool", "MaxPool", "Pad", "Add", "Mul", "Resize", "Relu", "Clip", "Concat"]

# chips uint8 [N, 112, 112, 3], noise [N, Z], alpha -> the chosen output
Run = Callable[[NDArray[np.uint8], NDArray[np.float32], float], NDArray[np.uint8]]
Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far int8 is from fp32 at one alpha: differences in levels of 256, and their PSNR."""

    mean_levels: float
    p99_levels: float
    max_levels: int
    psnr_db: float


def export_fp32(sanitizer: Sanitizer, path: Path) -> None:
    """Write the fp32 graph, with uint8 NHWC tensors at both ends."""
    inputs = {
        "face": torch.zeros(2, 112, 112, 3, dtype=torch.uint8),
        "noise": torch.zeros(2, sanitizer.noise_dim),
        "alpha": torch.full((2, 1), 0.5),
    }
    if not sanitizer.noise_dim:
        del inputs["noise"]
    with torch.no_grad(), warnings.catch_warnings():
        # torch's older exporter: the newer one needs onnxscript, and unrolls the byte shuffles at both ends
        warnings.simplefilter("ignore", DeprecationWarning)
        # it writes how much to pad as a slice of constants, which onnxruntime's preparation folds
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            DeviceGraph(sanitizer),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["sanitized"],
            dynamic_axes={name: {0: "N"} for name in (*inputs, "sanitized")},
            opset_version=OPSET,
            dynamo=False,
        )


def feed(chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: NDArray[np.float32]) -> Feed:
    """Return the model's inputs by name; a deterministic model has no noise."""
    inputs: Feed = {"face": chips, "alpha": alpha}
    return inputs | ({"noise": noise} if noise.shape[1] else {})


class CalibrationChips(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Real chips with alphas and noise by chance: the ranges of the activations are taken from them."""

    def __init__(self, chips: NDArray[np.uint8], noise_dim: int, batch: int = 16) -> None:
        random = np.random.default_rng(0)
        self._feeds: Iterator[Feed] = iter(
            feed(
                part,
                random.standard_normal((len(part), noise_dim), np.float32),
                random.random((len(part), 1), np.float32),
            )
            for part in np.array_split(chips, max(1, len(chips) // batch))
        )

    def get_next(self) -> Feed | None:
        """Return the next feed, None when there are no more."""
        return next(self._feeds, None)


def quantize(fp32: Path, chips: NDArray[np.uint8], noise_dim: int) -> tuple[onnx.ModelProto, int]:
    """Quantize statically: uint8 activations and per-channel int8 weights fuse on x86 and Arm alike.

    Returns:
        The model, and the width of its code in bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, int8 = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(int8),
            CalibrationChips(chips, noise_dim),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.Percentile,
            op_types_to_quantize=QUANTIZED,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, "CalibPercentile": WITHIN_RANGE},
        )
        return lay_out(split_transposes(onnx.load(str(int8))))


def runner(content: bytes, output: str = "sanitized") -> Run:
    """Return the model (or its encoder) as a function of chips, noise and alpha, run as on the device."""
    session = ort.session(content, 2)

    def run(chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
        dial = np.full((len(chips), 1), alpha, np.float32)
        result: NDArray[np.uint8] = session.run([output], feed(chips, noise, dial))[0]
        return result

    return run


def known_answer(path: Path, model: onnx.ModelProto, metadata: Metadata, count: int = 2) -> dict[str, Any]:
    """Return what the model gives for inputs that everybody can make: the codes in whole, the picture in samples."""
    noise_dim = sum(v.type.tensor_type.shape.dim[1].dim_value for v in model.graph.input if v.name == "noise")
    alpha, code = metadata.alpha_default, metadata.code
    chips, noise = known_inputs(count, noise_dim)
    output = runner(model.SerializeToString())(chips, noise, alpha)
    encoder = cut(path, model, code["tensor"], code["bytes"]).encoder.SerializeToString()
    codes = runner(encoder, code["tensor"])(chips, noise, alpha)
    at = np.random.default_rng(7).integers(0, (count, 112, 112, 3), (SAMPLES, 4))
    return {
        "rule": "waves-1",
        "count": count,
        "alpha": alpha,
        "tolerance": TOLERANCE,
        "samples": [[*map(int, row), int(output[tuple(row)])] for row in at],
        "codes": [row.tobytes().hex() for row in codes],
    }


def write_metadata(model: onnx.ModelProto, path: Path, metadata: Metadata) -> None:
    """Write the model file: the graph, and the `edgesan` metadata with the known answer of this very graph."""
    del model.metadata_props[:]
    metadata = replace(metadata, known_answer=known_answer(path, model, metadata))
    onnx.helper.set_model_props(model, {"edgesan": json.dumps(asdict(metadata))})
    model.doc_string = ""
    model.producer_name, model.producer_version = "edgesan", "1"
    disk.write_whole(path, model.SerializeToString())


def parity(
    fp32: Run, int8: Run, chips: NDArray[np.uint8], noise_dim: int, alphas: tuple[float, ...]
) -> dict[float, Parity]:
    """Compare fp32 with int8 on chips [N, 112, 112, 3], at each alpha."""
    random = np.random.default_rng(1)
    report: dict[float, Parity] = {}
    for alpha in alphas:
        differences = []
        parts = np.array_split(chips, max(1, len(chips) // 32))
        for part in tqdm(parts, desc=f"parity at alpha {alpha:g}", leave=False):
            noise = random.standard_normal((len(part), noise_dim), np.float32)
            differences.append(np.abs(fp32(part, noise, alpha).astype(np.int16) - int8(part, noise, alpha)))
        d = np.concatenate(differences).astype(np.float64)
        report[alpha] = Parity(
            mean_levels=round(float(d.mean()), 2),
            p99_levels=round(float(np.percentile(d, 99)), 1),
            max_levels=int(d.max()),
            psnr_db=round(float(10 * np.log10(255**2 / np.mean(d**2))), 1),
        )
    return report


def upgrade(path: Path, out: Path) -> None:
    """Write a model file in today's format; its outputs stay the same, to the level.

    Raises:
        ExportError: it is no model file.
    """
    model, metadata = _read_model(path)
    write_metadata(model, out, metadata)


def set_default_alpha(path: Path, out: Path, alpha: float) -> None:
    """Write a model file with another default of its dial, in today's format.

    The claims are left out where the default changes: they were measured at the old one.

    Raises:
        ExportError: it is no model file.
    """
    model, metadata = _read_model(path)
    if alpha != metadata.alpha_default:
        metadata = replace(metadata, alpha_default=alpha, claims=[])
    write_metadata(model, out, metadata)


def _read_model(path: Path) -> tuple[onnx.ModelProto, Metadata]:
    """Read a model file of any format, laid out as today's."""
    try:
        model = onnx.load(str(path))
        table = json.loads(next(p.value for p in model.metadata_props if p.key == "edgesan"))
        if int(table["format"]) < FORMAT:
            model, width = lay_out(model)
            table |= {"format": FORMAT, "code": {"tensor": "code", "bytes": width}}
        return model, Metadata(**table)
    except (OSError, DecodeError, StopIteration, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no model file: {error}") from error


def git_commit() -> str:
    """Return the commit of this source tree, "unknown" outside a repository."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return git.stdout.strip() or "unknown"


def provenance(trained: Checkpoint) -> dict[str, Any]:
    """Return where a model comes from: commit, digests of recipe and data, steps, seed."""
    facts = {
        "commit": git_commit(),
        "recipe_sha256": trained.recipe.digest,
        "data_sha256": trained.data_digest,
        "steps": trained.step,
        "seed": trained.recipe.seed,
    }
    return facts | ({"from_sha256": trained.started_from} if trained.started_from else {})


def compile_model(
    path: Path, faces: data.Faces, out: Path, claims: list[dict[str, Any]], alpha_default: float | None = None
) -> dict[float, Parity]:
    """Compile the training in the folder `path` to a model file.

    Args:
        path: what `export.train` wrote.
        faces: training rows to calibrate with, and validation rows to compare fp32 with int8 on.
        out: the model file to write.
        claims: measured figures for the metadata.
        alpha_default: of the dial; None: the recipe's.

    Returns:
        The parity at alpha 0, the default, and 1.

    Raises:
        ExportError: there is no training, or one of the baseline.
    """
    trained = load_checkpoint(path)
    sanitizer, r = trained.sanitizer, trained.recipe
    if not isinstance(sanitizer, Sanitizer):
        raise ExportError(f"{path} is the baseline, which has no int8 file: compare it with export.audit --rival")
    train = faces.where(data.training_rows(faces)).chips
    validation = faces.where(data.validation_rows(faces)).chips
    random = np.random.default_rng(0)
    calibration = train[random.permutation(len(train))[:256]]
    default = r.alpha_default if alpha_default is None else alpha_default
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.onnx"
        export_fp32(sanitizer, fp32)
        model, width = quantize(fp32, calibration, sanitizer.noise_dim)
        metadata = Metadata(
            format=FORMAT,
            code={"tensor": "code", "bytes": width},
            name=r.name,
            version=r.version,
            alpha_range=(0.0, 1.0),
            alpha_default=default,
            private=r.private,
            utility=r.utility_column or "identity",
            claims=claims,
            known_answer={},
            provenance=provenance(trained),
        )
        write_metadata(model, out, metadata)
        sample = validation[random.permutation(len(validation))[:256]]
        both = runner(fp32.read_bytes()), runner(out.read_bytes())
        return parity(*both, sample, sanitizer.noise_dim, (0.0, default, 1.0))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m export.compile", description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="the folder that export.train wrote; or a model file, to bring it to today's format, "
        "or give it another --alpha-default",
    )
    parser.add_argument("--data", type=Path, help="faces for calibration and parity, as for export.train")
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")
    parser.add_argument("--claims", type=Path, help="JSON that export.audit wrote: a list of measured figures")
    parser.add_argument("--alpha-default", type=float, help="the dial's default (default: the recipe's)")
    a = parser.parse_args(arguments)
    try:
        if a.run.is_file():
            if a.alpha_default is None:
                upgrade(a.run, a.out)
            else:
                set_default_alpha(a.run, a.out, a.alpha_default)
            print(f"{a.out}: {a.run} in format {FORMAT}; sign it anew")
            return 0
        if a.data is None:
            raise ExportError("--data is needed: the int8 ranges are calibrated on real chips")
        faces = data.load(a.data, load_checkpoint(a.run).recipe.sets)
        claims = json.loads(a.claims.read_text())["claims"] if a.claims else []
        report = compile_model(a.run, faces, a.out, claims, a.alpha_default)
    except (ExportError, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{a.out}: {a.out.stat().st_size / 2**20:.2f} MiB")
    by_alpha = {f"{alpha:g}": asdict(found) for alpha, found in report.items()}
    print(json.dumps({"parity fp32 vs int8, by alpha": by_alpha}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
