"use strict";
const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
const dark = matchMedia("(prefers-color-scheme: dark)");

// What packed.py wrote: base 85, five characters for four bytes, of deflated text.
function unpacked(id) {
  const element = document.getElementById(id);
  const code = element.textContent;
  const digits = new Uint8Array(128);
  [...alphabet].forEach((character, digit) => (digits[character.charCodeAt(0)] = digit));
  const bytes = new DataView(new ArrayBuffer((code.length / 5) * 4));
  for (let at = 0; at < code.length; at += 5) {
    let word = 0;
    for (let next = at; next < at + 5; next++) word = word * 85 + digits[code.charCodeAt(next)];
    bytes.setUint32((at / 5) * 4, word);
  }
  const deflated = new Blob([bytes.buffer.slice(0, Number(element.dataset.bytes))]);
  return new Response(deflated.stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

function draw(figures) {
  const style = getComputedStyle(document.documentElement);
  const scale = [0, 0.5, 1].map((at) => [at, style.getPropertyValue(`--heat-${at * 10}`).trim()]);
  for (const [id, { data, layout }] of Object.entries(figures)) {
    const traces = data.map((trace) => (trace.type === "heatmap" ? { ...trace, colorscale: scale } : trace));
    Plotly.react(id, traces, layout, { displayModeBar: false, responsive: true });
  }
}

async function start() {
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library);
  const figures = JSON.parse(await unpacked("figures"));
  draw(figures);
  dark.addEventListener("change", () => draw(figures));
}

start();
