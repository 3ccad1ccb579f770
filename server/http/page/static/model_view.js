// `showModel` shows the versions of one model, its aliases, and the record of its training.

import { bytes, count, decimals, duration, time, word } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { button, field, linkButton, select, stats } from "./forms.js";
import { aliasChips, networkText } from "./models_view.js";
import { errorBox, isAborted } from "./errors.js";
import { confirm } from "./dialogs.js";
import { settingsList } from "./settings_list.js";
import { unary } from "./connect.js";

const MOST = 25;

/** Shows the view. */
export async function showModel({ body, heading, below, tools, id, query, signal, setTitle }) {
  setText(heading, id);
  setTitle(id);
  const fault = h("div");
  const content = h("div", { class: "view" });
  fill(body, fault, content);
  await load(Number(query.get("version") ?? 0));

  async function load(version) {
    const { model: newest, versions = [] } = await unary("GetModel", { model: id }, signal);
    const shown = versions.slice(-MOST).reverse().map(Number);
    const found = await Promise.all(shown.map((number) => described(number, newest)));
    const chosen = found.find((model) => Number(model.version) === version) ?? newest;
    setText(below, `${networkText(newest)}, ${count(newest.parameterCount)} parameters, ${word(newest.tokenizer?.kind, "TOKENIZER_KIND_")}`);
    drawTools(newest);
    fill(content, versionsCard(found, versions.length, chosen), aliasCard(found), recordCard(chosen));
  }

  async function described(version, newest) {
    if (Number(newest.version) === version) return newest;
    try {
      return (await unary("GetModel", { model: id, version: String(version) }, signal)).model;
    } catch (error) {
      if (isAborted(error) || error.lost) throw error;
      return { name: id, version, damage: error.message };
    }
  }

  function drawTools(newest) {
    const query = `?model=${encodeURIComponent(newest.name)}`;
    fill(
      tools,
      linkButton("Playground", `#/playground${query}`, "primary"),
      linkButton("Score", `#/score${query}`),
      linkButton("Log watcher", `#/watcher${query}`),
      button("Delete model", () => remove({ allVersions: true, force: true }, `${id} with all its versions`), "danger"),
    );
  }

  function versionsCard(found, total, chosen) {
    const head = ["Version", "Aliases", "Validation loss", "Size", "Stored"];
    const numbers = [false, false, true, true, false];
    return h(
      "section",
      { class: "card flush" },
      h("h2", {}, "Versions"),
      h(
        "div",
        { class: "scroll", role: "region", "aria-label": "Versions", tabindex: "0" },
        h(
          "table",
          { class: "list" },
          h("thead", {}, h("tr", {}, head.map((name, i) => h("th", { scope: "col", class: numbers[i] && "number" }, name)), h("th", { scope: "col" }, "Actions"))),
          h(
            "tbody",
            {},
            found.map((model) =>
              h(
                "tr",
                { "aria-current": model === chosen && "true" },
                h("th", { scope: "row" }, String(model.version)),
                h("td", {}, model.damage ? model.damage : aliasChips(model)),
                h("td", { class: "number" }, decimals(model.training?.validLoss)),
                h("td", { class: "number" }, bytes(model.sizeBytes)),
                h("td", { class: "nowrap" }, time(model.createTime)),
                h("td", {}, versionButtons(model)),
              ),
            ),
          ),
        ),
      ),
      total > found.length ? h("p", { class: "hint" }, `The newest ${MOST} of ${count(total)} versions.`) : null,
    );
  }

  function versionButtons(model) {
    const version = String(model.version);
    const show = button("Record", () => change(async () => version, ""), "small");
    show.setAttribute("aria-label", `Record of version ${version}`);
    const request = { version, force: (model.aliases ?? []).length > 0 };
    const aliases = request.force ? " and its aliases" : "";
    const drop = button("Delete", () => remove(request, `version ${version} of ${id}${aliases}`), "small danger");
    drop.setAttribute("aria-label", `Delete version ${version}`);
    return h("div", { class: "buttons" }, show, drop);
  }

  function aliasCard(found) {
    const alias = h("input", { type: "text", autocomplete: "off", spellcheck: "false", required: true, placeholder: "production" });
    const version = select(found.map((model) => [String(model.version), `version ${model.version}`]));
    const set = found.flatMap((model) => (model.aliases ?? []).map((name) => [name, model.version]));
    const submit = (event) => {
      event.preventDefault();
      const name = alias.value.trim();
      if (!name) return;
      change(async () => {
        await unary("SetAlias", { model: id, alias: name, version: version.value }, signal);
      }, `${name} is now an alias of version ${version.value}.`);
    };
    return h(
      "section",
      { class: "card" },
      h("h2", {}, "Aliases"),
      set.length
        ? h(
            "ul",
            { class: "aliases" },
            set.map(([name, of]) => {
              const drop = button("Remove", () => change(() => unary("DeleteAlias", { model: id, alias: name }, signal).then(() => {}), `The alias ${name} is removed.`), "small");
              drop.setAttribute("aria-label", `Remove the alias ${name}`);
              return h("li", {}, h("span", { class: "chip" }, name), ` version ${of} `, drop);
            }),
          )
        : h("p", { class: "hint" }, "No aliases yet. An alias is a name for a version that can move: programs ask for ", h("code", {}, `${id}@production`), "."),
      h("form", { class: "inline", on: { submit } }, field("Alias", alias), field("For", version), h("button", { class: "button" }, "Set alias")),
    );
  }

  async function change(action, done) {
    fill(fault);
    try {
      await load(Number(await action()) || 0);
      if (done) announce(done);
      else document.getElementById("record")?.focus();
    } catch (error) {
      if (!isAborted(error)) fill(fault, errorBox(error));
    }
  }

  async function remove(request, what) {
    const yes = await confirm({
      title: `Delete ${what}?`,
      text: `Nobody can use ${request.allVersions ? "the model" : "the version"} afterwards. This cannot be undone.`,
      action: "Delete",
    });
    if (!yes) return;
    fill(fault);
    try {
      const { versions = [] } = await unary("DeleteModel", { model: id, ...request }, signal);
      announce(`Deleted: ${versions.join(", ")}.`);
      const left = await unary("GetModel", { model: id }, signal).catch((error) => {
        if (error.code === "not_found") return null;
        throw error;
      });
      if (left === null) location.hash = "#/models";
      else await load(0);
    } catch (error) {
      if (!isAborted(error)) fill(fault, errorBox(error));
    }
  }
}

