// Requests from the page: put, get, delete and compare-and-set, and the space-time picture of the one that is looked at.
//
// Each request asks the coordinator for its trace. What comes after the answer (late acknowledgements, hints, repairs)
// is added to the trace by the server, so a picture is asked for again until every message in it has ended.

import { ask, keyPath, locatePath, Problem } from "./api.js";
import { byId, figure, fill, h, say } from "./dom.js";

const KEPT = 8;
const SHOWN_CHARACTERS = 2000;
const AGAIN_MS = [150, 300, 600, 1200, 2500, 5000, 10000, 20000];

export class Requests {
  constructor(ring, recorder) {
    this.ring = ring;
    this.recorder = recorder;
    this.etags = new Map(); // the last ETag that was seen of each key
    this.done = [];
    this.shown = null;
    this.form = byId("request");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    for (const input of this.form.elements) input.addEventListener?.("input", () => this.suit());
    byId("trace-others").addEventListener("click", () => this.listOthers());
    this.suit();
  }

  /** Show the fields that the chosen operation takes. */
  suit() {
    const { operation, key, expect } = this.form.elements;
    const kind = operation.value;
    byId("request-value-field").hidden = kind === "get" || kind === "delete";
    byId("request-expect-field").hidden = kind !== "compare_and_set";
    if (kind === "compare_and_set" && document.activeElement !== expect) expect.value = this.etags.get(key.value) ?? "";
  }

  async send() {
    const button = byId("request-send");
    if (button.getAttribute("aria-disabled") === "true") return;
    const { operation, key, value, expect } = this.form.elements;
    const kind = operation.value;
    const request = { kind, key: key.value, value: kind === "put" || kind === "compare_and_set" ? value.value : null };
    if (kind === "compare_and_set") request.expect = expect.value.trim() || "absent";
    const step = this.recorder.request(request, this.etags.get(request.key));
    button.setAttribute("aria-disabled", "true"); // a button that is disabled altogether would lose the focus
    try {
      const { status } = await this.carryOut(request);
      if (status === 400) this.recorder.forget(step);
    } finally {
      button.removeAttribute("aria-disabled");
    }
    this.suit();
  }

  async carryOut(request) {
    const headers = { "trikv-trace": "1" };
    let method = { get: "GET", delete: "DELETE" }[request.kind] ?? "PUT";
    if (request.kind === "compare_and_set") {
      if (request.expect === "absent") headers["if-none-match"] = "*";
      else headers["if-match"] = request.expect.startsWith('"') ? request.expect : `"${request.expect}"`;
    }
    const beganMs = performance.now();
    const result = { request, trace: null, outcome: "", told: "" };
    try {
      const body = request.value === null ? undefined : new TextEncoder().encode(request.value);
      const response = await ask(method, keyPath(request.key), { body, headers });
      result.trace = response.headers.get("trikv-trace");
      const etag = response.headers.get("etag");
      if (etag !== null) this.etags.set(request.key, etag);
      if (request.kind === "get") {
        result.outcome = "found";
        result.told = readable(new Uint8Array(await response.arrayBuffer()));
      } else {
        result.outcome = "committed";
        result.told = etag ? `ETag ${etag}` : "";
        if (request.kind === "delete") this.etags.delete(request.key);
      }
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      result.trace = error.document.trace ?? null;
      result.status = error.document.status;
      const absent = request.kind === "get" && error.document.status === 404;
      result.outcome = absent ? "absent" : error.outcome;
      result.told = absent ? "there is no value under this key" : error.told;
    }
    result.tookMs = performance.now() - beganMs;
    this.done.unshift(result);
    this.done.length = Math.min(this.done.length, KEPT);
    this.list();
    this.announce(result);
    this.look(result.trace);
    this.land(request.key);
    return result;
  }

  /** Mark the key on the ring. That it cannot be found is no news: the request itself said why. */
  async land(key) {
    try {
      this.ring.mark(key, await (await ask("GET", locatePath(key))).json());
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    }
  }

  announce(result) {
    fill(
      byId("request-answer"),
      h("span", { class: `outcome outcome-${result.outcome}` }, result.outcome),
      h("span", { class: "answer" }, result.told),
      h("span", { class: "quiet" }, `${figure(result.tookMs)} ms as this page saw it`),
    );
  }

