// Numbers as people read them.

const digits = (value, count) => value.toLocaleString("en", { maximumSignificantDigits: count });

export const none = "–";

// How many: whole, with a space between thousands.
export const count = (value) => Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");

export const rowsOf = (value) => `${count(value)} ${value === 1 ? "row" : "rows"}`;

// How many a second.
export const rate = (value) => (value === undefined ? none : value >= 100 ? count(value) : digits(value, 3));

export const seconds = (value) => {
  if (value === undefined) return none;
  if (value === 0) return "0";
  if (value < 1e-3) return `${digits(value * 1e6, 3)} µs`;
  if (value < 1) return `${digits(value * 1e3, 3)} ms`;
  return `${digits(value, 3)} s`;
};

// A part of a whole.
export const share = (part, whole) => {
  if (!whole) return none;
  const percent = (100 * part) / whole;
  if (percent > 0 && percent < 0.01) return "< 0.01 %";
  return `${percent.toFixed(percent === 0 || percent >= 10 ? 0 : percent >= 1 ? 1 : 2)} %`;
};

// The same of a probability; what is neither certain nor impossible is not called so.
export const percent = (value) => {
  if (value > 0 && value < 5e-5) return "< 0.01 %";
  if (value < 1 && value > 0.99995) return "> 99.99 %";
  return `${(100 * value).toFixed(2)} %`;
};

export const bytes = (value) => {
  if (value === undefined || value === null) return none;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${digits(value / 2 ** (10 * power), 3)} ${units[power]}`;
};

// A number of a model, with as many digits as are worth reading.
export const plain = (value, most = 4) => {
  if (!Number.isFinite(value)) return none;
  const size = Math.abs(value);
  const isTiny = size > 0 && size < 1e-4;
  const text = isTiny ? value.toExponential(1) : value.toLocaleString("en", { maximumSignificantDigits: most, useGrouping: false });
  return text.replaceAll("-", "−");
};

// The same with its sign.
export const signed = (value) => (value > 0 ? "+" : "") + plain(value, 3);

// How long something takes, roughly.
export const lasting = (seconds) => {
  const [amount, unit] = seconds < 90 ? [seconds, "s"] : seconds < 5400 ? [seconds / 60, "min"] : seconds < 129600 ? [seconds / 3600, "h"] : [seconds / 86400, "days"];
  return `${Math.round(amount)} ${unit}`;
};

// A time, and how long ago that was.
export const since = (milliseconds, now = Date.now()) => {
  if (!Number.isFinite(milliseconds)) return undefined;
  return `${new Date(milliseconds).toISOString().replace("T", " ").slice(0, 19)} UTC (${lasting(Math.max(0, (now - milliseconds) / 1000))} ago)`;
};

// The value below which this share of what a histogram counted lies, as Prometheus has it.
export function quantile(share, counts, bounds) {
  const all = counts.reduce((sum, one) => sum + one, 0);
  if (all === 0) return undefined;
  let below = 0;
  for (let at = 0; at < bounds.length; at++) {
    if (below + counts[at] >= share * all) {
      const from = at === 0 ? 0 : bounds[at - 1];
      return from + (bounds[at] - from) * (share * all - below) / counts[at];
    }
    below += counts[at];
  }
  return bounds.at(-1);
}
