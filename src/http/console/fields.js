// A form for a row, made from a model's feature schema. What is typed is sent as it is: whether it is right is for the gateway to say.

import { el } from "./dom.js";

const isNumber = (text) => /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text);

// What a value has to be, in words.
function expected(property, mayBeMissing) {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = property;
  const own = property["x-scoregate"] ?? {};
  const lower = minimum ?? exclusiveMinimum;
  const upper = maximum ?? exclusiveMaximum;
  const range = [
    lower !== undefined && `${minimum === undefined ? "more than" : "from"} ${lower}`,
    upper !== undefined && `${maximum === undefined ? "below" : "up to"} ${upper}`,
  ].filter(Boolean).join(" ");
  return [
    kinds(property).includes("integer") ? "whole number" : kinds(property).includes("number") && "number",
    range,
    own.unit,
    property.enum && own.unknown === "pass" && "other values pass, and are counted as unseen",
    own.role === "entity" && !property.description && "says who is scored",
    mayBeMissing && "may be left empty",
  ].filter(Boolean).join(", ");
}

const kinds = (property) => [property.type ?? []].flat();

export function field(name, property, isRequired, example, at) {
  const id = `field-${at}`;
  const own = property["x-scoregate"] ?? {};
  const isBoolean = kinds(property).includes("boolean");
  const isText = kinds(property).includes("string");
  const mayBeMissing = own.role === "entity" ? !isRequired : (own.missing ?? "reject") !== "reject";
  const told = { id, name, autocomplete: "off", "aria-describedby": `${id}-hint ${id}-fault`, "aria-required": mayBeMissing ? undefined : "true" };
  const values = isBoolean ? ["true", "false"] : isText ? property.enum : undefined;
  let input, known;
  if (values && own.unknown !== "pass") {
    input = el("select", told, el("option", { value: "" }, mayBeMissing ? "missing" : "choose …"), values.map((value) => el("option", { value }, value)));
  } else {
    known = values && el("datalist", { id: `${id}-known` }, values.map((value) => el("option", { value })));
    input = el("input", { ...told, type: "text", spellcheck: "false", inputmode: isText ? "text" : "decimal", list: known && `${id}-known` });
  }
  input.value = example === undefined || example === null ? "" : String(example);
  const fault = el("p", { id: `${id}-fault`, class: "fault" });
  const wanted = expected(property, mayBeMissing);
  const hint = property.description && wanted ? `${property.description} (${wanted})` : property.description ?? wanted;
  const element = el("div", { class: "field" },
    el("label", { for: id }, name), input, known, el("p", { id: `${id}-hint`, class: "soft" }, hint), fault);
  return {
    name, input, element,
    // The value as JSON; nothing if it is left out.
    json() {
      const text = isText ? input.value : input.value.trim();
      if (text === "") return undefined;
      if (isBoolean) return text;
      return !isText && isNumber(text) ? text : JSON.stringify(text);
    },
    fail(detail) {
      fault.textContent = detail;
      input.toggleAttribute("aria-invalid", false);
      if (detail) input.setAttribute("aria-invalid", "true");
    },
  };
}

// The feature that a fault points at (`#/name`).
export const pointed = (pointer) => {
  try {
    return decodeURIComponent(pointer).replace(/^#?\//, "").replaceAll("~1", "/").replaceAll("~0", "~");
  } catch {
    return pointer;
  }
};
