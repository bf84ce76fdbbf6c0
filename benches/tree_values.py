"""Shapley values per row: shap's C code, the native contributions of XGBoost and LightGBM, and this project's, one thread each.

Usage: tree_values.py CHURN_CSV TREE_VALUES [DIRECTORY], TREE_VALUES being the release build of model/examples/tree_values.rs. Needs
shap beside tests/requirements.txt. Each time is the best of several passes over the same rows, in one process after the other.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
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

BACKGROUND, ROWS, PASSES = 100, 200, 3
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


def best(call):
    call()
    times = []
    for _ in range(PASSES):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) / ROWS * 1e6


def measure(name, model, graph, matrix, binary, directory):
    random = np.random.default_rng(SEED)
    background = matrix[random.choice(len(matrix), BACKGROUND, replace=False)]
    rows = matrix[random.choice(len(matrix), ROWS, replace=False)]
    paths = []
    for part, values in (("background", background), ("reference", matrix), ("rows", rows)):
        paths.append(str(directory / part))
        values.astype("<f8").tofile(paths[-1])
    (directory / f"{name}.onnx").write_bytes(graph.SerializeToString())
    players = ",".join(str(player) for player in range(matrix.shape[1]))
    command = [binary, str(directory / f"{name}.onnx"), players, *paths, "20"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    explainer = shap.TreeExplainer(model, background, feature_perturbation="interventional")
    # It shows progress where it takes long.
    with contextlib.redirect_stderr(io.StringIO()):
        by_shap = explainer.shap_values(rows, check_additivity=False)
        shap_us = best(lambda: explainer.shap_values(rows, check_additivity=False))
    if isinstance(model, XGBClassifier):
        booster, taken = model.get_booster(), DMatrix(rows, nthread=1)
        booster.set_param({"nthread": 1})
        native_us = best(lambda: booster.predict(taken, pred_contribs=True))
    else:
        native_us = best(lambda: model.predict(rows, pred_contrib=True, num_threads=1))
    found = np.array(ours["interventional"]["values"])
    return {
        "model": name,
        "trees": ours["trees"],
        "leaves": ours["leaves"],
        "shap_us": shap_us,
        "native_us": native_us,
        **{f"{method}_{part}": ours[method][part] for method in ("interventional", "path_dependent")
           for part in ("row_us", "load_s", "bytes")},
        "difference": np.abs(found - by_shap).max(),
    }


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
    path, binary, *directory = sys.argv[1:]
    directory = Path(directory[0] if directory else tempfile.mkdtemp())
    directory.mkdir(parents=True, exist_ok=True)
    print("| model | trees | leaves | shap, interventional | native, path-dependent | interventional | × shap | path-dependent | "
          "× native | tables | load |\n|" + " --- |" * 11)
    for name, model, graph, matrix in models({"churn": churn(path), "wide": wide()}):
        row = measure(name, model, graph, matrix, binary, directory)
        us = lambda key: f"{row[key]:,.0f} µs"
        print(
            f"| {name} | {row['trees']} | {row['leaves']} | {us('shap_us')} | {us('native_us')} | {us('interventional_row_us')} | "
            f"{row['shap_us'] / row['interventional_row_us']:.0f} | {us('path_dependent_row_us')} | "
            f"{row['native_us'] / row['path_dependent_row_us']:.1f} | "
            f"{row['interventional_bytes'] / 2**20:.1f}, {row['path_dependent_bytes'] / 2**20:.1f} MiB | "
            f"{row['interventional_load_s']:.2f}, {row['path_dependent_load_s']:.2f} s |",
            flush=True,
        )
        print(f"  largest difference from shap: {row['difference']:.1e}", file=sys.stderr)


main()
