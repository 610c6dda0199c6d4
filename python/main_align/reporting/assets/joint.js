"use strict";
/* Rows that meet several conditions, counted one by one over the ranks of joint.py. */

const NO_RANK = 65535;
const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)).buffer);
const unpacked = new Map(); // by packed text
let counted = null; // of the state: kept rows in each group of each grouping, and the last rank that is kept

function array(text, kind = Uint16Array) {
  if (!unpacked.has(text)) unpacked.set(text, unpack(text, kind));
  return unpacked.get(text);
}

function rankRange(condition) { // the ranks that a condition keeps: from the first to before the last
  const each = score(condition.name), [first, last] = cells(condition);
  const before = each.joint.cells.slice(0, first).reduce((sum, count) => sum + count, 0);
  const inside = each.joint.cells.slice(first, last + 1).reduce((sum, count) => sum + count, 0);
  if (each.better === "lower") return [before, before + inside];
  const all = each.joint.cells.reduce((sum, count) => sum + count, 0);
  return [all - before - inside, all - before];
}

function count() {
  const rows = data.joint.rows, isIn = new Uint8Array(rows).fill(1);
  const restrict = (condition) => {
    const ranks = array(score(condition.name).joint.ranks), [first, stop] = rankRange(condition);
    for (let row = 0; row < rows; row++) if (ranks[row] < first || ranks[row] >= stop) isIn[row] = 0;
  };
  if (state.preset) isIn.set(array(data.preset.met, Uint8Array));
  state.also.forEach(restrict);
  let last = NO_RANK - 1;
  if (state.mode === "limits" && hasRule()) restrict(criterion());
  if (state.mode === "share") {
    const ranks = array(score().joint.ranks), byRank = new Uint8Array(NO_RANK);
    let ranked = 0;
    for (let row = 0; row < rows; row++) if (isIn[row] && ranks[row] !== NO_RANK) { byRank[ranks[row]] = 1; ranked++; }
    let left = Math.ceil(data.shares[state.share] * ranked - 1e-9); // as filtering/rules.py counts
    for (last = -1; left > 0;) left -= byRank[++last];
    for (let row = 0; row < rows; row++) if (ranks[row] > last || ranks[row] === NO_RANK) isIn[row] = 0;
  }
  const kept = data.groupings.map((group, grouping) => {
    const kind = group.labels.length <= 256 ? Uint8Array : Uint16Array;
    const groups = array(data.joint.groups[grouping], kind), found = new Array(group.labels.length).fill(0);
    for (let row = 0; row < rows; row++) found[groups[row]] += isIn[row];
    return found.map((each) => Math.round((each * data.rows) / rows));
  });
  return { kept, last };
}

const joint = () => (counted ??= count());
const recount = () => { counted = null; };
/* The preset alone was counted over every row. */
const isExact = () => !hasMore() || data.joint.is_whole || (state.preset && !state.also.length && !hasRule());
const jointlyKept = () => (isExact() && !data.joint.is_whole ? data.preset.kept : joint().kept);
const lastRank = () => joint().last;

function shareOfRank(rank) { // the first share of all rows that keeps a rank
  const scored = score().joint.cells.reduce((sum, each) => sum + each, 0);
  const found = data.shares.findIndex((share) => Math.ceil(share * scored - 1e-9) > rank);
  return found < 0 ? data.shares.length - 1 : found;
}
