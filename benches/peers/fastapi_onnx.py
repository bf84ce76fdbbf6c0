"""FastAPI in front of ONNX Runtime, serving the very graph that the gateway serves.

`PEER_STYLE` is `def`, as FastAPI's documentation advises for calls that block (they run in its thread pool), or
`async`, which runs the model on the event loop: unadvised, and faster for a model this small.
"""

import os

import numpy
import onnxruntime
from fastapi import Depends, FastAPI

from contract import Answer, Customer, answer, check_key

DTYPES = {
    "tensor(float)": numpy.float32,
    "tensor(double)": numpy.float64,
    "tensor(int64)": numpy.int64,
    "tensor(string)": object,
}

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
inputs = [(tensor.name, DTYPES[tensor.type]) for tensor in session.get_inputs()]

app = FastAPI()


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    return {"status": "ok"}


def score(customer: Customer) -> Answer:
    feed = {name: numpy.array([[getattr(customer, name)]], dtype=dtype) for name, dtype in inputs}
    (probabilities,) = session.run(["probabilities"], feed)
    return answer(float(probabilities[0, 1]))


if os.environ["PEER_STYLE"] == "async":

    @app.post("/v1/predict", dependencies=[Depends(check_key)])
    async def predict(customer: Customer) -> Answer:
        return score(customer)

else:

    @app.post("/v1/predict", dependencies=[Depends(check_key)])
    def predict(customer: Customer) -> Answer:
        return score(customer)
