// The live page. Without this file the page shows the state as it was when it was loaded; with it, what is here is kept
// up to date from one stream (`live.js`), and each part of the page is drawn by a file of its own.

import { Charts } from "./charts.js";
import { byId, count, duration, fill, h, say, whenChanged } from "./dom.js";
import { follow } from "./live.js";
import { Modes } from "./modes.js";
import { Recorder } from "./recorder.js";
import { Requests } from "./requests.js";
import { Ring } from "./ring.js";
import { Workers } from "./workers.js";

/** Ask before something is begun. Answers true if the reader agrees. */
function confirm(title, sentences, verb) {
  const dialog = byId("confirm");
  say(byId("confirm-title"), title);
  fill(byId("confirm-facts"), sentences.filter(Boolean).map((sentence) => h("li", {}, sentence)));
  say(byId("confirm-yes"), verb);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

const recorder = new Recorder(() => {
  const steps = recorder.steps.length;
  say(byId("recorded"), `${count(steps)} ${steps === 1 ? "step" : "steps"} so far${recorder.left ? `; ${count(recorder.left)} more were not kept` : ""}.`);
  byId("record-save").disabled = steps === 0;
});
const ring = new Ring();
const requests = new Requests(ring, recorder);
const modes = new Modes(recorder, confirm);
const workers = new Workers(recorder, confirm);
const charts = new Charts();

byId("record-save").addEventListener("click", () => {
  const file = new Blob([`${JSON.stringify(recorder.document(), null, 1)}\n`], { type: "application/json" });
  const address = URL.createObjectURL(file);
  h("a", { href: address, download: "trikv-schedule.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
  say(byId("record-command"), `trikv certify ${recorder.document().mode} --schedule trikv-schedule.json`);
});
byId("record-again").addEventListener("click", () => {
  recorder.steps = [];
  recorder.beganMs = null;
  recorder.left = 0;
  recorder.onChange();
});
document.addEventListener("click", (event) => {
  const id = event.target.closest?.("[data-trace]")?.dataset.trace;
  if (id !== undefined && event.target.closest("button")) requests.look(id);
});

const drawHealth = whenChanged((health) => {
  const title = byId("health");
  say(title, health.word);
  title.className = `tone-${health.tone}`;
  say(byId("health-detail"), health.detail);
});
const drawProgress = whenChanged((progress) => {
  const place = byId("progress");
  place.hidden = !progress;
  if (!progress) return;
  say(byId("progress-what"), progress.what[0].toUpperCase() + progress.what.slice(1));
  say(byId("progress-left"), `${count(progress.left)} of ${count(progress.total)} partitions are left${progress.time_left ? `, for about ${progress.time_left}` : ""}; ${progress.done} since this master started.`);
  const bar = byId("progress-bar");
  bar.max = progress.total;
  bar.value = progress.total - progress.left;
});
const drawForming = whenChanged((forming) => {
  byId("forming").hidden = !forming;
  if (forming) say(byId("forming-detail"), forming.detail);
});
const drawCounts = whenChanged((operations, open) => {
  for (const [name, number] of Object.entries({ ...operations, ...open })) {
    const place = byId(`count-${name}`);
    if (place) say(place, count(number));
  }
});
const drawPartitions = whenChanged((partitions) => {
  for (const name of ["readable", "writable", "settled"]) {
    const bar = byId(`bar-${name}`);
    if (!bar) continue;
    bar.max = partitions.total;
    bar.value = partitions[name];
    say(byId(`bar-count-${name}`), `${count(partitions[name])} of ${count(partitions.total)}`);
    bar.closest("li").className = `tone-${partitions[name] === partitions.total ? "good" : partitions[name] === 0 || name === "readable" ? "poor" : "fair"}`;
  }
});
const drawEvents = whenChanged((events, uptimeS) => {
  const entries = events.map((event) =>
    h(
      "li",
      { class: `tone-${event.tone}` },
      h("span", { class: "when" }, h("time", { datetime: event.at || null }, `${duration(Math.max(0, uptimeS - event.time_s))} ago`)),
      h("span", {}, event.told),
    ),
  );
  if (entries.length) fill(byId("events-list"), entries);
});
const drawScaling = whenChanged((scaling, workerCount) => {
  byId("scaling").hidden = !scaling;
  if (!scaling) return;
  say(byId("scaling-range"), `${scaling.fewest} to ${scaling.most} workers; there are ${workerCount}`);
  const limits = [];
  if (scaling.max_load !== null && scaling.max_load !== undefined) limits.push(`${count(scaling.max_load)} requests a second`);
  if (scaling.max_keys !== null && scaling.max_keys !== undefined) limits.push(`${count(scaling.max_keys)} keys`);
  say(byId("scaling-limits"), limits.length ? `A worker can take ${limits.join(" and ")}. One is added above 80 %, and one is taken away when the rest would stay below 50 %.` : "");
  byId("scaling-use").value = Math.min(1, scaling.use);
  say(byId("scaling-share"), `${Math.round(100 * scaling.use)} %`);
  say(byId("scaling-why"), `${{ add: "Adding a worker", remove: "Taking a worker away", wait: "Waiting" }[scaling.action] ?? scaling.action}: ${scaling.why}.`);
});

const drawMasters = whenChanged((masters, store) => {
  byId("masters").hidden = masters.length === 0;
  say(byId("masters-count"), String(masters.length));
  say(byId("masters-store"), store);
  fill(
    byId("masters-list"),
    masters.map((master) =>
      h(
        "li",
        {},
        h("span", { class: `state ${master.tone === "good" ? "state-up" : "state-unknown"}` }, master.role),
        " ",
        h("a", { class: "address", href: `http://${master.http}/` }, master.http),
        " ",
        h("span", { class: "quiet" }, master.note),
      ),
    ),
  );
});

let known = "";

follow(
  (document) => {
    const { state, words } = document;
    if (known && known !== `${state.cluster} ${state.term}`) charts.begin();
    known = `${state.cluster} ${state.term}`;
    drawHealth(words.health);
    drawProgress(words.progress ?? null);
    drawForming(state.forming ?? null);
    drawCounts(state.operations, { in_flight: state.in_flight, pending: state.pending });
    drawPartitions(state.partitions);
    drawEvents(words.events, Math.floor(state.uptime_s / 5) * 5);
    drawMasters(words.masters ?? [], words.config_store ?? "");
    drawScaling(state.autoscale ?? null, Object.keys(document.workers).length);
    say(byId("uptime"), duration(state.uptime_s));
    say(byId("term"), String(state.term));
    globalThis.document.title = `${words.health.word} · ${state.mode} · trikv`;
    recorder.update(document);
    ring.update(document);
    modes.update(document);
    workers.update(document);
    charts.update(document);
  },
  (link) => {
    const place = byId("link");
    place.className = `link link-${link}`;
    say(place, link === "live" ? "live" : "connection lost: what you see is old; trying again");
    document.documentElement.classList.toggle("is-stale", link !== "live");
    if (link === "live" && !document.documentElement.classList.contains("is-live")) document.documentElement.classList.add("is-live");
  },
);
