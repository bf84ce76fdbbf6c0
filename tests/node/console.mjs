// Uses the console as an operator does, and prints what it showed as JSON.
// Arguments: a file with what to use, as JSON: the gateway's URL, its public URL and process, credentials, rows, and a directory for screenshots.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const given = JSON.parse(readFileSync(process.argv[2], "utf8"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const VIEWS = ["traffic", "models", "features", "score"];
const browser = await puppeteer.launch({
  executablePath: execFileSync("which", ["chromium"], { encoding: "utf8" }).trim(),
  // Without a sandbox, as it has to be for root.
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"],
});
const seen = { requests: [], complaints: [] };

async function open(theme, width = 1280) {
  // With nothing of the page before.
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  page.on("request", (request) => seen.requests.push(request.url()));
  // A refusal is what some of this is about; the browser notes each.
  const isRefusal = (text) => text.startsWith("Failed to load resource: ");
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && !isRefusal(message.text()) && seen.complaints.push(message.text()));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  await page.evaluateOnNewDocument(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
  await page.goto(`${given.url}/console`);
  return page;
}

const text = (page, selector) => page.$eval(selector, (element) => element.innerText);
// What a selector finds, once it says this.
const says = (page, selector, words) =>
  page.waitForFunction((selector, words) => document.querySelector(selector)?.innerText.includes(words), { timeout: 20_000 }, selector, words);
const cells = (page, caption) =>
  page.$$eval(`[aria-label="${caption}"] tbody tr`, (rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText)));

async function signIn(page, credential) {
  await page.locator("#credential").fill(credential);
  await page.click("#login button");
}

async function go(page, view) {
  await page.click(`nav a[href="#${view}"]`);
  await page.waitForSelector(`#view-${view}:not([hidden])`);
}

// What a checker of accessibility finds.
async function complaintsOf(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).slice(0, 3).join("; ")}`);
}

async function score(page, model, row) {
  if ((await page.$eval("#score-model", (select) => select.value)) !== model) await page.select("#score-model", model);
  await page.waitForFunction((model) => document.querySelector("#view-score form .name")?.innerText === model, {}, model);
  for (const [name, value] of Object.entries(row)) {
    await page.locator(`#view-score input[name=${JSON.stringify(name)}]`).fill(String(value));
  }
  await page.click("#view-score form button");
}

const answer = '#view-score [aria-label="Answer"]';
const results = {};

// Who may not look, is told why.
{
  const page = await open("light");
  results.shell = await text(page, "body");
  for (const [name, words] of [["wrong", "does not accept"], ["poor", "monitoring:read"], ["none", "does not accept"], ["strange", "characters that neither can have"]]) {
    await signIn(page, given[name] ?? "");
    await says(page, "#login-error", words);
    results[name] = { views: await page.$$eval("#view > section", (views) => views.length), focus: await page.evaluate(() => document.activeElement.id) };
  }
  results.violations = { login: await complaintsOf(page) };
}

