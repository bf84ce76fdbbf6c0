// Which versions of a model answer whom, what the guard makes of canaries, and how those that are tried compare with the live one.

import { el, facts, renew, table, trouble } from "./dom.js";
import { ask } from "./gateway.js";
import { count, lasting, percent, plain, rowsOf, seconds, signed, since } from "./numbers.js";

const ROLES = { live: "live", canary: "canary", shadow: "shadow: nobody gets its answers", previous: "before: what a rollback returns to" };
const DEEDS = { drop: "taken back", step: "given more", promote: "promoted", failed: "could not be done" };

// Of one model: where it is shown, and how it is asked about and drawn again, with what is monitored of all models, or why that is not told.
export function rollout(model) {
  const slot = el("div", { class: "slot" });
  const refresh = async (monitored) => {
    try {
      const { json } = await ask(`v1/models/${encodeURIComponent(model)}/rollout`);
      const isOwn = (one) => one.model === model;
      const told = monitored.comparisons
        ? [judged(model, monitored.verdicts.filter(isOwn)), decided(model, (monitored.past ?? []).filter(isOwn)), monitored.comparisons.filter(isOwn).map(comparison)]
        : failed(monitored);
      renew(slot, shares(json), changed(json), told);
    } catch (refusal) {
      renew(slot, failed(refusal));
    }
  };
  return { slot, refresh };
}

const failed = (refusal) => trouble(refusal.advice ?? String(refusal));

const guarded = (guard) => (guard ? `, guard: ${guard}` : "");

const shares = ({ model, canaries, versions }) => table(`Rollout of ${model}`, ["Version", "Role", "Share#", "Here"], versions.map((version) => [
  version.model_version,
  ROLES[version.role] + guarded(canaries.find((canary) => canary.version === version.model_version)?.guard),
  version.role === "live" || version.role === "canary" ? percent(version.percent / 100) : "",
  version.state === version.role ? "loaded" : version.refusal?.reason ?? version.state,
]), "");

// What was done last.
const changed = ({ changed_at: at, changed_by: by, changed_for: why, taken_back: back }) => [
  at && el("p", { class: "soft" }, `Changed ${since(Date.parse(at))}${by ? ` by ${by.kind} ${by.id}` : ""}${why ? `: ${why.version} was ${DEEDS[why.action] ?? why.action}, as it is ${words(why)}` : "."}`),
  back && el("p", { class: "soft" }, `${back} was taken back: it answers again once it is promoted.`),
];

// What breaks a rule, or may break one: what was found, and what may be.
const FOUND = {
  error_rate: (found, limit) => `it fails ${percent(found)} of its requests, at most ${percent(limit)} are allowed`,
  latency: (found, limit) => `the 99th percentile of requests for one row is ${seconds(found)}, at most ${seconds(limit)} are allowed`,
  psi: (found, limit) => `the stability index of its scores is ${plain(found)}, at most ${plain(limit)} is allowed`,
  flips: (found, limit) => `it decides otherwise on ${percent(found)} of the rows, at most ${percent(limit)} are allowed`,
  refused_rows: (found, limit) => `it refuses ${percent(found)} of its rows, at most ${percent(limit)} are allowed`,
};

// A verdict as a sentence.
function words(verdict) {
  const { verdict: word, rule, rows, rows_compared: compared, rows_needed: needed, held_s: held, hold_s: hold } = verdict;
  const known = Math.min(rows, compared ?? rows);
  const waits = [
    known < needed && `${count(known)} of ${rowsOf(needed)} ${compared === undefined ? "scored" : "compared"}`,
    held < hold && `it has its share for ${lasting(held)} of ${lasting(hold)}`,
  ].filter(Boolean);
  const why = {
    waiting: waits.join("; "),
    good: `it breaks no rule, after ${rowsOf(rows)}`,
  }[word] ?? FOUND[rule]?.(verdict.found, verdict.limit) ?? rule;
  return `${word}${why ? `: ${why}` : ""}.${verdict.comparable === false ? " Its scores cannot be compared with those of the live version." : ""}`;
}

// What the guard makes of canaries, and what it cannot do about it.
const judged = (model, verdicts) => verdicts.length > 0 && el("section", { "aria-label": `What the guard makes of ${model}` },
  verdicts.map((verdict) => [
    el("p", { class: verdict.verdict === "bad" && "fault" }, el("b", {}, verdict.version), ` at ${percent(verdict.percent / 100)} is ${words(verdict)}`),
    verdict.error && el("p", { class: "fault" }, `What follows could not be done yet: ${verdict.error}.`),
  ]));

// What it did before.
const decided = (model, past) => past.length > 0 && table(`What the guard did with ${model}`, ["Version", "What", "Why", "When"], past.map((one) => [
  one.version, DEEDS[one.action] ?? one.action.replaceAll(/[._]/g, " "), words(one.verdict), since(Date.parse(one.at)),
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
