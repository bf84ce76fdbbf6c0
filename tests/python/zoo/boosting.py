"""XGBoost and LightGBM, converted by onnxmltools or inside a scikit-learn pipeline, and CatBoost's own export."""

import tempfile

import numpy as np
import onnx
from case import Case, maps, numbers, one_input_per_column, one_matrix, sigmoid, tensor, value
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import Booster, LGBMClassifier, LGBMRegressor
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm as lightgbm_operator
from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost as xgboost_operator
from scikit import column_types, convert, pipeline, probability_of
from skl2onnx import update_registered_converter
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from xgboost import XGBClassifier, XGBRegressor

XGBOOST = {"library": "xgboost-cpu", "converter": "onnxmltools"}
LIGHTGBM = {"library": "lightgbm", "converter": "onnxmltools"}
CATBOOST = {"library": "catboost", "converter": "catboost"}
LIGHTGBM_OPTIONS = {"n_estimators": 60, "num_leaves": 12, "n_jobs": 1, "verbose": -1, "deterministic": True}
CATBOOST_OPTIONS = {
    "iterations": 60,
    "depth": 4,
    "thread_count": 1,
    "random_seed": 0,
    "verbose": False,
    "allow_writing_files": False,
}
ONNXMLTOOLS_NEWEST = {"": 18, "ai.onnx.ml": 3}


def float_input(width):
    return [("input", FloatTensorType([None, width]))]


def booster(name, data, model, convert, matrix, answer, width=None, input="input", **more):
    """A fitted model over one matrix, which `matrix` makes of a client's rows."""
    predict = model.predict if data.task == "regression" else model.predict_proba
    native = lambda frame: predict(matrix(frame))[:, 1] if data.task == "binary" else predict(matrix(frame))
    return Case(
        name=name,
        data=data,
        graph=convert(model, width or len(data.train.columns)),
        native=lambda frame: native(frame).astype(np.float64),
        feed=one_matrix(input, matrix),
        answer=answer,
        labels=data.schema["x-scoregate"]["labels"],
        **more,
    )


def exported(model, _width):
    """CatBoost writes the graph itself, to a file."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        model.save_model(file.name, format="onnx")
        return onnx.load(file.name)


def numbered(categories):
    """A number for each category, in their order."""
    return {category: number for number, category in enumerate(categories)}


def encoded(encode, listed, frame):
    """Numbers as they are, categories as `encode` says: by a map, where a missing one is NaN, or one-hot as `listed`."""
    columns = []
    for name in frame.columns:
        if name not in encode:
            columns.append(frame[name])
        elif encode[name] == "one_hot":
            columns += [frame[name] == category for category in listed[name]]
        else:
            columns.append(frame[name].map(encode[name]))
    return np.column_stack([column.astype("float32") for column in columns])


def xgboost(sets):
    gaps = sets["subscribers"].only(sets["subscribers"].numbers).with_gaps()
    make = lambda model, width: convert_xgboost(model, initial_types=float_input(width))
    model = XGBClassifier(n_estimators=60, max_depth=4, n_jobs=1).fit(numbers(gaps.train), gaps.outcome)
    yield booster("xgb_matrix_nan", gaps, model, make, numbers, tensor("probabilities", 1), **XGBOOST)

    # Two categories by a map, three by one column per category, and some that neither knows.
    data = sets["subscribers"].with_strangers()
    listed = {name: data.schema["properties"][name]["enum"] for name in data.categories}
    encode = {name: numbered(listed[name]) if name in ("plan", "region") else "one_hot" for name in listed}
    matrix = lambda frame: encoded(encode, listed, frame)
    width = matrix(data.train).shape[1]
    model = XGBClassifier(n_estimators=60, max_depth=4, n_jobs=1).fit(matrix(data.train), data.outcome)
    answer = tensor("probabilities", 1)
    yield booster("xgb_encoded", data, model, make, matrix, answer, width, encode=encode, **XGBOOST)

    # XGBoost's own categories, with some of them missing.
    gaps = sets["subscribers"].with_gaps()
    encode = {name: numbered(listed[name]) for name in listed}
    coded = lambda frame: encoded(encode, {}, frame)
    kinds = ["c" if name in encode else "q" for name in gaps.train.columns]
    model = XGBClassifier(n_estimators=60, max_depth=4, n_jobs=1, enable_categorical=True, feature_types=kinds)
    model.fit(coded(gaps.train), gaps.outcome)
    yield booster("xgb_categories", gaps, model, make, coded, tensor("probabilities", 1), encode=encode, **XGBOOST)

    iris = sets["iris"]
    model = XGBClassifier(n_estimators=40, max_depth=3, n_jobs=1).fit(numbers(iris.train), iris.outcome)
    yield booster("xgb_multiclass", iris, model, make, numbers, tensor("probabilities"), **XGBOOST)
    diabetes = sets["diabetes"]
    model = XGBRegressor(n_estimators=60, max_depth=3, n_jobs=1).fit(numbers(diabetes.train), diabetes.outcome)
    yield booster("xgb_regressor", diabetes, model, make, numbers, value("variable"), **XGBOOST)


def register():
    """Lets skl2onnx convert boosted trees within pipelines, by onnxmltools' operators."""
    for library, classifier, operator in (
        ("XGBoost", XGBClassifier, xgboost_operator),
        ("LightGbm", LGBMClassifier, lightgbm_operator),
    ):
        update_registered_converter(
            classifier,
            f"{library}{classifier.__name__}",
            calculate_linear_classifier_output_shapes,
            operator,
            options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
        )


