// The mode: what it promises in the strategy's own words, what it gives up, what the probe measured, and the switch.
//
// A switch is planned by the server first (`PUT /v1/mode?plan=true`), and begun only after the reader has seen the plan
// and confirmed it. Its progress comes with the state of the cluster, and its certificate is the server's answer.

import { ask, askJson, Problem } from "./api.js";
import { byId, count, duration, figure, fill, h, say, whenChanged } from "./dom.js";

export class Modes {
  constructor(recorder, confirm) {
    this.recorder = recorder;
    this.confirm = confirm;
    this.drawMode = whenChanged((mode, words) => this.mode(mode, words));
    this.drawOthers = whenChanged((modes, now) => this.others(modes, now));
    this.drawProbe = whenChanged((probe, promise) => this.probe(probe, promise));
    this.violations = -1;
  }

  update(document) {
    const { state, words } = document;
    const mode = state.modes.find((one) => one.name === state.mode) ?? {};
    this.drawMode({ ...mode, promise: state.promise, name: state.mode }, { ...words.promise, copies: words.copies, needs: words.needs });
    this.drawOthers(state.modes, state.mode);
    this.drawProbe(state.probe ?? null, state.promise);
  }

  mode(mode, words) {
    fill(byId("mode-name"), mode.name, " ", h("span", { class: "badge" }, mode.promise, h("span", { class: "badge-word" }, words.word)));
    say(byId("mode-copies"), `A committed write is on ${words.copies}. ${words.needs}`);
    const rows = [
      ["Promises", words.meaning],
      ["Gives up", mode.gives_up],
      ["Use it when", mode.use_when],
      ["How it works", mode.protocol],
    ];
    fill(
      byId("mode-words"),
      rows.filter(([, text]) => text).map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))),
    );
  }

  others(modes, now) {
    const choices = modes.map((mode) =>
      h(
        "button",
        { type: "button", class: "choice", "aria-pressed": String(mode.name === now), disabled: mode.name === now, onclick: () => this.plan(mode) },
        h("span", { class: "choice-name" }, mode.name),
        h("span", { class: `badge badge-${mode.promise}` }, mode.promise),
      ),
    );
    const focused = byId("mode-choices").contains(document.activeElement);
    fill(byId("mode-choices"), choices);
    if (focused) choices.find((choice) => !choice.disabled)?.focus();
  }

  async plan(mode) {
    let plan;
    try {
      plan = await askJson("PUT", "/v1/mode?plan=true", { mode: mode.name });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(byId("mode-outcome"), error.told);
      return;
    }
    const facts = [`${count(plan.partitions)} partitions are settled under ${plan.mode}, and every key can be read and written meanwhile.`];
    if (plan.cannot_ask.length) facts.push(`Workers that cannot be asked what they hold: ${plan.cannot_ask.join(", ")}.`);
    const agreed = await this.confirm(`Switch from ${plan.from} to ${plan.mode}?`, [...facts, mode.use_when, ...plan.notes], `Switch to ${plan.mode}`);
    if (agreed) await this.switchTo(mode.name);
  }

  async switchTo(name) {
    this.recorder.step({ switch: name });
    say(byId("mode-outcome"), `Switching to ${name} …`);
    try {
      const certificate = await (
        await ask("PUT", "/v1/mode", { body: JSON.stringify({ mode: name }), headers: { "content-type": "application/json" } })
      ).json();
      fill(byId("mode-outcome"), ...this.certificate(certificate));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(byId("mode-outcome"), `The switch to ${name} is ${error.outcome}: ${error.told}`);
    }
  }

  certificate(certificate) {
    if (certificate.epochs === undefined) return [h("p", {}, `${certificate.mode} was in force already.`)];
    const facts = [
      ["from, to", `${certificate.from}, ${certificate.mode} (${certificate.promise})`],
      ["epochs", `${certificate.epochs.first} to ${certificate.epochs.last}`],
      ["took", duration(certificate.duration_s)],
      ["longest request meanwhile", duration(certificate.longest_pause_s)],
      ["keys compared, repaired, moved", [certificate.keys_compared, certificate.keys_repaired, certificate.keys_moved].map(count).join(", ")],
      ["could not be asked", certificate.could_not_ask.join(", ") || "none"],
    ];
    return [
      h("p", { class: "certificate-title" }, `Certificate: mode ${certificate.mode} is in force, and all is settled under it.`),
      h("dl", { class: "certificate" }, facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))),
    ];
  }

  // --- what was measured ------------------------------------------------------------------------------------------------

  probe(probe, promise) {
    const place = byId("probe");
    place.hidden = probe === null || !probe.enabled;
    if (place.hidden) return;
    const verdicts = { kept: "kept", broken: "broken", measuring: "not enough is known yet" };
    const badge = byId("probe-verdict");
    say(badge, verdicts[probe.verdict] ?? probe.verdict);
    badge.className = `verdict verdict-${probe.verdict}`;
    this.drawNumbers(probe, promise);
    if (probe.violations !== this.violations) {
      this.violations = probe.violations;
      this.listViolations();
    } else if (!this.timer) {
      this.timer = setTimeout(() => this.refresh(), 3000);
    }
  }

  drawNumbers(probe, promise) {
    const stale = probe.stale ?? {};
    const reads = typeof stale === "number" ? stale : (stale.reads ?? probe.stale_reads ?? 0);
    const facts = [
      ["operations checked", count(probe.operations)],
      ["violations", count(probe.violations)],
      ["stale reads", count(reads) + (promise === "AP" ? " (allowed)" : "")],
      ["refused", count(probe.refused)],
      ["unknown", count(probe.unknown)],
    ];
    if (stale.worst_ms !== undefined && reads) {
      facts.splice(3, 0, ["stalest read", `${figure(stale.worst_ms)} ms, ${count(stale.worst_versions)} versions`]);
    }
    fill(
      byId("probe-numbers"),
      facts.filter(([, text]) => text !== "unknown").map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))),
    );
  }

  /** What the state of the cluster leaves out comes from the probe itself. */
  async refresh() {
    this.timer = null;
    try {
      const probe = await askJson("GET", "/v1/probe");
      this.drawNumbers({ ...probe, violations: probe.violation_count }, probe.promise);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    }
  }

  async listViolations() {
    if (!this.violations) {
      fill(byId("probe-violations"));
      return;
    }
    try {
      const probe = await askJson("GET", "/v1/probe");
      const told = probe.violations.map((one) =>
        h(
          "li",
          {},
          h("p", {}, h("strong", {}, one.rule), `: ${one.told}`),
          one.operations
            .filter((operation) => operation.trace !== null)
            .map((operation) => h("button", { type: "button", class: "small", "data-trace": operation.trace }, `trace of the ${operation.what} of ${operation.value ?? "nothing"}`)),
        ),
      );
      fill(byId("probe-violations"), told);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    }
  }
}
