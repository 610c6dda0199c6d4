"use strict";
/* The whole page: controls, the address's fragment, and redrawing. */

function fill(table, grouping) {
  const group = data.groupings[grouping], kept = keptBy(grouping);
  const region = element("div", undefined, "wide");
  const head = element("thead"), body = element("tbody"), row = element("tr");
  for (const name of [group.title, "kept", "of rows", "share"]) {
    const cell = element("th", name);
    cell.scope = "col";
    row.append(cell);
  }
  head.append(row);
  group.labels.forEach((label, index) => {
    const line = element("tr"), first = element("th", label);
    first.scope = "row";
    line.append(first, element("td", whole(kept[index])), element("td", whole(group.sizes[index])),
      element("td", percent(kept[index], group.sizes[index])));
    body.append(line);
  });
  const made = element("table");
  made.append(element("caption", `Rows kept by ${group.title}`), head, body);
  region.append(made);
  table.append(region);
}

function showRule() {
  const each = score(), kept = keptBy(0)[0], [low, high] = cuts(), options = rule();
  const about = isExact() ? "" : "about ";
  $("kept").textContent = `${about}${whole(kept)} of ${whole(data.rows)} rows kept (${percent(kept, data.rows)})`;
  $("estimated").hidden = isExact();
  $("definition").textContent = `${each.name}: ${each.definition}; ${each.better} is better. ${whole(each.scored)} rows have it.`;
  $("command").textContent = options ? data.command.join(options) : "Set a limit or a condition: without one, the filter has no rule.";
  $("copy").disabled = !options;
  $("copied").textContent = "";
  const shown = { share: `best ${Math.round(100 * data.shares[state.share])}%`,
    min: low === null ? "no limit" : String(low), max: high === null ? "no limit" : String(high) };
  for (const name of ["share", "min", "max"]) {
    $(`${name}-control`).hidden = state.mode !== (name === "share" ? "share" : "limits");
    $(name).value = state[name];
    $(`${name}-shown`).textContent = shown[name];
    $(name).setAttribute("aria-valuetext", `${shown[name]}, ${whole(kept)} rows kept`);
  }
  for (const radio of document.getElementsByName("mode")) radio.checked = radio.value === state.mode;
  $("criterion").value = state.criterion;
  $("kept-by").replaceChildren();
  data.groupings.forEach((_, grouping) => grouping && fill($("kept-by"), grouping));
}

function show() {
  recount();
  showRule();
  histogram($("cut-chart"), score());
  data.scores.forEach((each, index) => {
    const container = $("histogram-charts").children[index];
    if (each.name === state.criterion || container.dataset.cut === "yes" || !charts.has(container)) histogram(container, each);
    container.dataset.cut = each.name === state.criterion ? "yes" : "no";
  });
  scatter();
  showPairs();
  showBrushed();
}

function setCriterion(name) {
  state.criterion = name;
  const count = score().limits.length;
  Object.assign($("min"), { min: -1, max: count - 1 });
  Object.assign($("max"), { min: 0, max: count });
  const middle = Math.floor(count / 2);
  [state.min, state.max] = score().better === "higher" ? [middle, count] : [-1, middle];
}

function readFragment() { // #criterion=mutual&keep=0.5, #criterion=ifd&min=0.8&max=1; &recommended=1&also=nll_end::12
  const fragment = new URLSearchParams(location.hash.slice(1));
  if (!data.scores.some((each) => each.name === fragment.get("criterion"))) return false;
  setCriterion(fragment.get("criterion"));
  const nearest = (list, value) => list.reduce((best, each, index) => (Math.abs(each - value) < Math.abs(list[best] - value) ? index : best), 0);
  const limits = score().limits;
  if (fragment.has("keep") && data.shareable) {
    Object.assign(state, { mode: "share", share: nearest(data.shares, Number(fragment.get("keep"))) });
  } else {
    state.mode = fragment.has("min") || fragment.has("max") ? "limits" : "none";
    state.min = fragment.has("min") ? nearest(limits, Number(fragment.get("min"))) : -1;
    state.max = fragment.has("max") ? nearest(limits, Number(fragment.get("max"))) : limits.length;
  }
  state.preset = Boolean(data.preset) && fragment.has("recommended");
  state.also = fragment.getAll("also").map((each) => each.split(":")).filter(([name]) => score(name)).map(([name, min, max]) => {
    const { limits } = score(name);
    return { name, min: min ? nearest(limits, Number(min)) : -1, max: max ? nearest(limits, Number(max)) : limits.length };
  });
  showConditions();
  return true;
}

function writeFragment() {
  const [low, high] = cuts(), fragment = new URLSearchParams({ criterion: state.criterion });
  if (state.mode === "share") fragment.set("keep", data.shares[state.share]);
  if (state.mode === "limits") for (const [name, cut] of [["min", low], ["max", high]]) if (cut !== null) fragment.set(name, cut);
  if (state.preset) fragment.set("recommended", 1);
  for (const each of state.also) fragment.append("also", [each.name, ...bounds(each).map((cut) => cut ?? "")].join(":"));
  history.replaceState(null, "", `#${fragment}`);
}

function changed() {
  listed = PAGE;
  show();
  writeFragment();
}

function listen() {
  $("criterion").addEventListener("change", (event) => { setCriterion(event.target.value); changed(); });
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => { state.mode = radio.value; changed(); });
  for (const name of ["share", "min", "max"]) {
    $(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      if (name === "min") state.max = Math.max(state.max, state.min);
      if (name === "max") state.min = Math.min(state.min, state.max);
      changed();
    });
  }
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("command").textContent);
      $("copied").textContent = "copied";
    } catch {
      getSelection().selectAllChildren($("command"));
      $("copied").textContent = "selected: press Ctrl+C";
    }
  });
  for (const [name, event] of [["order", "change"], ["search", "input"]]) $(name).addEventListener(event, () => { listed = PAGE; showPairs(); });
  $("more").addEventListener("click", () => { listed += PAGE; showPairs(); });
  window.addEventListener("hashchange", () => readFragment() && show());
  window.addEventListener("resize", () => { for (const chart of charts.values()) chart.resize(); show(); });
  listenConditions();
  if (data.quadrant) listenQuadrant();
}

for (const each of data.scores) {
  $("criterion").append(new Option(`${each.name} (${each.better} is better)`, each.name));
  const container = element("div", undefined, "chart");
  container.setAttribute("role", "img");
  $("histogram-charts").append(container);
}
if (!data.shareable) document.querySelector("[name=mode][value=share]").disabled = true;
$("no-quadrant").hidden = Boolean(data.quadrant);
$("quadrant-body").hidden = !data.quadrant;
setCriterion(state.criterion);
listen();
readFragment();
show();
