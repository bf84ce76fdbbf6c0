"""Models to be imported and served, in the form of the zoo's cases, and in `explained.json` what Shapley's definition makes of their
libraries' own predict functions: every coalition of the features that a client sends.

The reference has as many rows as a background may have, so that it is the background, and every coalition is tried. Linear models are
explained by shap's LinearExplainer besides, on the columns that the last step of the pipeline sees.
"""

import dataclasses
import json
from collections.abc import Callable

import boosting
import coalitions
import data
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import scikit
import shap
from case import Case, as_sent, one_input_per_column, one_matrix, numbers, tensor, value, write_json
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier
from onnxmltools import convert_lightgbm, convert_xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier, XGBRegressor

BACKGROUND, ROWS = 100, 20
# Above as many features, coalitions are sampled.
MOST_EXACT = 12


@dataclasses.dataclass
class Served:
    case: Case
    # How answers have to be explained, by the words of `method` and `space`.
    method: str
    space: str
    # Rows as clients send them -> the library's own number in that space, `[N]` or `[N, C]`; its answer if absent.
    margin: Callable | None = None
    # The pipeline whose last step shap's LinearExplainer explains, or why it does not.
    linear: object = "no linear model"
    rows: int = ROWS

    def write(self, directory):
        data = self.case.data
        background, outcome = data.train.head(BACKGROUND), data.outcome[:BACKGROUND]
        reference = dataclasses.replace(data, train=background, outcome=outcome)
        unlike = dataclasses.replace(self.case, data=reference).write(directory)
        assert unlike < 1e-5, f"{self.case.name}: the conversion is no faithful one ({unlike})"
        rows = data.held_out.head(self.rows)
        spaces = {self.space: self.margin or self.case.native}
        if data.task != "regression":
            spaces["probability"] = self.case.native
        told = {
            "name": self.case.name,
            "method": self.method,
            "space": self.space,
            "features": list(rows.columns),
            "rows": as_sent(rows, data.kinds),
            "spaces": by_coalitions(spaces, rows, background),
            "linear": self.by_linear_explainer(rows, background),
            "task": data.task,
            "labels": self.case.labels,
        }
        write_json(directory / self.case.name / "explained.json", told)

    def by_linear_explainer(self, rows, background):
        if isinstance(self.linear, str):
            return {"why_not": self.linear}
        pipeline, filled = self.linear
        dense = lambda frame: np.asarray(pipeline[:-1].transform(filled(frame)), float)
        explainer = shap.LinearExplainer(pipeline[-1], shap.maskers.Independent(dense(background), max_samples=BACKGROUND))
        values = explainer.shap_values(dense(rows))
        values = values[:, None] if values.ndim == 2 else np.swapaxes(values, 1, 2)
        return {"values": (values @ owners(pipeline, rows.columns)).tolist()}


def by_coalitions(answers, rows, background):
    """What all coalitions make of the answers in each space."""
    found = {}
    for space, answer in answers.items():
        values, base = coalitions.shapley(answer, rows, background, range(rows.shape[1]))
        found[space] = {"values": values.tolist(), "base": base.tolist()}
    return found


def owners(pipeline, features):
    """Whose each column is that the last step sees: `[columns, features]`."""
    first = pipeline[0]
    if not isinstance(first, ColumnTransformer):
        return np.eye(len(features))
    names = [name.split("__", 1)[1] for name in first.get_feature_names_out()]
    # One feature's name may begin with another's: the longest one is meant.
    owner = lambda name: max((feature for feature in features if name == feature or name.startswith(f"{feature}_")), key=len)
    return np.array([[owner(name) == feature for feature in features] for name in names], float)


def log_odds(native):
    """Of a library's probabilities."""

    def answer(frame):
        probability = native(frame)
        return np.log(probability / (1 - probability))

    return answer


def as_they_are(frame):
    return frame


