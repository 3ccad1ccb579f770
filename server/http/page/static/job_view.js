// `showJob` follows one job: its curve, samples and notices, and what can be done with it.

import { bytes, count, decimals, duration, time, word } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { errorBox, isAborted } from "./errors.js";
import { stream, unary } from "./connect.js";
import { button, linkButton, stats } from "./forms.js";
import { badge, howFar, Progress } from "./jobs_view.js";
import { confirm } from "./dialogs.js";
import { Curve } from "./curve.js";
import { CurveChart } from "./chart.js";
import { follow, sleep } from "./connection.js";
import { settingsList } from "./settings_list.js";

const MOST_SAMPLES = 5;
const PAUSE_S = 2;
const FINAL = ["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"];

/** Shows the view until it is left. */
export async function showJob({ body, heading, below, tools, id, signal, setTitle }) {
  const view = new JobView(body, heading, below, tools, id, signal);
  const { job } = await follow((answered) => described(id, signal, answered), signal);
  setTitle(`${job.model}, job`);
  view.begin(job);
  await view.watch();
}

async function described(id, signal, answered) {
  const reply = await unary("GetJob", { job: id }, signal);
  answered();
  return reply;
}

class JobView {
  constructor(body, heading, below, tools, id, signal) {
    Object.assign(this, { body, heading, below, tools, id, signal });
    this.last = 0;
    this.curve = new Curve();
    this.chart = new CurveChart(this.curve);
    this.progress = new Progress();
    this.state = h("span", { class: "beside-heading" });
    this.figures = h("div");
    this.reason = h("p", { class: "reason" });
    this.samples = h("div", { class: "samples" });
    this.notices = h("ul", { class: "notices" });
    this.noticesCard = h("section", { class: "card" }, h("h2", {}, "Notices"), this.notices);
    this.settings = h("div");
    this.fault = h("div");
    this.sampleTexts = [];
    signal.addEventListener("abort", () => this.chart.close());
  }

  begin(job) {
    this.job = job;
    this.described = Number(job.lastSequence ?? 0);
    setText(this.heading, job.model);
    this.heading.after(this.state);
    const owner = job.owner ? `, of ${job.owner}` : "";
    setText(this.below, `Job ${job.id}, created ${time(job.createTime)}${owner}, ${bytes(job.corpusBytes)} of text`);
    this.noticesCard.hidden = true;
    fill(
      this.body,
      this.fault,
      h("section", { class: "card", "aria-label": "Progress" }, this.progress.element, this.reason, this.figures),
      h("section", { class: "card" }, h("h2", {}, "Loss"), this.chart.element),
      h("section", { class: "card" }, h("h2", {}, "Samples"), this.samples),
      this.noticesCard,
      h("details", { class: "card" }, h("summary", {}, h("h2", {}, "Settings")), this.settings),
    );
    fill(this.samples, h("p", { class: "hint" }, "A sample is written after each validation."));
    this.draw();
    this.drawSettings();
    for (const notice of job.started?.notices ?? []) this.addNotice(notice);
  }

  // Follows the events from the last known one on. The stream also ends when the job is paused.
  async watch() {
    for (;;) {
      try {
        await follow((answered) => this.read(answered), this.signal);
      } catch (error) {
        if (this.signal.aborted || isAborted(error)) return;
        const { job } = await follow((answered) => described(this.id, this.signal, answered), this.signal);
        this.update(job);
        const ended = FINAL.includes(job.state) || job.state === "JOB_STATE_PAUSED";
        if (!ended) {
          fill(this.fault, errorBox(error));
          await sleep(PAUSE_S, this.signal);
        }
      }
      if (await this.isOver()) return;
    }
  }

  // Waits while the job is paused, which others may resume. Returns whether it has ended.
  async isOver() {
    for (;;) {
      const { job } = await follow((answered) => described(this.id, this.signal, answered), this.signal);
      this.update(job);
      if (job.state !== "JOB_STATE_PAUSED") return FINAL.includes(job.state);
      const woken = new Promise((resolve) => {
        this.wake = resolve;
      });
      await Promise.race([sleep(PAUSE_S, this.signal), woken]);
    }
  }

  async read(answered) {
    const request = { job: this.id, afterSequence: String(this.last) };
    for await (const { event } of stream("WatchJob", [request], this.signal)) {
      answered();
      this.last = Number(event.sequence ?? this.last);
      this.take(event);
    }
  }

  take(event) {
    if (this.curve.add(event)) this.chart.changed();
    if (event.started) {
      this.job.started = event.started;
      this.job.spec = event.started.spec ?? this.job.spec;
      fill(this.notices);
      for (const notice of event.started.notices ?? []) this.addNotice(notice);
      this.drawSettings();
    }
    if (event.progress) {
      const { progress } = event;
      // Figures of the last validation stay until the next one.
      this.job.progress = { ...this.job.progress, ...progress };
      if (progress.sample !== undefined) this.addSample(progress);
      for (const notice of progress.notices ?? []) this.addNotice(notice);
      this.validation = null;
    }
    if (event.validation) this.validation = event.validation;
    // What the job was before it was described is history.
    if (event.state && Number(event.sequence) > this.described) {
      const { state, reason } = event.state;
      if (this.job.state !== state) announce(`The job is ${word(state, "JOB_STATE_")}.`);
      this.job.state = state;
      this.job.reason = reason ?? "";
    }
    if (event.completed) {
      this.job.version = event.completed.version;
      this.completed = event.completed;
    }
    this.draw();
  }

