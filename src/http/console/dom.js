// Makes elements. Text is set as text, and never read as markup.

const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== undefined && value !== null) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
};

// An element; functions among its attributes are listeners.
export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

// The same of a drawing.
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// Makes of what an element holds what is drawn anew, and keeps what is the same: focus, selection and scrolling stay where they are.
// Listeners stay those of before.
export function renew(element, ...children) {
  const fresh = children.flat(Infinity).filter(Boolean);
  fresh.forEach((child, at) => {
    const old = element.childNodes[at];
    if (old?.nodeName !== child.nodeName) {
      old ? old.replaceWith(child) : element.append(child);
    } else if (child.nodeType === Node.TEXT_NODE) {
      if (old.data !== child.data) old.data = child.data;
    } else {
      for (const { name } of [...old.attributes]) if (!child.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of child.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      renew(old, ...child.childNodes);
    }
  });
  while (element.childNodes.length > fresh.length) element.lastChild.remove();
}

// A part of a view.
export const card = (title, ...children) => el("section", { class: "card" }, el("h3", {}, title), ...children);

// Facts, as pairs of a name and what it is; those without are left out.
export const facts = (pairs) =>
  el("dl", {}, pairs.filter(([, fact]) => fact !== undefined && fact !== null && fact !== false && fact !== "")
    .map(([name, fact]) => el("div", {}, el("dt", {}, name), el("dd", {}, fact))));

// A table that is scrolled by itself where it is wider than the page. Columns that end in # hold numbers.
export function table(caption, columns, rows, empty) {
  if (rows.length === 0) {
    return el("p", { class: "soft" }, empty);
  }
  const kinds = columns.map((column) => (column.endsWith("#") ? "number" : undefined));
  const head = columns.map((column, at) => el("th", { scope: "col", class: kinds[at] }, column.replace("#", "")));
  const body = rows.map((row) => el("tr", {}, row.map((cell, at) =>
    at === 0 ? el("th", { scope: "row" }, cell) : el("td", { class: kinds[at] }, cell))));
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

// What went wrong, and what to do about it.
export const trouble = (message) => el("p", { class: "notice", role: "alert" }, message);
