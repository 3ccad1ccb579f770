// The page: it shows the view that the address names after `#`.

import { announce, fill, h } from "./dom.js";
import { askToken } from "./dialogs.js";
import { errorBox, isAborted } from "./errors.js";
import { onTokenNeeded } from "./connect.js";
import { setToken } from "./session.js";
import { showJob } from "./job_view.js";
import { showJobs } from "./jobs_view.js";
import { showModel } from "./model_view.js";
import { showModels } from "./models_view.js";
import { showPlayground } from "./playground_view.js";
import { showScore } from "./score_view.js";
import { showServer } from "./server_view.js";
import { showTrain } from "./train_view.js";
import { showWatcher } from "./watcher_view.js";

const VIEWS = {
  jobs: { show: showJobs, title: "Jobs", section: "jobs" },
  job: { show: showJob, title: "Job", section: "jobs" },
  train: { show: showTrain, title: "Train a model", section: "jobs" },
  models: { show: showModels, title: "Models", section: "models" },
  model: { show: showModel, title: "Model", section: "models" },
  playground: { show: showPlayground, title: "Playground", section: "playground" },
  score: { show: showScore, title: "Score", section: "score" },
  watcher: { show: showWatcher, title: "Log watcher", section: "watcher" },
  server: { show: showServer, title: "Server", section: "server" },
};

const main = document.getElementById("main");
let leaving = new AbortController();
let first = true;

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  const address = new URL(location.hash.slice(1) || "/jobs", location.origin);
  const [name, ...rest] = address.pathname.split("/").filter(Boolean);
  const view = VIEWS[name] ?? VIEWS.jobs;
  mark(view.section);
  const heading = h("h1", { tabindex: "-1" }, view.title);
  const tools = h("div", { class: "buttons" });
  const body = h("div", { class: "view" });
  const below = h("p", { class: "below" });
  fill(main, h("div", { class: "head" }, h("div", {}, heading, below), tools), body);
  setTitle(view.title);
  // The first view leaves the focus where the browser put it.
  if (!first) heading.focus({ preventScroll: false });
  first = false;
  window.scrollTo(0, 0);
  try {
    const id = rest.map(decoded).join("/");
    const parts = { body, heading, below, tools, query: address.searchParams, id, signal, setTitle };
    await view.show(parts);
  } catch (error) {
    if (signal.aborted || isAborted(error)) return;
    console.debug(error);
    fill(body, errorBox(error, show));
    announce("The view could not be shown.");
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function setTitle(title) {
  document.title = `${title} · Treadle`;
}

function mark(section) {
  for (const link of document.querySelectorAll("#navigation a")) {
    if (link.hash === `#/${section}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// The address of the page is the hash, so a link to a part of the page would lead elsewhere.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
onTokenNeeded((refused) => askToken(refused, setToken));
window.addEventListener("hashchange", show);
show();
