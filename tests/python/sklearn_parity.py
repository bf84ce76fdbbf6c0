"""Fits scikit-learn on the trainer's own folds and runs the exported graphs, for tests/sklearn_parity.rs.

Called with a directory that holds `folds.csv` (raw features, the outcome 0/1 and the fold of each row) and `cases.json`; writes
one JSON document to standard output. No number of the trainer is read but C: scaling, coefficients and calibration are
scikit-learn's own.
"""

import csv
import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def read(directory, numbers, categories):
    """Features of each fold as an object array (numbers first), and the outcomes."""
    with open(directory / "folds.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folds = {}
    for fold in ("train", "calibration", "test"):
        chosen = [row for row in rows if row["fold"] == fold]
        x = [[float(row[name]) for name in numbers] + [row[name] for name in categories] for row in chosen]
        folds[fold] = np.array(x, dtype=object), np.array([int(row["outcome"]) for row in chosen])
    return folds


def fit(case, folds, numbers, categories):
    places = list(range(len(numbers) + len(categories)))
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), places[: len(numbers)]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), places[len(numbers) :]),
        ]
    )
    weight = None if case["class_weight"] == "none" else "balanced"
    model = make_pipeline(
        columns,
        LogisticRegression(C=case["c"], class_weight=weight, solver="newton-cholesky", tol=1e-11, max_iter=1000),
    )
    model.fit(*folds["train"])
    names = list(numbers)
    for name, met in zip(categories, columns.named_transformers_["categories"].categories_):
        names += [f"{name}={category}" for category in met]
    regression = model[-1]
    method = {"platt": "sigmoid", "isotonic": "isotonic"}.get(case["calibration"])
    if method:
        model = CalibratedClassifierCV(FrozenEstimator(model), method=method).fit(*folds["calibration"])
    x, y = folds["test"]
    probabilities = model.predict_proba(x)[:, 1]
    return {
        "coefficients": dict(zip(names, regression.coef_[0].tolist())),
        "intercept": float(regression.intercept_[0]),
        "iterations": int(regression.n_iter_[0]),
        "probabilities": probabilities.tolist(),
        "roc_auc": float(roc_auc_score(y, probabilities)),
        "brier": float(brier_score_loss(y, probabilities)),
    }


def run(path, x, numbers, categories):
    """Probabilities and labels of the exported graph on float32 numbers."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    feed = {name: x[:, [at]].astype(np.float32) for at, name in enumerate(numbers)}
    feed |= {name: x[:, [len(numbers) + at]] for at, name in enumerate(categories)}
    labels, probabilities = session.run(["label", "probabilities"], feed)
    assert probabilities.shape == (len(x), 2) and labels.shape == (len(x),)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    return {"graph_probabilities": probabilities[:, 1].tolist(), "graph_labels": labels.tolist()}


def main():
    warnings.simplefilter("error", ConvergenceWarning)
    directory = pathlib.Path(sys.argv[1])
    given = json.loads((directory / "cases.json").read_text(encoding="utf-8"))
    numbers, categories = given["numbers"], given["categories"]
    folds = read(directory, numbers, categories)
    cases = []
    for case in given["cases"]:
        case_of_graph = run(directory / case["graph"], folds["test"][0], numbers, categories)
        cases.append(fit(case, folds, numbers, categories) | case_of_graph)
    json.dump({"scikit_learn": sklearn.__version__, "cases": cases}, sys.stdout)


main()
