"""scikit-learn, converted by skl2onnx."""

import numpy as np
from case import Case, maps, numbers, one_input_per_column, one_matrix, sigmoid, softmax, tensor, value
from skl2onnx import to_onnx
from skl2onnx.common.data_types import (
    BooleanTensorType,
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

SKLEARN = {"library": "scikit-learn", "converter": "skl2onnx"}
RAW_SCORES = "raw_scores: `probabilities` holds the decision function, [-s, s] per row"


def pipeline(data, classifier, scaler=None, sparse=True):
    """Numbers, scaled unless said otherwise, and one-hot categories before a classifier, fitted."""
    columns = ColumnTransformer(
        [
            ("numbers", scaler or StandardScaler(), data.numbers),
            ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=sparse), data.categories),
        ],
        sparse_threshold=1 if sparse else 0,
    )
    return make_pipeline(columns, classifier).fit(data.train, data.outcome)


def column_types(data, numbers=FloatTensorType, types=None):
    """One graph input per feature."""
    kind = lambda name: StringTensorType if name in data.categories else (types or {}).get(name, numbers)
    return [(name, kind(name)([None, 1])) for name in data.train.columns]


def matrix_type(data):
    return [("float_input", FloatTensorType([None, len(data.train.columns)]))]


def convert(model, initial_types, target_opset=None, **options):
    """The graph of a fitted model; `options` are those of its last step."""
    last = model[-1] if hasattr(model, "steps") else model
    options = {id(last): options} if options else None
    return to_onnx(model, initial_types=initial_types, options=options, target_opset=target_opset)


def probability_of(model):
    """P(positive) of a fitted classifier, whose positive class is the second."""
    return lambda frame: model.predict_proba(frame)[:, 1]


def logistic_columns(name, data, options, answer, types=None, **more):
    """A logistic regression with one graph input per feature."""
    model = pipeline(data, LogisticRegression(max_iter=1000))
    return Case(
        name=name,
        data=data,
        graph=convert(model, types or column_types(data), **options),
        native=probability_of(model),
        answer=answer,
        labels=data.schema["x-scoregate"]["labels"],
        **({"feed": one_input_per_column(data)} | SKLEARN | more),
    )


def columns(sets):
    """One named input per column, in every way that the answer can come."""
    saas = sets["saas_churn"]
    yield logistic_columns("skl_columns", saas, {"zipmap": False}, tensor("probabilities", 1))
    yield logistic_columns("skl_zipmap", saas, {}, maps("output_probability", [0, 1], 1))
    yield logistic_columns(
        "skl_zipmap_columns",
        saas,
        {"zipmap": "columns"},
        lambda outputs: outputs["i1"].reshape(-1).astype(np.float64),
        notes="one output per class, called i0 and i1",
    )
    yield logistic_columns(
        "skl_old_opset",
        saas,
        {"zipmap": False, "target_opset": {"": 9, "ai.onnx.ml": 1}},
        tensor("probabilities", 1),
    )
    churn = sets["churn"]
    yield logistic_columns(
        "skl_double",
        churn,
        {"zipmap": False},
        tensor("probabilities", 1),
        types=column_types(churn, DoubleTensorType),
        feed=one_input_per_column(churn, np.float64),
        float32=False,
    )
    people = sets["subscribers"]
    whole = {name: Int64TensorType for name, kind in people.kinds.items() if kind in ("integer", "boolean")}
    yield logistic_columns(
        "skl_int64",
        people,
        {"zipmap": False},
        tensor("probabilities", 1),
        types=column_types(people, types=whole),
        feed=one_input_per_column(people, types={name: np.int64 for name in whole}),
        notes="integers and the boolean are int64 inputs, the other numbers float",
    )
    switch = {"autopay": BooleanTensorType}
    yield logistic_columns(
        "skl_bool",
        people,
        {"zipmap": False},
        tensor("probabilities", 1),
        types=column_types(people, types=switch),
        feed=one_input_per_column(people, types={"autopay": bool}),
        notes="the boolean is a bool input",
    )
    # The classes are text and the positive one comes first in the graph.
    words = np.where(people.outcome == 1, "left", "stayed")
    first = people.with_outcome(words, positive="left", labels=["stayed", "left"])
    model = pipeline(first, LogisticRegression(max_iter=1000))
    yield Case(
        name="skl_positive_first",
        data=first,
        graph=convert(model, column_types(first)),
        native=lambda frame: model.predict_proba(frame)[:, 0],
        feed=one_input_per_column(first),
        answer=maps("output_probability", ["left", "stayed"], 0),
        labels=["stayed", "left"],
        notes="classes are text; the positive one is the graph's first",
        **SKLEARN,
    )


