"""What shap and the libraries of boosted trees say of an ensemble, column by column: `[rows, outputs, columns]`."""

import contextlib
import io

import numpy as np
import shap
from catboost import Pool
from xgboost import DMatrix


def by_shap(model, rows, background):
    """Interventional, against background rows."""
    explainer = shap.TreeExplainer(model, background, feature_perturbation="interventional")
    return explained(explainer, rows)


def by_shap_by_path(model, rows, reference):
    """Path-dependent, with covers that are counts of the reference rows."""
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    count(explainer.model, reference)
    # Else it asks XGBoost and LightGBM, with covers of their own.
    explainer.model.model_type = "internal"
    return explained(explainer, rows)


def by_library(model, rows, library):
    """Path-dependent, with covers of the library's own."""
    if library == "catboost":
        values = model.get_feature_importance(Pool(rows), type="ShapValues")
    elif library == "xgboost":
        values = model.get_booster().predict(DMatrix(rows), pred_contribs=True)
    else:
        values = model.predict(rows, pred_contrib=True)
    return values.reshape(len(rows), -1, rows.shape[1] + 1)[:, :, :-1]


def explained(explainer, rows):
    # It shows progress where it takes long.
    with contextlib.redirect_stderr(io.StringIO()):
        values = explainer.shap_values(rows, check_additivity=False)
    if isinstance(values, list):
        values = np.stack(values, axis=2)
    return values[:, None] if values.ndim == 2 else np.swapaxes(values, 1, 2)


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
