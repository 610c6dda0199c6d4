"use strict";
/* The data, the state, and the filter's rule: counts come from simulation.py and are only added here. */

const data = JSON.parse(document.getElementById("data").textContent);
const pairs = data.pairs;
const $ = (id) => document.getElementById(id);
const state = { criterion: data.scores[0].name, mode: data.shareable ? "share" : "limits", share: 49, min: -1, max: 0 };

const score = (name = state.criterion) => data.scores.find((each) => each.name === name);
const whole = (count) => count.toLocaleString("en-US");
const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)}%` : "–");
const arrow = (each) => (each.better === "higher" ? "higher is better →" : "← lower is better");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function span() { // the first and the last position that are kept
  const last = 2 * score().limits.length;
  if (state.mode === "share") return [0, state.share];
  return [state.min < 0 ? 0 : 2 * state.min + 1, state.max >= score().limits.length ? last : 2 * state.max + 1];
}

function keptBy(grouping) { // rows kept in each group
  const [first, last] = span();
  const groups = data.groupings[grouping].labels.length;
  const table = (state.mode === "share" ? score().shares : score().cells)[grouping];
  const kept = new Array(groups).fill(0);
  for (let place = first * groups; place < (last + 1) * groups; place++) kept[place % groups] += table[place];
  return kept;
}

function isKept(place) {
  const [first, last] = span();
  const position = (state.mode === "share" ? score().share_of : score().cell_of)[place];
  return position >= first && position <= last;
}

function cuts() { // the limits of the kept values: [lowest, highest], null where there is none
  const each = score();
  if (state.mode === "limits") return [each.limits[state.min] ?? null, each.limits[state.max] ?? null];
  if (state.share === data.shares.length - 1) return [null, null];
  const cut = each.cuts[state.share];
  return each.better === "higher" ? [cut, null] : [null, cut];
}

function rule() { // the options of the command
  const by = `--by ${state.criterion}`;
  if (state.mode === "share") return `${by} --keep ${data.shares[state.share]}`;
  const [low, high] = cuts();
  if (low === null && high === null) return null;
  // With "=", a negative number is not taken for an option.
  return [by, ...(low === null ? [] : [`--min=${low}`]), ...(high === null ? [] : [`--max=${high}`])].join(" ");
}
