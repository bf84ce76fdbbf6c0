// A form for a row, made from what the API document says of it, with the words of the model's own schema. What is typed is sent as it is:
// whether it is right is for the gateway to say.

import { el } from "./dom.js";

const isNumber = (text) => /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text);

// What a value has to be, in words.
function expected(property, kinds, passes, mayBeMissing) {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = property;
  const own = property["x-scoregate"] ?? {};
  const lower = minimum ?? exclusiveMinimum;
  const upper = maximum ?? exclusiveMaximum;
  const range = [
    lower !== undefined && `${minimum === undefined ? "more than" : "from"} ${lower}`,
    upper !== undefined && `${maximum === undefined ? "below" : "up to"} ${upper}`,
  ].filter(Boolean).join(" ");
  return [
    kinds.includes("integer") ? "whole number" : kinds.includes("number") && "number",
    range,
    own.unit,
    passes && "other values pass, and are counted as unseen",
    own.role === "entity" && !property.description && "says who is scored",
    mayBeMissing && "may be left empty",
  ].filter(Boolean).join(", ");
}

// `described` is the API document's schema of the field, `property` the model's own.
export function field(name, described, property, mayBeMissing, example, at) {
  const id = `field-${at}`;
  // Categories that pass when unknown are any of the known ones, or any text.
  const [listed, free] = described.anyOf ?? [described];
  const other = free ?? property["x-scoregate"]?.unknown === "pass";
  const kinds = [listed.type].flat();
  const isBoolean = kinds.includes("boolean");
  const isText = kinds.includes("string");
  const told = { id, name, autocomplete: "off", "aria-describedby": `${id}-hint ${id}-fault`, "aria-required": mayBeMissing ? undefined : "true" };
  const values = isBoolean ? ["true", "false"] : listed.enum?.filter((value) => value !== null);
  let input, known;
  if (values && !other) {
    input = el("select", told, el("option", { value: "" }, mayBeMissing ? "missing" : "choose …"), values.map((value) => el("option", { value }, value)));
  } else {
    known = values && el("datalist", { id: `${id}-known` }, values.map((value) => el("option", { value })));
    input = el("input", { ...told, type: "text", spellcheck: "false", inputmode: isText ? "text" : "decimal", list: known && `${id}-known` });
  }
  input.value = example === undefined || example === null ? "" : String(example);
  const fault = el("p", { id: `${id}-fault`, class: "fault" });
  const wanted = expected(property, kinds, values && other, mayBeMissing);
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