def unknown(sets):
    """Categories that training never met, which the encoder ignores."""
    data = sets["subscribers"].with_strangers()
    yield logistic_columns("skl_unknown", data, {"zipmap": False}, tensor("probabilities", 1))


def ensembles(sets):
    """Estimators of estimators, which the converter gives classes of their own within: the outer ones count."""
    data = sets["subscribers"].only(sets["subscribers"].numbers)
    words = np.where(data.outcome == 1, "left", "stayed")
    first = data.with_outcome(words, positive="left", labels=["stayed", "left"])
    x = numbers(first.train)
    trees = lambda: DecisionTreeClassifier(max_depth=4, random_state=0)
    logistic = lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    for name, classifier in {
        "voting": VotingClassifier([("trees", trees()), ("logistic", logistic())], voting="soft", flatten_transform=False),
        "stacking": StackingClassifier([("trees", trees()), ("logistic", logistic())], LogisticRegression()),
        "bagging": BaggingClassifier(trees(), n_estimators=5, random_state=0),
        "one_vs_rest": OneVsRestClassifier(logistic()),
        "adaboost": AdaBoostClassifier(trees(), n_estimators=5, random_state=0),
    }.items():
        classifier.fit(x, words)
        yield Case(
            name=f"skl_{name}",
            data=first,
            graph=convert(classifier, matrix_type(first), zipmap=False),
            native=lambda frame, classifier=classifier: classifier.predict_proba(numbers(frame))[:, 0],
            feed=one_matrix("float_input"),
            answer=tensor("probabilities", 0),
            labels=["stayed", "left"],
            notes="classes are text, the positive one first, and the estimators within have 0 and 1",
            **SKLEARN,
        )


def imputed(sets):
    """Missing values that the pipeline itself fills: NaN in numbers, the empty text in categories."""
    data = sets["subscribers"].with_gaps()
    filled = lambda frame: frame.fillna({name: "" for name in data.categories})
    model = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), data.numbers),
                ("categories", OneHotEncoder(), data.categories),
            ]
        ),
        LogisticRegression(max_iter=1000),
    ).fit(filled(data.train), data.outcome)
    feed = one_input_per_column(data)
    yield Case(
        name="skl_imputed",
        data=data,
        graph=convert(model, column_types(data), zipmap=False),
        native=lambda frame: model.predict_proba(filled(frame))[:, 1],
        feed=lambda frame: feed(filled(frame)),
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        notes="a missing category is the empty text",
        **SKLEARN,
    )


def raw_scores(sets):
    """An output that is called probabilities and holds scores."""
    data = sets["churn"]
    options, answer = {"zipmap": False, "raw_scores": True}, tensor("probabilities", 1, sigmoid)
    yield logistic_columns("skl_raw_scores_golden", data, options, answer, notes=RAW_SCORES)
    yield logistic_columns(
        "skl_raw_scores_link", data, options, answer, notes=RAW_SCORES, golden=False, flags=["--link", "sigmoid"]
    )
    yield logistic_columns(
        "skl_raw_scores_unproven", data, options, answer, notes=RAW_SCORES, golden=False, refused="link_unproved"
    )


def raw_scores_of_classes(sets):
    """The same with three classes, where it takes softmax."""
    data = sets["iris"]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(numbers(data.train), data.outcome)
    yield Case(
        name="skl_raw_scores_softmax",
        data=data,
        graph=convert(model, matrix_type(data), zipmap=False, raw_scores=True),
        native=lambda frame: model.predict_proba(numbers(frame)),
        feed=one_matrix("float_input"),
        answer=tensor("probabilities", link=softmax),
        labels=data.schema["x-scoregate"]["labels"],
        notes="raw_scores: `probabilities` holds one score per class",
        **SKLEARN,
    )


