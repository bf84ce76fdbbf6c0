// Uses the page of the API document as a developer does, in both themes, and prints what happened as JSON.
// Arguments: the gateway's URL, an API key, a client's id and secret, and a directory for screenshots.
import { execFileSync } from "node:child_process";
import puppeteer from "puppeteer-core";

const [url, key, clientId, clientSecret, screenshots] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: execFileSync("which", ["chromium"], { encoding: "utf8" }).trim(),
  // Without a sandbox, as it has to be for root.
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"],
});

async function open(theme) {
  // With nothing of the page before.
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const seen = { requests: [], complaints: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && seen.complaints.push(message.text()));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  await page.setViewport({ width: 1280, height: 1400 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
  await page.goto(`${url}/docs`);
  await page.waitForSelector(".opblock");
  return { page, seen };
}

// Fills in a scheme of the dialogue "Authorize" and closes it.
async function authorize(page, fields, scope) {
  await page.click(".auth-wrapper .authorize");
  for (const [selector, text] of Object.entries(fields)) {
    await page.locator(selector).fill(text);
  }
  if (scope) {
    await page.locator(`.scopes label[for^="${scope}"]`).click();
  }
  const form = await page.$(Object.keys(fields)[0]);
  const box = await form.evaluateHandle((input) => input.closest(".auth-container"));
  await (await box.$(".modal-btn.authorize")).click();
  await page.waitForFunction((box) => box.textContent.includes("Logout"), {}, box);
  await page.click(".modal-btn.btn-done");
}

// Sends the example of scoring one row, as it is filled in.
async function score(page) {
  const block = "#operations-Scoring-predict";
  await page.click(`${block} .opblock-summary-control`);
  await page.locator(`${block} .execute`).click();
  await page.waitForSelector(`${block} .live-responses-table .response-col_status`);
  const status = await page.$eval(`${block} .live-responses-table tbody .response-col_status`, (cell) => cell.textContent);
  const answer = await page.$eval(`${block} .live-responses-table .highlight-code code`, (code) => code.textContent);
  return { status: parseInt(status), answer };
}

const results = [];
for (const [theme, way] of [["light", "key"], ["dark", "client"], ["light", "none"]]) {
  const { page, seen } = await open(theme);
  const operations = await page.$$eval(".opblock", (blocks) => blocks.map((block) => block.id));
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  if (way !== "none") {
    await page.screenshot({ path: `${screenshots}/docs-${theme}.png` });
  }
  if (way === "key") {
    await authorize(page, { "#api_key_value": key });
  } else if (way === "client") {
    await authorize(page, { "#client_id_clientCredentials": clientId, "#client_secret_clientCredentials": clientSecret }, "score:predict");
  }
  const scored = await score(page);
  if (way !== "none") {
    await page.$eval("#operations-Scoring-predict .responses-wrapper", (answers) => answers.scrollIntoView());
    await page.screenshot({ path: `${screenshots}/docs-score-${theme}.png` });
  }
  results.push({ theme, way, operations, background, scored, ...seen });
}
console.log(JSON.stringify(results));
await browser.close();
