// `follow` repeats what a lost connection interrupts, and says so at the top of the page.

import { sentence } from "./errors.js";
import { setText } from "./dom.js";

const FIRST_S = 1;
const LONGEST_S = 15;

const troubles = new Map();

/**
 * Runs `attempt` until it returns, also across lost connections.
 *
 * @param {function(function(): void): Promise} attempt makes the call; it calls its argument once
 *     the server has answered
 */
export async function follow(attempt, signal) {
  const key = Symbol("call");
  let wait = FIRST_S;
  const answered = () => {
    wait = FIRST_S;
    clear(key);
  };
  try {
    for (;;) {
      try {
        return await attempt(answered);
      } catch (error) {
        if (signal.aborted || !error.lost) throw error;
        say(key, `${sentence(error)} Trying again every few seconds.`);
        await sleep(wait, signal);
        wait = Math.min(2 * wait, LONGEST_S);
      }
    }
  } finally {
    clear(key);
  }
}

/** Waits, also for the page to be visible again; rejects when the signal is aborted. */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
      reject(new DOMException("the view was left", "AbortError"));
    };
    const end = () => {
      signal.removeEventListener("abort", stop);
      document.removeEventListener("visibilitychange", seen);
      resolve();
    };
    const seen = () => {
      if (!document.hidden) end();
    };
    const timer = setTimeout(() => {
      if (document.hidden) document.addEventListener("visibilitychange", seen);
      else end();
    }, 1000 * seconds);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

function say(key, text) {
  troubles.set(key, text);
  shown();
}

function clear(key) {
  if (troubles.delete(key)) shown();
}

function shown() {
  setText(document.getElementById("connection"), [...troubles.values()].at(-1) ?? "");
}
