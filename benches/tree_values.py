"""Shapley values per row: shap's C code, the native contributions of XGBoost and LightGBM, and this project's, one thread each.

Usage: tree_values.py CHURN_CSV TREE_VALUES DIRECTORY PASSES, TREE_VALUES being the release build of model/examples/tree_values.rs.
Prints one JSON object a model. Each time is the best of so many passes over the same rows, the libraries' one after the other and
ours before and after them: what else the machine does meanwhile disturbs no side alone.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ |= {name: "1" for name in ("ORT_DISABLE_TELEMETRY", "OMP_NUM_THREADS")}

import numpy as np
import pandas as pd
import shap
from lightgbm import LGBMClassifier
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from xgboost import DMatrix, XGBClassifier

BACKGROUND = 100
SEED = 20261122


def churn(path):
    table = pd.read_csv(path)
    for name in ("plan_tier", "country"):
        table[name] = table[name].astype("category").cat.codes
    return table.drop(columns=["customer_id", "churned"]).to_numpy("float32"), table["churned"].to_numpy()


def wide():
    """Thirty features, a tenth of the values missing."""
    random = np.random.default_rng(SEED)
    matrix = random.normal(size=(20000, 30)).astype("float32")
    score = matrix[:, :10] @ random.normal(size=10) + matrix[:, 10] * matrix[:, 11] - np.abs(matrix[:, 12:20]).sum(1)
    outcome = (score + random.normal(size=len(matrix)) > np.median(score)).astype(int)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    return matrix, outcome


def best(call, rows, passes):
    call()
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) / len(rows) * 1e6


def measure(name, model, graph, matrix, binary, directory, passes):
    random = np.random.default_rng(SEED)
    background = matrix[random.choice(len(matrix), BACKGROUND, replace=False)]
    # Fewer where each takes longer: 200 of 200 trees.
    rows = matrix[random.choice(len(matrix), 40_000 // model.n_estimators, replace=False)]
    paths = []
    for part, values in (("background", background), ("reference", matrix), ("rows", rows)):
        paths.append(str(directory / part))
        values.astype("<f8").tofile(paths[-1])
    (directory / f"{name}.onnx").write_bytes(graph.SerializeToString())
    players = ",".join(str(player) for player in range(matrix.shape[1]))
    command = [binary, str(directory / f"{name}.onnx"), players, *paths, str(5 * passes)]
    ours = lambda: json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    before = ours()
    explainer = shap.TreeExplainer(model, background, feature_perturbation="interventional")
    # It shows progress where it takes long.
    with contextlib.redirect_stderr(io.StringIO()):
        by_shap = explainer.shap_values(rows, check_additivity=False)
        shap_us = best(lambda: explainer.shap_values(rows, check_additivity=False), rows, passes)
    if isinstance(model, XGBClassifier):
        booster, taken = model.get_booster(), DMatrix(rows, nthread=1)
        booster.set_param({"nthread": 1})
        native_us = best(lambda: booster.predict(taken, pred_contribs=True), rows, passes)
    else:
        native_us = best(lambda: model.predict(rows, pred_contrib=True, num_threads=1), rows, passes)
    after = ours()
    figures = {
        "model": name,
        "trees": before["trees"],
        "leaves": before["leaves"],
        "shap_us": shap_us,
        "native": "XGBoost" if isinstance(model, XGBClassifier) else "LightGBM",
        "native_us": native_us,
        "difference": float(np.abs(np.array(before["interventional"]["values"]) - by_shap).max()),
    }
    for method in ("interventional", "path_dependent"):
        once, again = before[method], after[method]
        figures |= {f"{method}_{part}": min(once[part], again[part]) for part in ("row_us", "load_s", "bytes")}
    return figures


def models(data):
    xgboost = {"n_jobs": 1, "random_state": 0}
    lightgbm = {"n_jobs": 1, "verbose": -1, "deterministic": True}
    for of, (matrix, outcome) in data.items():
        types = [("input", FloatTensorType([None, matrix.shape[1]]))]
        for name, options in (("xgb_200", {"n_estimators": 200, "max_depth": 6}),
                              ("xgb_200_depth4", {"n_estimators": 200, "max_depth": 4})):
            model = XGBClassifier(**options, **xgboost).fit(matrix, outcome)
            yield f"{name}_{of}", model, convert_xgboost(model, initial_types=types), matrix
        for name, options in (("lgbm_200", {"n_estimators": 200}), ("lgbm_1000x63", {"n_estimators": 1000, "num_leaves": 63})):
            model = LGBMClassifier(**options, **lightgbm).fit(matrix, outcome)
            yield f"{name}_{of}", model, convert_lightgbm(model, initial_types=types, zipmap=False), matrix


def main():
    path, binary, directory, passes = sys.argv[1:]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, model, graph, matrix in models({"churn": churn(path), "wide": wide()}):
        print(name, file=sys.stderr)
        print(json.dumps(measure(name, model, graph, matrix, binary, directory, int(passes))), flush=True)


main()
