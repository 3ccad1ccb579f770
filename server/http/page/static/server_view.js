// `showServer` describes the server, and who it takes the caller for.

import { bytes, count, duration, precisionWord, time, word } from "./format.js";
import { fill, h, setText } from "./dom.js";
import { follow, sleep } from "./connection.js";
import { button, stats } from "./forms.js";
import { setToken, token } from "./session.js";
import { unary } from "./connect.js";

const INTERVAL_S = 3;

/** Shows the view until it is left. */
export async function showServer({ body, below, tools, signal }) {
  setText(below, "What the server is, and what it does now.");
  if (token()) {
    const forget = () => {
      setToken("");
      location.reload();
    };
    fill(tools, button("Forget my token", forget));
  }
  const uptime = h("span");
  let shown = "";
  for (;;) {
    const info = await follow(async (answered) => {
      const reply = await unary("GetServerInfo", {}, signal);
      answered();
      return reply;
    }, signal);
    const { uptimeS, ...rest } = info;
    // Only what has changed is drawn again, so that a selected text stays selected.
    if (JSON.stringify(rest) !== shown) draw(body, info, uptime);
    shown = JSON.stringify(rest);
    setText(uptime, duration(uptimeS));
    await sleep(INTERVAL_S, signal);
  }
}

function draw(body, info, uptime) {
  const of = (running, limit) => `${count(running)} of ${count(limit)}`;
  const kernels = Number(info.kernelsTotal ?? 0) ? `${count(info.kernelsReady)} of ${count(info.kernelsTotal)} kernels` : "ready";
  fill(
    body,
    section("Server", [
      ["Version", info.version],
      ["State", kernels],
      ["Up for", uptime],
      ["Processor", info.cpuTarget || "–"],
      ["Threads", count(info.threads)],
      ["Precision", precisionWord(info.inferencePrecision) || "–"],
    ]),
    section("In use", [
      ["Training jobs", info.trainingSlots ? of(info.trainingRunning, info.trainingSlots) : "none on this server"],
      ["Queue", of(info.trainingQueued, info.trainingQueueLimit)],
      ["Calls", of(info.inferenceRunning, info.inferenceLimit)],
      ["Texts in work", of(info.sessionsRunning, info.sessionLimit)],
      ["Scored streams", of(info.scoreStreamsRunning, info.scoreStreamLimit)],
      ["Learning streams", of(info.learningRunning, info.learningLimit)],
      ["Models in memory", `${count(info.modelsLoaded)}, ${bytes(info.modelsLoadedBytes)}`],
      ["Memory", `${bytes(info.memoryUsedBytes)} of ${bytes(info.memoryBudgetBytes)}`],
    ]),
    section("Limits", [
      ["New tokens of a text", count(info.maxNewTokensLimit)],
      ["Corpus", bytes(info.maxCorpusBytes)],
      ["Message", bytes(info.maxMessageBytes)],
    ]),
    info.caller ? callerSection(info.caller) : null,
  );
}

function section(title, pairs) {
  return h("section", { class: "card" }, h("h2", {}, title), stats(pairs));
}

function callerSection(caller) {
  const quotas = caller.quotas ?? {};
  const use = caller.use ?? {};
  const limited = (used, limit, write = count) => (limit === undefined ? write(used) : `${write(used)} of ${write(limit)}`);
  return section("You", [
    ["Name", caller.name],
    ["Role", word(caller.role, "CALLER_ROLE_")],
    ["May read", (caller.readModels ?? []).join(", ") || "–"],
    ["May write", (caller.writeModels ?? []).join(", ") || "–"],
    ["Calls", limited(use.calls, quotas.calls)],
    ["Texts and streams", limited(use.sessions, quotas.sessions)],
    quotas.tokensPerMinute === undefined ? null : ["Tokens per minute", `${count(quotas.tokensPerMinute)}, ${count(use.tokensLeft)} left`],
    ["Jobs", limited(use.jobsRunning, quotas.jobsRunning)],
    ["Models", limited(use.modelBytes, quotas.modelBytes, bytes)],
    ["Corpora", limited(use.corpusBytes, quotas.corpusBytes, bytes)],
    caller.validUntilS === undefined ? null : ["Token valid until", time(1000 * caller.validUntilS)],
  ]);
}
