// Which versions of a model answer whom, and how those that are tried compare with the live one.

import { el, facts, renew, table, trouble } from "./dom.js";
import { ask } from "./gateway.js";
import { count, percent, plain, rowsOf, seconds, signed, since } from "./numbers.js";

const ROLES = { live: "live", canary: "canary", shadow: "shadow: nobody gets its answers", previous: "before: what a rollback returns to" };

// Of one model: where it is shown, and how it is asked about and drawn again, with the comparisons of all models, or why there are none.
export function rollout(model) {
  const slot = el("div", { class: "slot" });
  const refresh = async (comparisons) => {
    try {
      const { json } = await ask(`v1/models/${encodeURIComponent(model)}/rollout`);
      const told = Array.isArray(comparisons) ? comparisons.filter((compared) => compared.model === model).map(comparison) : failed(comparisons);
      renew(slot, shares(json), told);
    } catch (refusal) {
      renew(slot, failed(refusal));
    }
  };
  return { slot, refresh };
}

const failed = (refusal) => trouble(refusal.advice ?? String(refusal));

const shares = ({ model, versions }) => table(`Rollout of ${model}`, ["Version", "Role", "Share#", "Here"], versions.map((version) => [
  version.model_version,
  ROLES[version.role],
  version.role === "live" || version.role === "canary" ? percent(version.percent / 100) : "",
  version.state === version.role ? "loaded" : version.refusal?.reason ?? version.state,
]), "");

const number = (value, write = plain) => (Number.isFinite(value) ? write(value) : undefined);

function comparison(found) {
  const { flips, run_seconds_per_row: times } = found;
  const refused = Object.entries(found.refused).map(([code, rows]) => `${code.replaceAll("_", " ")}: ${rowsOf(rows)}`);
  const reasons = found.features.slice(0, 3).map((feature) => `${feature.name} (${percent(feature.share)})`);
  return el("section", { "aria-label": `${found.version} compared with ${found.live}` },
    el("h4", {}, `${found.version} compared with ${found.live}`),
    facts([
      ["Scored by both", rowsOf(found.rows)],
      ["Since", found.since && since(Date.parse(found.since))],
      ["Decided otherwise", flips && `${rowsOf(flips.rows)}${Number.isFinite(flips.share) ? `, ${percent(flips.share)}` : ""}`],
      ["Scores are apart by", number(found.mean_difference, signed) && `${number(found.mean_difference, signed)} on average, ${plain(found.largest_difference)} at most`],
      ["Stability index", number(found.psi)],
      ["Correlation", number(found.correlation)],
      ["Differences lie in", reasons.join(", ")],
      ["Refused", refused.join(", ")],
      ["Could not be run", found.failed > 0 && count(found.failed)],
      ["A row takes", times.version && times.live && `${seconds(times.version.p50)}, of ${found.live} ${seconds(times.live.p50)}`],
    ]));
}