def pipelines(people):
    """Linear and other models behind scalers, imputers and one-hot encoders of scikit-learn."""
    few = people.only(["tenure_months", "monthly_charge", "complaints", "autopay", "plan", "region", "channel"])
    logistic = lambda: LogisticRegression(max_iter=1000)

    def of_columns(name, data, model, method="linear", margin=None, linear=None, filled=as_they_are, **more):
        case = Case(
            name=name,
            data=data,
            graph=scikit.convert(model, scikit.column_types(data), zipmap=False),
            native=lambda frame: model.predict_proba(filled(frame))[:, 1],
            feed=lambda frame: one_input_per_column(data)(filled(frame)),
            answer=tensor("probabilities", 1),
            labels=["stays", "leaves"],
            **scikit.SKLEARN,
        )
        margin = margin or (lambda frame: model.decision_function(filled(frame)))
        return Served(case, method, "log_odds", margin, linear or (model, filled), **more)

    yield of_columns("skl_logistic", few, scikit.pipeline(few, logistic(), sparse=False))
    strange = few.with_strangers()
    yield of_columns("skl_logistic_unseen", strange, scikit.pipeline(strange, logistic(), sparse=False))
    gaps = few.with_gaps()
    filled = lambda frame: frame.fillna({name: "" for name in gaps.categories})
    imputed = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), gaps.numbers),
                ("categories", OneHotEncoder(sparse_output=False), gaps.categories),
            ]
        ),
        logistic(),
    ).fit(filled(gaps.train), gaps.outcome)
    yield of_columns("skl_imputed_nan", gaps, imputed, filled=filled)

    # Platt's calibration by one estimator is one more step of the same sum; of several there is no one sum.
    whole = few.only(few.numbers)
    no_step = "the last step is no linear model"
    calibrated = make_pipeline(StandardScaler(), CalibratedClassifierCV(logistic(), method="sigmoid", cv=3, ensemble=False))
    calibrated.fit(numbers(whole.train), whole.outcome)
    once = matrix_case("skl_calibrated_once", whole, calibrated)
    yield Served(once, "linear", "log_odds", log_odds(once.native), no_step)
    thrice = CalibratedClassifierCV(GradientBoostingClassifier(n_estimators=20, random_state=0), method="sigmoid", cv=3)
    thrice.fit(numbers(whole.train), whole.outcome)
    yield Served(matrix_case("skl_calibrated_thrice", whole, thrice), "exact", "probability")
    # Networks have no closed form. Penalised, so that float32 still tells their log-odds where they are sure.
    network = lambda: MLPClassifier((12, 6), alpha=1.0, max_iter=300, random_state=0)
    for name, of, method, rows in (
        ("skl_network_unseen", strange, "exact", ROWS),
        ("skl_network_of_13", people, "permutation_sampling", 2),
    ):
        model = scikit.pipeline(of, network(), sparse=False)
        margin = log_odds(lambda frame, model=model: model.predict_proba(frame)[:, 1])
        yield of_columns(name, of, model, method, margin, no_step, rows=rows)
    # Trees behind an encoder.
    trees = GradientBoostingClassifier(n_estimators=40, random_state=0)
    trees = scikit.pipeline(strange, trees, scaler="passthrough", sparse=False)
    yield of_columns("skl_trees_one_hot_unseen", strange, trees, "tree_interventional", linear=no_step)
    boosting.register()
    boosted = scikit.pipeline(strange, XGBClassifier(n_estimators=40, max_depth=4, n_jobs=1), scaler="passthrough", sparse=False)
    margin = lambda frame: boosted[-1].predict(boosted[:-1].transform(frame), output_margin=True)
    yield xgboost_pipeline("xgb_pipeline_unseen", strange, boosted, margin)


