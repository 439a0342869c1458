"""Compile a trained sanitizer to the model file: `python -m export.compile runs/NAME --data DIR --out FILE`.

fp32 ONNX (the uint8 contract inside) -> calibration on real chips -> static QDQ int8 (uint8 activations, symmetric
int8 weights per channel) -> metadata with the known answer -> a parity report, fp32 against int8, on validation people.

A model file of an older format is laid out anew, with the same outputs to the level: `python -m export.compile MODEL --out NEW`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from edgesan import ort
from edgesan.errors import ModelError
from edgesan.message import MOST_CODE
from edgesan.model.cut import cut
from edgesan.model.load import FORMAT, known_inputs
from export import data
from export.errors import ExportError
from export.networks import LANDMARKS, LIGHT, DeviceGraph, Sanitizer, Unet
from export.recipe import Recipe

OPSET = 17
TOLERANCE = 2  # levels that a known answer may differ by between processors
SAMPLES = 64
SCALINGS = ("QuantizeLinear", "DequantizeLinear")

Run = Callable[[NDArray[np.uint8], NDArray[np.float32], float], NDArray[np.uint8]]


def restore(path: Path) -> tuple[Any, Recipe, dict[str, Any]]:
    """The sanitizer that `export.train` left in `path`, its recipe, and what else was saved with it.

    Raises:
        ExportError: there is none.
    """
    if not (path / "sanitizer.pt").exists():
        raise ExportError(f"no sanitizer.pt in {path}: train one with python -m export.train")
    saved = torch.load(path / "sanitizer.pt", weights_only=True, map_location="cpu")
    r = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["recipe"].items()})
    sanitizer = Unet(r.stochastic) if r.unet else Sanitizer(saved["features"], r.code, r.noise, r.stochastic)
    sanitizer.load_state_dict(saved["weights"])
    return sanitizer.eval(), r, saved


def unpack(path: Path) -> Sanitizer:
    """The float sanitizer of an int8 model file: its dequantized weights, with the normalisation folded into them.

    What is lost in the file is lost here: the two agree within the file's parity.

    Raises:
        ExportError: there is no such file, or it holds another network than `Sanitizer`.
    """
    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is no model file to begin from: {error}") from error
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node}

    def value(name: str) -> NDArray[np.float32]:
        """A constant, dequantized."""
        if name in stored:
            return np.asarray(stored[name], np.float32)
        if name in made and made[name].op_type == "Constant":
            return np.asarray(numpy_helper.to_array(made[name].attribute[0].t), np.float32)
        if name in made and made[name].op_type in SCALINGS and made[name].input[0] not in stored:
            return value(made[name].input[0])  # some versions of the quantizer leave a number to run time
        if name not in made or made[name].op_type != "DequantizeLinear" or made[name].input[0] not in stored:
            raise ExportError(f"{path} holds another network than this trainer's: {name} is no weight")
        whole, scale, zero = (stored[i] for i in made[name].input)
        shape = (-1,) + (1,) * (whole.ndim - 1) if scale.ndim else ()
        return np.asarray((whole.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape), np.float32)

    layers = [[value(i) for i in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    names = {value_.name for value_ in graph.input}
    shapes = [layer[0].shape for layer in layers]
    try:
        features, code = shapes[9][0] - LANDMARKS - LIGHT, shapes[10][0]
        sanitizer = Sanitizer(features, code, 1.0, "noise" in names).eval()
        convolutions = [m for m in sanitizer.modules() if isinstance(m, torch.nn.Conv2d)]
        expected = [tuple(m.weight.shape) for m in convolutions]
    except (IndexError, RuntimeError) as error:
        raise ExportError(f"{path} holds another network than this trainer's: its layers are {shapes}") from error
    if shapes != expected:
        raise ExportError(f"{path} holds another network than this trainer's: layers {shapes}, expected {expected}")
    norms = iter(m for m in sanitizer.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.no_grad():
        for convolution, (weight, *bias) in zip(convolutions, layers, strict=True):
            convolution.weight.copy_(torch.from_numpy(weight))
            if convolution.bias is not None:
                convolution.bias.copy_(torch.from_numpy(bias[0]))
            elif bias:  # a folded normalisation: as it is, but for its shift
                norm = next(norms)
                norm.running_var.fill_(1 - norm.eps)
                norm.bias.copy_(torch.from_numpy(bias[0]))
    if sanitizer.noise_dim:
        sanitizer.noise = loudness(graph, value)
    return sanitizer


def loudness(graph: onnx.GraphProto, value: Callable[[str], NDArray[np.float32]]) -> float:
    """The constant that the dial is multiplied by, before it scales the noise."""
    dial = {"alpha"}
    for node in graph.node:
        if node.op_type in SCALINGS and node.input[0] in dial:
            dial.add(node.output[0])
        if node.op_type == "Mul" and dial & set(node.input):
            return float(value(next(i for i in node.input if i not in dial)))
    return 1.0  # by one: an optimizer took it out


def export_fp32(sanitizer: Sanitizer, path: Path) -> None:
    """The fp32 graph, with uint8 NHWC tensors at both ends."""
    inputs = {
        "face": torch.zeros(2, 112, 112, 3, dtype=torch.uint8),
        "noise": torch.zeros(2, sanitizer.noise_dim),
        "alpha": torch.full((2, 1), 0.5),
    }
    if not sanitizer.noise_dim:
        del inputs["noise"]
    with torch.no_grad(), warnings.catch_warnings():
        # torch's older exporter: the newer one needs onnxscript, and unrolls the byte shuffles at both ends of the graph.
        warnings.simplefilter("ignore", DeprecationWarning)
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


def feed(chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: NDArray[np.float32]) -> dict[str, Any]:
    """The model's inputs; a deterministic model has no noise."""
    return {"face": chips, "alpha": alpha} | ({"noise": noise} if noise.shape[1] else {})


