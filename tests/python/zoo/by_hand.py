"""Graphs that are written or altered by hand: as PyTorch would write them, with only one domain, old, new, or badly declared."""

import copy

import numpy as np
from case import Case, maps, numbers, one_matrix, tensor
from onnx import TensorProto, helper, numpy_helper
from scikit import convert, matrix_type
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

# What ONNX Runtime 1.31.1 takes at most.
NEWEST = {"": 26, "ai.onnx.ml": 5}
NEWEST_IR = 13
BY_HAND = {"library": "scikit-learn", "converter": "onnx"}


def graph(name, nodes, width, outputs, weights, opsets, ir_version, input="input"):
    """A model over one matrix of `width` columns."""
    taken = [helper.make_tensor_value_info(input, TensorProto.FLOAT, ["batch", width])]
    held = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(
        helper.make_graph(nodes, name, taken, outputs, held),
        opset_imports=imports,
        ir_version=ir_version,
        producer_name="onnx.helper",
    )


def float_output(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def over_numbers(data, model):
    model.fit(numbers(data.train), data.outcome)
    return lambda frame: model.predict_proba(numbers(frame))[:, 1]


def network(data):
    """A perceptron with one probability per row and no label: the graph that PyTorch's exporter writes."""
    model = make_pipeline(StandardScaler(), MLPClassifier((16, 8), max_iter=120, tol=1e-3, random_state=0))
    native = over_numbers(data, model)
    scaler, layers = model[0], model[1]
    weights = {"mean": scaler.mean_, "scale": scaler.scale_}
    nodes = [helper.make_node("Sub", ["input", "mean"], ["centred"]), helper.make_node("Div", ["centred", "scale"], ["x0"])]
    last = len(layers.coefs_) - 1
    for at, (coefficients, intercepts) in enumerate(zip(layers.coefs_, layers.intercepts_)):
        # PyTorch keeps the weights of a linear layer transposed.
        weights |= {f"fc{at}.weight": coefficients.T, f"fc{at}.bias": intercepts}
        taken = [f"x{at}", f"fc{at}.weight", f"fc{at}.bias"]
        nodes.append(helper.make_node("Gemm", taken, [f"fc{at}"], transB=1))
        nodes.append(helper.make_node("Sigmoid" if at == last else "Relu", [f"fc{at}"], ["output" if at == last else f"x{at + 1}"]))
    weights = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
    output = [float_output("output", ["batch", 1])]
    return Case(
        name="network",
        data=data,
        graph=graph("main_graph", nodes, len(data.numbers), output, weights, {"": 20}, 10),
        native=native,
        feed=one_matrix("input"),
        answer=tensor("output", 0),
        labels=["stays", "leaves"],
        notes="one probability per row [N, 1], no label",
        **BY_HAND,
    )


def one_tree(data):
    """A decision tree, its library's answers, and its nodes: feature, threshold, children, and P(positive) of leaves."""
    model = DecisionTreeClassifier(max_depth=6, min_samples_leaf=10, random_state=0)
    native = over_numbers(data, model)
    return model, native, model.tree_


def newest(data):
    """The tree operator of ai.onnx.ml 5 with the newest versions of everything."""
    _, native, tree = one_tree(data)
    inner = np.flatnonzero(tree.children_left >= 0)
    leaves = np.flatnonzero(tree.children_left < 0)
    place = {node: at for at, node in enumerate(inner)} | {node: at for at, node in enumerate(leaves)}
    # "At most the threshold" holds for a float32 exactly if it holds for the threshold rounded down to one.
    rounded = tree.threshold[inner].astype(np.float32)
    rounded = np.where(rounded > tree.threshold[inner], np.nextafter(rounded, np.float32(-np.inf)), rounded)
    positive = tree.value[leaves, 0, 1] / tree.value[leaves, 0].sum(axis=1)
    below, above = tree.children_left[inner], tree.children_right[inner]
    node = helper.make_node(
        "TreeEnsemble",
        ["input"],
        ["probability"],
        domain="ai.onnx.ml",
        aggregate_function=1,
        post_transform=0,
        n_targets=1,
        tree_roots=[0],
        nodes_featureids=tree.feature[inner].tolist(),
        nodes_splits=numpy_helper.from_array(rounded.astype(np.float32), "splits"),
        nodes_modes=numpy_helper.from_array(np.zeros(len(inner), dtype=np.uint8), "modes"),
        nodes_truenodeids=[place[child] for child in below],
        nodes_trueleafs=[int(child in leaves) for child in below],
        nodes_falsenodeids=[place[child] for child in above],
        nodes_falseleafs=[int(child in leaves) for child in above],
        leaf_targetids=[0] * len(leaves),
        leaf_weights=numpy_helper.from_array(positive.astype(np.float32), "weights"),
    )
    one = {"one": np.array([1], dtype=np.float32)}
    nodes = [
        node,
        helper.make_node("Sub", ["one", "probability"], ["other"]),
        helper.make_node("Concat", ["other", "probability"], ["probabilities"], axis=1),
    ]
    output = [float_output("probabilities", ["batch", 2])]
    return Case(
        name="newest_opset",
        data=data,
        graph=graph("tree", nodes, len(data.numbers), output, one, NEWEST, NEWEST_IR),
        native=native,
        feed=one_matrix("input"),
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        notes="opset 26, ai.onnx.ml 5 (TreeEnsemble), IR 13",
        **BY_HAND,
    )


def trees_alone(data):
    """A graph that imports only ai.onnx.ml: one node, whose answer is a ZipMap as old converters wrote it."""
    model, native, _ = one_tree(data)
    converted = convert(model, matrix_type(data), target_opset={"": 9, "ai.onnx.ml": 1}, zipmap=False)
    trees = next(node for node in converted.graph.node if node.op_type == "TreeEnsembleClassifier")
    trees.output[:] = ["label", "scores"]
    zipmap = helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    of_map = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(of_map)),
    ]
    width = len(data.numbers)
    return Case(
        name="only_ml",
        data=data,
        graph=graph("trees", [trees, zipmap], width, outputs, {}, {"ai.onnx.ml": 1}, 4, trees.input[0]),
        native=native,
        feed=one_matrix(trees.input[0]),
        answer=maps("probabilities", [0, 1], 1),
        labels=["stays", "leaves"],
        notes="imports ai.onnx.ml 1 and nothing else",
        **BY_HAND,
    )


