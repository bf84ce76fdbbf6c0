// The view of what rows look like: what is unusual about each feature, and how scores are spread.

import { el, renew, table } from "./dom.js";
import { histogram, span } from "./charts.js";
import { count, none, plain, rowsOf, share } from "./numbers.js";

const FINDINGS = [
  ["missing", "Missing", "no value"],
  ["unseen", "Unseen", "a category that neither the schema nor training knows"],
  ["rare", "Rare", "a category of less than a hundredth of the rows of training"],
  ["out_of_range", "Out of range", "a number beyond all of training"],
];

export function features(root) {
  const parts = el("div", { class: "cards" });
  root.append(el("div", { class: "title" }, el("h2", {}, "Features"),
    el("p", { class: "soft" }, "Of the rows that each version has scored since it was loaded.")),
    parts,
    el("dl", { class: "legend" }, FINDINGS.map(([, name, means]) => el("div", {}, el("dt", {}, name), el("dd", {}, means)))));
  return {
    update(history) {
      const live = history.now("scoregate_model_info");
      renew(parts, live.length ? live.map((version) => one(history, version, live.filter(({ model }) => model === version.model).length > 1)) : [
        el("p", { class: "notice" }, "No model answers at the moment, or none that this credential may see."),
      ]);
    },
  };
}

function one(history, { model, version }, isOfSeveral) {
  const isOf = (series) => series.model === model && series.version === version;
  const scored = history.total("scoregate_rows_total", (series) => isOf(series) && series.outcome === "scored");
  const found = Map.groupBy(history.now("scoregate_feature_findings_total", isOf), (series) => series.feature);
  const rows = [...found].map(([feature, all]) => [
    el("code", {}, feature),
    ...FINDINGS.map(([finding]) => {
      const value = all.find((series) => series.finding === finding)?.value ?? 0;
      if (value === 0) return el("span", { class: "soft" }, scored > 0 ? "0" : none);
      const part = value / Math.max(scored, 1);
      return el("div", { class: "part", title: `${count(value)} of ${rowsOf(scored)}` }, share(value, scored), span(0, part, part > 0.1 ? "high" : "low"));
    }),
  ]);
  // Probabilities between the same bounds for all; values between their model's own, with some beyond.
  const shares = history.now("scoregate_score", isOf)[0];
  const scores = shares ?? history.now("scoregate_value", isOf)[0];
  const bounds = scores?.bounds ?? history.bounds(shares ? "scoregate_score" : "scoregate_value");
  const drawn = shares ? shares.counts.slice(0, bounds.length) : scores?.counts;
  const range = (at) => (at === 0 && !shares ? `up to ${plain(bounds[0])}` : at === bounds.length ? `more than ${plain(bounds.at(-1))}` : `${bounds[at - 1] ?? 0} to ${bounds[at]}`);
  const label = (at) => `${range(at)}: ${rowsOf(drawn[at])}`;
  const all = scores?.counts.reduce((sum, one) => sum + one, 0) ?? 0;
  const ends = shares ? ["0", "0.5", "1"] : [range(0), range(bounds.length)];
  return el("section", { class: "card" },
    el("h3", {}, model, el("span", { class: "soft" }, ` ${version}`)),
    el("p", {}, el("b", {}, rowsOf(scored)), " scored"),
    table(`Unusual values of ${model}${isOfSeveral ? ` ${version}` : ""}`, ["Feature", ...FINDINGS.map(([, name]) => `${name}#`)], rows, "This version has no features."),
    scores && el("h4", {}, shares ? "Probabilities" : "Values"),
    scores && (all === 0 ? el("p", { class: "soft" }, "No row has been scored yet.") : el("figure", {},
      histogram(drawn, label),
      el("div", { class: "times", "aria-hidden": "true" }, ends.map((end) => el("span", {}, end))),
      el("figcaption", { class: "unseen" }, drawn.map((_, at) => label(at)).join("; ")))));
}
