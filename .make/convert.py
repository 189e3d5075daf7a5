"""Turns a weight-only int8 ONNX model into a dynamically quantised one.

The packaged model stores int8 weights but computes in float; the converted one also
multiplies in int8, which is two to four times as fast on a CPU. The result must mean
the same: mean-pooled vectors of SENTENCES are compared, and a mean cosine below
MEAN_COSINE, or a single one below MIN_COSINE, is an error. Run by deps.py with onnx, onnxruntime and numpy on the path.

usage: convert.py SOURCE.onnx RESULT.onnx TOKENIZER.json REPORT.json
"""

import json
import logging
import re
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

MEAN_COSINE = 0.99
# Single words come out lowest: quantisation noise is not averaged over any tokens.
MIN_COSINE = 0.97
SENTENCES = [
    "The invoice is due on the first of March.",
    "Restart the worker after you have changed its configuration.",
    "A lease that is not renewed may be taken over by another process.",
    "How do I rotate the signing key without losing old tokens?",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "The bridge was closed because of strong winds.",
    "fn main() { println!(\"hello\"); }",
    "SELECT id, status FROM jobs WHERE run_at <= now() ORDER BY priority;",
    "Die Rechnung ist am ersten Tag des Monats zu bezahlen.",
    "Der Vertrag kann mit einer Frist von drei Monaten gekündigt werden.",
    "La réunion a été déplacée à jeudi prochain.",
    "Boundary layer thickness grows with the square root of distance.",
    "Heat transfer at hypersonic speeds depends on the nose radius.",
    "She poured the tea and waited for the rain to stop.",
    "Total revenue rose by 4.2 % to 118 million euros in the third quarter.",
    "Error 23505: duplicate key value violates unique constraint.",
    "yes",
    "Wash hands, peel the onions, and fry them slowly until golden.",
    "The patient was given 20 mg of the drug twice a day for a week.",
    "An attachment becomes searchable once its last chunk has been embedded, and the "
    "pointer to the current generation is moved in the same transaction, so that a "
    "reader sees either all of the old chunks or all of the new ones.",
]