def xgboost_pipeline(name, data, model, margin):
    case = Case(
        name=name,
        data=data,
        graph=scikit.convert(model, scikit.column_types(data), target_opset=boosting.ONNXMLTOOLS_NEWEST, zipmap=False),
        native=lambda frame: model.predict_proba(frame)[:, 1].astype(float),
        feed=one_input_per_column(data),
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        library="xgboost-cpu",
        converter="skl2onnx",
    )
    return Served(case, "tree_interventional", "log_odds", margin)


def matrix_case(name, data, model):
    """A fitted model of scikit-learn over a single matrix of numbers."""
    is_value, is_binary = data.task == "regression", data.task == "binary"
    predict = model.predict if is_value else model.predict_proba
    return Case(
        name=name,
        data=data,
        graph=scikit.convert(model, scikit.matrix_type(data), **({} if is_value else {"zipmap": False})),
        native=lambda frame: predict(numbers(frame))[:, 1] if is_binary else predict(numbers(frame)),
        feed=one_matrix("float_input"),
        answer=value("variable") if is_value else tensor("probabilities", 1 if is_binary else None),
        labels=data.schema["x-scoregate"]["labels"],
        **scikit.SKLEARN,
    )


def matrices(people):
    """Models over one matrix of numbers."""
    whole = people.only(people.numbers)
    gaps, iris = whole.with_gaps(), data.iris()
    diabetes = data.diabetes()
    diabetes = diabetes.only(list(diabetes.train.columns[:8]))

    def scikit_case(name, of, model, method, space, margin=None, is_linear=False):
        model.fit(numbers(of.train), of.outcome)
        by_name = {"decision_function": lambda frame: model.decision_function(numbers(frame)), None: None}
        case = matrix_case(name, of, model)
        return Served(case, method, space, by_name[margin], (model, numbers) if is_linear else "no linear model")

    ridge = make_pipeline(StandardScaler(), Ridge())
    yield scikit_case("skl_ridge", diabetes, ridge, "linear", "target", is_linear=True)
    several = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    yield scikit_case("skl_multinomial", iris, several, "linear", "margin", "decision_function", True)
    forest = RandomForestClassifier(30, max_depth=7, random_state=0)
    yield scikit_case("skl_forest", whole, forest, "tree_interventional", "probability")
    histograms = HistGradientBoostingClassifier(max_iter=40, random_state=0)
    yield scikit_case("skl_hist_nan", gaps, histograms, "tree_interventional", "log_odds", "decision_function")

    to_xgboost = lambda model, width: convert_xgboost(model, initial_types=boosting.float_input(width))
    to_lightgbm = lambda model, width: convert_lightgbm(boosting.exact(model), initial_types=boosting.float_input(width), zipmap=False)

    def boosted(name, of, model, convert, how, space, margin, answer, matrix=numbers, width=None, options=None, **more):
        model.fit(matrix(of.train), of.outcome, **(options or {}))
        case = boosting.booster(name, of, model, convert, matrix, answer, width, **how, **more)
        return Served(case, "tree_interventional", space, lambda frame: margin(model, matrix(frame)))

    of_xgboost = lambda model, rows: model.predict(rows, output_margin=True)
    of_lightgbm = lambda model, rows: model.predict(rows, raw_score=True)
    of_catboost = lambda model, rows: model.predict(rows, prediction_type="RawFormulaVal")
    positive, how = tensor("probabilities", 1), {"n_estimators": 40, "n_jobs": 1, "max_depth": 4}
    yield boosted("xgb_nan", gaps, XGBClassifier(**how), to_xgboost, boosting.XGBOOST, "log_odds", of_xgboost, positive)
    yield boosted(
        "xgb_multiclass", iris, XGBClassifier(**how), to_xgboost, boosting.XGBOOST, "margin", of_xgboost, tensor("probabilities")
    )
    yield boosted("xgb_regressor", diabetes, XGBRegressor(**how), to_xgboost, boosting.XGBOOST, "target", of_xgboost, value("variable"))

    # Encoded by the gateway: a category by a map, others by a column per category.
    odd = people.only(["tenure_months", "complaints", "late_payments", "autopay", *people.categories[:4]]).with_gaps().with_strangers()
    listed = {name: odd.schema["properties"][name]["enum"] for name in odd.categories}
    encode = {name: boosting.numbered(listed[name]) if name == "plan" else "one_hot" for name in listed}
    matrix = lambda frame: boosting.encoded(encode, listed, frame)
    width = matrix(odd.train).shape[1]
    yield boosted(
        "xgb_encoded_unseen_nan", odd, XGBClassifier(**how), to_xgboost, boosting.XGBOOST, "log_odds", of_xgboost, positive,
        matrix, width, encode=encode,
    )  # fmt: skip
    codes = {name: boosting.numbered(listed[name]) for name in listed}
    coded = lambda frame: boosting.encoded(codes, {}, frame)
    places = {"categorical_feature": [odd.train.columns.get_loc(name) for name in odd.categories]}
    yield boosted(
        "lgbm_categories_unseen_nan", odd, LGBMClassifier(**boosting.LIGHTGBM_OPTIONS), to_lightgbm, boosting.LIGHTGBM, "log_odds",
        of_lightgbm, positive, coded, options=places, encode=codes,
    )  # fmt: skip
    yield boosted(
        "catboost_nan", gaps, CatBoostClassifier(**boosting.CATBOOST_OPTIONS), boosting.exported, boosting.CATBOOST, "log_odds",
        of_catboost, boosting.maps("probabilities", [0, 1], 1), input="features",
    )  # fmt: skip
    yield boosted(
        "catboost_regressor", diabetes, CatBoostRegressor(**boosting.CATBOOST_OPTIONS), boosting.exported, boosting.CATBOOST, "target",
        of_catboost, value("predictions"), input="features",
    )  # fmt: skip