function recordCard(model) {
  const record = model.training;
  const title = h("h2", { id: "record", tabindex: "-1" }, `Training record of version ${model.version}`);
  if (!record) return h("section", { class: "card" }, title, h("p", { class: "hint" }, "There is no record: the model was imported."));
  return h(
    "section",
    { class: "card" },
    title,
    stats([
      ["Validation loss", decimals(record.validLoss)],
      record.testLoss === undefined ? null : ["Test loss", decimals(record.testLoss)],
      ["Training loss", decimals(record.trainLoss)],
      ["n-gram model", decimals(record.baselineLoss)],
      ["Steps", count(record.steps)],
      ["Weights of step", count(record.weightsStep)],
      ["Tokens seen", count(record.tokensSeen)],
      ["Run time", duration(record.elapsedS)],
      ["Vocabulary", count(model.vocabularySize)],
    ]),
    record.endedBy ? h("p", { class: "reason" }, `Ended by: ${record.endedBy}`) : null,
    (record.notices ?? []).length ? h("ul", { class: "notices" }, record.notices.map((text) => h("li", {}, text))) : null,
    h("details", {}, h("summary", {}, "Settings"), settingsList(record.spec)),
    h("p", { class: "small hash" }, `SHA-256 of the file: ${model.sha256 ?? "–"}`),
  );
}