  update(job) {
    this.job = { ...job, progress: { ...this.job.progress, ...job.progress } };
    if (!job.progress) delete this.job.progress;
    this.draw();
  }

  // Draws at most once in a frame: a job that has ended sends thousands of events at once.
  draw() {
    if (this.drawing) return;
    this.drawing = true;
    setTimeout(() => {
      this.drawing = false;
      if (!this.signal.aborted) this.drawNow();
    }, 50);
  }

  drawNow() {
    const { job } = this;
    const progress = job.progress ?? {};
    if (this.shownState !== job.state) fill(this.state, badge(job.state));
    this.shownState = job.state;
    this.progress.update(job);
    const text = this.validation
      ? `Reading the ${word(this.validation.role, "CORPUS_ROLE_") || "validation"} part: ${count(this.validation.tokensDone)} of ${count(this.validation.tokensTotal)} tokens.`
      : job.reason || this.completed?.training?.endedBy || "";
    setText(this.reason, text);
    this.reason.hidden = text === "" || text === howFar(job).text;
    fill(
      this.figures,
      stats([
        ["Training loss", decimals(progress.trainLoss)],
        ["Validation loss", decimals(progress.validLoss)],
        ["Best validation loss", decimals(progress.bestValidLoss)],
        ["Bits per character", decimals(progress.validBitsPerCharacter)],
        ["Tokens per second", count(progress.tokensPerSecond)],
        ["Passes over the text", decimals(progress.epoch ?? 0, 2)],
        ["Run time", duration(progress.elapsedS ?? 0)],
        ["Learning rate", progress.learningRate ? Number(progress.learningRate).toPrecision(3) : "–"],
        ["Memory", bytes(progress.memoryBytes)],
      ]),
    );
    this.drawTools();
  }

  drawTools() {
    const { state, version, model } = this.job;
    const key = `${state} ${version} ${this.busy ?? ""} ${this.job.progress !== undefined}`;
    if (this.shownTools === key) return;
    this.shownTools = key;
    const call = (label, method, done) => button(label, () => this.act(method, done));
    const had = this.tools.contains(document.activeElement);
    const tools = [];
    if (version && Number(version)) {
      tools.push(linkButton("Open the model", `#/model/${encodeURIComponent(model)}`, "primary"));
    } else if (this.job.progress && !FINAL.includes(state)) {
      tools.push(linkButton("Try it now", `#/playground?job=${encodeURIComponent(this.id)}`));
    }
    if (state === "JOB_STATE_QUEUED" || state === "JOB_STATE_RUNNING") {
      tools.push(call("Pause", "PauseJob", "The job will pause."));
    }
    if (state === "JOB_STATE_PAUSED") tools.push(call("Resume", "ResumeJob", "The job is back in the queue."));
    if (!FINAL.includes(state)) tools.push(button("Cancel", () => this.cancel(), "danger"));
    if (FINAL.includes(state) || state === "JOB_STATE_PAUSED") {
      tools.push(button("Delete", () => this.remove(), "danger"));
    }
    fill(this.tools, tools);
    if (had) this.tools.querySelector("button")?.focus();
  }

  async act(method, done) {
    fill(this.fault);
    try {
      const { job } = await unary(method, { job: this.id }, this.signal);
      this.update(job);
      announce(done);
      this.wake?.();
    } catch (error) {
      if (!isAborted(error)) fill(this.fault, errorBox(error));
    }
  }

  async cancel() {
    const yes = await confirm({
      title: "Cancel the job?",
      text: "It ends for good. If it has trained, its model is stored as a new version.",
      action: "Cancel the job",
    });
    if (yes) await this.act("CancelJob", "The job will end.");
  }

  async remove() {
    const yes = await confirm({
      title: "Delete the job?",
      text: "Its events, its curve and its checkpoint are deleted. Stored versions of models stay.",
      action: "Delete the job",
    });
    if (!yes) return;
    try {
      await unary("DeleteJob", { job: this.id }, this.signal);
      location.hash = "#/jobs";
    } catch (error) {
      if (!isAborted(error)) fill(this.fault, errorBox(error));
    }
  }

  addSample(progress) {
    this.sampleTexts.unshift({ step: progress.step, text: progress.sample, isNew: progress.sampleIsNew });
    this.sampleTexts.length = Math.min(this.sampleTexts.length, MOST_SAMPLES);
    fill(
      this.samples,
      this.sampleTexts.map(({ step, text, isNew }) =>
        h(
          "figure",
          {},
          h("figcaption", { class: "small" }, `Step ${count(step)}${isNew === undefined ? "" : isNew ? ", new" : ", an item of the text"}`),
          h("pre", { class: "sample" }, text || "(empty)"),
        ),
      ),
    );
  }

  addNotice(text) {
    this.noticesCard.hidden = false;
    this.notices.append(h("li", {}, text));
  }

  drawSettings() {
    const { started } = this.job;
    fill(
      this.settings,
      started
        ? stats([
            ["Parameters", count(started.parameterCount)],
            ["Vocabulary", count(started.vocabularySize)],
            ["Training tokens", count(started.trainTokens)],
            ["Validation tokens", count(started.validTokens)],
            ["Planned steps", Number(started.totalSteps ?? 0) ? count(started.totalSteps) : "until the time is over"],
          ])
        : null,
      settingsList(this.job.spec),
    );
  }
}
