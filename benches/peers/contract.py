"""What both peers share: the reference contract as pydantic models, and the check of the API key."""

import hashlib
import hmac
import os
import uuid

from fastapi import Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field

KEY_SHA256 = os.environ["PEER_KEY_SHA256"]


class Customer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenure_days: float = Field(ge=0)
    monthly_spend: float = Field(ge=0)
    support_tickets_30d: float = Field(ge=0)
    plan_tier: str
    country: str
    last_login_hours: float = Field(ge=0)


class Explanations(BaseModel):
    top_features: list[str] = []


class Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    churn_probability: float
    prediction: str
    explanations: Explanations
    prediction_id: str


async def check_key(x_api_key: str = Header()) -> None:
    found = hashlib.sha256(x_api_key.encode()).hexdigest()
    if not hmac.compare_digest(found, KEY_SHA256):
        raise HTTPException(status_code=401, detail="unknown API key")


def answer(probability: float) -> Answer:
    return Answer(
        model_version="2026-05-17_01",
        churn_probability=probability,
        prediction="churn" if probability >= 0.5 else "retain",
        explanations=Explanations(),
        prediction_id=uuid.uuid4().hex,
    )
