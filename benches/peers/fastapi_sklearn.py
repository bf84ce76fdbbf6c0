"""FastAPI in front of a scikit-learn pipeline, the way the usual tutorial does it.

Run as a program it fits the pipeline: fastapi_sklearn.py DATA.csv MODEL.joblib
"""

import os
import sys

import joblib
import pandas

NUMBERS = ["tenure_days", "monthly_spend", "support_tickets_30d", "last_login_hours"]
CATEGORIES = ["plan_tier", "country"]


def fit(data: str, model: str) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pandas.read_csv(data, keep_default_na=False, dtype=dict.fromkeys(CATEGORIES, "object"))
    pipeline = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", StandardScaler(), NUMBERS),
                ("categories", OneHotEncoder(handle_unknown="ignore"), CATEGORIES),
            ]
        ),
        LogisticRegression(max_iter=1000),
    )
    pipeline.fit(frame[NUMBERS + CATEGORIES], frame["churned"])
    joblib.dump(pipeline, model)


if __name__ == "__main__":
    fit(*sys.argv[1:])
else:
    from fastapi import Depends, FastAPI

    from contract import Answer, Customer, answer, check_key

    pipeline = joblib.load(os.environ["PEER_MODEL"])

    app = FastAPI()

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/predict", dependencies=[Depends(check_key)])
    def predict(customer: Customer) -> Answer:
        frame = pandas.DataFrame([customer.model_dump()])
        return answer(float(pipeline.predict_proba(frame)[0, 1]))