def badly_declared(data):
    """A graph whose outputs declare shapes that they do not have."""
    model = GradientBoostingClassifier(n_estimators=30, random_state=0)
    native = over_numbers(data, model)
    altered = convert(model, matrix_type(data), zipmap=False)
    declared = {"label": [1], "probabilities": [1, 1]}
    for output in altered.graph.output:
        kind = helper.make_tensor_type_proto(output.type.tensor_type.elem_type, declared[output.name])
        output.type.CopyFrom(kind)
    return Case(
        name="wrong_shape",
        data=data,
        graph=altered,
        native=native,
        feed=one_matrix("float_input"),
        answer=tensor("probabilities", 1),
        labels=["stays", "leaves"],
        notes="declares probabilities [1, 1]; they are [N, 2]",
        **BY_HAND,
    )


def overridden(data):
    """Graphs that nothing in them explains, and what says it instead: flags, or a file."""
    turned = data.numbers[::-1]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(numbers(data.train[turned]), data.outcome)
    common = {
        "data": data,
        "native": lambda frame: model.predict_proba(numbers(frame[turned]))[:, 1],
        "feed": lambda frame: {"x": numbers(frame[turned])},
        "answer": tensor("y", 1),
        "labels": ["stays", "leaves"],
    }
    renamed = copy.deepcopy(convert(model, [("x", matrix_type(data)[0][1])], zipmap=False))
    for node in renamed.graph.node:
        node.output[:] = ["y" if name == "probabilities" else name for name in node.output]
    for output in renamed.graph.output:
        output.name = "y" if output.name == "probabilities" else output.name
    order = f"x={','.join(turned)}"
    notes = "columns in another order than the schema's, outputs without telling names"
    yield Case(
        name="told_by_flags",
        graph=renamed,
        flags=["--input", order, "--output", "y", "--task", "binary", "--link", "none", "--positive", "1"],
        notes=notes,
        **common,
        **BY_HAND,
    )
    bindings = {
        "bindings": {"kind": "matrix", "inputs": [{"input": "x", "type": "float32", "features": turned}]},
        "output": {"kind": "probabilities", "name": "y", "classes": 2, "positive": 1},
    }
    yield Case(
        name="told_by_file",
        graph=renamed,
        flags=["--bindings", "{directory}/bindings.json"],
        bindings=bindings,
        notes=notes,
        **common,
        **BY_HAND,
    )


def cases(sets):
    data = sets["subscribers"].only(sets["subscribers"].numbers)
    for written in (network, newest, trees_alone, badly_declared):
        yield written(data)
    yield from overridden(data)
