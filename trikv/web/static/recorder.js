// What was done on this page since it was opened, requests and faults, kept as a schedule that can be played again:
//
//     trikv certify quorum --schedule trikv-schedule.json
//
// Times are seconds since the first step. Workers are numbered from 1, as on the ring.

const STEPS_MAX = 1000;

export class Recorder {
  constructor(onChange) {
    this.steps = [];
    this.beganMs = null;
    this.state = null;
    this.workers = {};
    this.mode = null;
    this.left = 0;
    this.onChange = onChange;
  }

  update(document) {
    this.state = document.state;
    this.workers = document.workers;
    this.mode ??= document.state.mode;
    this.atFirst ??= Object.keys(document.workers).length;
  }

  step(fields) {
    if (this.steps.length >= STEPS_MAX) {
      this.left += 1;
      return null;
    }
    if (this.beganMs === null) {
      this.beganMs = performance.now();
      this.mode = this.state?.mode ?? this.mode;
    }
    const step = { at_s: Math.round(performance.now() - this.beganMs) / 1000, ...fields };
    this.steps.push(step);
    this.onChange();
    return step;
  }

  /** The server could make nothing of that request, so there is nothing to play again. */
  forget(step) {
    this.steps = this.steps.filter((other) => other !== step);
    this.onChange();
  }

  request({ kind, key, value, expect }, etag) {
    const fields = { request: kind, key };
    if (value !== null) fields.value = value;
    if (expect !== undefined) fields.expect = expect === "absent" ? "absent" : expect === etag ? "etag-of-last-read" : "another-etag";
    return this.step(fields);
  }

  fault(kind, workerId, delayMs) {
    const worker = (this.workers[workerId]?.number ?? 0) + 1;
    const ends = { resume: "pause", start: "kill" };
    if (ends[kind]) this.step({ end: ends[kind], worker });
    else if (kind === "mend") this.step({ end: this.linkFault?.[workerId] ?? "cut", worker });
    else this.step({ fault: kind, worker, ...(kind === "slow" ? { delay_ms: delayMs } : {}) });
    if (kind === "cut" || kind === "slow") this.linkFault = { ...this.linkFault, [workerId]: kind };
  }

  document() {
    const named = this.steps.flatMap(({ worker, drain, undrain }) => worker ?? drain ?? undrain ?? []);
    const count = Math.max(this.atFirst ?? 1, ...named);
    const ids = new Array(count).fill(null);
    for (const [id, { number }] of Object.entries(this.workers)) if (number < count) ids[number] = id;
    return {
      trikv_schedule: 1,
      workers: ids.includes(null) ? count : ids, // with their ids, keys lie where they lie here
      replicas: this.state?.replicas ?? 3,
      mode: this.mode ?? "quorum",
      steps: this.steps,
    };
  }
}
