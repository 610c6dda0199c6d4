"use strict";
/* The scatter plot of both directions, and the rows of a quadrant or of a box dragged over it. */

let brushed = null; // places in `pairs`, and the sentence about them
let axes = null; // of the scatter plot

function scatter() {
  if (!data.quadrant) return;
  const [x, y] = [score(data.quadrant.x), score(data.quadrant.y)];
  const range = (each) => {
    const [low, high] = [each.quantiles[0], each.quantiles[6]];
    const pad = (high - low) * 0.08 || 1;
    return [low - pad, high + pad];
  };
  axes = [range(x), range(y)];
  const clamp = (value, [low, high]) => Math.min(high, Math.max(low, value));
  const points = { kept: [], dropped: [] };
  for (const place of data.drawn) {
    const [a, b] = [x.values[place], y.values[place]];
    if (a !== null && b !== null) points[isKept(place) ? "kept" : "dropped"].push([clamp(a, axes[0]), clamp(b, axes[1])]);
  }
  const axis = (each, [min, max]) => ({ type: "value", min, max, axisLine: { show: true, onZero: false },
    name: `${each.name}: ${arrow(each).replace("←", "").replace("→", "")}`,
    nameLocation: "middle", axisLabel: { formatter: short, showMinLabel: false, showMaxLabel: false }, splitLine: { show: false } });
  const line = { symbol: "none", silent: true, lineStyle: { color: "#6b7685", type: "solid" }, label: { show: false },
    data: [{ xAxis: data.quadrant.middle[0] }, { yAxis: data.quadrant.middle[1] }] };
  const chart = draw($("scatter"), {
    legend: { data: ["kept", "dropped"], right: 0, top: 0 },
    grid: { left: 30, right: 16, top: 36, bottom: 30, containLabel: true },
    xAxis: { ...axis(x, axes[0]), nameGap: 28 }, yAxis: { ...axis(y, axes[1]), nameGap: 40 },
    series: ["kept", "dropped"].map((name, index) => ({ name, type: "scatter", data: points[name], symbolSize: 7,
      symbol: index ? "triangle" : "circle", itemStyle: { color: index ? ORANGE : BLUE, opacity: 0.6 },
      ...(index ? {} : { markLine: line }) })),
  }, `${data.drawn.length} rows by ${x.name} and ${y.name}. The quadrant buttons list the same rows.`);
  const [left, bottom] = chart.convertToPixel("grid", [axes[0][0], axes[1][0]]);
  const [right, top] = chart.convertToPixel("grid", [axes[0][1], axes[1][1]]);
  Object.assign($("brush").style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
}

function showBrushed() {
  $("brush-count").textContent = brushed ? brushed.sentence : "";
  $("brush-rows").replaceChildren(...(brushed ? brushed.places.slice(0, PAGE).map(card) : []));
}

function list(places, sentence) {
  const shown = places.length > PAGE ? `, the first ${PAGE} below` : "";
  brushed = { places, sentence: `${sentence}${shown}.` };
  showBrushed();
}

function press(button) {
  for (const each of document.querySelectorAll("[data-quadrant]")) each.setAttribute("aria-pressed", String(each === button));
}

function listenQuadrant() {
  for (const button of document.querySelectorAll("[data-quadrant]")) {
    const quadrant = Number(button.dataset.quadrant), count = data.quadrant.counts[quadrant];
    button.querySelector("i").textContent = `${whole(count)} rows`;
    button.addEventListener("click", () => {
      const places = data.drawn.filter((place) => data.quadrant.of[place] === quadrant);
      press(button);
      list(places, `${button.querySelector("b").textContent}: ${whole(count)} rows, ${whole(places.length)} of them in the plot`);
    });
  }
  const area = $("brush"), box = $("box");
  let start = null;
  const at = (event) => {
    const edge = area.getBoundingClientRect();
    return [Math.min(Math.max(event.clientX - edge.left, 0), edge.width), Math.min(Math.max(event.clientY - edge.top, 0), edge.height)];
  };
  const corners = (event) => {
    const end = at(event);
    return [0, 1].map((side) => [Math.min(start[side], end[side]), Math.max(start[side], end[side])]);
  };
  area.addEventListener("pointerdown", (event) => { start = at(event); area.setPointerCapture(event.pointerId); event.preventDefault(); });
  area.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = corners(event);
    box.hidden = false;
    Object.assign(box.style, { left: `${x[0]}px`, top: `${y[0]}px`, width: `${x[1] - x[0]}px`, height: `${y[1] - y[0]}px` });
  });
  area.addEventListener("pointercancel", () => { start = null; box.hidden = true; });
  area.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [x, y] = corners(event), [[left, right], [bottom, top]] = axes;
    start = null;
    const value = (pixel, size, from, to) => from + (pixel / size) * (to - from);
    const horizontal = x.map((pixel) => value(pixel, area.clientWidth, left, right));
    const vertical = y.map((pixel) => value(pixel, area.clientHeight, top, bottom));
    // Points beyond an axis are drawn on its edge, so a box at the edge holds them.
    const inside = (each, [low, high], [first, last]) => each >= (low <= first ? -Infinity : low) && each <= (high >= last ? Infinity : high);
    press(null);
    const [xs, ys] = [score(data.quadrant.x).values, score(data.quadrant.y).values];
    const places = data.drawn.filter((place) => data.quadrant.of[place] >= 0 && inside(xs[place], horizontal, axes[0]) &&
      inside(ys[place], [vertical[1], vertical[0]], axes[1]));
    list(places, `${whole(places.length)} of the rows in the plot are in the box`);
  });
}
