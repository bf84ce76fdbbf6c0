"""Shapley values of real models, against shap and the libraries' own contributions. Every player is a column here.

Usage: tree_values.py TREE_VALUES DIRECTORY, TREE_VALUES being model/examples/tree_values.rs. Needs shap beside requirements.txt.
Prints a table of largest differences, and fails where one is above the tolerance.

Contributions by path need the same covers. Ours are counts over the training rows; so are LightGBM's, and XGBoost's where the
objective is the squared error, whose covers are sums of a second derivative of 1. shap is given the counts of its own trees.

shap's interventional code rounds thresholds to the nearest float32, by which rows change sides; all thresholds are rounded down
before, which changes nothing for rows in float32. Differences are in log-odds, or relative to the largest answer of a regression.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "zoo"))
warnings.filterwarnings("ignore")

import boosting
import data
import numpy as np
import onnx
import onnxruntime
import shap
from case import numbers
from catboost import CatBoostClassifier, CatBoostRegressor, Pool
from lightgbm import LGBMClassifier, LGBMRegressor
from onnxmltools import convert_lightgbm, convert_xgboost
from skl2onnx import to_onnx
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier
from xgboost import DMatrix, XGBClassifier, XGBRegressor

TOLERANCE = 1e-5
BACKGROUND, ROWS = 100, 200
OPERATORS = {"TreeEnsembleClassifier": 1, "TreeEnsembleRegressor": 0, "TreeEnsemble": 0}


def models():
    """Name, fitted model, graph, training matrix, matrix of held-out rows, the library whose own contributions to compare with."""
    subscribers = data.subscribers()
    gaps = subscribers.only(subscribers.numbers).with_gaps()
    whole = subscribers.only(subscribers.numbers)
    iris, diabetes = data.iris(), data.diabetes()
    xgboost, lightgbm, catboost = {"n_jobs": 1, "n_estimators": 60}, boosting.LIGHTGBM_OPTIONS, boosting.CATBOOST_OPTIONS
    types = lambda matrix: boosting.float_input(matrix.shape[1])
    of_xgboost = lambda model, matrix: convert_xgboost(model, initial_types=types(matrix))
    of_lightgbm = lambda model, matrix: convert_lightgbm(boosting.exact(model), initial_types=types(matrix), zipmap=False)
    of_catboost = lambda model, matrix: boosting.exported(model, None)
    of_scikit = lambda model, matrix: to_onnx(model, matrix[:1], options={"zipmap": False} if hasattr(model, "classes_") else None)

    def case(name, of, model, convert, own=None, matrix=numbers, options=None):
        train, rows = matrix(of.train), matrix(of.held_out)
        round_down(model.fit(train, of.outcome, **(options or {})))
        graph = convert(model, train)
        if name.startswith("lgbm"):
            model._Booster = boosting.exact(model)
        return name, model, graph, train, rows[:ROWS], own

    yield case("xgb_binary_nan", gaps, XGBClassifier(**xgboost, max_depth=5), of_xgboost)
    # Two categories by a map and three one-hot, some of them never met in training.
    strange = subscribers.with_strangers()
    listed = {name: strange.schema["properties"][name]["enum"] for name in strange.categories}
    encode = {name: boosting.numbered(listed[name]) if name in ("plan", "region") else "one_hot" for name in listed}
    encoded = lambda frame: boosting.encoded(encode, listed, frame)
    yield case("xgb_unseen_one_hot", strange, XGBClassifier(**xgboost, max_depth=4), of_xgboost, matrix=encoded)
    yield case("xgb_multiclass", iris, XGBClassifier(**xgboost, max_depth=3), of_xgboost)
    yield case("xgb_regressor_nan", gaps, XGBRegressor(**xgboost, max_depth=4), of_xgboost, "xgboost")
    yield case("lgbm_binary_nan", gaps, LGBMClassifier(**lightgbm), of_lightgbm, "lightgbm")
    coded = {name: boosting.numbered(listed[name]) for name in listed}
    as_codes = lambda frame: boosting.encoded(coded, {}, frame)
    places = {"categorical_feature": [strange.train.columns.get_loc(name) for name in strange.categories]}
    yield case("lgbm_categories_unseen", subscribers.with_gaps().with_strangers(), LGBMClassifier(**lightgbm), of_lightgbm,
               "lightgbm only", as_codes, places)
    yield case("lgbm_multiclass", iris, LGBMClassifier(**lightgbm, min_child_samples=5), of_lightgbm, "lightgbm")
    yield case("lgbm_regressor", diabetes, LGBMRegressor(**lightgbm), of_lightgbm, "lightgbm")
    yield case("lgbm_dart", whole, LGBMClassifier(**lightgbm, boosting_type="dart"), of_lightgbm, "lightgbm")
    yield case("catboost_binary", whole, CatBoostClassifier(**catboost, bootstrap_type="No"), of_catboost, "catboost")
    # What shap cannot do is compared with the library's own contributions only: it sends what CatBoost misses the other way, and
    # does not know LightGBM's splits on sets of categories.
    yield case("catboost_binary_nan", gaps, CatBoostClassifier(**catboost, bootstrap_type="No"), of_catboost, "catboost only")
    yield case("catboost_regressor", diabetes, CatBoostRegressor(**catboost, bootstrap_type="No"), of_catboost, "catboost")
    yield case("skl_random_forest", whole, RandomForestClassifier(30, max_depth=8, random_state=0), of_scikit)
    yield case("skl_gradient_boosting", whole, GradientBoostingClassifier(n_estimators=60, random_state=0), of_scikit)
    yield case("skl_hist_nan", gaps, HistGradientBoostingClassifier(max_iter=60, random_state=0), of_scikit)
    yield case("skl_extra_trees", diabetes, ExtraTreesRegressor(30, max_depth=7, random_state=0), of_scikit)
    yield case("skl_tree_multiclass", iris, DecisionTreeClassifier(max_depth=5, random_state=0), of_scikit)


def round_down(model):
    """Rounds the thresholds of scikit-learn's trees down to float32."""
    for tree in np.ravel(getattr(model, "estimators_", model)):
        if hasattr(tree, "tree_"):
            thresholds = tree.tree_.threshold
            near = thresholds.astype(np.float32)
            thresholds[:] = np.where(near <= thresholds, near, np.nextafter(near, np.float32(-np.inf)))