def trained(package, directory):
    """The trainer's own churn model, whose library is the graph itself in Python's ONNX Runtime."""
    manifest = json.loads((package / "manifest.json").read_text())
    background = pd.DataFrame(json.loads((package / "reference.json").read_text())["background"])
    graph = onnx.load(package / "model.onnx")
    graph.graph.output.append(onnx.helper.make_tensor_value_info("log_odds", onnx.TensorProto.DOUBLE, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    kinds = {"tensor(string)": object, "tensor(float)": np.float32, "tensor(double)": float, "tensor(int64)": np.int64}
    takes = {taken.name: kinds[taken.type] for taken in session.get_inputs()}

    def answer(output):
        feed = lambda frame: {name: frame[[name]].to_numpy(object).astype(kind) for name, kind in takes.items()}
        return lambda frame: session.run([output], feed(frame))[0]

    rows = background.head(ROWS).copy()
    # Customers that nobody drew, one with a country and one with a plan that no one has.
    for name in rows.columns:
        rows[name] = np.roll(background[name].to_numpy(object)[-ROWS:], len(name))
    rows = rows.astype(background.dtypes.to_dict())
    rows.loc[0, "country"], rows.loc[1, "plan_tier"] = "XX", "never met"
    spaces = {"log_odds": answer("log_odds"), "probability": lambda frame: answer("probabilities")(frame)[:, 1].astype(float)}
    told = {
        "name": "churn",
        "method": "linear",
        "space": "log_odds",
        "features": list(background.columns),
        "rows": json.loads(rows.to_json(orient="records", double_precision=15)),
        "spaces": by_coalitions(spaces, rows, background),
        "linear": {"why_not": "it is no model of scikit-learn's"},
        "task": "binary",
        "labels": manifest["schema"]["x-scoregate"]["labels"],
    }
    (directory / "churn").mkdir(parents=True)
    write_json(directory / "churn" / "explained.json", told)


def write(directory, package):
    people = data.subscribers()
    trained(package, directory)
    for group in (pipelines, matrices):
        for served in group(people):
            served.write(directory)
