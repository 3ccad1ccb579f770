// `settingsList` shows the settings of a run.

import { h } from "./dom.js";

/** Returns a nested message as rows of a name and a value. */
export function settingsList(spec) {
  const rows = [];
  const walk = (value, path) => {
    if (Array.isArray(value)) {
      rows.push([path, value.join(", ")]);
    } else if (value !== null && typeof value === "object") {
      for (const [name, inner] of Object.entries(value)) walk(inner, path ? `${path}.${name}` : name);
    } else {
      rows.push([path, shown(value)]);
    }
  };
  walk(spec ?? {}, "");
  return h(
    "dl",
    { class: "settings" },
    rows.map(([name, value]) => h("div", {}, h("dt", {}, snake(name)), h("dd", {}, value))),
  );
}

function snake(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function shown(value) {
  if (typeof value !== "string") return String(value);
  // CELL_LSTM is lstm; other texts stay as they are.
  const prefix = /^(CELL|TOKENIZER_KIND|UNKNOWN_POLICY|CORPUS_LAYOUT|CORPUS_FORMAT|OPTIMIZER|SCHEDULE|PRECISION|PRESET|KEEP|MISSING_POLICY)_/;
  return prefix.test(value) ? value.replace(prefix, "").toLowerCase() : value;
}
