// The workers: what each holds and does, what an operator can ask of it, and what can be done to it on purpose.

import { askJson, Problem } from "./api.js";
import { byId, bytes, count, duration, figure, fill, h, say, whenChanged } from "./dom.js";
import { colourOf } from "./ring.js";

const DELAY_MS = 300;
const COLUMNS = [
  { name: "Worker", of: (worker) => worker.number },
  { name: "State", of: (worker) => worker.state },
  { name: "Place", of: (worker) => worker.place },
  { name: "Keys", of: (worker) => worker.keys ?? -1, number: true },
  { name: "Stored", of: (worker) => worker.bytes ?? -1, number: true },
  { name: "Calls/s", of: (worker) => worker.rate, number: true },
  { name: "Latency", of: (worker) => worker.latency_ms?.p99 ?? -1, number: true, title: "of the calls of the last seconds: median, 99th percentile" },
  { name: "Lag", of: (worker) => worker.lag_s ?? 0, number: true, title: "how long the oldest copy waits that this worker lacks" },
  { name: "Hints", of: (worker) => worker.hints ?? 0, number: true, title: "copies that wait for this worker" },
  { name: "Copies", of: (worker) => worker.copies, number: true, title: "partitions of which it is a replica; in brackets: of which it is the head" },
  { name: "Actions" },
];

export class Workers {
  constructor(recorder, confirm) {
    this.recorder = recorder;
    this.confirm = confirm;
    this.column = 0;
    this.descending = false;
    this.allowed = false;
    this.why = "";
    this.document = null;
    this.rows = new Map();
    this.head();
    this.drawFaults = whenChanged((workers, allowed, why) => this.faults(workers, allowed, why));
    this.askWhatIsAllowed();
  }

  async askWhatIsAllowed() {
    try {
      const told = await askJson("GET", "/v1/faults");
      this.allowed = told.allowed;
      this.why = told.why;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.why = error.told;
    }
    if (this.document) this.update(this.document);
  }

  head() {
    this.headers = COLUMNS.map((column, index) => {
      const cell = h("th", { scope: "col", role: "columnheader", class: column.number ? "number" : null, title: column.title ?? null });
      if (column.of) cell.append(h("button", { type: "button", class: "sort", onclick: () => this.sort(index) }, column.name));
      else cell.append(column.name);
      return cell;
    });
    fill(byId("workers-head"), this.headers);
    this.sort(0, false);
  }

