"""One case of the zoo: a model that its own library fitted and a real converter wrote, and the files that tell of it."""

import copy
import csv
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pandas as pd

from data import Data

REFERENCE_ROWS = 500
GOLDEN_ROWS = 240


@dataclasses.dataclass
class Case:
    """A fitted model, its graph, and what `scoregate import` is expected to make of it.

    Answers are P(positive) `[N]`, probabilities per class `[N, C]` in the order of the labels, or values `[N]`.
    """

    name: str
    data: Data
    graph: onnx.ModelProto
    # The distributions that fitted the model and wrote the graph.
    library: str
    converter: str
    # Rows as clients send them -> the library's own answers.
    native: Callable[[pd.DataFrame], np.ndarray]
    # Rows as clients send them -> the graph's inputs by name.
    feed: Callable[[pd.DataFrame], dict[str, np.ndarray]]
    # The graph's outputs by name -> answers.
    answer: Callable[[dict], np.ndarray]
    # Feature -> `x-scoregate.encode`.
    encode: dict = dataclasses.field(default_factory=dict)
    # The classes in the order of the answers; of regression none.
    labels: list[str] = dataclasses.field(default_factory=list)
    # Whether there are golden rows.
    golden: bool = True
    # Flags of `scoregate import` besides those that name the files.
    flags: list[str] = dataclasses.field(default_factory=list)
    # The content of `bindings.json`, where the flags name that file.
    bindings: dict | None = None
    # The code with which the import is to be refused.
    refused: str | None = None
    # What the conversion gets wrong, where it does. Golden rows with the library's answers are then to be refused, and
    # only those with onnxruntime's are to be taken.
    unfaithful: str | None = None
    # What else is noteworthy about the conversion.
    notes: str = ""
    # Whether the graph computes in float32, so that golden rows have to be exact in it.
    float32: bool = True

    def write(self, directory):
        directory = directory / self.name
        directory.mkdir(parents=True)
        onnx.save(self.graph, directory / "model.onnx")
        write_json(directory / "schema.json", self.schema())
        if self.bindings:
            write_json(directory / "bindings.json", self.bindings)
        self.write_reference(directory / "reference.csv")

        rows = self.data.held_out
        native, graph = self.native(rows), self.run(rows)
        write_json(directory / "rows.json", as_sent(rows, self.data.kinds))
        write_json(directory / "expected.json", native.tolist())
        write_json(directory / "onnxruntime.json", graph.tolist())
        if self.golden:
            answers = self.run if self.unfaithful else self.native
            self.write_golden(directory / "golden.jsonl", answers)
        if self.unfaithful:
            self.write_golden(directory / "golden_of_library.jsonl", self.native)
        told = {
            "name": self.name,
            "task": self.data.task,
            "labels": self.labels,
            "threshold": self.data.schema["x-scoregate"].get("threshold", 0.5),
            "library": versioned(self.library),
            "converter": versioned(self.converter),
            "flags": [flag.replace("{directory}", str(directory)) for flag in self.flags],
            "refused": self.refused,
            "unfaithful": self.unfaithful,
            "notes": self.notes,
        }
        write_json(directory / "case.json", told)
        return difference(graph, native, self.data.task)

    def schema(self):
        schema = copy.deepcopy(self.data.schema)
        schema["title"] = self.name
        for name, encode in self.encode.items():
            field = schema["properties"][name]
            field["x-scoregate"] = field.get("x-scoregate", {}) | {"encode": encode}
        return schema

    def write_reference(self, path):
        """Rows of the training data with the outcome, as a data scientist would save them."""
        rows = as_sent(self.data.train.head(REFERENCE_ROWS), self.data.kinds)
        target = self.data.schema["x-scoregate"]["target"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*self.data.train.columns, target])
            for row, outcome in zip(rows, self.data.outcome.tolist()):
                cells = [str(cell).lower() if isinstance(cell, bool) else cell for cell in row.values()]
                writer.writerow([*cells, outcome])

    def write_golden(self, path, answers):
        rows = self.exact(self.data.held_out.head(GOLDEN_ROWS))
        with open(path, "w", encoding="utf-8") as file:
            for features, answer in zip(as_sent(rows, self.data.kinds), answers(rows).tolist()):
                file.write(json.dumps({"features": features, "expected": answer}) + "\n")

    def exact(self, frame):
        """The same rows, with every number exact in float32 where the graph takes no other."""
        if not self.float32:
            return frame
        return frame.assign(**{name: frame[name].astype("float32").astype("float64") for name in self.data.numbers})

    def run(self, frame):
        """The answers of onnxruntime itself to the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # several converters declare shapes that the outputs do not have
        session = onnxruntime.InferenceSession(self.graph.SerializeToString(), options)
        names = [output.name for output in session.get_outputs()]
        return self.answer(dict(zip(names, session.run(names, self.feed(frame)))))


def versioned(distribution):
    return f"{distribution} {importlib.metadata.version(distribution)}"


def difference(found, expected, task):
    """The largest difference: absolute for probabilities, for values relative (absolute below 1)."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    scale = np.maximum(np.abs(expected), 1) if task == "regression" else 1
    return float(np.max(np.abs(found - expected) / scale))


def as_sent(frame, kinds):
    """The rows as JSON objects: null where a value is missing, whole numbers and booleans as such."""

    def sent(value, kind):
        if value is None or value != value:
            return None
        return {"string": str, "integer": int, "boolean": bool, "number": float}[kind](value)

    columns = [[sent(value, kinds[name]) for value in frame[name]] for name in frame.columns]
    return [dict(zip(frame.columns, row)) for row in zip(*columns)]


def write_json(path, document):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, allow_nan=False)


# Ways to feed a graph.


def one_input_per_column(data, numbers=np.float32, types=None):
    """Every feature a tensor `[N, 1]` of its own: text for categories, `numbers` or what `types` says for the others."""

    def feed(frame):
        arrays = {}
        for name in frame.columns:
            column = frame[[name]].to_numpy(dtype=object)
            kind = object if name in data.categories else (types or {}).get(name, numbers)
            arrays[name] = column.astype(kind)
        return arrays

    return feed


def numbers(frame):
    """All features side by side, as a graph sees them."""
    return np.array(frame, dtype=np.float32)


def one_matrix(name, matrix=numbers):
    """One tensor `[N, F]` of float32."""
    return lambda frame: {name: matrix(frame)}


# Ways to read a graph's answer.


def tensor(name, positive=None, link=None):
    """A tensor `[N, C]` or `[N]`; one column of it where there is a positive class, or only one."""

    def answer(outputs):
        values = np.asarray(outputs[name], dtype=np.float64)
        values = link(values) if link else values
        values = values.reshape(len(values), -1)
        return values[:, positive if values.shape[1] > 1 else 0] if positive is not None else values

    return answer


def maps(name, keys, positive=None):
    """A sequence of one map per row, from class to probability."""

    def answer(outputs):
        values = np.array([[row[key] for key in keys] for row in outputs[name]], dtype=np.float64)
        return values if positive is None else values[:, positive]

    return answer


def value(name):
    """A tensor `[N, 1]` or `[N]` of values."""
    return lambda outputs: np.asarray(outputs[name], dtype=np.float64).reshape(-1)


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))



def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
