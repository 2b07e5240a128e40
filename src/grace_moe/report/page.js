"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const style = getComputedStyle(document.documentElement);
  const scale = [0, 0.5, 1].map((at) => [at, style.getPropertyValue(`--heat-${at * 10}`).trim()]);
  for (const [id, { data, layout }] of Object.entries(figures)) {
    const traces = data.map((trace) => (trace.type === "heatmap" ? { ...trace, colorscale: scale } : trace));
    Plotly.react(id, traces, layout, { displayModeBar: false, responsive: true });
  }
}

draw();
dark.addEventListener("change", draw);