class Chips(CalibrationDataReader):
    """Real chips, at every alpha, with real noise: what the activations' ranges are taken from."""

    def __init__(self, chips: NDArray[np.uint8], noise_dim: int, batch: int = 16) -> None:
        random = np.random.default_rng(0)
        self._feeds: Iterator[dict[str, Any]] = iter(
            feed(
                part,
                random.standard_normal((len(part), noise_dim), np.float32),
                random.random((len(part), 1), np.float32),
            )
            for part in np.array_split(chips, max(1, len(chips) // batch))
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None when there are no more."""
        return next(self._feeds, None)


def quantize(fp32: Path, int8: Path, chips: NDArray[np.uint8], noise_dim: int) -> int:
    """Static QDQ: uint8 activations and per-channel int8 weights fuse on x86 and Arm alike. The width of the code."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(int8),
            Chips(chips, noise_dim),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv", "Add", "Mul", "Resize", "Relu", "Clip", "Concat"],
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
    model, width = lay_out(relay(onnx.load(str(int8))))
    onnx.save(model, str(int8))
    return width


def runner(content: bytes, output: str = "sanitized") -> Run:
    """The model (or its encoder) as a function of chips, noise and alpha; sessions set as on the device."""
    session = ort.session(content, 2)

    def run(chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
        dial = np.full((len(chips), 1), alpha, np.float32)
        result: NDArray[np.uint8] = session.run([output], feed(chips, noise, dial))[0]
        return result

    return run


def known_answer(path: Path, model: onnx.ModelProto, metadata: dict[str, Any], count: int = 2) -> dict[str, Any]:
    """What the model gives for inputs that everybody can make: the codes in whole, the picture in samples."""
    noise_dim = sum(v.type.tensor_type.shape.dim[1].dim_value for v in model.graph.input if v.name == "noise")
    alpha, code = metadata["alpha_default"], metadata["code"]
    chips, noise = known_inputs(count, noise_dim)
    output = runner(model.SerializeToString())(chips, noise, alpha)
    encoder = cut(path, model, code["tensor"], code["bytes"]).encoder.SerializeToString()
    codes = runner(encoder, code["tensor"])(chips, noise, alpha)
    at = np.random.default_rng(7).integers(0, (count, 112, 112, 3), (SAMPLES, 4))
    samples = [[*map(int, row), int(output[tuple(row)])] for row in at]
    return {"rule": "waves-1", "count": count, "alpha": alpha, "tolerance": TOLERANCE, "samples": samples,
            "codes": [row.tobytes().hex() for row in codes]}  # fmt: skip


def seal(path: Path, metadata: dict[str, Any]) -> None:
    """Write the `edgesan` metadata into the file, with the known answer of the very bytes that will be read."""
    model = onnx.load(str(path))
    del model.metadata_props[:]
    metadata["known_answer"] = known_answer(path, model, metadata)
    onnx.helper.set_model_props(model, {"edgesan": json.dumps(metadata)})
    model.doc_string = ""
    model.producer_name, model.producer_version = "edgesan", "1"
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(model.SerializeToString())
    part.replace(path)


def shorten(graph: onnx.GraphProto) -> None:
    """Give all inner tensors short names: the exporter's take a twentieth of the file."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": "", "code": "code"}

    def short(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}")

    for node in graph.node:
        node.name = ""
        node.input[:], node.output[:] = [short(n) for n in node.input], [short(n) for n in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    del graph.value_info[:]


def fix_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function whose reshapes take -1 for the number of faces, instead of asking the face for its shape.

    A path from the face to the output around the code is one too many, also if only a number goes by it.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    graph = fixed.graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    stored |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    for node in graph.node:
        shape = made.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat" or shape.input[0] in stored:
            continue
        lengths = [-1, *(int(stored[name].item()) for name in shape.input[1:])]
        node.input[1] = f"{node.output[0]}_to"
        graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), node.input[1]))
    return without_dead_nodes(fixed)


def without_dead_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without nodes and weights that no output needs."""
    graph, needed = proto.graph, {value.name for value in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.insert(0, node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    return proto


def name_code(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with its code as a tensor `code` [N, K] of 8 bits, and K: the narrowest place that all of a face passes.

    Raises:
        ExportError: there is none of at most 128 numbers.
    """
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    sizes = {v.name: math.prod(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in inferred.value_info}
    made = {name: node for node in graph.node for name in node.output}

    def all_pass(place: str) -> bool:
        waiting, seen = ["sanitized"], {place}
        while waiting:
            name = waiting.pop()
            if name in ("face", "noise"):
                return False
            if name not in seen:
                seen.add(name)
                waiting += made[name].input if name in made else []
        return True

    quantized = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    places = [(sizes[name], name) for name in quantized if 1 <= sizes.get(name, 0) <= MOST_CODE and all_pass(name)]
    if not places:
        raise ExportError(
            f"no 8-bit tensor of at most {MOST_CODE} numbers lies on every path from the face to the output"
        )
    width, place = min(places)
    at = next(i for i, node in enumerate(graph.node) if place in node.output)
    for node in graph.node:
        node.input[:] = [f"{place}_wide" if name == place else name for name in node.input]
    shape = [d.dim_value for d in next(v for v in inferred.value_info if v.name == place).type.tensor_type.shape.dim]
    for name, lengths in (("code_to", [-1, width]), (f"{place}_to", [-1, *shape[1:]])):
        graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), name))
    graph.node.insert(at + 1, helper.make_node("Reshape", [place, "code_to"], ["code"]))
    graph.node.insert(at + 2, helper.make_node("Reshape", ["code", f"{place}_to"], [f"{place}_wide"]))
    return proto, width


def lay_out(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A quantized model as the model file holds it: nothing but the code leads from the face to the output; and K.

    Raises:
        ExportError: as `name_code`.
    """
    proto, width = name_code(fix_batch(proto))
    shorten(proto.graph)
    return proto, width


def parity(fp32: Run, int8: Run, chips: NDArray[np.uint8], noise_dim: int, alphas: tuple[float, ...]) -> dict[str, Any]:
    """fp32 against int8 on chips [N, 112, 112, 3]: mean and largest difference in levels, PSNR in dB, per alpha."""
    random = np.random.default_rng(1)
    report: dict[str, Any] = {}
    for alpha in alphas:
        differences = []
        for part in tqdm(
            np.array_split(chips, max(1, len(chips) // 32)), desc=f"parity at alpha {alpha:g}", leave=False
        ):
            noise = random.standard_normal((len(part), noise_dim), np.float32)
            differences.append(np.abs(fp32(part, noise, alpha).astype(np.int16) - int8(part, noise, alpha)))
        d = np.concatenate(differences).astype(np.float64)
        report[f"{alpha:g}"] = {
            "mean_levels": round(float(d.mean()), 2),
            "p99_levels": round(float(np.percentile(d, 99)), 1),
            "max_levels": int(d.max()),
            "psnr_db": round(float(10 * np.log10(255**2 / np.mean(d**2))), 1),
        }
    return report


def relay(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with each Transpose of a constant shape of 5 or more axes as swaps of two blocks of neighbours.

    onnxruntime moves whole blocks for such a swap, and one element after the other for the rest: the two that cut a
    face to 4x4 pixels a channel, and put them together again, took a quarter of the network's time. The first axis counts
    the faces and stays the first.
    """
    quick = onnx.ModelProto()
    quick.CopyFrom(proto)
    graph = quick.graph
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer if t.data_type == TensorProto.INT64}
    shapes = {n.output[0]: stored[n.input[1]] for n in graph.node if n.op_type == "Reshape" and n.input[1] in stored}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
        lengths = shapes.get(node.input[0], []) if node.op_type == "Transpose" else []
        if len(order) < 5 or len(lengths) != len(order) or order[0] or min(lengths[1:]) < 1:
            nodes.append(node)
            continue
        name, lengths = node.input[0], [-1, *lengths[1:]]

        def reshaped(to: list[int], source: str, result: str) -> None:
            graph.initializer.append(numpy_helper.from_array(np.array(to, np.int64), f"{result}_to"))
            nodes.append(helper.make_node("Reshape", [source, f"{result}_to"], [result]))

        for number, (first, second, end) in enumerate(swaps(order)):
            a, b, inner = (math.prod(lengths[i:j]) for i, j in ((first, second), (second, end), (end, None)))
            result = f"{node.output[0]}_{number}"
            reshaped([-1, a, b, inner], name, f"{result}_of")
            nodes.append(helper.make_node("Transpose", [f"{result}_of"], [result], perm=[0, 2, 1, 3]))
            name = result
            lengths[first:end] = lengths[second:end] + lengths[first:second]
        reshaped(lengths, name, node.output[0])
    del graph.node[:]
    graph.node.extend(nodes)
    return quick


def swaps(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """How to bring axes 0, 1, 2... into an order: (i, j, k) swaps the blocks i..j-1 and j..k-1, one after the other.

    The way back from the order is tried too, as it may be the shorter one.
    """
    back = [(i, i + k - j, k) for i, j, k in reversed(_swaps(np.argsort(order).tolist()))]
    return min(_swaps(order), back, key=len)


def _swaps(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """From the first place to the last, each brings what belongs there, with all that follows it already."""
    now, found = sorted(order), []
    for i, axis in enumerate(order):
        j = now.index(axis)
        k = j + 1
        while k < len(now) and now[k] == order[i + k - j]:
            k += 1
        if j > i:
            found.append((i, j, k))
            now[i:k] = now[j:k] + now[i:j]
    return found


def lay_anew(path: Path, out: Path, alpha: float | None) -> None:
    """A model file in today's layout, trained as it was; its outputs are the same, to the level.

    Args:
        alpha: another default of its dial; the claims, which were made at another alpha, are then left out.

    Raises:
        ExportError: it is no model file.
    """
    try:
        model = onnx.load(str(path))
        metadata = json.loads(next(p.value for p in model.metadata_props if p.key == "edgesan"))
        before = int(metadata["format"])
    except (OSError, DecodeError, StopIteration, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no model file: {error}") from error
    if before < FORMAT:
        model, width = lay_out(model)
        metadata |= {"format": FORMAT, "code": {"tensor": "code", "bytes": width}}
    if alpha is not None and alpha != metadata["alpha_default"]:
        metadata |= {"alpha_default": alpha, "claims": []}
    onnx.save(model, str(out))
    seal(out, metadata)


def git_commit() -> str:
    """The commit of this source tree, "unknown" outside a repository."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return git.stdout.strip() or "unknown"


def compile_model(
    path: Path, faces: data.Faces, out: Path, claims: list[dict[str, Any]], alpha_default: float | None = None
) -> dict[str, Any]:
    """Everything from `sanitizer.pt` to the model file; the parity report."""
    sanitizer, r, saved = restore(path)
    if r.unet:
        raise ExportError(f"{path} is the baseline, which has no int8 file: compare it with export.audit --rival")
    train = faces.where(data.training_rows(faces)).chips
    validation = faces.where(data.validation_rows(faces)).chips
    random = np.random.default_rng(0)
    calibration = train[random.permutation(len(train))[:256]]
    default = r.alpha_default if alpha_default is None else alpha_default
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.onnx"
        export_fp32(sanitizer, fp32)
        width = quantize(fp32, out, calibration, sanitizer.noise_dim)
        metadata = {
            "format": FORMAT,
            "code": {"tensor": "code", "bytes": width},
            "name": r.name,
            "version": r.version,
            "alpha_range": [0.0, 1.0],
            "alpha_default": default,
            "private": r.private,
            "utility": r.utility_column or "identity",
            "claims": claims,
            "provenance": {
                "commit": git_commit(),
                "recipe_sha256": saved["recipe"]["digest"],
                "data_sha256": saved["data_digest"],
                "steps": saved["step"],
                "seed": r.seed,
            }
            | ({"from_sha256": saved["from"]} if saved.get("from") else {}),
        }
        seal(out, metadata)
        sample = validation[random.permutation(len(validation))[:256]]
        return parity(
            runner(fp32.read_bytes()), runner(out.read_bytes()), sample, sanitizer.noise_dim, (0.0, default, 1.0)
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.compile", description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="the folder that export.train wrote; or a model file, to lay it out in today's format (and give it another --alpha-default)",
    )
    parser.add_argument("--data", type=Path, help="folder of sets: calibration and parity chips")
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")
    parser.add_argument("--claims", type=Path, help="JSON that export.audit wrote: a list of measured figures")
    parser.add_argument("--alpha-default", type=float, help="the dial's default (default: the recipe's)")
    a = parser.parse_args(arguments)
    try:
        if a.run.is_file():
            lay_anew(a.run, a.out, a.alpha_default)
            print(f"{a.out}: {a.run} in format {FORMAT}; sign it anew")
            return 0
        if a.data is None:
            raise ExportError("--data is needed: calibration looks at real chips")
        _, r, _ = restore(a.run)
        faces = data.join(data.load_set(a.data, name) for name in r.sets)
        claims = json.loads(a.claims.read_text())["claims"] if a.claims else []
        report = compile_model(a.run, faces, a.out, claims, a.alpha_default)
    except (ExportError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{a.out}: {a.out.stat().st_size / 2**20:.2f} MiB")
    print(json.dumps({"parity fp32 vs int8, by alpha": report}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
