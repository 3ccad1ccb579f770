// `showTrain` starts a job: a text, a name, and how long to train.

import { bytes } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { checkbox, field, numberInput, numberOf, select, setFault } from "./forms.js";
import { errorBox, isAborted } from "./errors.js";
import { stream, unary } from "./connect.js";

const CHUNK = 384 << 10;
// The browser holds the whole upload in memory.
const MOST = 100e6;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** Shows the view. */
export async function showTrain({ body, below, signal }) {
  setText(below, "Paste a text or choose a file. The model learns to continue it, character by character.");
  const text = h("textarea", { rows: "8", spellcheck: "false", placeholder: "Some pages of text, or one item per line" });
  const file = h("input", { type: "file" });
  const name = h("input", { type: "text", autocomplete: "off", spellcheck: "false", maxlength: "100", placeholder: "my-model" });
  const layout = select([
    ["CORPUS_LAYOUT_TEXT", "One running text, such as a book"],
    ["CORPUS_LAYOUT_LINES", "One item per line, such as names or sessions"],
  ]);
  const limit = numberInput({ min: "1", value: "60" });
  const unit = select([["1", "seconds"], ["60", "minutes"], ["3600", "hours"]]);
  unit.setAttribute("aria-label", "Unit of the time");
  const auto = checkbox("Let the server choose the settings by the text and the time (auto)");
  const advanced = new Advanced();
  auto.input.addEventListener("change", () => advanced.setAuto(auto.input.checked));
  const fault = h("div");
  const submit = h("button", { class: "button primary" }, "Start training");
  const busy = h("p", { class: "hint", role: "status" });
  const limitField = field("Train for", limit);
  limitField.classList.add("with-unit");
  limit.after(unit);
  const form = h(
    "form",
    { class: "card form", novalidate: true },
    field("Text", text, { wide: true }),
    field("Or a file", file, { hint: "Plain text in UTF-8. A file takes the place of the text above.", wide: true }),
    field("Model name", name, { hint: "Letters, digits, dots, dashes. A name in use gets a new version." }),
    field("The text is", layout),
    limitField,
    h("div", { class: "field" }, auto.element),
    advanced.element,
    h("div", { class: "wide" }, fault, h("div", { class: "buttons" }, submit, busy)),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = faults();
    for (const [input, message] of wrong) setFault(input, message);
    if (wrong.length) {
      wrong[0][0].focus();
      return;
    }
    submit.disabled = true;
    fill(fault);
    try {
      await start();
    } catch (error) {
      if (isAborted(error)) return;
      fill(fault, errorBox(error));
    } finally {
      submit.disabled = false;
      setText(busy, "");
    }
  });
  fill(body, form);

  function faults() {
    const wrong = [];
    if (!text.value && !file.files.length) wrong.push([text, "Paste a text, or choose a file."]);
    if (file.files.length && !file.files[0].size) wrong.push([file, "The file is empty."]);
    if (!NAME.test(name.value.trim())) {
      wrong.push([name, name.value.trim() ? "Use letters, digits, dots, dashes; begin with a letter or digit." : "Give the model a name."]);
    }
    if (!(numberOf(limit) > 0)) wrong.push([limit, "Give a time above 0."]);
    return wrong;
  }

  async function start() {
    const source = file.files[0] ?? new Blob([text.value]);
    const info = await unary("GetServerInfo", {}, signal);
    if (info.maxCorpusBytes && source.size > Number(info.maxCorpusBytes)) {
      throw new Error(`The text has ${bytes(source.size)}, and the server takes at most ${bytes(info.maxCorpusBytes)}.`);
    }
    if (source.size > MOST) {
      throw new Error(`The text has ${bytes(source.size)}, and the page takes at most ${bytes(MOST)}: use treadle train.`);
    }
    setText(busy, `Sending ${bytes(source.size)}…`);
    const spec = {
      model: name.value.trim(),
      requestId: randomId(),
      limits: { maxTimeS: numberOf(limit) * Number(unit.value) },
      ...advanced.spec(layout.value),
    };
    if (auto.input.checked) spec.preset = "PRESET_AUTO";
    const messages = [{ spec }, ...(await chunks(source)), { corpusEnd: { sizeBytes: String(source.size) } }];
    for await (const event of stream("Train", messages, signal)) {
      // From here on the job belongs to the server; its own view follows it.
      announce("The job has been accepted.");
      location.hash = `#/job/${encodeURIComponent(event.job)}`;
      return;
    }
  }
}

// The other settings that are worth choosing; the rest has defaults.
class Advanced {
  constructor() {
    this.tokenizer = select([
      ["", "characters (default)"],
      ["TOKENIZER_KIND_WORDS", "words"],
      ["TOKENIZER_KIND_BYTES", "bytes"],
      ["TOKENIZER_KIND_SUBWORDS", "subwords"],
      ["TOKENIZER_KIND_EVENTS", "events of a log"],
      ["TOKENIZER_KIND_WHITESPACE", "words between white space"],
    ]);
    this.cell = select([["", "LSTM (default)"], ["CELL_GRU", "GRU"], ["CELL_RNN", "RNN"]]);
    this.hidden = numberInput({ min: "1", max: "4096", step: "1", placeholder: "128" });
    this.layers = numberInput({ min: "1", max: "8", step: "1", placeholder: "1" });
    this.format = select([["", "plain text (default)"], ["CORPUS_FORMAT_JSONL", "JSON lines"], ["CORPUS_FORMAT_CSV", "CSV"]]);
    this.column = h("input", { type: "text", autocomplete: "off", placeholder: "text" });
    this.seed = numberInput({ min: "0", step: "1", placeholder: "0" });
    this.element = h(
      "details",
      { class: "wide" },
      h("summary", {}, "More settings"),
      h(
        "div",
        { class: "form inner" },
        field("A token is a piece of", this.tokenizer),
        field("Cell", this.cell),
        field("Hidden units", this.hidden),
        field("Layers", this.layers),
        field("File format", this.format),
        field("Field or column", this.column, { hint: "Of JSON lines and CSV." }),
        field("Seed", this.seed),
      ),
    );
  }

  setAuto(on) {
    for (const input of [this.cell, this.hidden, this.layers]) input.disabled = on;
  }

  spec(layout) {
    const set = (input) => (input.disabled ? undefined : numberOf(input));
    const spec = {
      tokenizer: { kind: this.tokenizer.value || undefined },
      network: {
        cell: (!this.cell.disabled && this.cell.value) || undefined,
        hiddenSize: set(this.hidden),
        layers: set(this.layers),
      },
      data: { layout, format: this.format.value || undefined, column: this.column.value.trim() || undefined },
    };
    if (this.format.value) spec.data.layout = "CORPUS_LAYOUT_LINES";
    if (this.seed.value.trim()) spec.seed = this.seed.value.trim();
    return spec;
  }
}

async function chunks(source) {
  const made = [];
  for (let start = 0; start < source.size; start += CHUNK) {
    made.push({ corpusChunk: await base64(source.slice(start, start + CHUNK)) });
  }
  return made;
}

async function base64(blob) {
  const data = new Uint8Array(await blob.arrayBuffer());
  let binary = "";
  for (let start = 0; start < data.length; start += 8192) {
    binary += String.fromCharCode(...data.subarray(start, start + 8192));
  }
  return btoa(binary);
}

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
