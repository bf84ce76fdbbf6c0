// A client whose types are generated from the API document: openapi.ts beside it.
// Arguments: the gateway's URL and an API key. Prints the probability of the reference customer, and why another is refused.
import createClient from "openapi-fetch";
import type { paths } from "./openapi.ts";

declare const process: { argv: string[] };

const [baseUrl, key] = process.argv.slice(2);
const client = createClient<paths, "application/json" | "application/problem+json">({ baseUrl, headers: { "x-api-key": key } });
const customer = {
  tenure_days: 214,
  monthly_spend: 49.0,
  support_tickets_30d: 1,
  plan_tier: "pro",
  country: "US",
  last_login_hours: 5,
};

const scored = await client.POST("/v1/predict", { body: customer, params: { query: { explain: "full" } } });
if (scored.error) throw new Error(scored.error.detail);
const probability: number = scored.data.churn_probability;
const prediction: "retain" | "churn" = scored.data.prediction;

const refused = await client.POST("/v1/models/churn/predict", { body: { ...customer, tenure_days: -1 } });
if (!refused.error) throw new Error("a negative tenure was scored");
const code: string = refused.error.code;

const batch = await client.POST("/v1/predict/batch", { body: { rows: [customer, customer] } });
if (batch.error) throw new Error(batch.error.detail);
console.log(JSON.stringify({ probability, prediction, code, rows: batch.data.predictions.length }));

// What the document does not allow, the types do not.
async function never() {
  // @ts-expect-error A renamed field.
  await client.POST("/v1/predict", { body: { ...customer, tenure_days: undefined, tenure: 214 } });
  // @ts-expect-error No such parameter.
  await client.POST("/v1/predict", { body: customer, params: { query: { explain: "yes" } } });
}
void never;
