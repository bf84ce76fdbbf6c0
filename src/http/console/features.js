// The view of what rows look like: what is unusual about each feature, and how scores are spread.

import { el, table } from "./dom.js";
import { histogram, span } from "./charts.js";
import { count, none, share } from "./numbers.js";

const FINDINGS = [
  ["missing", "Missing", "no value"],
  ["unseen", "Unseen", "a category that neither the schema nor training knows"],
  ["rare", "Rare", "a category of less than a hundredth of the rows of training"],
  ["out_of_range", "Out of range", "a number beyond all of training"],
];

export function features(root) {
  const parts = el("div", { class: "cards" });
  root.append(el("div", { class: "title" }, el("h2", {}, "Features"),
    el("p", { class: "soft" }, "Of the rows that each live version has scored since it was loaded.")),
    parts,
    el("dl", { class: "legend" }, FINDINGS.map(([, name, means]) => el("div", {}, el("dt", {}, name), el("dd", {}, means)))));
  return {
    update(history) {
      const live = history.now("scoregate_model_info");
      parts.replaceChildren(...(live.length ? live.map((version) => one(history, version)) : [
        el("p", { class: "notice" }, "No model answers at the moment, or none that this credential may see."),
      ]));
    },
  };
}

function one(history, { model, version }) {
  const isOf = (series) => series.model === model && series.version === version;
  const scored = history.total("scoregate_rows_total", (series) => isOf(series) && series.outcome === "scored");
  const found = Map.groupBy(history.now("scoregate_feature_findings_total", isOf), (series) => series.feature);
  const rows = [...found].map(([feature, all]) => [
    el("code", {}, feature),
    ...FINDINGS.map(([finding]) => {
      const value = all.find((series) => series.finding === finding)?.value ?? 0;
      if (value === 0) return el("span", { class: "soft" }, scored > 0 ? "0" : none);
      const part = Math.min(value / Math.max(scored, 1), 1);
      return el("div", { class: "part", title: `${count(value)} of ${count(scored)} rows` }, share(value, scored), span(0, part, part > 0.1 ? "high" : "low"));
    }),
  ]);
  const scores = history.now("scoregate_score", isOf)[0];
  const bounds = history.bounds("scoregate_score");
  const label = (at) => `${bounds[at - 1] ?? 0} to ${bounds[at]}: ${count(scores.counts[at])} rows`;
  const all = scores?.counts.reduce((sum, one) => sum + one, 0) ?? 0;
  return el("section", { class: "card" },
    el("h3", {}, model, el("span", { class: "soft" }, ` ${version}`)),
    el("p", {}, el("b", {}, count(scored)), " rows scored"),
    table(`Unusual values of ${model}`, ["Feature", ...FINDINGS.map(([, name]) => `${name}#`)], rows, "This version has no features."),
    scores && el("h4", {}, "Probabilities"),
    scores && (all === 0 ? el("p", { class: "soft" }, "No row has been scored yet.") : el("figure", {},
      histogram(scores.counts, bounds, label),
      el("div", { class: "times", "aria-hidden": "true" }, el("span", {}, "0"), el("span", {}, "0.5"), el("span", {}, "1")),
      el("figcaption", { class: "unseen" }, scores.counts.slice(0, bounds.length).map((_, at) => label(at)).join("; ")))));
}
