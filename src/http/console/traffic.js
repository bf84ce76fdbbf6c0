// The view of requests: how many, how quick, what became of them, and what that takes.

import { el, card, facts, renew, table } from "./dom.js";
import { lines } from "./charts.js";
import { bytes, count, none, quantile, rate, seconds, share, since } from "./numbers.js";
import { LATELY, SPAN } from "./history.js";

const TIMES = "scoregate_request_duration_seconds";
const CLASSES = ["2xx", "4xx", "5xx"];
const QUANTILES = [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]];

// What is asked of models, tokens, and what has no route. Who watches, this page among them, is no traffic.
const isTraffic = (route) => /\/predict(\/batch)?$|^\/oauth\/token$|^[^/]/.test(route);
const isScoring = ({ route, status }) => /\/predict(\/batch)?$/.test(route) && status === "2xx";

export function traffic(root) {
  const model = el("select", { id: "traffic-model", change: () => draw() }, el("option", { value: "" }, "All models"));
  const [tiles, charts, rest] = [el("div", { class: "tiles" }), el("div", { class: "cards two" }), el("div", { class: "flow" })];
  root.append(
    el("div", { class: "title" }, el("h2", {}, "Traffic"),
      el("p", { class: "soft" }, "Requests for scores and tokens, and those that no route is for. Rates and times are those of the last minute."),
      el("label", { for: "traffic-model" }, "Model ", model)),
    tiles, charts, rest);
  let history;

  function draw() {
    const isOf = (series) => model.value === "" || series.model === model.value;
    const chosen = (series) => isOf(series) && isTraffic(series.route);
    const times = history.counts(TIMES, (series) => isOf(series) && isScoring(series));
    const bounds = history.bounds(TIMES);
    const answers = history.grown(TIMES, chosen);
    const failed = history.grown(TIMES, (series) => chosen(series) && series.status === "5xx");
    const [hits, looked] = cacheUse(history, history.lately());
    renew(tiles,
      tile("Requests", rate(history.rate(TIMES, chosen)), "a second"),
      tile("Rows", rate(history.rate("scoregate_rows_total", isOf)), "a second"),
      tile("Failures", share(failed, answers), "answered 5xx", failed > 0 && "bad"),
      ...QUANTILES.map(([name, part]) => tile(name, seconds(quantile(part, times, bounds)), "to score")),
      tile("Cache hits", share(hits, looked), "of look-ups, all models"),
      tile("In flight", count(Math.max(0, history.total("scoregate_requests_in_flight") - 1)), "all requests but this page's"));
    renew(charts, drawCharts(history, isOf, chosen));
    renew(rest, errors(history), quotas(history), cache(history), credentials(history), machine(history));
  }

  return {
    update(now) {
      history = now;
      const names = [...new Set(history.now("scoregate_model_info").map((series) => series.model))].sort();
      const known = [...model.options].slice(1).map((option) => option.value);
      if (names.join("\n") !== known.join("\n")) {
        const before = model.value;
        model.replaceChildren(el("option", { value: "" }, "All models"), ...names.map((name) => el("option", { value: name }, name)));
        model.value = names.includes(before) ? before : "";
      }
      draw();
    },
  };
}

const tile = (name, value, unit, kind) =>
  el("div", { class: `tile ${kind || ""}` }, el("h3", {}, name), el("p", { class: "value" }, value), el("p", { class: "soft" }, unit));

function drawCharts(history, isOf, chosen) {
  // As much as was watched, in whole minutes.
  const watched = history.at - (history.steps[0]?.at ?? history.at);
  const [from, to] = [history.at - Math.min(SPAN, 60 * Math.max(1, Math.ceil(watched / 60))), history.at];
  const over = (value) => history.steps.map((step) => [step.at, value(step)]);
  const perSecond = (name, wanted) => over((step) => history.rate(name, wanted, [step]));
  const classes = CLASSES.map((status) => ({
    name: status, kind: `is-${status}`, points: perSecond(TIMES, (series) => chosen(series) && series.status === status),
  }));
  // Of ten seconds each, so that a few requests do not look like a storm.
  const counted = over((step) => history.counts(TIMES, (series) => isOf(series) && isScoring(series), history.lately(10, step.at)));
  const times = QUANTILES.map(([name, part]) => ({
    name, kind: `is-${name}`, points: counted.map(([at, counts]) => [at, quantile(part, counts, history.bounds(TIMES))]),
  }));
  const rows = ["scored", "rejected"].map((outcome) => ({
    name: outcome, kind: `is-${outcome}`, points: perSecond("scoregate_rows_total", (series) => isOf(series) && series.outcome === outcome),
  }));
  return [
    lines("Requests a second, by status", rate, from, to, classes),
    lines("Time to score", seconds, from, to, times),
    lines("Rows a second", rate, from, to, rows),
  ].map((chart) => el("section", { class: "card" }, chart));
}

// Rows that were found, and that were looked for: at one level, or at any. What is not found in process is looked for in Redis.
const cacheUse = (history, steps, level) => {
  const of = (outcome, ...levels) => history.grown("scoregate_cache_rows_total", (series) => levels.includes(series.level) && series.outcome === outcome, steps);
  const [found, first] = level ? [of("hit", level), level] : [of("hit", "memory", "redis"), "memory"];
  return [found, of("hit", first) + of("miss", first)];
};

