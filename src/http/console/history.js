// What the gateway counted while this page watched: totals → how much they grew, step by step.

// How far back there is something to see, and what is called lately, in seconds.
export const SPAN = 300;
export const LATELY = 60;

// What grew in a longer time is of no moment: nobody looked meanwhile.
const LONGEST_STEP = LATELY / 2;

const isCounter = (name) => name.endsWith("_total");

export class History {
  steps = [];
  latest = undefined;
  #before = new Map();

  // Takes up what was counted by now.
  add(live) {
    const at = Date.parse(live.at) / 1000;
    const start = live.metrics.process_start_time_seconds?.[0]?.value;
    // After a restart everything is counted from nothing.
    const before = this.start === start ? this.#before : new Map();
    const [known, grown] = [new Map(), {}];
    for (const [name, all] of Object.entries(live.metrics)) {
      for (const series of all) {
        if (series.counts === undefined && !isCounter(name)) continue;
        const { value, counts, sum, bounds, ...labels } = series;
        const key = name + JSON.stringify(labels);
        known.set(key, series);
        const more = growth(before.get(key), series);
        if (more) (grown[name] ??= []).push({ ...labels, ...more });
      }
    }
    if (this.latest && at > this.at) {
      const seconds = at - this.at;
      this.steps.push(seconds <= LONGEST_STEP ? { at, seconds, grown } : { at, seconds: 0, grown: {} });
      this.steps = this.steps.filter((step) => step.at > at - SPAN);
    }
    [this.latest, this.at, this.start, this.#before] = [live, at, start, known];
  }

  // The series of a metric as they are now.
  now(name, chosen = () => true) {
    return (this.latest?.metrics[name] ?? []).filter(chosen);
  }

  // The sum of a metric as it is now.
  total(name, chosen) {
    return this.now(name, chosen).reduce((sum, series) => sum + (series.value ?? add(series.counts ?? [])), 0);
  }

  // The steps of the last minute, or of the `last` so many before and with the step `until`.
  lately(last = LATELY, until = this.at) {
    return this.steps.filter((step) => step.at > until - last && step.at <= until);
  }

  // Whether anything is known of the last minute.
  get isWatched() {
    return this.lately().some((step) => step.seconds > 0);
  }

  // By how much a metric grew in these steps.
  grown(name, chosen, steps = this.lately()) {
    return add(select(steps, name, chosen).map((series) => series.value ?? add(series.counts)));
  }

  // The same a second; undefined where nothing was watched.
  rate(name, chosen, steps = this.lately()) {
    const seconds = add(steps.map((step) => step.seconds));
    return seconds > 0 ? this.grown(name, chosen, steps) / seconds : undefined;
  }

  // What a histogram counted in these steps.
  counts(name, chosen, steps = this.lately()) {
    const all = Array(this.bounds(name).length + 1).fill(0);
    for (const { counts } of select(steps, name, chosen)) {
      counts.forEach((count, at) => (all[at] += count));
    }
    return all;
  }

  bounds(name) {
    return this.latest?.bounds[name] ?? [];
  }
}

const select = (steps, name, chosen = () => true) => steps.flatMap((step) => (step.grown[name] ?? []).filter(chosen));

const add = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

// By how much a series grew. What is less than before was counted anew.
function growth(before, { value, counts }) {
  if (counts) {
    const old = before?.counts ?? [];
    const isSame = add(counts) >= add(old);
    const more = counts.map((count, at) => count - (isSame ? old[at] ?? 0 : 0));
    return more.some((count) => count > 0) && { counts: more };
  }
  const more = value >= (before?.value ?? 0) ? value - (before?.value ?? 0) : value;
  return more > 0 && { value: more };
}
