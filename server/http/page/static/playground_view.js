// `showPlayground` continues a prompt, and shows how surprising each new token is.

import { bits, count, decimals, precisionWord, word } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { button, checkbox, field, numberInput, numberOf, PRECISION_HINT, precisionSelect } from "./forms.js";
import { errorBox, isAborted } from "./errors.js";
import { heatLegend, HeatText } from "./heat.js";
import { ModelSelect, noModels } from "./model_select.js";
import { stream } from "./connect.js";

/** Shows the view. */
export async function showPlayground({ body, below, query, signal }) {
  setText(below, "Give a beginning, and read how the model continues it.");
  const models = new ModelSelect();
  if (!(await models.load(query, signal))) {
    fill(body, noModels());
    return;
  }
  new Playground(models, signal).show(body);
}

const STOPPED = {
  STOP_REASON_MAX_NEW_TOKENS: "the text has its most tokens",
  STOP_REASON_STOP_SEQUENCE: "a stop sequence appeared",
  STOP_REASON_END_TOKEN: "the model ended the item",
  STOP_REASON_TIME_LIMIT: "the time is over",
};

// Where a server tells it.
function computedIn(result) {
  const precision = precisionWord(result.inferencePrecision);
  return precision && `precision ${precision}, `;
}

class Playground {
  constructor(models, signal) {
    Object.assign(this, { models, signal });
    this.prompt = h("textarea", { rows: "4", spellcheck: "false", placeholder: "Leave it empty to begin with nothing" });
    this.temperature = numberInput({ min: "0", max: "100", placeholder: "1" });
    this.topP = numberInput({ min: "0", max: "1", placeholder: "1" });
    this.topK = numberInput({ min: "0", step: "1", placeholder: "all" });
    this.minP = numberInput({ min: "0", max: "1", placeholder: "0" });
    this.most = numberInput({ min: "0", step: "1", placeholder: "256", value: "200" });
    this.seed = numberInput({ min: "0", step: "1", placeholder: "random" });
    this.precision = precisionSelect();
    this.stops = h("textarea", { rows: "2", spellcheck: "false" });
    this.ranks = checkbox("Show ranks and likelier tokens", true);
    this.output = new HeatText("Generated text");
    this.summary = h("p", { class: "hint", role: "status" });
    this.fault = h("div");
    this.more = h("input", { type: "text", spellcheck: "false", autocomplete: "off" });
    this.generate = h("button", { class: "button primary" }, "Generate");
    this.stop = button("Stop", () => this.stopping?.abort(), "danger");
    this.resume = button("Continue", () => this.run(this.continued()));
    this.clear = button("Clear", () => this.reset());
    this.reset();
    this.models.select.addEventListener("change", () => this.forget());
  }

  show(body) {
    const submit = (event) => {
      event.preventDefault();
      this.reset();
      this.run({ ...this.settings(), prompt: this.prompt.value }, this.prompt.value);
    };
    const form = h(
      "form",
      { class: "card form", on: { submit } },
      h("div", { class: "wide" }, this.models.element),
      field("Prompt", this.prompt, { wide: true }),
      field("Temperature", this.temperature, { hint: "0 takes the likeliest." }),
      field("New tokens", this.most, { hint: "At most." }),
      h(
        "details",
        { class: "wide" },
        h("summary", {}, "More settings"),
        h(
          "div",
          { class: "form inner" },
          field("Top-p", this.topP),
          field("Top-k", this.topK),
          field("Min-p", this.minP),
          field("Seed", this.seed),
          field("Precision", this.precision, { hint: PRECISION_HINT }),
          field("Stop sequences", this.stops, { hint: "One per line.", wide: true }),
          h("div", { class: "wide" }, this.ranks.element),
        ),
      ),
      h("div", { class: "buttons wide" }, this.generate, this.stop, this.clear),
    );
    const results = h(
      "section",
      { class: "card" },
      h("h2", {}, "Text"),
      heatLegend(),
      this.output.text,
      this.summary,
      h("div", { class: "inline" }, field("Add text, then continue", this.more), this.resume),
      this.output.table,
    );
    fill(body, h("div", { class: "split" }, form, h("div", { class: "view" }, this.fault, results)));
    this.reset();
  }

