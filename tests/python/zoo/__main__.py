"""Fits and converts every model of the zoo, for tests/zoo.rs: `python zoo DIRECTORY CHURN_CSV`.

Each case is a directory that holds what a data scientist would hand over (`model.onnx`, `schema.json`, `reference.csv`,
`golden.jsonl`), rows that no model was fitted on with the library's answers and onnxruntime's, and `case.json`. How far the two
answers are from each other goes to standard output.
"""

import pathlib
import sys
import warnings

# Before anything loads ONNX Runtime.
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import boosting
import by_hand
import data
import scikit


def main():
    directory, churn = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    sets = {
        "churn": data.by_schema("churn", churn),
        "saas_churn": data.by_schema("saas_churn", data.ROOT / "tests/data/saas_churn.csv"),
        "subscribers": data.subscribers(),
        "iris": data.iris(),
        "wine": data.wine(),
        "diabetes": data.diabetes(),
        "prices": data.prices(),
    }
    for library in (scikit, boosting, by_hand):
        for case in library.cases(sets):
            print(f"{case.name:<24} {case.write(directory):.1e}", flush=True)


main()
