// `count`, `bytes` and their neighbours write numbers, sizes and times for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** Returns a count with separators: 12,345. */
export function count(value) {
  return whole.format(Number(value ?? 0));
}

/** Returns a count in few characters: 12.3K. */
export function compact(value) {
  return short.format(Number(value ?? 0));
}

/** Returns a number with a fixed number of decimals; a dash where there is none. */
export function decimals(value, places = 3) {
  if (value === undefined || value === null) return "–";
  const number = Number(value);
  if (!Number.isFinite(number)) return Number.isNaN(number) ? "not a number" : number > 0 ? "∞" : "−∞";
  return number.toFixed(places).replace("-", "−");
}

/** Returns a size: 1.2 MB. */
export function bytes(value) {
  let size = Number(value ?? 0);
  for (const unit of ["bytes", "kB", "MB", "GB"]) {
    if (size < 1000 || unit === "GB") {
      return `${size < 10 && unit !== "bytes" ? size.toFixed(1) : Math.round(size)} ${unit}`;
    }
    size /= 1000;
  }
  return "";
}

/** Returns a duration: 42 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  const all = Math.round(Number(seconds));
  if (!Number.isFinite(all)) return "–";
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  if (all < 172800) return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
  return `${Math.floor(all / 86400)} days`;
}

/** Returns a time of the contract: today as 14:05, other days with their date. */
export function time(value) {
  if (!value) return "–";
  const date = new Date(value);
  const clock = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === new Date().toDateString()) return clock;
  return `${date.toLocaleDateString("en-CA")} ${clock}`;
}

/** Returns the word of an enum's value: JOB_STATE_RUNNING is "running". */
export function word(value, prefix) {
  return (value ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");
}

/** Returns the word of a precision: fp32 or int8; empty where the server does not tell it. */
export function precisionWord(value) {
  return word(value, "INFERENCE_PRECISION_");
}

/** Returns nats as bits. */
export function bits(nats) {
  return nats / Math.LN2;
}

/** Returns "1 line" or "3 lines". */
export function plural(number, thing) {
  return `${count(number)} ${thing}${Number(number) === 1 ? "" : "s"}`;
}
