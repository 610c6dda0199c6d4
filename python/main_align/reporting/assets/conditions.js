"use strict";
/* The further conditions: a list that grows and shrinks, each with a slider for its lowest and its highest value. */

function slider(condition, bound, redraw) {
  const part = element("div", undefined, "limit"), shown = element("output"), input = element("input");
  const title = element("span", `${bound === "min" ? "Lowest" : "Highest"} ${condition.name}`), count = score(condition.name).limits.length;
  input.setAttribute("aria-label", title.textContent);
  Object.assign(input, { type: "range", step: 1, min: bound === "min" ? -1 : 0, max: bound === "min" ? count - 1 : count });
  input.value = condition[bound];
  const say = () => {
    const cut = bounds(condition)[bound === "min" ? 0 : 1];
    shown.textContent = cut === null ? "no limit" : String(cut);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    condition[bound] = Number(input.value);
    if (bound === "min") condition.max = Math.max(condition.max, condition.min);
    else condition.min = Math.min(condition.min, condition.max);
    redraw();
  });
  const top = element("span", undefined, "slider-top");
  top.append(title, shown);
  part.append(top, input);
  return { part, refresh: () => { input.value = condition[bound]; say(); } };
}

function conditionItem(condition) {
  const item = element("li"), parts = [];
  const redraw = () => { parts.forEach((each) => each.refresh()); changed(); };
  for (const bound of ["min", "max"]) parts.push(slider(condition, bound, redraw));
  const remove = element("button", "Remove");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove the condition on ${condition.name}`);
  remove.addEventListener("click", () => {
    state.also = state.also.filter((each) => each !== condition);
    showConditions();
    changed();
    $("add-condition").focus();
  });
  parts.forEach((each) => each.refresh());
  item.append(...parts.map((each) => each.part), remove);
  return item;
}

function showConditions() {
  $("conditions").replaceChildren(...state.also.map(conditionItem));
  if (data.preset) $("preset").checked = state.preset;
}

function addCondition(name) {
  const { limits, better } = score(name), middle = Math.floor(limits.length / 2);
  state.also.push(better === "higher" ? { name, min: middle, max: limits.length } : { name, min: -1, max: middle });
}

function listenConditions() {
  $("preset-control").hidden = !data.preset;
  $("preset").addEventListener("change", (event) => {
    state.preset = event.target.checked;
    if (state.preset) state.mode = "none"; // alone at first: the criterion's rule can be added
    changed();
  });
  $("add-condition").append(...data.scores.map((each) => new Option(`${each.name} (${each.better} is better)`, each.name)));
  $("add-condition").addEventListener("change", (event) => {
    if (!event.target.value) return;
    addCondition(event.target.value);
    event.target.value = "";
    showConditions();
    changed();
  });
}