  sort(index, again = true) {
    this.descending = again && this.column === index ? !this.descending : Boolean(again && COLUMNS[index].number);
    this.column = index;
    this.headers.forEach((header, place) => {
      if (place === index) header.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
    if (this.document) this.update(this.document);
  }

  update(document) {
    this.document = document;
    const { of } = COLUMNS[this.column];
    const order = Object.values(document.workers).sort((one, other) => {
      const [a, b] = [of(one), of(other)];
      const difference = a < b ? -1 : a > b ? 1 : one.number - other.number;
      return this.descending ? -difference : difference;
    });
    say(byId("workers-count"), String(order.length));
    for (const id of [...this.rows.keys()]) if (!(id in document.workers)) this.rows.delete(id);
    const rows = order.flatMap((worker) => this.row(worker));
    const body = byId("workers-body");
    if (rows.length !== body.children.length || rows.some((row, index) => body.children[index] !== row)) fill(body, rows);
    this.drawFaults(
      order.map(({ id, number, address, state, process, pid, link }) => ({ id, number, address, state, process, pid, link })),
      this.allowed,
      this.why,
    );
  }

  /** A worker's rows, made once and changed in place, so that the focus and a click in progress stay. */
  row(worker) {
    let row = this.rows.get(worker.id);
    if (row === undefined) {
      row = this.makeRow(worker);
      this.rows.set(worker.id, row);
    }
    const { cells } = row;
    cells.state.className = `state state-${worker.state}`;
    say(cells.state, worker.state);
    say(cells.place, worker.place_word);
    say(cells.address, worker.address);
    cells.labels.className = "quiet";
    say(cells.labels, worker.labels_spelled);
    say(cells.keys, count(worker.keys));
    say(cells.bytes, bytes(worker.bytes));
    say(cells.rate, figure(worker.rate));
    say(cells.latency, worker.latency_ms ? `${figure(worker.latency_ms.p50)}, ${figure(worker.latency_ms.p99)} ms` : "–");
    say(cells.lag, worker.lag_s ? duration(worker.lag_s) : "none");
    say(cells.hints, count(worker.hints ?? 0));
    say(cells.copies, `${count(worker.copies)} (${count(worker.primaries)})`);
    const leaving = worker.place === "draining" || worker.place === "drained";
    cells.drain.hidden = leaving;
    cells.undrain.hidden = !leaving;
    row.main.classList.toggle("noted", worker.notes.length > 0);
    if (!worker.notes.length) return [row.main];
    row.note.className = `note tone-${worker.tone}`;
    const told = worker.notes.join("\n");
    if (row.told !== told) {
      row.told = told;
      fill(row.noteCell, worker.notes.map((note) => h("p", {}, note)));
    }
    return [row.main, row.note];
  }

  makeRow(worker) {
    const span = (name) => h("span", { class: name });
    const cells = Object.fromEntries(["state", "place", "address", "keys", "bytes", "rate", "latency", "lag", "hints", "copies", "labels"].map((name) => [name, span(name)]));
    const button = (text, act) => h("button", { type: "button", class: "small", "aria-label": `${text} ${worker.address}`, onclick: act }, text);
    cells.drain = button("Drain", () => this.drain(worker));
    cells.undrain = button("Undrain", () => this.change("POST", worker, "/undrain", { undrain: worker.number + 1 }));
    cells.remove = button("Remove", () => this.remove(worker));
    const data = (label, cell, number = false) => h("td", { role: "cell", "data-label": label, class: number ? "number" : null }, cell);
    const main = h(
      "tr",
      { role: "row", "data-worker": worker.id },
      h("th", { scope: "row", role: "rowheader" }, h("span", { class: `swatch ${colourOf(worker.number)}` }, String(worker.number + 1)), cells.address, worker.id === worker.address ? "" : h("code", { class: "quiet" }, worker.id), " ", cells.labels),
      data("State", cells.state),
      data("Place", cells.place),
      data("Keys", cells.keys, true),
      data("Stored", cells.bytes, true),
      data("Calls/s", cells.rate, true),
      data("Latency", cells.latency, true),
      data("Lag", cells.lag, true),
      data("Hints", cells.hints, true),
      data("Copies", cells.copies, true),
      h("td", { role: "cell", class: "actions" }, cells.drain, cells.undrain, cells.remove),
    );
    const noteCell = h("td", { role: "cell", colspan: COLUMNS.length });
    return { main, cells, noteCell, note: h("tr", { role: "row", class: "note" }, noteCell), told: "" };
  }

  // --- what an operator asks ---------------------------------------------------------------------------------------------

  async drain(worker) {
    const path = `/v1/workers/${encodeURIComponent(worker.id)}/drain`;
    let plan;
    try {
      plan = await askJson("POST", `${path}?dry_run=true`);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.tell(error.told, "poor");
      return;
    }
    const facts = Object.entries(plan)
      .filter(([, value]) => typeof value !== "object")
      .map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "number" ? count(value) : value}`);
    if (await this.confirm(`Empty ${worker.address}?`, ["Others take over what it holds. It serves until then, and may be stopped after that.", ...facts], "Drain")) {
      await this.change("POST", worker, "/drain", { drain: worker.number + 1 });
    }
  }

  async remove(worker) {
    const warning = "The cluster forgets this worker. That is refused while it holds what counts.";
    if (await this.confirm(`Remove ${worker.address}?`, [warning], "Remove")) await this.change("DELETE", worker, "");
  }

  async change(method, worker, rest, step) {
    if (step !== undefined) this.recorder.step(step);
    try {
      await askJson(method, `/v1/workers/${encodeURIComponent(worker.id)}${rest}`);
      this.tell(`Done: ${method === "DELETE" ? "remove" : rest.slice(1)} ${worker.address}.`, "good");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.tell(error.told, "poor");
    }
  }

  tell(text, tone) {
    const place = byId("workers-outcome");
    place.className = `tone-${tone} told`;
    say(place, text);
  }

  // --- what is broken on purpose -------------------------------------------------------------------------------------------

  faults(workers, allowed, why) {
    byId("break-allowed").hidden = !allowed;
    byId("break-refused").hidden = allowed;
    say(byId("break-why"), why);
    if (!allowed) return;
    const focused = document.activeElement?.dataset?.fault;
    const rows = workers
      .sort((one, other) => one.number - other.number)
      .map((worker) => {
        const ours = worker.process !== undefined && worker.process !== null && worker.process !== "foreign";
        const button = (kind, text, usable = true) =>
          h(
            "button",
            { type: "button", class: "small", disabled: !usable, "data-fault": `${kind} ${worker.id}`, "aria-label": `${text} ${worker.address}`, onclick: () => this.inject(kind, worker) },
            text,
          );
        const running = worker.process === "running";
        return h(
          "li",
          { class: "victim" },
          h("span", { class: `swatch ${colourOf(worker.number)}` }, String(worker.number + 1)),
          h("span", { class: "victim-name" }, worker.address),
          h("span", { class: "quiet" }, ours ? `process ${worker.process}${worker.pid ? ` (${worker.pid})` : ""}` : "its process is not the master's", worker.link && worker.link !== "whole" ? `, link ${worker.link}` : ""),
          h(
            "span",
            { class: "buttons" },
            worker.process === "paused" ? button("resume", "Resume") : button("pause", "Pause", ours && running),
            worker.process === "gone" ? button("start", "Start") : button("kill", "Kill", ours),
            button("cut", "Cut link", worker.link !== "cut"),
            button("slow", `Slow ${DELAY_MS} ms`, worker.link !== "slow"),
            button("mend", "Mend link", Boolean(worker.link) && worker.link !== "whole"),
          ),
        );
      });
    fill(byId("victims"), rows);
    if (focused) {
      const usable = [...byId("victims").querySelectorAll("button:not(:disabled)")];
      const worker = focused.slice(focused.indexOf(" "));
      (usable.find((button) => button.dataset.fault === focused) ?? usable.find((button) => button.dataset.fault.endsWith(worker)))?.focus();
    }
  }

  async inject(kind, worker) {
    const body = { kind, worker: worker.id };
    if (kind === "slow") body.delay_ms = DELAY_MS;
    try {
      await askJson("POST", "/v1/faults", body);
      this.recorder.fault(kind, worker.id, DELAY_MS);
      say(byId("break-outcome"), `${kind} ${worker.address}: done. Watch what the mode does with requests now.`);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(byId("break-outcome"), error.told);
    }
  }
}
