"""The data sets of the zoo: rows as clients send them, the outcome, and the feature schema that describes them."""

import copy
import dataclasses
import json
import pathlib

import numpy as np
import pandas as pd
from sklearn import datasets

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = "outcome"


@dataclasses.dataclass(frozen=True)
class Data:
    """A table and its feature schema; numbers and booleans are float64, NaN or None is a missing value."""

    schema: dict
    task: str
    train: pd.DataFrame
    outcome: np.ndarray
    held_out: pd.DataFrame

    @property
    def kinds(self):
        return {name: self.schema["properties"][name]["type"] for name in self.train.columns}

    @property
    def numbers(self):
        return [name for name, kind in self.kinds.items() if kind != "string"]

    @property
    def categories(self):
        return [name for name, kind in self.kinds.items() if kind == "string"]

    def with_outcome(self, outcome, **extension):
        """The same rows with another outcome, and other members of `x-scoregate`."""
        schema = copy.deepcopy(self.schema)
        schema["x-scoregate"] |= extension
        return dataclasses.replace(self, schema=schema, outcome=outcome)

    def only(self, names):
        """The same rows without the other features."""
        schema = copy.deepcopy(self.schema)
        schema["properties"] = {name: schema["properties"][name] for name in names}
        if "required" in schema:
            schema["required"] = names
        return dataclasses.replace(self, schema=schema, train=self.train[names], held_out=self.held_out[names])

    def with_gaps(self, share=0.1):
        """The same rows with a share of the values missing, which the schema then lets pass."""
        rng = np.random.default_rng(11)
        schema = copy.deepcopy(self.schema)
        schema.pop("required", None)
        for field in schema["properties"].values():
            field["x-scoregate"] = field.get("x-scoregate", {}) | {"missing": "pass"}

        def gaps(frame):
            return frame.mask(rng.random(frame.shape) < share)

        return dataclasses.replace(self, schema=schema, train=gaps(self.train), held_out=gaps(self.held_out))

    def with_strangers(self, share=0.1):
        """The same rows, but of those held out a share of the categories is one that the schema does not list."""
        rng = np.random.default_rng(13)
        schema = copy.deepcopy(self.schema)
        held_out = self.held_out.copy()
        for name in self.categories:
            field = schema["properties"][name]
            field["x-scoregate"] = field.get("x-scoregate", {}) | {"unknown": "pass"}
            held_out[name] = held_out[name].mask(rng.random(len(held_out)) < share, "never met")
        return dataclasses.replace(self, schema=schema, held_out=held_out)


def split(frame, outcome):
    """A quarter of the rows is held out. Small tables get rows between two held-out ones besides, up to 240."""
    rng = np.random.default_rng(7)
    order = rng.permutation(len(frame))
    held = len(frame) // 4
    held_out = frame.iloc[order[:held]]
    if held < 240:
        pairs = rng.integers(0, held, (240 - held, 2))
        between = (held_out.to_numpy()[pairs[:, 0]] + held_out.to_numpy()[pairs[:, 1]]) / 2
        held_out = pd.concat([held_out, pd.DataFrame(between.round(4), columns=frame.columns)])
    train = order[held:]
    return frame.iloc[train].reset_index(drop=True), outcome[train], held_out.reset_index(drop=True)


def described(name):
    """The feature schema of this repository for a data set."""
    return json.loads((ROOT / "schemas" / f"{name}.json").read_text(encoding="utf-8"))


def by_schema(name, path):
    """A CSV file with the repository's own schema; its entity and the columns that it does not name are left out."""
    schema = described(name)
    roles = {key: field.get("x-scoregate", {}).get("role", "feature") for key, field in schema["properties"].items()}
    schema["properties"] = {key: field for key, field in schema["properties"].items() if roles[key] == "feature"}
    texts = {key: str for key, field in schema["properties"].items() if field["type"] == "string"}
    table = pd.read_csv(path, dtype=texts, keep_default_na=False)
    frame = table[list(schema["properties"])]
    frame = frame.astype({key: "float64" for key in frame.columns if key not in texts})
    outcome = table[schema["x-scoregate"]["target"]].to_numpy().astype(int)
    train, outcome, held_out = split(frame, outcome)
    return Data(schema, "binary", train, outcome, held_out)