  settings() {
    const stops = this.stops.value.split("\n").filter(Boolean);
    const seed = this.seed.value.trim();
    return {
      ...this.models.fields(),
      temperature: numberOf(this.temperature),
      topP: numberOf(this.topP),
      topK: numberOf(this.topK),
      minP: numberOf(this.minP),
      maxNewTokens: numberOf(this.most),
      seed: seed || undefined,
      inferencePrecision: this.precision.value,
      stopSequences: stops,
      logProbabilities: true,
      ranks: this.ranks.input.checked,
      topLogProbabilities: this.ranks.input.checked ? 4 : 0,
      returnState: true,
    };
  }

  // Continues from the last state, with the text since then. Without a seed the sampling continues
  // as well.
  continued() {
    const prompt = this.since + this.more.value;
    return { ...this.settings(), seed: undefined, state: this.state, prompt };
  }

  async run(request, prompt = this.more.value) {
    this.since += prompt;
    this.stopping = new AbortController();
    const ended = AbortSignal.any([this.signal, this.stopping.signal]);
    fill(this.fault);
    this.output.addPlain(prompt, "prompt");
    this.more.value = "";
    this.setRunning(true);
    setText(this.summary, "Generating…");
    const began = performance.now();
    let result = null;
    try {
      for await (const reply of stream("Generate", [request], ended)) {
        const tokens = (reply.tokens ?? []).filter((token) => token.logProbability !== undefined);
        this.output.add(reply.text, tokens);
        this.since += reply.text ?? "";
        result = reply.result ?? result;
      }
      this.finish(result, (performance.now() - began) / 1000);
    } catch (error) {
      if (this.signal.aborted) return;
      setText(this.summary, isAborted(error) ? "Stopped." : "");
      if (!isAborted(error)) fill(this.fault, errorBox(error));
    } finally {
      this.output.settle();
      this.setRunning(false);
    }
  }

  finish(result, seconds) {
    if (!result) return;
    // The weights of a running job change, and a state is of one version only.
    if (result.state && !this.models.fields().job) {
      this.state = result.state;
      this.since = "";
    }
    const tokens = Number(result.newTokens ?? 0);
    const nats = Number(result.totalLogProbability ?? 0);
    this.totals.tokens += tokens;
    this.totals.nats += nats;
    const mean = this.totals.tokens ? -bits(this.totals.nats) / this.totals.tokens : 0;
    const reason = STOPPED[result.stopReason] ?? word(result.stopReason, "STOP_REASON_");
    setText(
      this.summary,
      `${count(this.totals.tokens)} tokens, log-probability ${decimals(this.totals.nats, 2)} nats, ` +
        `${decimals(mean, 2)} bits per token. Ended because ${reason}. ` +
        `Seed ${result.seed ?? 0}, ${computedIn(result)}${count(tokens / Math.max(seconds, 0.001))} tokens per second.`,
    );
    announce(`The text is complete: ${count(tokens)} tokens.`);
  }

  setRunning(running) {
    const had = document.activeElement;
    this.generate.disabled = running;
    this.stop.disabled = !running;
    this.clear.disabled = running;
    this.resume.disabled = running || !(this.state || this.since);
    this.more.disabled = this.resume.disabled;
    // A button that is switched off would take the focus with it.
    if (had === this.generate || had === this.resume) this.stop.focus();
    if (had === this.stop && !running) (this.resume.disabled ? this.generate : this.resume).focus();
  }

  // Another model has other states.
  forget() {
    this.state = "";
    this.since = "";
    this.setRunning(false);
  }

  reset() {
    this.state = "";
    this.since = "";
    this.totals = { tokens: 0, nats: 0 };
    this.output.clear();
    setText(this.summary, "No text yet. Colours show how surprising the model finds each token.");
    fill(this.fault);
    this.setRunning(false);
  }
}
