// Draws an answer: the decision, and what led to it.

import { el, facts } from "./dom.js";
import { span } from "./charts.js";
import { none, percent, plain, seconds, signed } from "./numbers.js";

// So many features are drawn one by one.
const SHOWN = 12;

const SPACES = { log_odds: "log-odds", probability: "probability", target: "units of the target", margin: "units of its margin" };

export function draw({ json, text, headers, took }, version, row) {
  const { explanations = {}, prediction } = json;
  const probability = json[`${version.model}_probability`];
  return [
    el("p", { class: "decision" }, el("span", { class: "soft" }, prediction === undefined ? "Value " : "Decision "),
      el("b", {}, prediction ?? plain(json.value))),
    probability !== undefined && meter(version, probability),
    json.probabilities && classes(json.probabilities),
    facts([
      ["Version", json.model_version],
      ["Seen from here", seconds(took)],
      ["Cache", headers.get("cache-status") ?? "not asked"],
      ["Prediction", el("code", {}, json.prediction_id ?? none)],
    ]),
    explanations.values && waterfall(explanations, row),
    !explanations.values && explanations.skipped && el("p", { class: "notice" }, `There is no explanation: ${explanations.skipped}.`),
    el("details", {}, el("summary", {}, "The answer as it came"), el("pre", { tabindex: 0 }, text)),
  ].filter(Boolean);
}

function meter(version, probability) {
  const label = `The probability of ${version.labels?.at(-1) ?? "the positive class"} is ${plain(probability)}; the threshold is ${plain(version.threshold)}`;
  return el("figure", { class: "meter", role: "img", "aria-label": label },
    el("p", {}, el("b", {}, percent(probability)), ` probability of ${version.labels?.at(-1) ?? "the positive class"}`),
    span(0, probability, probability >= version.threshold ? "up" : "down", [version.threshold]),
    el("p", { class: "soft" }, `${version.labels?.at(-1) ?? "positive"} from ${plain(version.threshold)} on`));
}

const classes = (probabilities) =>
  el("table", { class: "waterfall" },
    el("thead", {}, el("tr", {}, ["Class", "Probability", ""].map((name) => el("th", { scope: "col" }, name || el("span", { class: "unseen" }, "As a bar"))))),
    el("tbody", {}, Object.entries(probabilities).toSorted(([, one], [, other]) => other - one).map(([name, value]) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, percent(value)), el("td", { class: "drawn" }, span(0, value, "down"))))));

// From the base value, feature by feature, to the output.
function waterfall({ values, base_value: base, space, method, class: label, additivity_error: error, stepped_down_from: from }, row) {
  const all = Object.entries(values).toSorted(([, one], [, other]) => Math.abs(other) - Math.abs(one));
  const steps = all.slice(0, all.length > SHOWN ? SHOWN - 1 : SHOWN);
  const rest = all.slice(steps.length);
  if (rest.length) steps.push([`${rest.length} others`, rest.reduce((sum, [, value]) => sum + value, 0)]);
  let reached = base;
  const drawn = steps.map(([name, value]) => ({ name, value, from: reached, to: (reached += value) }));
  const ends = [base, ...drawn.map(({ to }) => to)];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const room = (high - low || 1) * 0.04;
  const place = (value) => (value - low + room) / (high - low + 2 * room);
  const end = (name, value) => el("tr", { class: "end" }, el("th", { scope: "row" }, name), el("td", { class: "number" }, plain(value)),
    el("td", { class: "drawn" }, span(place(value) - 0.002, place(value) + 0.002, "mark", [place(base)])));
  const sent = (name) => Object.hasOwn(values, name) && el("span", { class: "soft" }, row[name] === undefined ? " missing" : ` = ${row[name]}`);
  return el("section", { class: "explanation" },
    el("h4", {}, label === undefined ? "Why" : `Why ${label}`),
    el("p", { class: "soft" }, `How far each feature moves the output from the mean of the background rows, in ${SPACES[space] ?? space}.`),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Explanation" }, el("table", { class: "waterfall" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Feature"),
        el("th", { scope: "col", class: "number" }, "Moves by"), el("th", { scope: "col" }, el("span", { class: "unseen" }, "As a bar")))),
      el("tbody", {}, end("Base value", base),
        drawn.map(({ name, value, from, to }) => el("tr", {}, el("th", { scope: "row" }, name, sent(name)),
          el("td", { class: `number ${value > 0 ? "is-up" : "is-down"}` }, signed(value)),
          el("td", { class: "drawn" }, span(place(from), place(to), value > 0 ? "up" : "down", [place(base)])))),
        end("Output", reached)))),
    el("p", { class: "soft" }, `Method: ${method.replaceAll("_", " ")}${from ? `, in place of ${from.replaceAll("_", " ")}` : ""}; the shares miss the output by ${plain(error)}.`));
}
