// `ModelSelect` chooses what to ask: a model, one of its aliases, or the weights of a running job.

import { fill, h } from "./dom.js";
import { field } from "./forms.js";
import { unary } from "./connect.js";

/** A select of models and of jobs that train. */
export class ModelSelect {
  constructor() {
    this.select = h("select");
    this.element = field("Model", this.select);
    this.models = new Map();
  }

  /**
   * Loads the models. Returns whether there is anything to choose.
   *
   * @param {URLSearchParams} query chooses by `model` or `job`
   */
  async load(query, signal) {
    const [models, jobs] = await Promise.all([
      allModels(signal),
      unary("ListJobs", { pageSize: 100, states: ["JOB_STATE_RUNNING", "JOB_STATE_PAUSED"] }, signal),
    ]);
    const sound = models.filter((model) => !model.damage);
    const training = (jobs.jobs ?? []).filter((job) => job.progress && !job.damage);
    const names = sound.flatMap((model) => [
      [`model:${model.name}`, `${model.name} (version ${model.version})`, model],
      ...(model.aliases ?? []).map((alias) => [`model:${model.name}@${alias}`, `${model.name}@${alias}`, model]),
    ]);
    const chosen = query.get("job") ? `job:${query.get("job")}` : `model:${query.get("model") ?? ""}`;
    const asked = query.get("model");
    if (asked && !names.some(([value]) => value === `model:${asked}`)) {
      const of = sound.find((model) => model.name === asked.split("@")[0]);
      if (of) names.push([`model:${asked}`, asked, of]);
    }
    this.models = new Map(names.map(([value, , model]) => [value, model]));
    const options = (entries) => entries.map(([value, label]) => h("option", { value }, label));
    fill(
      this.select,
      names.length ? h("optgroup", { label: "Models" }, options(names)) : null,
      training.length
        ? h("optgroup", { label: "Jobs, as far as they are" }, options(training.map((job) => [`job:${job.id}`, `${job.model}, job ${job.id}`])))
        : null,
    );
    this.layouts = new Map(training.map((job) => [`job:${job.id}`, job.spec?.data?.layout]));
    this.select.value = chosen;
    if (this.select.selectedIndex < 0) this.select.selectedIndex = 0;
    return names.length + training.length > 0;
  }

  /** Returns the fields of a request that name what is chosen. */
  fields() {
    const [kind, ...name] = this.select.value.split(":");
    return kind === "job" ? { job: name.join(":") } : { model: name.join(":") };
  }

  /** Returns the chosen model; undefined if a job is chosen. */
  model() {
    return this.models.get(this.select.value);
  }

  /** Returns whether each line is an item of its own. */
  isLines() {
    const layout = this.model()?.layout ?? this.layouts.get(this.select.value);
    return layout === "CORPUS_LAYOUT_LINES";
  }
}

/** Returns the newest version of every model. */
export async function allModels(signal) {
  const models = [];
  let pageToken = "";
  do {
    const page = await unary("ListModels", { pageSize: 1000, pageToken }, signal);
    models.push(...(page.models ?? []));
    pageToken = page.nextPageToken ?? "";
  } while (pageToken);
  return models;
}

/** Returns what a view shows where there is no model yet. */
export function noModels() {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, "There is no model yet"),
    h("p", {}, "Train one on a text of yours. The first samples come within seconds."),
    h("a", { class: "button primary", href: "#/train" }, "Train a model"),
  );
}
