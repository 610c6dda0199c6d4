"use strict";
/* Pairs with their texts, which are set as textContent, never as HTML. */

const PAGE = 10; // rows that are listed at a time
let listed = PAGE;

function tag(text, isBad) { return element("span", text, isBad ? "tag bad" : "tag"); }

function card(place) {
  const item = element("li");
  const facts = element("p", undefined, "facts-line");
  const value = score().values[place];
  facts.append("row ", element("b", pairs.label[place]), pairs.id[place] ? ` · ${pairs.id[place]}` : "",
    ` · ${state.criterion} `, element("b", short(value)),
    ` · ${data.tokens[0][place] ?? "–"} + ${data.tokens[1][place] ?? "–"} tokens `,
    tag(isKept(place) ? "kept" : "dropped", !isKept(place)));
  for (const flag of pairs.flags[place].split(",").filter(Boolean)) facts.append(" ", tag(flag, true));
  if (pairs.status[place] !== "ok") facts.append(" ", tag(pairs.status[place], true));
  item.append(facts);
  if (pairs.instruction[place] || pairs.response[place]) {
    const sides = element("div", undefined, "sides");
    for (const side of ["instruction", "response"]) {
      const half = element("div"), text = element("p", pairs[side][place]);
      text.tabIndex = 0; // long texts scroll
      half.append(element("h3", side), text);
      sides.append(half);
    }
    item.append(sides);
  }
  return item;
}

function order(places) {
  const each = score(), how = $("order").value;
  if (how === "random") return places;
  const known = new Set(places), ranked = each.ranked.filter((place) => known.has(place));
  if (how === "best") return ranked;
  if (how === "worst") return ranked.reverse();
  const near = cuts().filter((cut) => cut !== null);
  const distance = (place) => Math.min(...near.map((cut) => Math.abs(each.values[place] - cut)));
  return near.length ? ranked.sort((a, b) => distance(a) - distance(b)) : [];
}

function showPairs() {
  const query = $("search").value.trim().toLowerCase();
  const how = $("order").value;
  const texts = (place) => ["label", "id", "status", "flags", "instruction", "response"].map((name) => pairs[name][place]);
  let places = how === "random" && !query ? data.drawn.slice() : pairs.label.map((_, place) => place);
  if (query) places = places.filter((place) => texts(place).some((text) => text.toLowerCase().includes(query)));
  const found = order(places);
  const isExact = data.sampled && !query && (how === "best" || how === "worst");
  const limit = isExact ? Math.min(PAGE, found.length) : Math.min(listed, found.length);
  $("pair-rows").replaceChildren(...found.slice(0, limit).map(card));
  $("more").hidden = isExact || limit >= found.length;
  $("pairs-count").textContent = how === "cut" && !cuts().some((cut) => cut !== null)
    ? "The rule has no cut-off: set a limit."
    : isExact ? `The ${limit} ${how} of all rows by ${state.criterion}`
    : `${whole(limit)} of ${whole(found.length)} shown rows`;
}
