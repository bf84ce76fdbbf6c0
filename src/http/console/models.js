// The view of models: which versions there are, what became of them, who is answered by which, and what is known of each.

import { el, facts, renew, table, trouble } from "./dom.js";
import { ask } from "./gateway.js";
import { bytes, count, plain, seconds, since } from "./numbers.js";
import { diff } from "./diff.js";
import { rollout } from "./rollout.js";

// Of so few models, all are opened.
const FEW = 8;

// Versions that have something to do with a rollout, or may have: one that is tried or refused may be meant for it.
const ROLLED_OUT = ["canary", "shadow", "previous", "checking", "refused"];

export function models(root) {
  const list = el("div", { class: "cards" }, el("p", { class: "soft" }, "Asking …"));
  root.append(el("div", { class: "title" }, el("h2", {}, "Models")), list);
  let shown = "";
  let history;
  // What is told of the versions that are open, by how it is drawn again; and of the models of which there are several.
  let [opened, rollouts] = [[], []];
  // What compares the versions of each model, which stays while there are the same versions: somebody may be reading it.
  const compared = new Map();

  async function show() {
    const { json, text } = await ask("v1/models");
    // What is read or copied from does not move while nothing has changed.
    if (text !== shown) draw(json, text);
    if (rollouts.length === 0) return;
    // Where nobody tells how versions compare, all else is told.
    const monitored = await ask("v1/monitoring/comparisons").then(({ json }) => json, (refusal) => refusal);
    await Promise.all(rollouts.map((refresh) => refresh(monitored)));
  }

  function draw(json, text) {
    const open = new Map([...list.querySelectorAll("details")].map((details) => [details.dataset.key, details.open]));
    const [bodies, several] = [[], []];
    const drawn = json.models.map((model) => summary(model, () => history, open, json.models.length <= FEW, bodies, several, compared));
    [shown, opened, rollouts] = [text, bodies, several];
    list.replaceChildren(...(drawn.length ? drawn : [
      el("p", { class: "notice" }, "There are no models that this credential may see. Publish one with scoregate import or scoregate-trainer fit: it is taken up within two seconds."),
    ]));
  }

  return {
    // Models change seldom.
    every: 5,
    update(now) {
      history = now;
      for (const draw of opened) draw();
    },
    async refresh() {
      try {
        await show();
      } catch (refusal) {
        shown = "";
        list.replaceChildren(trouble(refusal.advice ?? String(refusal)));
      }
    },
  };
}

const badge = (state) => el("span", { class: `badge is-${state}` }, state);

const reason = (refusal) => refusal && el("p", { class: "fault" }, el("code", {}, refusal.code), ` ${refusal.reason}`);

function summary(model, history, open, isOpen, bodies, several, compared) {
  const isOne = model.versions.length < 2;
  const isRolledOut = !isOne && model.versions.some((version) => ROLLED_OUT.includes(version.state));
  const answers = isRolledOut ? rollout(model.model) : undefined;
  if (answers) several.push(answers.refresh);
  const versions = model.versions.toReversed().map((version) => {
    const key = `${model.model}@${version.model_version}`;
    const body = el("div", { class: "body" });
    let told;
    // Ages go on, and a gateway that started anew loaded its versions anew.
    const draw = () => told && details.open && renew(body, describe(told, history()));
    bodies.push(draw);
    const load = async () => {
      try {
        const path = `v1/models/${encodeURIComponent(model.model)}/versions/${encodeURIComponent(version.model_version)}`;
        told = (await ask(path)).json;
        draw();
      } catch (refusal) {
        told = undefined;
        renew(body, trouble(refusal.advice ?? String(refusal)));
      }
    };
    const details = el("details", { "data-key": key, toggle: () => details.open && load() },
      el("summary", {}, el("span", { class: "name" }, version.model_version), badge(version.state), version.task && el("span", { class: "soft" }, version.task)),
      body);
    details.open = open.get(key) ?? (isOpen && version.state === "live");
    // Why a version is not served is seen without opening it.
    return [details, reason(version.refusal)];
  });
  return el("section", { class: "card" },
    el("h3", {}, model.model, model.default && el("span", { class: "badge" }, "default")),
    el("p", { class: "soft" }, model.live ? `${model.live} answers.` : "No version answers."),
    reason(model.refusal), answers?.slot, versions,
    !isOne && comparing(model, compared));
}

// What compares the versions of a model, as it is where there are the same versions as before.
function comparing({ model, versions }, compared) {
  const names = JSON.stringify(versions.map((version) => version.model_version));
  const known = compared.get(model);
  if (known?.names === names) return known.element;
  const element = diff(model, versions.toReversed(), known?.element.open);
  compared.set(model, { names, element });
  return element;
}

// All that is known of a version.
function describe(version, history) {
  const isOf = (series) => series.model === version.model && series.version === version.model_version;
  const loaded = version.sessions ? history?.now("scoregate_model_loaded_timestamp_seconds", isOf)[0]?.value : undefined;
  const { golden, cost, explanations, cache, source, training = {} } = version;
  const providers = Object.entries(version.execution_providers ?? {}).map(([name, nodes]) => `${name.replace("ExecutionProvider", "")}: ${count(nodes)} nodes`);
  const offered = explanations && (explanations.methods.length
    ? `${explanations.methods.join(", ").replaceAll("_", " ")}${explanations.cost_us === undefined ? "" : `, ${seconds(explanations.cost_us / 1e6)} a row`}`
    : `none: ${explanations.reason ?? ""}`);
  const measured = Object.entries(training).filter(([, value]) => typeof value === "number");
  return [
    facts([
      ["Loaded here since", loaded && since(loaded * 1000)],
      ["Published", version.created_at && since(Date.parse(version.created_at))],
      ["Digest", version.digest && el("code", { class: "digest" }, version.digest)],
      ["Source", source && (typeof source === "string" ? source : Object.values(source).filter((part) => typeof part === "string").join(", "))],
      ["Golden rows", golden && `${count(golden.rows)}, at worst ${plain(golden.worst)} off; ${plain(version.tolerance)} is allowed`],
      ["Runs on", providers.join(", ")],
      ["Sessions", version.sessions],
      ["Memory", version.memory_bytes && bytes(version.memory_bytes)],
      ["Cost", cost && `${seconds(cost.run_us / 1e6)} for one row, ${seconds(cost.row_ns / 1e9)} for each of many`],
      ["Cache", cache?.mode],
      ["Explanations", offered],
      ["Labels", (version.labels ?? []).join(", ") + (version.threshold === undefined ? "" : `; ${version.labels?.at(-1)} from ${plain(version.threshold)} on`)],
      ["Takes", version.bindings],
      ["Answers", version.output],
      ["Changed in the graph", (version.changes ?? []).join("; ")],
    ]),
    measured.length > 0 && table(`Measured in training of ${version.model} ${version.model_version}`, ["Measured in training", "Value#"], measured.map(([name, value]) => [name.replaceAll("_", " "), plain(value)]), ""),
  ].filter(Boolean);
}