def scores(graph, rows):
    """What the ensemble's node answers in ONNX Runtime, one row at a time being the same as all at once."""
    graph = onnx.load_from_string(graph.SerializeToString())
    node = next(node for node in graph.graph.node if node.op_type in OPERATORS)
    name = node.output[OPERATORS[node.op_type]]
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: rows})[0].astype(float)


def explained(binary, directory, name, graph, background, reference, rows):
    path = directory / f"{name}.onnx"
    path.write_bytes(graph.SerializeToString())
    files = []
    for part, matrix in (("background", background), ("reference", reference), ("rows", rows)):
        files.append(directory / f"{name}.{part}")
        matrix.astype("<f8").tofile(files[-1])
    players = ",".join(str(player) for player in range(rows.shape[1]))
    run = subprocess.run([binary, path, players, *files], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def by_output(values, columns):
    """`[rows, outputs, columns]` of what libraries return."""
    if isinstance(values, list):
        values = np.stack(values, axis=2)
    if values.ndim == 2:
        values = values.reshape(len(values), -1, columns)
        return values
    return np.swapaxes(values, 1, 2) if values.shape[1] == columns else values


def by_shap(model, train, rows, background, method):
    if method == "interventional":
        explainer = shap.TreeExplainer(model, background, feature_perturbation="interventional")
    else:
        explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
        count(explainer.model, train)
        # Else it asks XGBoost and LightGBM, with covers of their own.
        explainer.model.model_type = "internal"
    with contextlib.redirect_stderr(io.StringIO()):
        return by_output(explainer.shap_values(rows, check_additivity=False), rows.shape[1])


def count(model, rows):
    """Gives shap's trees covers that are counts of rows."""
    rows = rows.astype(model.input_dtype).astype(float)
    for tree in range(len(model.children_left)):
        left, right, default = model.children_left[tree], model.children_right[tree], model.children_default[tree]
        covers, open_nodes = np.zeros(len(left)), [(0, np.arange(len(rows)))]
        while open_nodes:
            node, here = open_nodes.pop()
            covers[node] = len(here)
            if left[node] >= 0:
                values = rows[here, model.features[tree][node]]
                goes_left = np.where(np.isnan(values), default[node] == left[node], values <= model.thresholds[tree][node])
                open_nodes += [(left[node], here[goes_left]), (right[node], here[~goes_left])]
        # Below a node without rows shap would divide by zero; what is there has no weight.
        model.node_sample_weight[tree] = np.maximum(covers, 1e-300)


def by_library(model, rows, own):
    columns = rows.shape[1] + 1
    if own == "catboost":
        values = model.get_feature_importance(Pool(rows), type="ShapValues")
    elif own == "xgboost":
        values = model.get_booster().predict(DMatrix(rows), pred_contribs=True)
    else:
        values = model.predict(rows, pred_contrib=True)
    return values.reshape(len(rows), -1, columns)[:, :, :-1]


def difference(found, expected):
    """Where a library has both classes of two, or ours has, the positive one's."""
    if found.shape[1] != expected.shape[1]:
        found, expected = found[:, -1:], expected[:, -1:]
    return np.abs(found - expected).max()


def main():
    binary, directory = sys.argv[1], Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    print("| model | trees | rows with NaN | node's answer | added up | shap, interventional | shap, path-dependent | library's own |")
    print("|" + " --- |" * 8)
    for name, model, graph, train, rows, own in models():
        random = np.random.default_rng(20261122)
        background = train[random.choice(len(train), min(BACKGROUND, len(train)), replace=False)]
        ours = explained(binary, directory, name, graph, background, train, rows)
        found = {method: np.array(ours[method]["values"]).reshape(len(rows), -1, rows.shape[1])
                 for method in ("interventional", "path_dependent")}
        margins = np.array(ours["margins"])
        scale = max(1, np.abs(margins).max()) if "regressor" in name or "extra" in name else 1
        compared = {"answer": np.abs(np.array(ours["answers"]) - scores(graph, rows)).max()}
        sums = [np.abs(np.array(ours[method]["base"]) + values.sum(2) - margins).max() for method, values in found.items()]
        compared["added up"] = max(sums)
        for method, values in found.items():
            compared[method] = None
            if own is None or not own.endswith("only"):
                try:
                    compared[method] = difference(values, by_shap(model, train, rows, background, method))
                except Exception as error:
                    print(f"{name}: shap refuses {method}: {str(error).splitlines()[0][:140]}", file=sys.stderr)
        compared["own"] = difference(found["path_dependent"], by_library(model, rows, own.split()[0])) if own else None
        compared = {what: value if value is None else value / scale for what, value in compared.items()}
        shown = [f"{value:.1e}" if value is not None else "" for value in compared.values()]
        print(f"| {name} | {ours['trees']} | {np.isnan(rows).any(1).sum()} | " + " | ".join(shown) + " |", flush=True)
        failures += [f"{name}: {what} {value:.1e}" for what, value in compared.items() if value is not None and not value <= TOLERANCE]
    if failures:
        sys.exit("above the tolerance:\n" + "\n".join(failures))


main()
