// Asks the gateway, with the credential that was typed in. It is kept in this variable and nowhere else: what a browser keeps of a
// session it writes to the disk.

let credential = "";

export const use = (typed) => {
  credential = typed.trim();
};

// A refusal, or that there was no answer at all (status 0).
export class Refusal extends Error {
  constructor(status, problem = {}, headers = new Headers()) {
    super(problem.detail ?? problem.title ?? `status ${status}`);
    this.status = status;
    this.code = problem.code ?? "";
    this.faults = problem.errors ?? [];
    this.scope = /scope="([^"]*)"/.exec(headers.get("www-authenticate") ?? "")?.[1];
    this.wait = Number(headers.get("retry-after")) || 0;
  }

  // What happened and what to do, in a sentence or two.
  get advice() {
    switch (true) {
      case this.status === 0:
        return "The gateway does not answer. Is it running, and is the way to it free?";
      case this.code === "unsendable":
        return "This is no key and no access token: it has characters that neither can have.";
      case this.status === 401:
        return "The gateway does not accept this credential: it is mistyped, expired or revoked. Sign in with another.";
      case this.code === "insufficient_scope":
        return `This credential lacks the scope ${this.scope ?? "for this"}. Sign in with one that has it: scoregate keys create --name console --scopes monitoring:read,models:read,score:predict`;
      case this.code === "model_not_allowed":
        return "This credential does not hold for this model. Sign in with one that does.";
      case this.status === 429:
        return `The quota of this credential is used up for ${this.wait} s.`;
      case this.status === 404:
        return `${this.message}. This may be the public listener: the console is served by the admin listener.`;
      case this.status === 503:
        return `The gateway is busy or not ready: ${this.message}.`;
      default:
        return `The gateway refused (${this.code || this.status}): ${this.message}.`;
    }
  }
}

// The header that says who asks; none where a certificate does.
const header = () => {
  if (credential === "") return {};
  return credential.startsWith("sg_") ? { "x-api-key": credential } : { authorization: `Bearer ${credential}` };
};

// How a shell says the same, with the credential left to the environment.
export const shellHeader = () =>
  credential === "" ? "" : credential.startsWith("sg_") ? ' -H "x-api-key: $API_KEY"' : ' -H "authorization: Bearer $ACCESS_TOKEN"';

// The answer: its JSON, its headers, and how long it took as seen from here.
export async function ask(path, body, more = {}) {
  if (/[^\x21-\x7e]/.test(credential)) throw new Refusal(401, { code: "unsendable" });
  const begin = performance.now();
  let response, text;
  try {
    const headers = { ...header(), accept: "application/json", ...(body && { "content-type": "application/json" }), ...more };
    // For a row, that would say to the gateway that its own cache is not wanted.
    const limits = { cache: body ? "default" : "no-store", redirect: "error", signal: AbortSignal.timeout(15_000) };
    response = await fetch(path, { method: body ? "POST" : "GET", body, headers, ...limits });
    text = await response.text();
  } catch {
    throw new Refusal(0);
  }
  let json;
  try {
    json = JSON.parse(text);
  } catch {
    json = {};
  }
  if (!response.ok) throw new Refusal(response.status, json, response.headers);
  return { json, text, headers: response.headers, took: (performance.now() - begin) / 1000 };
}
