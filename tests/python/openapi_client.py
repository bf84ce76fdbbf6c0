"""A client generated from the API document scores the reference customer.

Arguments: the document, a directory to generate the client in, the gateway's URL and an API key. Prints what came back as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

document, directory, url, key = sys.argv[1:]
directory = Path(directory)
settings = directory / "generator.yaml"
# Formatters, which the generator would run behind itself, are not needed.
settings.write_text("post_hooks: []\n")
generator = [sys.executable, "-m", "openapi_python_client", "generate", "--path", document, "--meta", "none", "--overwrite"]
subprocess.run(
    [*generator, "--output-path", str(directory / "scoregate_client"), "--config", str(settings)],
    check=True,
    stdout=sys.stderr,
)
sys.path.insert(0, str(directory))

from scoregate_client import AuthenticatedClient  # noqa: E402
from scoregate_client.api.models import list_models  # noqa: E402
from scoregate_client.api.scoring import predict, predict_batch  # noqa: E402
from scoregate_client.models import ChurnRow  # noqa: E402

client = AuthenticatedClient(base_url=url, token=key, prefix="", auth_header_name="x-api-key")
customer = ChurnRow(
    tenure_days=214, monthly_spend=49.0, support_tickets_30d=1, plan_tier="pro", country="US", last_login_hours=5
)
scored = predict.sync(client=client, body=customer)
refused = predict.sync_detailed(client=client, body=ChurnRow.from_dict({**customer.to_dict(), "tenure_days": -1}))
batch = predict_batch.sync(client=client, body=[customer, customer])
models = list_models.sync(client=client)
print(
    json.dumps(
        {
            "probability": scored.churn_probability,
            "prediction": scored.prediction.value,
            "refused": [refused.status_code.value, refused.parsed.code.value, refused.parsed.errors[0].pointer],
            "rows": [row.churn_probability for row in batch.predictions],
            "models": [model.model for model in models.models],
        }
    )
)