def in_pipelines(sets):
    """Boosted trees as the last step of a scikit-learn pipeline."""
    register()
    sparse = (
        "XGBoost takes what a sparse matrix leaves out, here the zeros of the one-hot columns, for missing; the graph has "
        "the zeros"
    )
    scaled = (
        "XGBoost cuts at values of the training data; a scaler computes in float64 there and in float32 in the graph, and "
        "rows on a cut go the other way"
    )
    saas = sets["saas_churn"]
    # Thresholds halfway between whole numbers are exact in float32; see `exact` for the others.
    whole = saas.only([name for name in saas.train.columns if saas.kinds[name] != "number"])
    xgb = lambda **options: pipeline(saas, XGBClassifier(n_estimators=40, max_depth=3, n_jobs=1), **options)
    lgbm = pipeline(whole, LGBMClassifier(**LIGHTGBM_OPTIONS), scaler="passthrough")
    for name, library, data, model, unfaithful in (
        ("xgb_pipeline", "xgboost-cpu", saas, xgb(scaler="passthrough", sparse=False), None),
        ("xgb_pipeline_sparse", "xgboost-cpu", saas, xgb(scaler="passthrough"), sparse),
        ("xgb_pipeline_scaled", "xgboost-cpu", saas, xgb(sparse=False), scaled),
        ("lgbm_pipeline", "lightgbm", whole, lgbm, None),
    ):
        yield Case(
            name=name,
            data=data,
            graph=convert(model, column_types(data), target_opset=ONNXMLTOOLS_NEWEST, zipmap=False),
            native=probability_of(model),
            feed=one_input_per_column(data),
            answer=tensor("probabilities", 1),
            labels=["retain", "churn"],
            library=library,
            converter="skl2onnx",
            unfaithful=unfaithful,
        )


def exact(model):
    """The booster of a model with every threshold rounded down to a float32, which changes nothing for rows in float32.

    onnxmltools rounds to the nearest float32 instead: a row between that and the threshold goes the other way.
    """

    def down(text):
        near = np.float32(text)
        return repr(float(near if float(near) <= float(text) else np.nextafter(near, np.float32(-np.inf))))

    lines = [line for line in model.booster_.model_to_string().split("\n") if not line.startswith("tree_sizes=")]
    for at, line in enumerate(lines):
        if line.startswith("threshold="):
            lines[at] = "threshold=" + " ".join(down(text) for text in line.removeprefix("threshold=").split())
    return Booster(model_str="\n".join(lines))


