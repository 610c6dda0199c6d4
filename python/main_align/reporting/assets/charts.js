"use strict";
/* Histograms. Charts draw their labels on the canvas (no HTML tooltips), so no text of the data is parsed as HTML. */

const BLUE = "#2f5fa8", PALE = "#8ba7d0", GREY = "#b9c2ce", ORANGE = "#c7681a", INK = "#1d2530";
const charts = new Map(); // by container

function draw(container, option, label) {
  let chart = charts.get(container);
  if (!chart) charts.set(container, (chart = echarts.init(container)));
  container.setAttribute("aria-label", label);
  chart.setOption({ animation: false, textStyle: { color: INK }, ...option }, true);
  return chart;
}

function histogram(container, each) {
  const { low, high, counts } = each.histogram;
  const [lowest, highest] = each.name === state.criterion ? cuts() : [null, null];
  const width = (high - low) / counts.length;
  const bars = counts.map((count, bar) => {
    const middle = low + (bar + 0.5) * width;
    const isIn = (lowest === null || middle >= lowest) && (highest === null || middle <= highest);
    return { value: [middle, count], itemStyle: { color: each.name !== state.criterion ? PALE : isIn ? BLUE : GREY } };
  });
  const inside = (value) => Math.min(high, Math.max(low, value));
  const lines = [["10%", each.quantiles[1]], ["median", each.quantiles[3]], ["90%", each.quantiles[5]]].map(
    ([name, value]) => ({ xAxis: inside(value), name, label: { distance: name === "median" ? 15 : 3 }, lineStyle: { color: "#6b7685", type: "solid", width: 1 } }));
  for (const cut of [lowest, highest]) {
    if (cut !== null) {
      const label = { formatter: `cut ${short(cut)}`, position: "insideEndTop", color: ORANGE,
        fontWeight: "bold", backgroundColor: "rgba(255,255,255,.85)" };
      lines.push({ xAxis: inside(cut), name: "cut", label, lineStyle: { color: ORANGE, type: "dashed", width: 2 } });
    }
  }
  draw(container, {
    title: { text: each.name, textStyle: { fontSize: 14 }, left: 0, top: 0 },
    grid: { left: 8, right: 16, top: 58, bottom: 28, containLabel: true },
    tooltip: { renderMode: "richText", trigger: "axis",
      formatter: ([bar]) => `around ${short(bar.value[0])}: ${whole(bar.value[1])} rows` },
    xAxis: { type: "value", min: low, max: high, name: `${each.unit}${arrow(each)}`, nameLocation: "middle",
      nameGap: 26, nameTextStyle: { width: container.clientWidth - 40, overflow: "truncate" },
      splitLine: { show: false }, axisLabel: { formatter: short, hideOverlap: true, showMinLabel: false, showMaxLabel: false } },
    yAxis: { type: "value", minInterval: 1, splitNumber: 3 },
    series: [{ type: "bar", data: bars, barCategoryGap: "6%",
      markLine: { symbol: "none", silent: true, data: lines, label: { formatter: "{b}", fontSize: 10 } } }],
  }, `Histogram of ${each.name}, ${each.better} is better. 10% ${short(each.quantiles[1])}, median ` +
    `${short(each.quantiles[3])}, 90% ${short(each.quantiles[5])}` +
    (lowest === null ? "" : `, kept from ${short(lowest)}`) + (highest === null ? "" : `, kept to ${short(highest)}`));
}
