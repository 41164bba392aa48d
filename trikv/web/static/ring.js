// The ring: where workers and keys lie on the hash space, which partition is whose, and what moves just now.
//
// The hash space runs clockwise from the top. The ticks on the outside are the workers' tokens. The bands are the
// replicas of each partition: the head (first choice) outside, the tail inside. A partition that is not settled is
// marked on the innermost band. All of it is what the server says; nothing is computed here but angles.

import { ask, locatePath, Problem } from "./api.js";
import { byId, count, figure, fill, h, s, say, whenChanged } from "./dom.js";

const SPACE = 2 ** 32;
const MIDDLE = 320;
const TOKENS = [300, 314];
const BANDS = [292, 196]; // from the outside of the first replica's band to the inside of the last one's
const GAP = 5;
const UNSETTLED = [188, 180];
const COLOURS = 12;

export function colourOf(number) {
  return `w${number % COLOURS}`;
}

function point(radius, share) {
  const angle = 2 * Math.PI * share - Math.PI / 2;
  return `${(MIDDLE + radius * Math.cos(angle)).toFixed(2)} ${(MIDDLE + radius * Math.sin(angle)).toFixed(2)}`;
}

/** The outline of a piece of a band, from one share of the circle to another. */
function sector([outer, inner], from, to) {
  if (to - from >= 1) return sector([outer, inner], from, from + 0.5) + sector([outer, inner], from + 0.5, from + 0.99999);
  const large = to - from > 0.5 ? 1 : 0;
  return (
    `M${point(outer, from)}A${outer} ${outer} 0 ${large} 1 ${point(outer, to)}` +
    `L${point(inner, to)}A${inner} ${inner} 0 ${large} 0 ${point(inner, from)}Z`
  );
}

function bandOf(replica, replicas) {
  const width = (BANDS[0] - BANDS[1] - GAP * (replicas - 1)) / replicas;
  const outer = BANDS[0] - replica * (width + GAP);
  return [outer, outer - width];
}

/** The configurations of a partition as the server spells them: `2,0,1>2,0,4` is one that is not settled yet. */
export function configurations(spelt) {
  return spelt.split(">").map((one) => one.split(",").map(Number));
}

export class Ring {
  constructor() {
    this.state = null;
    this.byNumber = new Map();
    this.partitions = [];
    this.highlighted = null;
    this.located = null;
    this.svg = byId("ring-picture");
    this.layers = Object.fromEntries(["bands", "unsettled", "tokens", "cursor", "key"].map((name) => [name, s("g", { class: name })]));
    this.title = s("text", { x: MIDDLE, y: MIDDLE - 12, class: "ring-title" });
    this.subtitle = s("text", { x: MIDDLE, y: MIDDLE + 16, class: "ring-subtitle" });
    this.note = s("text", { x: MIDDLE, y: MIDDLE + 40, class: "ring-note" });
    this.svg.append(...Object.values(this.layers), this.title, this.subtitle, this.note);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    this.walk = byId("ring-walk");
    this.walk.addEventListener("input", () => this.show(Number(this.walk.value)));
    byId("ring-locate").addEventListener("submit", (event) => {
      event.preventDefault();
      this.locate(byId("ring-key").value);
    });
    this.drawTokens = whenChanged((ring, numbers) => this.tokens(ring, numbers));
    this.drawBands = whenChanged((partitions) => this.bands(partitions));
    this.drawLegend = whenChanged((workers) => this.legend(workers));
  }

  update(document) {
    this.state = document.state;
    this.workers = document.workers;
    this.byNumber = new Map(Object.values(document.workers).map((worker) => [worker.number, worker]));
    const numbers = Object.fromEntries(Object.entries(document.workers).map(([id, worker]) => [id, worker.number]));
    this.drawTokens(document.ring, numbers);
    this.drawBands(document.partitions);
    this.drawLegend(
      Object.values(document.workers).map(({ number, id, address, state, primaries, copies, rate }) => ({ number, id, address, state, primaries, copies, rate })),
    );
    const unsettled = document.state.unsettled;
    say(this.title, `${count(Object.keys(document.workers).length)} workers`);
    say(this.subtitle, `${count(document.state.partitions.total)} partitions, ${document.state.replicas} copies`);
    say(this.note, unsettled ? `${count(unsettled)} are being settled` : "all are settled");
    this.note.classList.toggle("busy", unsettled > 0);
  }

