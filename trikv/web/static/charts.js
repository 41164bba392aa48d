// The last quarter of an hour, a sample a second: `GET /v1/history` once, and each new sample from the live stream.
//
// uPlot draws; it is kept in `vendor/` with its licence. Under each chart its latest figures stand as text.

import { askJson, Problem } from "./api.js";
import { byId, count, figure, fill, h } from "./dom.js";
import uPlot from "./vendor/uPlot.esm.js";

const KEPT = 900;
const HEIGHT = 150;
const CHARTS = [
  { id: "throughput", title: "Throughput", unit: "operations a second", series: [["reads", "reads", "--line-1"], ["writes", "writes", "--line-2"]] },
  { id: "outcomes", title: "Not committed", unit: "operations a second", series: [["refused", "refused", "--line-3"], ["unknown", "unknown", "--line-4"]] },
  { id: "latency", title: "Latency", unit: "milliseconds", series: [["p50_ms", "median", "--line-1"], ["p95_ms", "95 %", "--line-2"], ["p99_ms", "99 %", "--line-3"]] },
  { id: "keys", title: "Copies of keys", unit: "on all workers", series: [["keys", "copies", "--line-1"]] },
  { id: "workers", title: "Workers", unit: "", series: [["workers", "enlisted", "--line-2"], ["workers_up", "up", "--line-1"]] },
];
const LOAD = { id: "load", title: "Use of the workers' capacity", unit: "", percent: true, series: [["use", "use", "--line-1"], ["hottest", "hottest key's share", "--line-3"]] };

export class Charts {
  constructor() {
    this.columns = {};
    this.charts = [];
    this.lastS = -1;
    this.ready = this.load();
    const redraw = () => this.rebuild();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new ResizeObserver(() => this.resize()).observe(byId("charts"));
  }

  async load() {
    try {
      this.columns = (await askJson("GET", "/v1/history")).columns;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    }
    this.lastS = this.columns.time_s?.at(-1) ?? -1;
    this.rebuild();
  }

  /** Another master, or a stream that was lost for long: what there is here may have a hole. */
  async begin() {
    await this.load();
  }

  update(document) {
    const sample = document.sample;
    if (!sample || sample.time_s === this.lastS) return;
    if (sample.time_s < this.lastS) {
      this.begin(); // the master started again, and its time with it
      return;
    }
    this.lastS = sample.time_s;
    const length = this.columns.time_s?.length ?? 0;
    for (const name of new Set([...Object.keys(this.columns), ...Object.keys(sample)])) {
      const column = (this.columns[name] ??= Array(length).fill(null));
      column.push(sample[name] ?? null);
      if (column.length > KEPT) column.splice(0, column.length - KEPT);
    }
    if (!this.charts.length) this.rebuild();
    else for (const chart of this.charts) this.draw(chart);
  }

  rebuild() {
    for (const chart of this.charts) chart.plot.destroy();
    const place = byId("charts");
    place.replaceChildren();
    this.charts = [...CHARTS.map((one) => this.make(one, place)), this.make(LOAD, byId("scaling-chart"), true)];
    for (const chart of this.charts) this.draw(chart);
  }

  make(spec, place, alone = false) {
    if (alone) place.replaceChildren();
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const figureBox = h("figure", { class: "chart", "data-chart": spec.id });
    const latest = h("p", { class: "chart-latest" });
    const canvas = h("div", { class: "chart-canvas", "aria-hidden": "true" });
    figureBox.append(h("figcaption", {}, h("strong", {}, spec.title), spec.unit ? h("span", { class: "quiet" }, ` ${spec.unit}`) : ""), canvas, latest);
    place.append(figureBox);
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px sans-serif" };
    const plot = new uPlot(
      {
        width: Math.max(200, canvas.clientWidth),
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, spec.percent ? 1 : 1) * 1.05] } },
        axes: [
          { ...axis, size: 24, values: (_, ticks) => ticks.map((tick) => ago(tick - this.lastS)) },
          { ...axis, size: 48, values: (_, ticks) => ticks.map((tick) => (spec.percent ? `${Math.round(100 * tick)} %` : short(tick))) },
        ],
        series: [{}, ...spec.series.map(([, label, line]) => ({ label, stroke: colour(line), width: 2, points: { show: false }, spanGaps: false }))],
      },
      [[], ...spec.series.map(() => [])],
      canvas,
    );
    return { spec, plot, canvas, latest };
  }

  draw({ spec, plot, latest }) {
    const times = this.columns.time_s ?? [];
    plot.setData([times, ...spec.series.map(([name]) => this.columns[name] ?? times.map(() => null))]);
    const now = spec.series.map(([name, label, line]) => {
      const value = this.columns[name]?.at(-1);
      const told = spec.percent ? (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`) : name === "keys" ? count(value) : figure(value);
      return h("span", {}, h("span", { class: `dash ${line.slice(2)}` }), `${label} `, h("strong", {}, told));
    });
    fill(latest, now);
  }

  resize() {
    for (const { plot, canvas } of this.charts) {
      const width = Math.max(200, canvas.clientWidth);
      if (Math.abs(width - plot.width) > 1) plot.setSize({ width, height: HEIGHT });
    }
  }
}

function ago(seconds) {
  const whole = Math.round(seconds);
  if (whole === 0) return "now";
  return whole % 60 === 0 ? `${whole / 60} min` : `${whole} s`;
}

function short(number) {
  if (number >= 1e6) return `${number / 1e6} M`;
  if (number >= 1e3) return `${number / 1e3} k`;
  return String(number);
}
