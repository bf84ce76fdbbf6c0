// The view that scores a row: a form made from the model's schema, the answer, and how a shell asks the same.

import { el, renew, trouble } from "./dom.js";
import { ask, shellHeader } from "./gateway.js";
import { field, pointed } from "./fields.js";
import { draw } from "./answer.js";

// What versions are that are loaded.
const LOADED = ["live", "canary", "shadow", "previous"];

export function score(root) {
  const model = el("select", { id: "score-model", change: () => {
    pin.value = "";
    make();
  } });
  const pin = el("select", { id: "score-version", change: () => make() });
  const form = el("form", { class: "card", novalidate: true, submit: (event) => { event.preventDefault(); send(); }, "aria-label": "A row" });
  const answer = el("section", { class: "card", "aria-label": "Answer", "aria-live": "polite" });
  const problem = el("div", { class: "slot" });
  root.append(el("div", { class: "title" }, el("h2", {}, "Score a row"), el("label", { for: "score-model" }, "Model ", model), el("label", { for: "score-version" }, "Version ", pin)), problem,
    el("div", { class: "cards two" }, form, answer));
  // The version that the form is made for; those that may answer; and the one that is to, whoever is scored, where one is chosen.
  let [version, versions, fields, explain, pinned] = [undefined, [], [], undefined, ""];

  const fail = (refusal) => problem.replaceChildren(trouble(refusal.advice ?? String(refusal)));
  const path = () => `v1/models/${encodeURIComponent(version.model)}/predict${explain?.checked ? "?explain=full" : ""}`;
  const row = () => fields.map((one) => [one.name, one.json()]).filter(([, value]) => value !== undefined);
  const body = () => `{${row().map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;

  async function choose() {
    const { json } = await ask("v1/models");
    const live = json.models.filter((found) => found.live);
    problem.replaceChildren();
    const before = model.value;
    model.replaceChildren(...live.map((found) => el("option", { value: found.model }, found.model)));
    const names = live.map((found) => found.model);
    model.value = names.includes(before) ? before : (live.find((found) => found.default) ?? live[0])?.model ?? "";
    if (live.length === 0) {
      form.replaceChildren();
      throw Object.assign(new Error(), { advice: "No model answers that this credential may use. The view of models says why." });
    }
    const now = live.find((found) => found.model === model.value);
    if (version?.model === now.model) offer(now.versions);
    // A form that somebody is filling in stays as it is.
    if (version?.model !== now.model || pin.value !== pinned || version.model_version !== (pinned || now.live)) await make();
  }

  // Lets one of the versions that are loaded be chosen; one that is no more is chosen no more.
  function offer(found) {
    const loaded = found.filter((one) => LOADED.includes(one.state));
    const chosen = loaded.some((one) => one.model_version === pin.value) ? pin.value : "";
    const names = [["", "as for clients"], ...loaded.map((one) => [one.model_version, `${one.model_version} (${one.state})`])];
    renew(pin, names.map(([value, name]) => el("option", { value }, name)));
    pin.value = chosen;
  }

  async function make() {
    const [chosen, wanted] = [model.value, pin.value];
    try {
      const name = encodeURIComponent(chosen);
      const [described, document] = await Promise.all([ask(`v1/models/${name}`), ask(`v1/models/${name}/openapi.json`)]);
      // Another was chosen meanwhile.
      if (model.value !== chosen || pin.value !== wanted) return;
      versions = described.json.versions;
      offer(versions);
      pinned = pin.value;
      const live = versions.find((found) => found.state === "live");
      version = versions.find((found) => found.model_version === pinned) ?? live;
      // The document is of the live version's rows: where another one has a field of its own, it is what its schema says.
      const { properties, required = [], examples: [example] } = document.json.components.schemas[`${chosen}.Row`];
      const own = version.schema.properties;
      const isLives = (name) => JSON.stringify(own[name]) === JSON.stringify(live.schema.properties[name]);
      const asked = Object.entries(own).filter(([, property]) => property["x-scoregate"]?.role !== "ignore")
        .map(([name, property]) => (isLives(name) ? [name, properties[name], required] : [name, property, version.schema.required ?? []]));
      // What somebody typed stays where a new version takes it, too.
      const typed = new Map(form.dataset.model === chosen ? fields.map((one) => [one.name, one.input.value]) : []);
      fields = asked.map(([name, described, required], at) =>
        field(name, described, own[name], !required.includes(name), Object.hasOwn(example, name) ? example[name] : own[name].examples?.[0], at));
      for (const one of fields) if (typed.has(one.name)) one.input.value = typed.get(one.name);
      form.dataset.model = chosen;
      const canExplain = version.explanations?.methods.length > 0;
      explain = el("input", { type: "checkbox", id: "explain", checked: canExplain, disabled: !canExplain });
      form.replaceChildren(
        el("h3", {}, "A row for ", el("span", { class: "name" }, chosen), el("span", { class: "soft" }, ` ${version.model_version}`)),
        el("div", { class: "fields" }, fields.map((one) => one.element)),
        el("p", { class: "check" }, explain, el("label", { for: "explain" }, canExplain ? "Explain the score" : "This version has no explanations")),
        el("button", {}, "Score"));
      answer.replaceChildren(el("p", { class: "soft" }, typed.size ? `Version ${version.model_version} answers now; the form is made for it.` : "The answer will be here."));
      problem.replaceChildren();
    } catch (refusal) {
      // The form is of what it was of.
      if (version) [model.value, pin.value] = [version.model, pinned];
      fail(refusal);
    }
  }

  async function send() {
    for (const one of fields) one.fail("");
    const [sent, to, asked, named] = [body(), path(), version, pinned];
    try {
      const values = Object.fromEntries(row().map(([name, value]) => [name, JSON.parse(value)]));
      const answered = await ask(to, sent, named ? { "x-model-version": named } : {});
      if (version !== asked) return;
      problem.replaceChildren();
      // A canary may have answered.
      const answering = versions.find((found) => found.model_version === answered.json.model_version) ?? version;
      answer.replaceChildren(el("h3", {}, "Answer"), ...draw(answered, answering, values), shell(to, sent, named));
    } catch (refusal) {
      if (refusal.advice === undefined) throw refusal;
      answer.replaceChildren(el("h3", {}, "Refused"), el("p", { class: "notice" }, refusal.faults.length ? `${refusal.message}: see below and in the form.` : refusal.advice),
        el("ul", {}, refusal.faults.map((fault) => el("li", {}, el("code", {}, pointed(fault.pointer) || "row"), ` ${fault.detail}`))), shell(to, sent, named));
      const wrong = fields.filter((one) => {
        const own = refusal.faults.filter((fault) => pointed(fault.pointer) === one.name);
        one.fail(own.map((fault) => fault.detail).join("; "));
        return own.length > 0;
      });
      wrong[0]?.input.focus();
    }
  }

  return {
    every: 5,
    update() {},
    async refresh() {
      try {
        await choose();
      } catch (refusal) {
        fail(refusal);
      }
    },
  };
}

// How a shell asks the same.
function shell(path, body, pinned) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const command = `curl${shellHeader()} -H 'content-type: application/json'${pinned ? ` -H ${quoted(`x-model-version: ${pinned}`)}` : ""} \\\n  ${quoted(new URL(path, document.baseURI).href)} \\\n  -d ${quoted(body)}`;
  const code = el("pre", { tabindex: 0 }, command);
  const told = el("span", { class: "soft", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command);
      told.textContent = " Copied.";
    } catch {
      getSelection().selectAllChildren(code);
      told.textContent = " Selected: copy it with the keyboard.";
    }
  };
  return el("details", {}, el("summary", {}, "The same with curl"), code, el("p", {}, el("button", { type: "button", class: "plain", click: copy }, "Copy"), told));
}