  // --- drawing ---------------------------------------------------------------------------------------------------------

  tokens(ring, numbers) {
    const ticks = Object.entries(ring).flatMap(([worker, tokens]) =>
      tokens.map((token) =>
        s("path", {
          class: `token ${colourOf(numbers[worker])}`,
          d: `M${point(TOKENS[0], token / SPACE)}L${point(TOKENS[1], token / SPACE)}`,
          "data-token": token,
          "data-worker": worker,
        }),
      ),
    );
    this.layers.tokens.replaceChildren(...ticks);
  }

  /** One path for each worker and band: neighbours of one owner are one piece. */
  bands(partitions) {
    const total = Object.keys(partitions).length;
    this.partitions = Array.from({ length: total }, (_, index) => configurations(partitions[index]));
    const replicas = Math.max(1, ...this.partitions.map((one) => one.at(-1).length));
    const outlines = new Map();
    for (let replica = 0; replica < replicas; replica += 1) {
      const band = bandOf(replica, replicas);
      let begin = 0;
      for (let index = 1; index <= total; index += 1) {
        const owner = this.partitions[begin].at(-1)[replica];
        if (index < total && this.partitions[index].at(-1)[replica] === owner) continue;
        if (owner !== undefined) {
          const place = `${replica} ${owner}`;
          outlines.set(place, (outlines.get(place) || "") + sector(band, begin / total, index / total));
        }
        begin = index;
      }
    }
    const paths = [...outlines].map(([place, d]) => {
      const [replica, owner] = place.split(" ").map(Number);
      return s("path", { class: `band ${colourOf(owner)}`, d, "data-owner": owner, "data-replica": replica });
    });
    this.layers.bands.replaceChildren(...paths);
    let busy = "";
    this.partitions.forEach((one, index) => {
      if (one.length > 1) busy += sector(UNSETTLED, index / total, (index + 1) / total);
    });
    this.layers.unsettled.replaceChildren(...(busy ? [s("path", { class: "busy", d: busy })] : []));
    this.walk.max = Math.max(0, total - 1);
    this.highlight(this.highlighted);
  }

  legend(workers) {
    const buttons = workers
      .sort((one, other) => one.number - other.number)
      .map((worker) => {
        const share = this.share(worker);
        const told = `${worker.address}, ${worker.state}: head of ${count(worker.primaries)}, copies of ${count(worker.copies)} partitions (${share}), ${figure(worker.rate)} calls a second`;
        const highlight = () => this.highlight(worker.number);
        const leave = () => this.highlight(null);
        return h(
          "li",
          {},
          h(
            "button",
            { type: "button", class: "owner", "aria-label": told, title: told, onpointerenter: highlight, onpointerleave: leave, onfocus: highlight, onblur: leave },
            h("span", { class: `swatch ${colourOf(worker.number)}` }, String(worker.number + 1)),
            h("span", { class: "owner-name" }, worker.address),
            h("span", { class: "quiet" }, worker.state === "up" ? share : worker.state),
          ),
        );
      });
    const focused = document.activeElement?.closest?.("#ring-legend li");
    const index = focused ? [...byId("ring-legend").children].indexOf(focused) : -1;
    fill(byId("ring-legend"), buttons);
    if (index >= 0) byId("ring-legend").children[index]?.querySelector("button").focus();
  }

  share(worker) {
    const all = this.state ? this.state.partitions.total * this.state.replicas : 0;
    return all ? `${Math.round((100 * worker.copies) / all)} %` : "0 %";
  }

  highlight(number) {
    this.highlighted = number;
    this.svg.classList.toggle("highlighting", number !== null);
    for (const path of this.layers.bands.children) path.classList.toggle("lit", Number(path.dataset.owner) === number);
    const id = this.byNumber.get(number)?.id;
    for (const path of this.layers.tokens.children) path.classList.toggle("lit", path.dataset.worker === id);
  }

