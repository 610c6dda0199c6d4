"use strict";
/* The data, the state, and the filter's rule. A single condition is counted in Python over every row; see joint.js. */

const data = JSON.parse(document.getElementById("data").textContent);
const pairs = data.pairs;
const $ = (id) => document.getElementById(id);
/* mode: share, limits or none; also: the further conditions, {name, min, max} with places in the score's limits as in min and max below */
const state = { criterion: data.scores[0].name, mode: data.shareable ? "share" : "limits", share: 49, min: -1, max: 0,
  preset: false, also: [] };

const score = (name = state.criterion) => data.scores.find((each) => each.name === name);
const whole = (count) => count.toLocaleString("en-US");
const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)}%` : "–");
const arrow = (each) => (each.better === "higher" ? "higher is better →" : "← lower is better");
const hasMore = () => state.preset || state.also.length > 0;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/* A condition is {name, min, max}: min -1 and max limits.length are no limit. */
const criterion = () => ({ name: state.criterion, min: state.min, max: state.max });

function cells({ name, min, max }) { // the first and the last cell that a condition keeps
  const count = score(name).limits.length;
  return [min < 0 ? 0 : 2 * min + 1, max >= count ? 2 * count : 2 * max + 1];
}

function bounds({ name, min, max }) { // the limits of a condition, null where there is none
  const { limits } = score(name);
  return [limits[min] ?? null, limits[max] ?? null];
}

const hasRule = () => state.mode === "share" || (state.mode === "limits" && bounds(criterion()).some((cut) => cut !== null));
const span = () => (state.mode === "share" ? [0, state.share] : cells(criterion()));

function keptBy(grouping) { // rows kept in each group
  if (hasMore()) return jointlyKept()[grouping];
  if (!hasRule()) return data.groupings[grouping].sizes;
  const [first, last] = span();
  const groups = data.groupings[grouping].labels.length;
  const table = (state.mode === "share" ? score().shares : score().cells)[grouping];
  const kept = new Array(groups).fill(0);
  for (let place = first * groups; place < (last + 1) * groups; place++) kept[place % groups] += table[place];
  return kept;
}

function isKept(place) {
  const within = (each, [first, last], name) => each[name][place] >= first && each[name][place] <= last;
  if (state.preset && !data.preset.of[place]) return false;
  if (!state.also.every((each) => within(score(each.name), cells(each), "cell_of"))) return false;
  if (!hasRule()) return true;
  if (state.mode === "limits") return within(score(), span(), "cell_of");
  return hasMore() ? within(score().joint, [0, lastRank()], "of") : within(score(), span(), "share_of");
}

function cuts() { // the limits of the kept values: [lowest, highest], null where there is none
  const each = score();
  if (state.mode === "none") return [null, null];
  if (state.mode === "limits") return bounds(criterion());
  if (state.share === data.shares.length - 1) return [null, null];
  const cut = each.cuts[hasMore() ? shareOfRank(lastRank()) : state.share];
  return each.better === "higher" ? [cut, null] : [null, cut];
}

function options(condition, isNamed) {
  const [low, high] = bounds(condition);
  // With "=", a negative number is not taken for an option.
  const option = (bound, cut) => (cut === null ? [] : [isNamed ? `--${bound} ${condition.name}=${cut}` : `--${bound}=${cut}`]);
  return [...option("min", low), ...option("max", high)];
}

function rule() { // the options of the command, null if there is no condition
  const found = state.preset ? ["--recommended"] : [];
  for (const each of state.also) found.push(...options(each, true));
  if (hasRule()) {
    found.push(`--by ${state.criterion}`);
    found.push(...(state.mode === "share" ? [`--keep ${data.shares[state.share]}`] : options(criterion(), false)));
  }
  return found.length ? found.join(" ") : null;
}
