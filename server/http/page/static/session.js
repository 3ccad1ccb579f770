// `token` is the bearer token of this browser tab. It ends with the tab and is in no address.

const KEY = "treadle-token";
let kept = read();

function read() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is switched off: the token lasts until the page is loaded again
  }
}

/** Returns the token; empty: none. */
export function token() {
  return kept;
}

/** Keeps a token for as long as the tab is open; empty: forgets it. */
export function setToken(value) {
  kept = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // see read
  }
}
