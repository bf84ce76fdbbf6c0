// The page: who looks, at which view, in which theme; and asks the gateway every two seconds while somebody looks.

import { el, trouble } from "./dom.js";
import { ask, use } from "./gateway.js";
import { History } from "./history.js";
import { traffic } from "./traffic.js";
import { models } from "./models.js";
import { features } from "./features.js";
import { score } from "./score.js";

const PAUSE = 2_000;
const LONGEST = 15_000;
const COUNTS = "v1/monitoring/live";
const MAKERS = { traffic, models, features, score };

const [main, login, nav, state, leave, theme] =
  ["#view", "#login", "nav", "#state", "#leave", "#theme"].map((selector) => document.querySelector(selector));
let session;

// Of several quotas, what is left of the one that has the least.
const least = (header) => {
  const left = [...(header ?? "").matchAll(/;r=(\d+)/g)].map(([, rows]) => Number(rows));
  return left.length ? String(Math.min(...left)) : undefined;
};

function say(kind, words) {
  state.className = `state is-${kind}`;
  if (state.textContent !== words) state.textContent = words;
}

// From signing in to signing out.
class Session {
  history = new History();
  views = {};
  failures = 0;
  rounds = 0;
  notice = el("div", { class: "slot" });

  begin(first) {
    this.take(first);
    login.hidden = true;
    nav.hidden = leave.hidden = state.hidden = false;
    main.append(this.notice);
    for (const [name, make] of Object.entries(MAKERS)) {
      const root = el("section", { id: `view-${name}`, hidden: true });
      main.append(root);
      this.views[name] = { root, ...make(root) };
    }
    this.show();
    // The first rate needs a second look.
    this.next(PAUSE / 4);
  }

  take({ json, headers }) {
    this.history.add(json);
    this.history.left = least(headers.get("ratelimit"));
    this.failures = 0;
  }

  get shown() {
    const name = location.hash.slice(1);
    return Object.hasOwn(this.views, name) ? name : "traffic";
  }

  // Shows the view that the address names.
  show() {
    for (const [name, { root }] of Object.entries(this.views)) {
      root.hidden = name !== this.shown;
      const link = nav.querySelector(`[href="#${name}"]`);
      link.toggleAttribute("aria-current", false);
      if (name === this.shown) {
        link.setAttribute("aria-current", "page");
        document.title = `${link.textContent} – Scoregate console`;
      }
    }
    this.draw();
    this.views[this.shown].refresh?.();
  }

  draw() {
    const { update } = this.views[this.shown];
    if (this.history.latest) update(this.history);
  }

  next(pause) {
    clearTimeout(this.timer);
    this.timer = document.hidden ? undefined : setTimeout(() => this.look(), pause);
  }

  async look() {
    try {
      const answer = await ask(COUNTS);
      if (session !== this) return;
      this.take(answer);
      this.notice.replaceChildren();
      say("live", "Live");
      this.draw();
      const view = this.views[this.shown];
      if (view.every && ++this.rounds % view.every === 0) view.refresh();
      this.next(PAUSE);
    } catch (refusal) {
      if (session !== this) return;
      if (refusal.status === undefined) {
        this.next(PAUSE);
        throw refusal;
      }
      if (refusal.status === 401 || refusal.status === 403) return end(refusal.advice);
      this.failures++;
      say("lost", refusal.status === 0 ? "No answer" : "Refused");
      if (this.failures > 1 || refusal.status !== 0) this.notice.replaceChildren(trouble(`${refusal.advice} It is asked again ${refusal.wait ? `in ${refusal.wait} s` : "by itself"}.`));
      this.next(Math.max(1_000 * refusal.wait, Math.min(LONGEST, PAUSE * 2 ** (this.failures - 1))));
    }
  }
}

// Whoever goes by keyboard goes on from the beginning of what is shown.
function toTop() {
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

// Nothing that was shown stays.
function end(reason = "") {
  clearTimeout(session?.timer);
  session = undefined;
  use("");
  main.replaceChildren(login);
  login.hidden = false;
  nav.hidden = leave.hidden = state.hidden = true;
  document.title = "Scoregate console";
  document.querySelector("#login-error").textContent = reason;
  document.querySelector("#credential").focus();
}

login.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [input, button, error] = ["#credential", "button", "#login-error"].map((selector) => login.querySelector(selector));
  use(input.value);
  button.disabled = true;
  error.textContent = "";
  try {
    const first = await ask(COUNTS);
    input.value = "";
    session = new Session();
    say("live", "Live");
    session.begin(first);
    toTop();
  } catch (refusal) {
    use("");
    error.textContent = refusal.advice ?? String(refusal);
    input.setAttribute("aria-invalid", "true");
    input.focus();
  } finally {
    button.disabled = false;
  }
});
leave.addEventListener("click", () => end());
document.querySelector(".skip").addEventListener("click", (event) => {
  // The address names a view.
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => {
  if (!session) return;
  session.show();
  toTop();
});
document.addEventListener("visibilitychange", () => {
  if (!session) return;
  if (document.hidden) say("paused", "Paused");
  session.next(0);
});

// The theme is no secret, and is kept.
const wear = (name) => {
  document.documentElement.dataset.theme = name;
  theme.value = name;
};
theme.addEventListener("change", () => {
  wear(theme.value);
  localStorage.setItem("theme", theme.value);
});
wear(localStorage.getItem("theme") ?? "");