def lightgbm(sets):
    gaps = sets["subscribers"].only(sets["subscribers"].numbers).with_gaps()
    with_zipmap = lambda model, width: convert_lightgbm(exact(model), initial_types=float_input(width))
    without = lambda model, width: convert_lightgbm(exact(model), initial_types=float_input(width), zipmap=False)
    model = LGBMClassifier(**LIGHTGBM_OPTIONS).fit(numbers(gaps.train), gaps.outcome)
    answer = maps("probabilities", [0, 1], 1)
    yield booster("lgbm_zipmap_nan", gaps, model, with_zipmap, numbers, answer, **LIGHTGBM)
    yield booster("lgbm_matrix_nan", gaps, model, without, numbers, tensor("probabilities", 1), **LIGHTGBM)

    # LightGBM's own categories: integers, which the schema's maps give.
    data = sets["subscribers"].with_gaps()
    encode = {name: numbered(data.schema["properties"][name]["enum"]) for name in data.categories}
    matrix = lambda frame: encoded(encode, {}, frame)
    places = [data.train.columns.get_loc(name) for name in data.categories]
    model = LGBMClassifier(**LIGHTGBM_OPTIONS).fit(matrix(data.train), data.outcome, categorical_feature=places)
    answer = tensor("probabilities", 1)
    yield booster("lgbm_categories", data, model, without, matrix, answer, encode=encode, **LIGHTGBM)

    iris = sets["iris"]
    model = LGBMClassifier(**LIGHTGBM_OPTIONS, min_child_samples=5).fit(numbers(iris.train), iris.outcome)
    yield booster("lgbm_multiclass", iris, model, with_zipmap, numbers, maps("probabilities", [0, 1, 2]), **LIGHTGBM)
    diabetes = sets["diabetes"]
    model = LGBMRegressor(**LIGHTGBM_OPTIONS).fit(numbers(diabetes.train), diabetes.outcome)
    yield booster("lgbm_regressor", diabetes, model, without, numbers, value("variable"), **LIGHTGBM)


    prices = sets["prices"]
    rounded = "onnxmltools rounds LightGBM's float64 thresholds to the nearest float32, and rows in between change sides"
    model = LGBMClassifier(**LIGHTGBM_OPTIONS).fit(numbers(prices.train), prices.outcome)
    as_it_is = lambda model, width: convert_lightgbm(model, initial_types=float_input(width), zipmap=False)
    answer, unfaithful = tensor("probabilities", 1), {"unfaithful": rounded} | LIGHTGBM
    yield booster("lgbm_rounded", prices, model, as_it_is, numbers, answer, **unfaithful)
    yield booster("lgbm_exact", prices, model, without, numbers, answer, **LIGHTGBM)


def catboost(sets):
    gaps = sets["subscribers"].only(sets["subscribers"].numbers).with_gaps()
    model = CatBoostClassifier(**CATBOOST_OPTIONS).fit(numbers(gaps.train), gaps.outcome)
    of_features = {"input": "features"} | CATBOOST
    answer = maps("probabilities", [0, 1], 1)
    yield booster("catboost_binary_nan", gaps, model, exported, numbers, answer, **of_features)
    iris = sets["iris"]
    named = iris.with_outcome(np.array(iris.schema["x-scoregate"]["labels"])[iris.outcome])
    model = CatBoostClassifier(**CATBOOST_OPTIONS).fit(numbers(named.train), named.outcome)
    answer = maps("probabilities", model.classes_.tolist())
    yield booster("catboost_multiclass", named, model, exported, numbers, answer, **of_features)
    diabetes = sets["diabetes"]
    model = CatBoostRegressor(**CATBOOST_OPTIONS).fit(numbers(diabetes.train), diabetes.outcome)
    yield booster("catboost_regressor", diabetes, model, exported, numbers, value("predictions"), **of_features)