def fold_weights(model):
    """Replaces int8 weight + scale arithmetic by the float weights it computes.

    Exporters write it as DequantizeLinear or as Cast and Mul; only nodes that lead
    from an int8 initializer to a float one are folded, the graph is left as it is.
    """
    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    int8 = {n for n, i in values.items() if i.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    folded, kept, count = {}, [], 0

    def array(name):
        return folded[name] if name in folded else numpy_helper.to_array(values[name])

    for node in graph.node:
        inputs = [n for n in node.input if n]
        constant = inputs and all(n in values or n in folded for n in inputs)
        weight = constant and any(n in int8 or n in folded for n in inputs)
        result = evaluate(node, array) if weight else None
        if result is None:
            kept.append(node)
        else:
            folded[node.output[0]] = result
            count += 1

    used = {n for node in kept for n in node.input} | {o.name for o in graph.output}
    remaining = [i for i in graph.initializer if i.name in used]
    remaining += [numpy_helper.from_array(a, n) for n, a in folded.items() if n in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(remaining)
    return count


def evaluate(node, array):
    """The value of a weight-arithmetic node over constants; None for any other node."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast" and attributes.get("to") == onnx.TensorProto.FLOAT:
        return array(node.input[0]).astype(np.float32)
    if node.op_type == "Mul":
        return array(node.input[0]) * array(node.input[1])
    if node.op_type == "Transpose":
        return np.ascontiguousarray(np.transpose(array(node.input[0]), attributes.get("perm")))
    if node.op_type == "DequantizeLinear":
        weight, scale = array(node.input[0]).astype(np.float32), array(node.input[1])
        zero = array(node.input[2]).astype(np.float32) if len(node.input) > 2 else np.float32(0)
        if scale.ndim == 1:
            shape = [1] * weight.ndim
            shape[attributes.get("axis", 1)] = -1
            scale = scale.reshape(shape)
            zero = zero.reshape(shape) if np.ndim(zero) == 1 else zero
        return (weight - zero) * scale
    return None


def drop_nan_guards(graph):
    """Takes out `Where(IsNaN(s), 0, s)` behind each softmax: a sixth of all time.

    It answers for rows in which every key is masked; no text has such a row, because its
    own [CLS] is never masked.
    """
    guarded = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "IsNaN"}
    plain = {n.output[0]: n.input[2] for n in graph.node
             if n.op_type == "Where" and guarded.get(n.input[0]) == n.input[2]}
    for node in graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
    dead = set(plain) | set(guarded)
    kept = [n for n in graph.node if n.output[0] not in dead]
    del graph.node[:]
    graph.node.extend(kept)


def regroup_gelu(graph):
    """Writes x * (0.5 * (1 + erf)) as (x * (1 + erf)) * 0.5, which the runtime fuses into one step."""
    made_by = {n.output[0]: n for n in graph.node}
    for outer in graph.node:
        inner = made_by.get(outer.input[1]) if outer.op_type == "Mul" else None
        sum_ = made_by.get(inner.input[1]) if inner is not None and inner.op_type == "Mul" else None
        if sum_ is None or sum_.op_type != "Add" or made_by.get(sum_.input[0], outer).op_type != "Erf":
            continue
        x, half = outer.input[0], inner.input[0]
        inner.input[:] = [x, sum_.output[0]]
        outer.input[:] = [inner.output[0], half]


class WordPiece:
    """Just enough of BERT's tokenizer to feed both models the same ids."""

    def __init__(self, path):
        self.vocabulary = json.loads(Path(path).read_text(encoding="utf-8"))["model"]["vocab"]

    def ids(self, text):
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        pieces = [p for word in re.findall(r"\w+|[^\w\s]", plain) for p in self.split(word)]
        return [self.vocabulary[t] for t in ["[CLS]", *pieces, "[SEP]"]]

    def split(self, word):
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.vocabulary:
                    break
            else:
                return ["[UNK]"]
            pieces.append(piece)
            start = end
        return pieces


def embed(path, sequences):
    """Mean-pooled unit vectors; one text at a time, so no padding plays a part."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    vectors = []
    for ids in sequences:
        row = np.array([ids], dtype=np.int64)
        feed = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        hidden = session.run(None, {k: v for k, v in feed.items() if k in wanted})[0]
        mean = hidden[0].mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


def main(source, result, tokenizer, report):
    logging.disable(logging.WARNING)
    model = onnx.load(source)
    folded = fold_weights(model)
    if folded == 0:
        sys.exit(f"{source}: no int8 weights found to fold; is it the weight-only model?")
    drop_nan_guards(model.graph)
    regroup_gelu(model.graph)
    with tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "float.onnx"
        onnx.save(model, full)
        quantize_dynamic(full, result, per_channel=True, weight_type=QuantType.QInt8)

    quantised = onnx.load(result)
    # Versions of the tools are left out of the file, so equal graphs are equal files.
    quantised.producer_name, quantised.producer_version = "gristmill", ""
    del quantised.metadata_props[:]
    Path(result).write_bytes(quantised.SerializeToString(deterministic=True))

    words = WordPiece(tokenizer)
    sequences = [words.ids(s) for s in SENTENCES]
    cosines = (embed(source, sequences) * embed(result, sequences)).sum(axis=1)
    if cosines.mean() < MEAN_COSINE or cosines.min() < MIN_COSINE:
        sys.exit(f"the converted model strays: cosine {cosines.mean():.4f} in the mean ({MEAN_COSINE} wanted), "
                 f"{cosines.min():.4f} at worst ({MIN_COSINE} wanted)")
    Path(report).write_text(json.dumps({
        "folded_nodes": folded,
        "integer_matmuls": sum(n.op_type == "MatMulInteger" for n in quantised.graph.node),
        "sentences": len(SENTENCES),
        "cosine_min": round(float(cosines.min()), 5),
        "cosine_mean": round(float(cosines.mean()), 5),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