// With a key, in the light; with a token, in the dark.
for (const [theme, credential] of [["light", given.key], ["dark", given.token]]) {
  const page = await open(theme);
  await page.focus("#credential");
  await page.keyboard.type(credential);
  await page.keyboard.press("Enter");
  await page.waitForSelector(".tile");
  const found = (results[theme] = {});
  // Traffic that comes while somebody looks is seen.
  for (const body of [given.row, given.bad]) {
    await fetch(`${given.publicUrl}/v1/predict`, { method: "POST", headers: { "x-api-key": given.key, "content-type": "application/json" }, body: JSON.stringify(body) }).then((answer) => answer.text());
  }
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('[aria-label="Refusals and failures"] tbody tr')];
    return rows.find((row) => row.innerText.includes("invalid_row"))?.cells[3].innerText === "1";
  }, { timeout: 20_000 });
  found.tiles = Object.fromEntries(await page.$$eval(".tile", (tiles) => tiles.map((tile) => [...tile.querySelectorAll("h3, .value")].map((part) => part.innerText))));
  found.lines = await page.$$eval("#view-traffic .line", (lines) => lines.map((line) => line.getAttribute("d").length));
  for (const caption of ["Refusals and failures", "Rows under quotas", "Cache of scores", "Credentials", "Plans"]) {
    found[caption] = await cells(page, caption);
  }
  found.background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  results.violations[`traffic ${theme}`] = await complaintsOf(page);
  await page.screenshot({ path: `${given.screenshots}/traffic-${theme}.png` });

  await go(page, "models");
  await says(page, "#view-models", "package_altered");
  for (const part of ["churn", "saas_churn"]) await says(page, `#view-models [data-key^="${part}@"][open]`, "Digest");
  found.models = await text(page, "#view-models");
  const [compared, diff] = ['#view-models [aria-label="two compared with one"]', '[data-key="diff share"]'];
  await says(page, compared, "Scored by both");
  found.rollout = await cells(page, "Rollout of share");
  found.compared = await text(page, compared);
  const judged = '#view-models [aria-label="What the guard makes of duel"]';
  await says(page, judged, "could not be done yet");
  found.judged = await text(page, judged);
  found["faults of canaries"] = await page.$$eval(`${judged} .fault`, (faults) => faults.length);
  await page.click(`${diff} > summary`);
  await page.click(`${diff} form button`);
  await page.waitForSelector('[aria-label="Answers to golden rows"]');
  found.golden = await cells(page, "Answers to golden rows");
  found.diff = await text(page, diff);
  results.violations[`models ${theme}`] = await complaintsOf(page);
  await page.screenshot({ path: `${given.screenshots}/models-${theme}.png` });

  // What somebody reads stays, though nobody tells how versions compare, and models change.
  const models = await (await fetch(`${given.url}/v1/models`, { headers: { "x-api-key": given.key } })).text();
  const busy = JSON.stringify({ code: "overloaded", detail: "so many ask" });
  const upset = (request) => {
    const { pathname } = new URL(request.url());
    if (pathname === "/v1/monitoring/comparisons") return request.respond({ status: 503, contentType: "application/problem+json", body: busy });
    if (pathname === "/v1/models") return request.respond({ contentType: "application/json", body: `${models} ` });
    return request.continue();
  };
  await page.setRequestInterception(true);
  page.on("request", upset);
  await says(page, '#view-models .slot [role="alert"]', "so many ask");
  found.undisturbed = [await page.$$eval('[aria-label="Answers to golden rows"]', (tables) => tables.length), await cells(page, "Rollout of share")];
  page.off("request", upset);
  // What the guard has done stands there, too.
  const told = await (await fetch(`${given.url}/v1/monitoring/comparisons`, { headers: { "x-api-key": given.key } })).json();
  const [verdict] = told.verdicts.filter((one) => one.version === "2");
  told.past = [{ model: "duel", version: "0", at: "2026-01-02T03:04:05Z", action: "drop", verdict }];
  const remind = (request) => (new URL(request.url()).pathname === "/v1/monitoring/comparisons"
    ? request.respond({ contentType: "application/json", body: JSON.stringify(told) }) : request.continue());
  page.on("request", remind);
  await says(page, '[aria-label="What the guard did with duel"]', "taken back");
  found.past = await cells(page, "What the guard did with duel");
  results.violations[`canaries ${theme}`] = await complaintsOf(page);
  page.off("request", remind);
  await page.setRequestInterception(false);
  await says(page, compared, "Scored by both");

  await go(page, "features");
  await page.waitForSelector("#view-features .bars");
  found.features = await cells(page, "Unusual values of churn");
  found.scored = await text(page, "#view-features .card:first-child p");
  found.metrics = await (await fetch(`${given.url}/metrics`)).text();
  found.histogram = await page.$$eval("#view-features .card:first-child .bar title", (titles) => titles.map((title) => title.textContent));
  results.violations[`features ${theme}`] = await complaintsOf(page);

  await go(page, "score");
  await page.waitForSelector("#field-0");
  found.example = await page.$$eval("#view-score form [name]", (inputs) => Object.fromEntries(inputs.map((input) => [input.name, input.value])));
  await score(page, "churn", given.row);
  await says(page, answer, "Decision");
  found.answer = await text(page, answer);
  found.explained = await page.$$eval(`${answer} .waterfall tbody tr`, (rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText)));
  found.bars = await page.$$eval(`${answer} .waterfall rect`, (bars) => bars.map((bar) => Number(bar.getAttribute("width"))));
  found.raw = await page.$eval(`${answer} pre`, (code) => code.textContent);
  found.shell = await page.$$eval(`${answer} pre`, (codes) => codes.at(-1).textContent);
  const env = { ...process.env, API_KEY: given.key, ACCESS_TOKEN: given.token };
  found.asked = execFileSync("sh", ["-c", found.shell], { env, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  results.violations[`score ${theme}`] = await complaintsOf(page);
  await page.screenshot({ path: `${given.screenshots}/score-${theme}.png`, fullPage: true });

  await score(page, "churn", { tenure_days: "many", last_login_hours: "-1" });
  await says(page, answer, "Refused");
  found.faults = await page.$$eval("#view-score .field", (fields) => Object.fromEntries(fields.map((field) =>
    [field.querySelector("[name]").name, [field.querySelector(".fault").innerText, field.querySelector("[name]").getAttribute("aria-invalid")]])));
  found.focus = await page.evaluate(() => document.activeElement.name);
  results.violations[`faults ${theme}`] = await complaintsOf(page);

  // By keyboard past the head of the page.
  await page.focus(".skip");
  await page.keyboard.press("Enter");
  found.skipped = await page.evaluate(() => [document.activeElement.id, location.hash]);

  // Names are no markup, whatever they look like.
  await score(page, "odd", {});
  await says(page, answer, "Decision");
  found.odd = await text(page, "#view-score");
  await score(page, "classes", { a: 0.5, b: 0.25, c: 0.25, scale: 1 });
  await says(page, answer, "Decision");
  found.classes = await text(page, answer);
  await score(page, "value", { a: 12.5, scale: 1 });
  await says(page, answer, "Value");
  found.value = await text(page, answer);
  results.violations[`value ${theme}`] = await complaintsOf(page);

  // By the version that is chosen, whoever is scored.
  await page.select("#score-model", "duel");
  await says(page, "#view-score form .name", "duel");
  found.offered = await page.$$eval("#score-version option", (options) => options.map((option) => option.innerText));
  for (const version of ["1", "2"]) {
    await page.select("#score-version", version);
    await page.waitForFunction((version) => document.querySelector("#view-score form .name + .soft")?.innerText.trim() === version, {}, version);
    await score(page, "duel", { a: 1, b: 0.125 });
    await page.waitForFunction((selector, version) => [...document.querySelectorAll(`${selector} dl > div`)].some((fact) =>
      fact.innerText.startsWith("Version") && fact.querySelector("dd").innerText === version), {}, answer, version);
    found[`answer of ${version}`] = await text(page, answer);
    const command = await page.$$eval(`${answer} pre`, (codes) => codes.at(-1).textContent);
    found[`asked of ${version}`] = execFileSync("sh", ["-c", command], { env, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  }
  await page.select("#score-model", "value");
  await says(page, "#view-score form .name", "value");
  found.afterwards = await page.$eval("#score-version", (select) => [select.value, select.selectedOptions[0].innerText]);
  await go(page, "features");
  await says(page, "#view-features", "odd");
  found.oddFeatures = await text(page, "#view-features");
  found.owned = await page.evaluate(() => [globalThis.owned, document.querySelectorAll("main img, main script").length]);

  // Nothing that was typed in is kept anywhere.
  found.kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
  await page.reload();
  found.afterReload = await page.$eval("#login", (form) => !form.hidden);
}

// What somebody looks at stays while numbers come: the focus, how far a table is scrolled, and what is selected.
{
  const page = await open("light", 360);
  await signIn(page, given.key);
  const [quotas, refusals] = ['[aria-label="Rows under quotas"]', '[aria-label="Refusals and failures"] tbody th'];
  await page.waitForSelector(quotas);
  await page.waitForSelector(refusals);
  const asked = await page.evaluate((quotas, refusals) => {
    const region = document.querySelector(quotas);
    region.scrollLeft = 60;
    region.focus();
    getSelection().selectAllChildren(document.querySelector(refusals));
    globalThis.asked = () => performance.getEntriesByType("resource").filter(({ name }) => name.endsWith("/v1/monitoring/live")).length;
    return globalThis.asked();
  }, quotas, refusals);
  await page.waitForFunction((before) => globalThis.asked() > before + 2, { timeout: 20_000 }, asked);
  results.stays = await page.evaluate((quotas) =>
    [document.querySelector(quotas).scrollLeft, document.activeElement.getAttribute("aria-label"), String(getSelection())], quotas);

  // A form for rows of which much may be left out.
  await go(page, "score");
  await page.waitForSelector("#score-model option[value=forms]");
  await score(page, "forms", {});
  await says(page, answer, "Decision");
  results.form = await page.$$eval("#view-score .field", (fields) => Object.fromEntries(fields.map((field) => {
    const input = field.querySelector("[name]");
    const options = [...(input.options ?? [])].map((option) => option.value);
    return [input.name, [input.value, options, input.getAttribute("aria-required"), field.innerText.includes("may be left empty")]];
  })));
  await page.close();
}

// No view is called so, whatever an object has.
{
  const page = await open("light");
  await page.goto(`${given.url}/console#toString`);
  await signIn(page, given.key);
  await page.waitForSelector(".tile");
  results.hash = await page.$$eval("main > section:not([hidden])", (views) => views.map((view) => view.id));
  await page.close();
}

// What grew while nobody looked is nothing of the last minute.
{
  const { History } = await import(`${given.sources}/history.js`);
  const history = new History();
  results.history = [[0, 5], [2, 7], [102, 27], [104, 28]].map(([at, value]) => {
    const metrics = { process_start_time_seconds: [{ value: 1 }], some_total: [{ value }] };
    history.add({ at: new Date(1000 * at).toISOString(), metrics, bounds: {} });
    return [history.isWatched, history.grown("some_total"), history.rate("some_total") ?? null];
  });
}

// The switch of themes, on screens of every width.
{
  const page = await open("light", 360);
  await page.select("#theme", "dark");
  await signIn(page, given.key);
  await page.waitForSelector(".tile");
  results.switched = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  results.widths = [];
  for (const width of [360, 1600]) {
    await page.setViewport({ width, height: 900 });
    for (const view of VIEWS) {
      await go(page, view);
      results.widths.push([view, width, await page.evaluate(() => document.documentElement.scrollWidth)]);
    }
  }
  // A page that nobody sees asks nothing.
  const count = () => seen.requests.filter((url) => url.endsWith("/v1/monitoring/live")).length;
  const pretend = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await pretend(true);
  await says(page, "#state", "Paused");
  await new Promise((resolve) => setTimeout(resolve, 500));
  const before = count();
  await new Promise((resolve) => setTimeout(resolve, 4_500));
  results.asked = { hidden: count() - before };
  await pretend(false);
  await says(page, "#state", "Live");
  results.asked.shown = count() - before;
}

// Scopes that are missing for one view are named there.
{
  const page = await open("dark");
  await signIn(page, given.watcher);
  await page.waitForSelector(".tile");
  for (const view of ["models", "score"]) {
    await go(page, view);
    await says(page, `#view-${view}`, "models:read");
  }
  // A key that is revoked shows nothing any more.
  execFileSync(given.binary, ["keys", "revoke", "watcher"], { cwd: given.directory, stdio: "ignore" });
  await says(page, "#login-error", "revoked");
  results.revoked = await page.$$eval("#view > section", (views) => views.length);
  await signIn(page, given.reader);
  await page.waitForSelector("nav:not([hidden])");
  await page.waitForSelector("#field-0");
  await page.click("#view-score form button");
  await says(page, answer, "score:predict");
  results.reader = await text(page, answer);
  results.views = await page.$$eval("#view > section", (views) => views.length);
}

// A quota that is used up, and a gateway that is gone.
{
  const page = await open("light");
  await signIn(page, given.limited);
  await page.waitForSelector(".tile");
  await says(page, "#view", "quota of this credential is used up");
  await page.click("#leave");
  await signIn(page, given.key);
  await page.waitForSelector(".tile");
  results.refusals = await cells(page, "Refusals and failures");
  process.kill(given.process);
  await says(page, "#state", "No answer");
  await says(page, "#view", "does not answer");
  results.violations.gone = await complaintsOf(page);
}
console.log(JSON.stringify({ ...results, ...seen }));
await browser.close();
