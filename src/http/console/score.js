// The view that scores a row: a form made from the model's schema, the answer, and how a shell asks the same.

import { el, trouble } from "./dom.js";
import { ask, shellHeader } from "./gateway.js";
import { field, pointed } from "./fields.js";
import { draw } from "./answer.js";

export function score(root) {
  const model = el("select", { id: "score-model", change: () => make() });
  const form = el("form", { class: "card", novalidate: true, submit: (event) => { event.preventDefault(); send(); }, "aria-label": "A row" });
  const answer = el("section", { class: "card", "aria-label": "Answer", "aria-live": "polite" });
  const problem = el("div", { class: "slot" });
  root.append(el("div", { class: "title" }, el("h2", {}, "Score a row"), el("label", { for: "score-model" }, "Model ", model)), problem,
    el("div", { class: "cards two" }, form, answer));
  let [version, fields, explain] = [undefined, [], undefined];

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
    // A form that somebody is filling in stays as it is.
    if (version?.model !== now.model || version.model_version !== now.live) await make();
  }

  async function make() {
    const chosen = model.value;
    try {
      const name = encodeURIComponent(chosen);
      const [described, document] = await Promise.all([ask(`v1/models/${name}`), ask(`v1/models/${name}/openapi.json`)]);
      // Another was chosen meanwhile.
      if (model.value !== chosen) return;
      version = described.json.versions.find((found) => found.state === "live");
      const { properties, required = [], examples: [example] } = document.json.components.schemas[`${chosen}.Row`];
      const own = version.schema.properties;
      const asked = Object.entries(properties).filter(([name]) => own[name]["x-scoregate"]?.role !== "ignore");
      // What somebody typed stays where a new version takes it, too.
      const typed = new Map(form.dataset.model === chosen ? fields.map((one) => [one.name, one.input.value]) : []);
      fields = asked.map(([name, described], at) =>
        field(name, described, own[name], !required.includes(name), Object.hasOwn(example, name) ? example[name] : undefined, at));
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
      if (version) model.value = version.model;
      fail(refusal);
    }
  }

  async function send() {
    for (const one of fields) one.fail("");
    const [sent, to, asked] = [body(), path(), version];
    try {
      const values = Object.fromEntries(row().map(([name, value]) => [name, JSON.parse(value)]));
      const answered = await ask(to, sent);
      if (version !== asked) return;
      problem.replaceChildren();
      answer.replaceChildren(el("h3", {}, "Answer"), ...draw(answered, version, values), shell(to, sent));
    } catch (refusal) {
      if (refusal.advice === undefined) throw refusal;
      answer.replaceChildren(el("h3", {}, "Refused"), el("p", { class: "notice" }, refusal.faults.length ? `${refusal.message}: see below and in the form.` : refusal.advice),
        el("ul", {}, refusal.faults.map((fault) => el("li", {}, el("code", {}, pointed(fault.pointer) || "row"), ` ${fault.detail}`))), shell(to, sent));
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
function shell(path, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const command = `curl${shellHeader()} -H 'content-type: application/json' \\\n  ${quoted(new URL(path, document.baseURI).href)} \\\n  -d ${quoted(body)}`;
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