def grouped(sets):
    """Inputs that take all features of one type side by side."""
    data = sets["subscribers"]
    places = list(range(len(data.numbers))), list(range(len(data.numbers), len(data.train.columns)))
    model = make_pipeline(
        ColumnTransformer([("numbers", StandardScaler(), places[0]), ("categories", OneHotEncoder(), places[1])]),
        LogisticRegression(max_iter=1000),
    ).fit(data.train.to_numpy(dtype=object), data.outcome)
    types = [
        ("numeric", FloatTensorType([None, len(data.numbers)])),
        ("categorical", StringTensorType([None, len(data.categories)])),
    ]
    yield Case(
        name="skl_grouped",
        data=data,
        graph=convert(model, types, zipmap=False),
        native=lambda frame: model.predict_proba(frame.to_numpy(dtype=object))[:, 1],
        feed=lambda frame: {
            "numeric": numbers(frame[data.numbers]),
            "categorical": frame[data.categories].to_numpy(dtype=object),
        },
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        **SKLEARN,
    )


def matrix(name, data, model, **more):
    """A classifier over a single matrix of numbers, fitted on what the graph will see."""
    model.fit(numbers(data.train), data.outcome)
    return Case(
        name=name,
        data=data,
        graph=convert(model, matrix_type(data), zipmap=False),
        native=lambda frame: model.predict_proba(numbers(frame))[:, 1],
        feed=one_matrix("float_input"),
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        **(SKLEARN | more),
    )


def matrices(sets):
    """Trees and calibration over a matrix of numbers, with and without missing values."""
    data = sets["subscribers"].only(sets["subscribers"].numbers)
    gaps = data.with_gaps()
    forest = lambda: RandomForestClassifier(n_estimators=40, max_depth=8, random_state=0)
    calibrated = lambda method: CalibratedClassifierCV(
        GradientBoostingClassifier(n_estimators=30, random_state=0), method=method, cv=3
    )
    yield matrix("skl_gradient_boosting", data, GradientBoostingClassifier(n_estimators=60, random_state=0))
    yield matrix("skl_hist_nan", gaps, HistGradientBoostingClassifier(max_iter=60, random_state=0))
    yield matrix("skl_random_forest", data, forest())
    yield matrix("skl_sigmoid", data, calibrated("sigmoid"))
    isotonic = "skl2onnx takes the value of the nearest knot, where scikit-learn interpolates between two"
    yield matrix("skl_isotonic", data, calibrated("isotonic"), unfaithful=isotonic)
    routing = "skl2onnx drops the direction that the trees of a random forest learned for missing values"
    yield matrix("skl_forest_nan", gaps, forest(), unfaithful=routing)


def other_tasks(sets):
    """Several classes, and values."""
    wine = sets["wine"]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(numbers(wine.train), wine.outcome)
    yield Case(
        name="skl_multiclass_text",
        data=wine,
        graph=convert(classifier, matrix_type(wine)),
        native=lambda frame: classifier.predict_proba(numbers(frame)),
        feed=one_matrix("float_input"),
        answer=maps("output_probability", classifier.classes_.tolist()),
        labels=classifier.classes_.tolist(),
        notes="classes are text, and the schema names none: they are the graph's",
        **SKLEARN,
    )
    data = sets["diabetes"]
    regressor = GradientBoostingRegressor(n_estimators=60, random_state=0)
    regressor.fit(numbers(data.train), data.outcome)
    yield Case(
        name="skl_regressor",
        data=data,
        graph=convert(regressor, matrix_type(data)),
        native=lambda frame: regressor.predict(numbers(frame)),
        feed=one_matrix("float_input"),
        answer=value("variable"),
        **SKLEARN,
    )


def cases(sets):
    for group in (columns, unknown, ensembles, imputed, raw_scores, raw_scores_of_classes, grouped, matrices, other_tasks):
        yield from group(sets)