def objectives(sets):
    """Objectives and ways of boosting whose answers need more than the sum of the leaves."""
    make_xgboost = lambda model, width: convert_xgboost(model, initial_types=float_input(width))
    make_lightgbm = lambda model, width: convert_lightgbm(exact(model), initial_types=float_input(width), zipmap=False)
    of_xgboost, of_lightgbm = {"n_estimators": 40, "max_depth": 3, "n_jobs": 1}, LIGHTGBM_OPTIONS
    of_catboost = CATBOOST_OPTIONS | {"iterations": 40}
    values, two, three = sets["diabetes"], sets["subscribers"].only(sets["subscribers"].numbers), sets["iris"]

    def case(name, data, model, make, answer, how, unfaithful=None, **more):
        model.fit(numbers(data.train), data.outcome)
        return booster(name, data, model, make, numbers, answer, unfaithful=unfaithful, **(how | more))

    poisson = XGBRegressor(**of_xgboost, objective="count:poisson")
    yield case("xgb_poisson", values, poisson, make_xgboost, value("variable"), XGBOOST)
    poisson = LGBMRegressor(**of_lightgbm, objective="poisson")
    yield case("lgbm_poisson", values, poisson, make_lightgbm, value("variable"), LIGHTGBM)
    dart = LGBMClassifier(**of_lightgbm, boosting_type="dart")
    yield case("lgbm_dart", two, dart, make_lightgbm, tensor("probabilities", 1), LIGHTGBM)

    # A regressor that answers probabilities, whose graph answers log-odds: the golden rows tell the link.
    model = XGBRegressor(**of_xgboost, objective="reg:logistic").fit(numbers(two.train), two.outcome)
    yield Case(
        name="xgb_logistic",
        data=two,
        graph=make_xgboost(model, len(two.numbers)),
        native=lambda frame: model.predict(numbers(frame)).astype(np.float64),
        feed=one_matrix("input"),
        answer=tensor("variable", 0, sigmoid),
        labels=["stays", "leaves"],
        unfaithful="onnxmltools adds XGBoost's base_score to the log-odds of reg:logistic as if it were one of them",
        **XGBOOST,
    )

    forest = LGBMClassifier(**of_lightgbm, boosting_type="rf", bagging_fraction=0.7, bagging_freq=1)
    lost = "onnxmltools does not average the trees of LightGBM's random forest"
    yield case("lgbm_forest", two, forest, make_lightgbm, tensor("probabilities", 1), LIGHTGBM, lost)
    linear = LGBMClassifier(**of_lightgbm, linear_tree=True)
    lost = "onnxmltools drops the linear models in the leaves of LightGBM's linear_tree"
    yield case("lgbm_linear_tree", two, linear, make_lightgbm, tensor("probabilities", 1), LIGHTGBM, lost)
    root = LGBMRegressor(**of_lightgbm, reg_sqrt=True)
    lost = "onnxmltools drops the square that undoes LightGBM's reg_sqrt"
    yield case("lgbm_sqrt", values, root, make_lightgbm, value("variable"), LIGHTGBM, lost)
    each = LGBMClassifier(**of_lightgbm, objective="multiclassova")
    lost = "onnxmltools takes softmax for LightGBM's multiclassova, which takes a sigmoid per class"
    yield case("lgbm_ova", three, each, make_lightgbm, tensor("probabilities"), LIGHTGBM, lost)
    poisson = CatBoostRegressor(**of_catboost, loss_function="Poisson")
    lost = "CatBoost exports the logarithm that Poisson is fitted on"
    of_features = {"input": "features"}
    yield case("catboost_poisson", values, poisson, exported, value("predictions"), CATBOOST, lost, **of_features)
    each = CatBoostClassifier(**of_catboost, loss_function="MultiClassOneVsAll")
    lost = "CatBoost exports softmax for MultiClassOneVsAll, which takes a sigmoid per class"
    answer = maps("probabilities", [0, 1, 2])
    yield case("catboost_ova", three, each, exported, answer, CATBOOST, lost, **of_features)


def cases(sets):
    for group in (xgboost, in_pipelines, lightgbm, catboost, objectives):
        yield from group(sets)