  // --- one partition ---------------------------------------------------------------------------------------------------

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 2 * MIDDLE - MIDDLE;
    const y = ((event.clientY - box.top) / box.height) * 2 * MIDDLE - MIDDLE;
    const radius = Math.hypot(x, y);
    if (!this.partitions.length || radius < UNSETTLED[1] || radius > TOKENS[1]) {
      this.show(null);
      return;
    }
    const share = (Math.atan2(y, x) / (2 * Math.PI) + 1.25) % 1;
    this.show(Math.min(this.partitions.length - 1, Math.floor(share * this.partitions.length)));
  }

  /** Tell of one partition; null: of none. */
  show(index) {
    if (index === null || !this.partitions.length) {
      this.layers.cursor.replaceChildren();
      if (this.located === null) say(byId("ring-detail"), "");
      return;
    }
    const total = this.partitions.length;
    this.layers.cursor.replaceChildren(s("path", { d: sector([BANDS[0] + 3, UNSETTLED[1]], index / total, (index + 1) / total) }));
    this.located = null;
    const [from, to] = [index, index + 1].map((place) => Math.ceil((place * SPACE) / total));
    const range = `${hex(from)} to ${hex(to - 1)}`;
    this.walk.value = index;
    this.walk.setAttribute("aria-valuetext", `partition ${index}`);
    say(byId("ring-detail"), `Partition ${count(index)}, hashes ${range}: ${this.tellReplicas(this.partitions[index])}`);
  }

  tellReplicas(one) {
    const names = (numbers) =>
      numbers
        .map((number, place) => {
          const worker = this.byNumber.get(number);
          const role = place === 0 ? " (head)" : place === numbers.length - 1 ? " (tail)" : "";
          return `${worker ? worker.address : "a worker that left"}${role}${worker && worker.state !== "up" ? `, ${worker.state}` : ""}`;
        })
        .join(" → ");
    const active = names(one.at(-1));
    return one.length > 1 ? `being settled, from ${names(one[0])} to ${active}` : active;
  }

  // --- one key ---------------------------------------------------------------------------------------------------------

  async locate(key) {
    try {
      this.mark(key, await (await ask("GET", locatePath(key))).json());
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(byId("ring-detail"), error.told);
    }
  }

  /** Show where the key lies, as `GET /v1/locate` answered. */
  mark(key, found) {
    const share = found.hash / SPACE;
    this.located = key;
    const total = this.partitions.length || 1;
    this.layers.cursor.replaceChildren(s("path", { d: sector([BANDS[0] + 3, UNSETTLED[1]], found.partition / total, (found.partition + 1) / total) }));
    this.layers.key.replaceChildren(
      s("path", { class: "key-line", d: `M${point(TOKENS[1] + 2, share)}L${point(UNSETTLED[1] - 4, share)}` }),
      s("circle", { class: "key-dot", cx: point(UNSETTLED[1] - 12, share).split(" ")[0], cy: point(UNSETTLED[1] - 12, share).split(" ")[1], r: 7, "data-hash": found.hash }),
    );
    const order = found.replicas.map((replica, place) => {
      const role = place === 0 ? "head" : place === found.replicas.length - 1 ? "tail" : "then";
      const number = this.workers?.[replica.id]?.number ?? 0;
      return h(
        "li",
        {},
        h("span", { class: `swatch ${colourOf(number)}` }, String(number + 1)),
        h("span", {}, replica.address),
        h("span", { class: "quiet" }, replica.state === "up" ? role : `${role}, ${replica.state}`),
      );
    });
    fill(
      byId("ring-detail"),
      h("p", {}, h("code", { class: "key" }, key), ` has the hash ${hex(found.hash)}, so it lies in partition ${count(found.partition)}.`),
      h("ol", { class: "preference", "aria-label": "Preference list" }, order),
    );
  }
}

function hex(number) {
  return `0x${number.toString(16).padStart(8, "0")}`;
}
