"""Ensembles of trees over a matrix: `model.onnx`; background, reference and explained rows as little-endian float64; and what other
libraries say of the latter, in `case.json`.

Contributions by path need the same covers. Ours are counts over the training rows, and so are LightGBM's, CatBoost's here, and
XGBoost's where the objective is the squared error; shap is given the counts of its own trees. Where a library cannot be compared
with, the reason stands in its place.

shap's interventional code rounds thresholds to the nearest float32, by which rows change sides; all thresholds are rounded down
before, which changes nothing for rows in float32.
"""

import dataclasses

import boosting
import coalitions
import data
import libraries
import numpy as np
import onnx
import onnxruntime
import pandas as pd
from case import numbers, write_json
from catboost import CatBoostClassifier, CatBoostRegressor
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
from xgboost import XGBClassifier, XGBRegressor

BACKGROUND, ROWS = 100, 200
# All coalitions are tried of so many players, for so many rows.
MOST_PLAYERS, COALITION_ROWS = 8, 20
OPERATORS = {"TreeEnsembleClassifier": 1, "TreeEnsembleRegressor": 0, "TreeEnsemble": 0}

# Why a library's own contributions are others.
NO_CONTRIBUTIONS = "scikit-learn has none"
HESSIANS = "XGBoost's covers are sums of second derivatives"
OF_COLUMNS = "its players are columns"


@dataclasses.dataclass
class Case:
    name: str
    model: object
    graph: onnx.ModelProto
    train: np.ndarray
    rows: np.ndarray
    # The player of every column.
    players: list
    # Why something is not compared, by its name in `case.json`.
    why_not: dict

    @property
    def library(self):
        return {"xgb": "xgboost", "lgbm": "lightgbm", "catboost": "catboost", "skl": "scikit-learn"}[self.name.split("_")[0]]

    @property
    def is_regression(self):
        return "Regressor" in type(self.model).__name__

    def margin(self, rows):
        """The library's own prediction, before its link if it has one."""
        rows, model = numbers(rows), self.model
        if self.library == "xgboost":
            return model.predict(rows, output_margin=True)
        if self.library == "lightgbm":
            return model.predict(rows, raw_score=True)
        if self.library == "catboost":
            return model.predict(rows, prediction_type="RawFormulaVal")
        if hasattr(model, "decision_function"):
            return model.decision_function(rows)
        return model.predict(rows) if self.is_regression else model.predict_proba(rows)

    def answers(self):
        """What the ensemble's node answers in ONNX Runtime."""
        graph = onnx.load_from_string(self.graph.SerializeToString())
        node = next(node for node in graph.graph.node if node.op_type in OPERATORS)
        name = node.output[OPERATORS[node.op_type]]
        del graph.graph.output[:]
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        return session.run(None, {session.get_inputs()[0].name: self.rows})[0].astype(float)

    def by_coalitions(self, background):
        frames = [pd.DataFrame(matrix) for matrix in (self.rows[:COALITION_ROWS], background)]
        values, base = coalitions.shapley(self.margin, *frames, self.players)
        return {"values": values.tolist(), "base": base.tolist()}

    def compared(self, background):
        """Values by where they come from, or why there are none."""
        made = {
            "interventional": lambda: libraries.by_shap(self.model, self.rows, background),
            "by_path": lambda: libraries.by_shap_by_path(self.model, self.rows, self.train),
            "own": lambda: libraries.by_library(self.model, self.rows, self.library),
        }
        found = {}
        for what, make in made.items():
            found[what] = {"why_not": self.why_not[what]} if what in self.why_not else {"values": make().tolist()}
        if max(self.players) < MOST_PLAYERS:
            found["coalitions"] = self.by_coalitions(background)
        else:
            found["coalitions"] = {"why_not": "they are too many"}
        return found

    def summed(self, background):
        """shap's values of columns, added up for each player; what a player is really worth is something else."""
        values = libraries.by_shap(self.model, self.rows, background)
        return values @ np.eye(max(self.players) + 1)[self.players]

    def write(self, directory):
        directory.mkdir(parents=True)
        random = np.random.default_rng(20261122)
        background = self.train[random.choice(len(self.train), min(BACKGROUND, len(self.train)), replace=False)]
        (directory / "model.onnx").write_bytes(self.graph.SerializeToString())
        for part, matrix in (("background", background), ("reference", self.train), ("rows", self.rows)):
            matrix.astype("<f8").tofile(directory / part)
        is_grouped = max(self.players) + 1 < len(self.players)
        told = {
            "name": self.name,
            "players": self.players,
            "is_regression": self.is_regression,
            "answers": self.answers().reshape(len(self.rows), -1).tolist(),
            "compared": self.compared(background),
            "summed": self.summed(background).tolist() if is_grouped else None,
        }
        write_json(directory / "case.json", told)


def one_each(matrix):
    return list(range(matrix.shape[1]))