  list() {
    const entries = this.done.map((result) => {
      const { kind, key } = result.request;
      return h(
        "li",
        {},
        h(
          "button",
          { type: "button", disabled: result.trace === null, "data-shows": result.trace, "aria-current": String(result.trace !== null && result.trace === this.shown), onclick: () => this.look(result.trace) },
          h("span", { class: `outcome outcome-${result.outcome}` }, result.outcome),
          h("span", {}, `${kind.replaceAll("_", " ")} `, h("code", {}, key)),
        ),
      );
    });
    const focused = document.activeElement?.dataset?.shows;
    fill(byId("request-list"), entries);
    if (focused) [...byId("request-list").querySelectorAll("button")].find((button) => button.dataset.shows === focused)?.focus();
  }

  // --- the picture -----------------------------------------------------------------------------------------------------

  /** Show a trace, and show it again until it has ended or another one is looked at. */
  async look(id) {
    this.shown = id;
    this.list();
    if (id === null) {
      fill(byId("trace-picture"), h("p", { class: "quiet" }, "Nothing was sent to any worker, so there is nothing to draw."));
      say(byId("trace-text"), "");
      return;
    }
    for (const pauseMs of [0, ...AGAIN_MS]) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      if (this.shown !== id || !(await this.draw(id))) return;
    }
  }

  /** Draw the trace as it is now. Will there be more to see? */
  async draw(id) {
    try {
      const path = `/v1/trace/${encodeURIComponent(id)}`;
      const [trace, picture, text] = await Promise.all([
        ask("GET", path).then((response) => response.json()),
        ask("GET", `${path}?format=svg&style=none`).then((response) => response.text()),
        ask("GET", `${path}?format=text`).then((response) => response.text()),
      ]);
      if (this.shown !== id) return false;
      const svg = new DOMParser().parseFromString(picture, "image/svg+xml").documentElement;
      const drawn = document.importNode(svg, true);
      drawn.setAttribute("aria-label", `Space-time diagram of ${trace.what} ${trace.key}: told as text below`);
      drawn.dataset.trace = id;
      fill(byId("trace-picture"), drawn);
      say(byId("trace-text"), text);
      say(byId("trace-summary"), this.summarise(trace));
      return trace.ended_ms === null || trace.messages.some((message) => message.ended_ms === null);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      fill(byId("trace-picture"), h("p", { class: "quiet" }, `The trace cannot be shown: ${error.told}`));
      return false;
    }
  }

  summarise(trace) {
    const late = trace.messages.filter((message) => trace.ended_ms !== null && (message.ended_ms === null || message.ended_ms > trace.ended_ms));
    const slowest = trace.messages.reduce((most, one) => ((one.ended_ms ?? 0) - one.sent_ms > (most ? (most.ended_ms ?? 0) - most.sent_ms : -1) ? one : most), null);
    const parts = [`${trace.what}${trace.mode ? ` under ${trace.mode}` : ""}: ${trace.outcome || "under way"}`];
    if (trace.promised_ms !== null) parts.push(`the promise was met after ${figure(trace.promised_ms)} ms`);
    if (trace.ended_ms !== null) parts.push(`answered after ${figure(trace.ended_ms)} ms`);
    if (slowest && slowest.ended_ms !== null) parts.push(`the slowest message was ${slowest.what} at ${slowest.replica}, ${figure(slowest.ended_ms - slowest.sent_ms)} ms`);
    parts.push(late.length ? `${late.length} of ${trace.messages.length} messages ended after the answer` : `${trace.messages.length} messages`);
    return `${parts.join("; ")}.`;
  }

  /** The latest traces of all requests, a sample of other clients' among them. */
  async listOthers() {
    const place = byId("trace-list");
    try {
      const { traces } = await (await ask("GET", "/v1/traces")).json();
      const entries = traces.slice(0, 20).map((trace) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", onclick: () => this.look(trace.id) },
            h("span", { class: `outcome outcome-${trace.outcome || "open"}` }, trace.outcome || "open"),
            h("span", {}, `${trace.what} `, h("code", {}, trace.key)),
            h("span", { class: "quiet" }, trace.ended_ms === null ? "" : `${figure(trace.ended_ms)} ms`),
          ),
        ),
      );
      fill(place, entries.length ? entries : h("li", { class: "quiet" }, "No request has been traced yet."));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      fill(place, h("li", { class: "quiet" }, error.told));
    }
  }
}

/** A value for people: its text, or how many bytes it has. */
function readable(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}… (${bytes.length.toLocaleString("en-US")} bytes)` : text;
  } catch {
    return `${bytes.length.toLocaleString("en-US")} bytes that are no text`;
  }
}
