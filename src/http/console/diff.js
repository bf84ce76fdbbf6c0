// How two versions of a model differ.

import { el, renew, table, trouble } from "./dom.js";
import { ask } from "./gateway.js";
import { bytes, count, none, plain, signed } from "./numbers.js";

// What is opened to compare two of these versions, the newer of which comes first.
export function diff(model, versions, isOpen) {
  const names = versions.map((version) => version.model_version);
  const live = versions.find((version) => version.state === "live")?.model_version;
  const choice = (label, chosen) => {
    const select = el("select", {}, names.map((name) => el("option", { value: name, selected: name === chosen }, name)));
    return [select, el("label", {}, `${label} `, select)];
  };
  const from = live ?? names[1];
  const [[one, oneLabel], [other, otherLabel]] = [choice("From", from), choice("to", names.find((name) => name !== from))];
  const found = el("div", { class: "slot", "aria-live": "polite" });
  const form = el("form", { class: "compare", "aria-label": `Versions of ${model} to compare`, submit: async (event) => {
    event.preventDefault();
    renew(found, el("p", { class: "soft" }, "Asking …"));
    try {
      const query = new URLSearchParams({ from: one.value, to: other.value });
      renew(found, ...describe((await ask(`v1/models/${encodeURIComponent(model)}/diff?${query}`)).json));
    } catch (refusal) {
      renew(found, trouble(refusal.advice ?? String(refusal)));
    }
  } }, oneLabel, otherLabel, el("button", {}, "Compare"));
  return el("details", { "data-key": `diff ${model}`, open: isOpen },
    el("summary", {}, el("span", { class: "name" }, "Compare two versions")), el("div", { class: "body" }, form, found));
}

// A value of a schema, as it stands there.
const written = (value) => (value === undefined ? none : JSON.stringify(value));

function describe(found) {
  const { from, to } = found;
  const columns = (first, ...more) => [first, ...more.map((name) => `${name}#`)];
  const fact = (name, read) => [name, ...[from, to].map((side) => read(side) ?? none)];
  const own = [
    fact("Published", (side) => side.created_at),
    fact("Graph", (side) => side.bytes && bytes(side.bytes)),
    fact("Made by", (side) => side.producer),
    fact("Answers", (side) => side.output),
    fact("Labels", (side) => side.labels.join(", ")),
    fact("Threshold", (side) => side.threshold === undefined ? undefined : plain(side.threshold)),
    fact("Digest", (side) => side.digest),
  ].filter(([, one, other]) => one !== other);
  const changes = found.fields.flatMap((field) => field.members.map((member, at) => [
    at === 0 ? el("code", {}, field.name) : el("span", { class: "unseen" }, field.name),
    at > 0 ? "" : field.breaking ? `${field.change}, breaking` : field.change,
    member.name, written(member.from), written(member.to),
  ]));
  const better = (metric) => metric.difference === undefined || metric.difference === 0 || metric.more_is_better === undefined
    ? "" : (metric.difference > 0) === metric.more_is_better ? ", better" : ", worse";
  return [
    el("h4", {}, `${from.model_version} → ${to.model_version}`),
    found.breaking.length === 0
      ? el("p", {}, `Nothing breaks: every row that ${from.model_version} takes passes ${to.model_version}.`)
      : el("div", { class: "fault" }, el("p", {}, "This breaks what clients rely on:"), el("ul", {}, found.breaking.map((broken) => el("li", {}, broken.detail)))),
    table("What the versions are", ["Fact", from.model_version, to.model_version], own, "They are the same."),
    table("Fields that differ", ["Field", "Change", "What", from.model_version, to.model_version], changes, "They take the same fields."),
    table("Metrics of both", columns("Metric", from.model_version, to.model_version, "Difference"), found.metrics.map((metric) => [
      metric.name.replaceAll("_", " "), ...[metric.from, metric.to].map((value) => (value === undefined ? none : plain(value))),
      metric.difference === undefined ? none : signed(metric.difference) + better(metric),
    ]), "Neither has metrics."),
    found.golden_unknown
      ? el("p", { class: "soft" }, `Golden rows are not compared: ${found.golden_unknown}.`)
      : table("Answers to golden rows", columns("Rows of", "Compared", "Apart on average", "At most", "In row", "Other labels"), found.golden.map((golden) => [
        golden.rows_of, `${count(golden.compared)} of ${count(golden.rows)}`, ...[golden.mean_difference, golden.largest_difference].map((value) => (value === undefined ? none : plain(value))),
        golden.worst_row ?? none, golden.flips === undefined ? none : count(golden.flips),
      ]), "Neither has golden rows."),
  ];
}
