// Requests to the cluster. Every answer is one of the outcomes that the server itself tells: committed, refused, or
// unknown. If no answer came, the outcome of a change is unknown, and the page says so.

/** What the server said of a request that was not carried out, or what is known if it said nothing. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `the server answered ${status}`);
    this.document = document;
    this.outcome = document.outcome || "unknown";
    this.title = document.title || "";
    this.remedy = document.remedy || "";
  }

  /** Title, detail and remedy in one line. */
  get told() {
    const parts = this.title && this.title !== this.message ? [this.title, this.message] : [this.message];
    const line = parts.join(": ");
    return this.remedy && this.remedy !== "See the detail." ? `${line.replace(/\.$/, "")}. ${this.remedy}` : line;
  }
}

/** Ask; answers the `Response`, or throws a `Problem`. */
export async function ask(method, path, { body, headers = {} } = {}) {
  let response;
  try {
    response = await fetch(path, { method, body, headers, cache: "no-store", credentials: "omit" });
  } catch {
    const outcome = method === "GET" ? "refused" : "unknown";
    throw new Problem({ detail: "the master did not answer", outcome }, 0);
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // It is no answer of a master: what stands in between answered instead.
  }
  throw new Problem(problem, response.status);
}

export async function askJson(method, path, document) {
  const options = document === undefined ? {} : { body: JSON.stringify(document), headers: { "content-type": "application/json" } };
  return (await ask(method, path, options)).json();
}

/** Where a key is in the API. Base64 keeps every key as it is: a browser would tidy `..` and `%2e` away. */
export function keyPath(key) {
  const bytes = new TextEncoder().encode(key);
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  const spelt = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `/v1/kv/${spelt}?encoding=base64`;
}

export function locatePath(key) {
  return `/v1/locate?key=${encodeURIComponent(key)}`;
}