def cases():
    subscribers = data.subscribers()
    whole = subscribers.only(subscribers.numbers)
    gaps, iris, diabetes = whole.with_gaps(), data.iris(), data.diabetes()
    xgboost, lightgbm, catboost = {"n_jobs": 1, "n_estimators": 60}, boosting.LIGHTGBM_OPTIONS, boosting.CATBOOST_OPTIONS
    # Counts of leaves are of all training rows then.
    catboost = catboost | {"bootstrap_type": "No"}
    types = lambda matrix: boosting.float_input(matrix.shape[1])
    convert = {
        "xgb": lambda model, matrix: convert_xgboost(model, initial_types=types(matrix)),
        "lgbm": lambda model, matrix: convert_lightgbm(model._Booster, initial_types=types(matrix), zipmap=False),
        "catboost": lambda model, _: boosting.exported(model, None),
        "skl": lambda model, matrix: to_onnx(model, matrix[:1], options={"zipmap": False} if hasattr(model, "classes_") else None),
    }

    def case(name, of, model, matrix=numbers, players=one_each, options=None, **why_not):
        train, rows = matrix(of.train), matrix(of.held_out)[:ROWS]
        round_down(model.fit(train, of.outcome, **(options or {})))
        kind = name.split("_")[0]
        if kind == "lgbm":
            model._Booster = boosting.exact(model)
        if kind == "skl":
            why_not = {"own": NO_CONTRIBUTIONS} | why_not
        graph = convert[kind](model, train)
        return Case(name, model, graph, train, rows, players(train), why_not)

    def one_hot(of, mapped=()):
        """Columns by category, or one number for the categories of a feature in `mapped`; and whose the columns are."""
        listed = {name: of.schema["properties"][name]["enum"] for name in of.categories}
        encode = {name: boosting.numbered(listed[name]) if name in mapped else "one_hot" for name in listed}
        widths = [len(listed[name]) if encode.get(name) == "one_hot" else 1 for name in of.train.columns]
        groups = [player for player, width in enumerate(widths) for _ in range(width)]
        return lambda frame: boosting.encoded(encode, listed, frame), lambda _: groups

    yield case("xgb_binary_nan", gaps, XGBClassifier(**xgboost, max_depth=5), own=HESSIANS)
    strange = subscribers.with_strangers()
    matrix, _ = one_hot(strange, ["plan", "region"])
    yield case("xgb_unseen_one_hot", strange, XGBClassifier(**xgboost, max_depth=4), matrix, own=HESSIANS)
    yield case("xgb_multiclass", iris, XGBClassifier(**xgboost, max_depth=3), own=HESSIANS)
    yield case("xgb_regressor_nan", gaps, XGBRegressor(**xgboost, max_depth=4))
    yield case("lgbm_binary_nan", gaps, LGBMClassifier(**lightgbm))
    odd = subscribers.with_gaps().with_strangers()
    matrix, _ = one_hot(odd, odd.categories)
    places = {"categorical_feature": [odd.train.columns.get_loc(name) for name in odd.categories]}
    sets = "it does not know LightGBM's splits on sets of categories"
    yield case("lgbm_categories_unseen", odd, LGBMClassifier(**lightgbm), matrix, options=places, interventional=sets, by_path=sets)
    yield case("lgbm_multiclass", iris, LGBMClassifier(**lightgbm, min_child_samples=5))
    yield case("lgbm_regressor", diabetes, LGBMRegressor(**lightgbm))
    yield case("lgbm_dart", whole, LGBMClassifier(**lightgbm, boosting_type="dart"))
    empty = "it refuses trees with leaves that no row reaches"
    yield case("catboost_binary", whole, CatBoostClassifier(**catboost), by_path=empty)
    other_way = "it sends what CatBoost misses the other way"
    yield case("catboost_binary_nan", gaps, CatBoostClassifier(**catboost), interventional=other_way, by_path=other_way)
    yield case("catboost_regressor", diabetes, CatBoostRegressor(**catboost), by_path=empty)
    yield case("skl_random_forest", whole, RandomForestClassifier(30, max_depth=8, random_state=0))
    yield case("skl_gradient_boosting", whole, GradientBoostingClassifier(n_estimators=60, random_state=0))
    yield case("skl_hist_nan", gaps, HistGradientBoostingClassifier(max_iter=60, random_state=0))
    yield case("skl_extra_trees", diabetes, ExtraTreesRegressor(30, max_depth=7, random_state=0))
    yield case("skl_tree_multiclass", iris, DecisionTreeClassifier(max_depth=5, random_state=0))

    # Several columns are one player: three numbers and five categories, with values missing and categories never met.
    named = subscribers.only(["tenure_months", "complaints", "late_payments", *subscribers.categories])
    odd = named.with_gaps().with_strangers()
    matrix, groups = one_hot(odd, ["plan"])
    columns = dict.fromkeys(("interventional", "by_path", "own"), OF_COLUMNS)
    yield case("xgb_groups_nan_unseen", odd, XGBClassifier(**xgboost, max_depth=5), matrix, groups, **columns)
    yield case("lgbm_groups_nan_unseen", odd, LGBMClassifier(**lightgbm), matrix, groups, **columns)
    odd = named.with_strangers()
    matrix, groups = one_hot(odd)
    forest = RandomForestClassifier(30, max_depth=8, random_state=0)
    yield case("skl_forest_groups_unseen", odd, forest, matrix, groups, **columns)


def round_down(model):
    """Rounds the thresholds of scikit-learn's trees down to float32."""
    for tree in np.ravel(getattr(model, "estimators_", model)):
        if hasattr(tree, "tree_"):
            thresholds = tree.tree_.threshold
            near = thresholds.astype(np.float32)
            thresholds[:] = np.where(near <= thresholds, near, np.nextafter(near, np.float32(-np.inf)))


def write(directory):
    for case in cases():
        case.write(directory / case.name)
