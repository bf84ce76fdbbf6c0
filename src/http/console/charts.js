// Drawings: lines over time, and bars. What they show is said in words as well.

import { el, svg } from "./dom.js";
import { none } from "./numbers.js";

const WIDTH = 600;
const HEIGHT = 150;

// The next of 1, 2 and 5 times a power of ten.
const ceiling = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
};

const stretched = (height, ...drawn) =>
  svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, drawn);

// Lines of `{ name, kind, points: [[seconds, value]] }` from `from` to `to`, in seconds.
export function lines(title, format, from, to, all) {
  const values = all.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value !== undefined);
  const top = Math.max(...values, 0) > 0 ? ceiling(Math.max(...values)) : 1;
  const x = (at) => ((WIDTH * (at - from)) / (to - from)).toFixed(1);
  const y = (value) => (HEIGHT - (HEIGHT * value) / top).toFixed(1);
  const drawn = all.map(({ kind, points }) => {
    let [path, isDrawing] = ["", false];
    for (const [at, value] of points) {
      if (value !== undefined) path += `${isDrawing ? "L" : "M"}${x(at)} ${y(value)}`;
      isDrawing = value !== undefined;
    }
    return svg("path", { d: path, class: `line ${kind}` });
  });
  const grid = [0, 0.5, 1].map((part) => svg("path", { d: `M0 ${HEIGHT * part}H${WIDTH}`, class: "grid" }));
  const last = ({ points }) => points.findLast(([, value]) => value !== undefined)?.[1];
  const told = (value) => (value === undefined ? none : format(value));
  const legend = all.map((line) => el("li", { class: line.kind }, `${line.name} `, el("b", {}, told(last(line)))));
  const scale = [top, top / 2, 0].map((value) => el("span", {}, format(value)));
  const minutes = Math.round((to - from) / 60);
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", {}, title), el("ul", { class: "legend" }, legend)),
    el("div", { class: "plot" }, el("div", { class: "scale", "aria-hidden": "true" }, scale), stretched(HEIGHT, grid, drawn)),
    el("div", { class: "times", "aria-hidden": "true" }, el("span", {}, `${minutes} min ago`), el("span", {}, "now")));
}

// What a histogram counted, as bars.
export function histogram(counts, label) {
  const most = Math.max(...counts, 1);
  const width = WIDTH / counts.length;
  const bars = counts.map((count, at) => {
    const height = (HEIGHT * count) / most;
    const title = svg("title", {}, label(at));
    return svg("rect", { x: (at * width + 1).toFixed(1), y: (HEIGHT - height).toFixed(1), width: (width - 2).toFixed(1), height: height.toFixed(1), class: "bar" }, title);
  });
  return el("div", { class: "bars" }, stretched(HEIGHT, svg("path", { d: `M0 ${HEIGHT}H${WIDTH}`, class: "grid" }), bars));
}

// A bar from one part of its cell to another; both from 0 to 1. Lines are drawn at `marks`.
export function span(from, to, kind, marks = []) {
  const [left, right] = [Math.min(from, to), Math.max(from, to)];
  const x = (part) => (WIDTH * part).toFixed(1);
  const bar = svg("rect", { x: x(left), y: 2, width: Math.max(2, WIDTH * (right - left)).toFixed(1), height: 16, class: kind });
  return el("div", { class: "span" }, stretched(20, bar, marks.map((mark) => svg("path", { d: `M${x(mark)} 0V20`, class: "tick" }))));
}