// Counters of one kind: lately, and since the gateway started.
const both = (history, name, chosen) => [history.isWatched ? count(history.grown(name, chosen)) : none, count(history.total(name, chosen))];

function errors(history) {
  const all = history.now("scoregate_responses_total", (series) => series.code !== "ok" && isTraffic(series.route));
  const rows = all.toSorted((one, other) => other.value - one.value).map((found) => {
    const isSame = (series) => ["route", "status", "code"].every((label) => series[label] === found[label]);
    return [el("code", {}, found.code), found.status, el("code", {}, found.route), ...both(history, "scoregate_responses_total", isSame)];
  });
  const columns = ["Code", "Status", "Route", "Last minute#", "Since the start#"];
  return card("Refusals and failures", table("Refusals and failures", columns, rows, "Every request was answered as it should be."));
}

function quotas(history) {
  const { quotas } = history.latest;
  const plans = quotas.flatMap(({ plan, quota, models }) => [
    [plan ?? "Without a plan", "all models", quota ?? "no limit"],
    ...Object.entries(models).map(([model, own]) => [plan ?? "Without a plan", model, own]),
  ]);
  const policies = [...new Set(history.now("scoregate_quota_rows_total").map((series) => series.policy))];
  const used = policies.map((policy) => [el("code", {}, policy), ...["admitted", "refused"].flatMap((outcome) =>
    both(history, "scoregate_quota_rows_total", (series) => series.policy === policy && series.outcome === outcome))]);
  return card("Quotas",
    table("Plans", ["Plan", "For", "Rows"], plans, ""),
    table("Rows under quotas", ["Policy", "Admitted in the last minute#", "in all#", "Refused in the last minute#", "in all#"], used,
      "No rows were counted under a quota."),
    history.left && el("p", { class: "soft" }, `Of its own quota, the credential of this page has ${history.left} rows left.`));
}

function cache(history) {
  const { cache, redis } = history.latest;
  const hits = (level) => {
    const total = (outcome) => history.total("scoregate_cache_rows_total", (series) => series.level === level && series.outcome === outcome);
    const [lately, looked] = cacheUse(history, history.lately(), level);
    return [level, share(lately, looked), share(total("hit"), total("hit") + total("miss")), count(total("hit")), count(total("miss"))];
  };
  const levels = redis === undefined ? ["memory"] : ["memory", "redis"];
  const told = { unknown: "not tried yet", reachable: "in reach", silent: "late with its answers", out_of_reach: "out of reach: every replica counts by itself" };
  const requests = history.now("scoregate_redis_requests_total").map((series) => `${series.outcome.replaceAll("_", " ")} ${count(series.value)}`);
  return card("Cache of scores",
    table("Cache of scores", ["Level", "Hits in the last minute#", "in all#", "Found#", "Not found#"], levels.map(hits), ""),
    facts([
      ["Mode", cache.ttl_s === undefined ? cache.mode : `${cache.mode}, for ${seconds(cache.ttl_s)}`],
      ["Kept in process", `${count(history.total("scoregate_cache_entries"))} scores, ${bytes(history.total("scoregate_cache_bytes"))}`],
      ["Redis", redis === undefined ? "not used" : el("span", { class: redis === "reachable" ? "" : "warning" }, told[redis])],
      ["Requests to Redis", redis === undefined ? undefined : requests.join(", ")],
    ]));
}

function credentials(history) {
  const all = history.now("scoregate_credentials_total", (series) => series.value > 0);
  const rows = all.toSorted((one, other) => other.value - one.value).map((found) => {
    const isSame = (series) => series.kind === found.kind && series.outcome === found.outcome;
    return [found.kind, found.outcome === "accepted" ? "accepted" : `refused: ${found.outcome.replaceAll("_", " ")}`, ...both(history, "scoregate_credentials_total", isSame)];
  });
  return card("Credentials", table("Credentials", ["Kind", "Outcome", "Last minute#", "Since the start#"], rows, "Nobody has come yet."));
}

function machine(history) {
  const one = (name) => history.now(name)[0]?.value;
  const waited = quantile(0.99, history.counts("scoregate_queue_seconds"), history.bounds("scoregate_queue_seconds"));
  const lost = one("scoregate_log_lines_dropped_total");
  const traces = history.now("scoregate_traces_total", (series) => series.value > 0).map((series) => `${series.outcome} ${count(series.value)}`);
  return card("Process", facts([
    ["Started", since(history.start * 1000, history.at * 1000)],
    ["Processor", `${rate(history.rate("process_cpu_seconds_total"))} cores in use`],
    ["Memory", bytes(one("process_resident_memory_bytes"))],
    ["Threads", one("process_threads")],
    ["Open files", `${one("process_open_fds") ?? none} of ${one("process_max_fds") ?? none}`],
    ["Wait for a thread (p99)", waited === undefined ? `none in the last ${LATELY} s` : seconds(waited)],
    ["Log lines lost", el("span", { class: lost > 0 ? "warning" : "" }, count(lost ?? 0))],
    ["Traces", traces.join(", ") || "none"],
  ]));
}
