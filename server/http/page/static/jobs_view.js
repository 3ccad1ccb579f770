// `showJobs` lists the jobs, and keeps the list up to date.

import { count, decimals, duration, time, word } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { follow, sleep } from "./connection.js";
import { button, linkButton } from "./forms.js";
import { unary } from "./connect.js";

const INTERVAL_S = 2;
const PAGE = 50;

/** Shows the view until it is left. */
export async function showJobs({ body, below, tools, signal }) {
  setText(below, "What the server trains, newest first.");
  fill(tools, linkButton("Train a model", "#/train", "primary"));
  const rows = new Map();
  const tbody = h("tbody");
  const table = h(
    "div",
    { class: "card flush scroll", role: "region", "aria-label": "Jobs", tabindex: "0" },
    h(
      "table",
      { class: "list" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "Model"),
          h("th", { scope: "col" }, "State"),
          h("th", { scope: "col" }, "Progress"),
          h("th", { scope: "col", class: "number wide-only" }, "Validation loss"),
          h("th", { scope: "col", class: "number wide-only" }, "Tokens/s"),
          h("th", { scope: "col", class: "wide-only" }, "Created"),
        ),
      ),
      tbody,
    ),
  );
  const older = button("Show older jobs", () => {
    pages += 1;
    refresh();
  });
  let pages = 1;
  let shown = "";
  let refresh = () => {};
  fill(body, h("p", { class: "hint" }, "Loading…"));
  for (;;) {
    const jobs = await follow((answered) => load(pages, signal, answered), signal);
    draw(jobs.list);
    // What stays in its place keeps the focus.
    const kind = jobs.list.length ? `table ${jobs.more}` : "nothing";
    if (kind !== shown) fill(body, ...(jobs.list.length ? [table, jobs.more ? older : null] : [nothing()]));
    shown = kind;
    const woken = new Promise((resolve) => {
      refresh = resolve;
    });
    await Promise.race([sleep(INTERVAL_S, signal), woken]);
  }

  function draw(list) {
    for (const job of list) {
      if (!rows.has(job.id)) rows.set(job.id, new Row());
      rows.get(job.id).update(job);
    }
    const kept = list.map((job) => rows.get(job.id).element);
    // The rows are moved only where they change, so that the focus stays.
    kept.forEach((row, i) => {
      if (tbody.children[i] !== row) tbody.insertBefore(row, tbody.children[i] ?? null);
    });
    while (tbody.children.length > kept.length) tbody.lastElementChild.remove();
  }
}

async function load(pages, signal, answered) {
  const list = [];
  let pageToken = "";
  for (let page = 0; page < pages; page += 1) {
    const reply = await unary("ListJobs", { pageSize: PAGE, pageToken }, signal);
    answered();
    list.push(...(reply.jobs ?? []));
    pageToken = reply.nextPageToken ?? "";
    if (!pageToken) break;
  }
  return { list, more: pageToken !== "" };
}

function nothing() {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, "No jobs yet"),
    h("p", {}, "A job trains one model on a text: a book, a list of names, a log. Give it a text and half a minute."),
    linkButton("Train a model", "#/train", "primary"),
  );
}

class Row {
  constructor() {
    this.link = h("a", { class: "strong" });
    this.id = h("span", { class: "small mono wide-only" });
    this.state = h("td");
    this.progress = new Progress();
    this.loss = h("td", { class: "number wide-only" });
    this.speed = h("td", { class: "number wide-only" });
    this.created = h("td", { class: "wide-only" });
    this.element = h(
      "tr",
      {},
      h("th", { scope: "row" }, this.link, this.id),
      this.state,
      h("td", { class: "progress-cell" }, this.progress.element),
      this.loss,
      this.speed,
      this.created,
    );
  }

  update(job) {
    setText(this.link, job.model || "(unreadable)");
    this.link.href = `#/job/${encodeURIComponent(job.id)}`;
    setText(this.id, job.id);
    const state = job.damage ? "DAMAGED" : job.state;
    if (this.shown !== state) fill(this.state, badge(state));
    if (this.shown && this.shown !== state) announce(`${job.model} is ${word(state, "JOB_STATE_")}`);
    this.shown = state;
    this.progress.update(job);
    const progress = job.progress ?? {};
    setText(this.loss, decimals(progress.bestValidLoss, 3));
    const running = job.state === "JOB_STATE_RUNNING";
    setText(this.speed, running && progress.tokensPerSecond ? count(progress.tokensPerSecond) : "–");
    setText(this.created, time(job.createTime));
  }
}

/** Returns the state of a job as a badge. */
export function badge(state) {
  const name = word(state, "JOB_STATE_") || "unknown";
  return h("span", { class: `badge ${name}` }, name);
}

/** How far a job is: a bar, and the same in words. */
export class Progress {
  constructor() {
    this.bar = h("progress", { max: "1", "aria-label": "Progress" });
    this.text = h("span", { class: "small" });
    this.element = h("div", { class: "progress" }, this.bar, this.text);
  }

  update(job) {
    const { share, text } = howFar(job);
    this.bar.hidden = share === null;
    if (share !== null) this.bar.value = share;
    setText(this.text, text);
  }
}

/** Returns how far a job is: a share from 0 to 1, or null, and a text. */
export function howFar(job) {
  const state = word(job.state, "JOB_STATE_");
  if (job.damage) return { share: null, text: "its record cannot be read" };
  const progress = job.progress;
  if (state === "queued") {
    const before = job.queuePosition ?? 0;
    return { share: null, text: before ? `waits behind ${before}` : "waits for a slot" };
  }
  if (!progress) return { share: null, text: job.started ? "begins" : job.reason || "reads the text" };
  const step = Number(progress.step ?? 0);
  const total = Number(job.started?.totalSteps ?? 0);
  const elapsed = Number(progress.elapsedS ?? 0);
  if (["succeeded", "cancelled", "failed"].includes(state)) {
    return { share: state === "succeeded" ? 1 : null, text: `${count(step)} steps in ${duration(elapsed)}` };
  }
  const left = progress.timeLeftS;
  const rest = left === undefined || state !== "running" ? "" : `, ${duration(left)} left`;
  if (total) return { share: step / total, text: `step ${count(step)} of ${count(total)}${rest}` };
  if (left === undefined) return { share: null, text: `step ${count(step)}` };
  return { share: elapsed / (elapsed + Number(left) || 1), text: `step ${count(step)}${rest}` };
}