def of_numbers(frame, outcome, task, **extension):
    """A table that has numbers only."""
    schema = {"type": "object", "properties": {name: {"type": "number"} for name in frame.columns}}
    schema["x-scoregate"] = {"target": TARGET} | extension
    train, outcome, held_out = split(frame.astype("float64"), outcome)
    return Data(schema, task, train, outcome, held_out)


def iris():
    bunch = datasets.load_iris(as_frame=True)
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in bunch.feature_names]
    labels = [str(name) for name in bunch.target_names]
    return of_numbers(bunch.data.set_axis(names, axis=1), bunch.target.to_numpy(), "multiclass", labels=labels)


def wine():
    """Outcomes are text, and no labels are stated: the graph's own serve."""
    bunch = datasets.load_wine(as_frame=True)
    frame = bunch.data.rename(columns={"od280/od315_of_diluted_wines": "od280"})
    outcome = np.array(["barolo", "grignolino", "barbera"])[bunch.target]
    return of_numbers(frame, outcome, "multiclass")


def diabetes():
    bunch = datasets.load_diabetes(as_frame=True, scaled=False)
    return of_numbers(bunch.data, bunch.target.to_numpy(), "regression", labels=[])


def subscribers():
    """Generated: eight numbers, one of them a boolean and four integers, five categories, and who left."""
    rng = np.random.default_rng(3)
    count = 2400
    choose = lambda values: rng.choice(values, count)
    frame = pd.DataFrame(
        {
            "tenure_months": rng.integers(0, 72, count).astype(float),
            "monthly_charge": rng.gamma(6.0, 9.0, count).round(2),
            "data_gb": rng.lognormal(2.0, 0.8, count).round(3),
            "call_minutes": rng.gamma(2.0, 80.0, count).round(1),
            "complaints": rng.poisson(0.7, count).astype(float),
            "late_payments": rng.poisson(0.4, count).astype(float),
            "age": rng.integers(18, 90, count).astype(float),
            "autopay": rng.integers(0, 2, count).astype(float),
            "plan": choose(["basic", "plus", "family", "unlimited"]),
            "region": choose(["north", "east", "south", "west"]),
            "payment": choose(["card", "invoice", "debit"]),
            "device": choose(["phone", "tablet", "watch"]),
            "channel": choose(["shop", "web", "partner", "telephone"]),
        }
    )
    score = (
        -0.04 * frame["tenure_months"]
        + 0.02 * frame["monthly_charge"]
        + 0.9 * frame["complaints"]
        + 0.7 * frame["late_payments"]
        - 0.8 * frame["autopay"]
        + 0.6 * (frame["plan"] == "basic")
        - 0.9 * (frame["channel"] == "shop")
        - 0.2
    )
    outcome = (rng.random(count) < 1 / (1 + np.exp(-score))).astype(int)

    integers = ["tenure_months", "complaints", "late_payments", "age"]
    properties = {}
    for name in frame.columns:
        if name in integers:
            properties[name] = {"type": "integer", "minimum": 0}
        elif name == "autopay":
            properties[name] = {"type": "boolean"}
        elif not pd.api.types.is_numeric_dtype(frame[name]):
            properties[name] = {"type": "string", "enum": sorted(frame[name].unique())}
        else:
            properties[name] = {"type": "number", "minimum": 0}
    schema = {"type": "object", "properties": properties}
    schema["x-scoregate"] = {"target": TARGET, "labels": ["stays", "leaves"]}
    train, outcome, held_out = split(frame, outcome)
    return Data(schema, "binary", train, outcome, held_out)


def prices():
    """Prices in cents, generated: models are fitted on even cents, and the odd ones, halfway between, are held out."""
    rng = np.random.default_rng(5)
    cents = rng.integers(1000, 1100, 1200) * 2
    frame = pd.DataFrame({"price": cents / 100, "months": rng.integers(1, 36, 1200).astype(float)})
    outcome = (rng.random(1200) < 0.5 + 0.4 * np.sin(cents / 9)).astype(int)
    data = of_numbers(frame, outcome, "binary", labels=["stays", "leaves"])
    return dataclasses.replace(data, held_out=data.held_out.assign(price=(data.held_out["price"] + 0.01).round(2)))
