"""Fits models and writes what real libraries say of their rows, for tests/shapley.rs: `python shapley trees DIRECTORY`, or
`python shapley served DIRECTORY CHURN`, the latter being a published version of the trainer's own model."""

import os
import sys
import warnings
from pathlib import Path

# Before anything loads ONNX Runtime.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
warnings.filterwarnings("ignore")
# The data sets and conversions of the zoo.
sys.path.insert(0, str(Path(__file__).parent.parent / "zoo"))


def main():
    what, directory, *rest = sys.argv[1:]
    if what == "trees":
        import trees

        trees.write(Path(directory))
    else:
        import served

        served.write(Path(directory), Path(*rest))


main()
