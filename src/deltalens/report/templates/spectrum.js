// One spectrum, all runs laid over each other, with floor, sign-flip edge and a reference edge.
const EDGES = [["rounding floor", "dash", 2], ["bulk edge", "dot", 2], ["Marchenko–Pastur, reference only", "longdashdot", 1]];

function drawSpectrum() {
  const traces = [], lines = [], shown = [], narrow = $("spectrum").clientWidth < 600;
  const long = data.runs.some((run) => run.label.length > 28); // then the colour alone says whose line it is
  data.runs.forEach((run, r) => {
    const k = drawn[r].get(state.name);
    if (k === undefined) return;
    shown.push([r, k]);
    const sigma = run.spectra[k];
    if (!sigma) return;
    const zero = 1e-7 * sigma[0], x = [], y = [], size = [];
    data.indices[run.lengths[k]].forEach((index, j) => {
      if (sigma[j] <= zero) return; // numerically zero, and a logarithmic axis has no place for it
      x.push(index);
      y.push(sigma[j]);
      size.push(index <= (run.spikes[k] || 0) ? 9 : 3.5);
    });
    const label = plain(run.label);
    traces.push({
      type: "scatter", mode: "lines+markers", name: label, x, y,
      marker: { size, color: colour(r), symbol: SYMBOLS[r], opacity: 1, line: { width: 0 } },
      line: { color: colour(r), width: 1.5, dash: DASHES[r] }, hoverinfo: "text",
      text: x.map((index, j) => `${label}<br>σ<sub>${index}</sub> = ${y[j].toPrecision(4)}${size[j] > 4 ? ", a spike" : ""}`),
    });
    run.edges[k].forEach((edge, e) => {
      if (edge === null) return;
      const [word, dash, width] = EDGES[e], named = e === 2 ? "MP, reference only" : word;
      lines.push([edge, several && !narrow && !long ? `${named}, ${label}` : named, colour(r)]);
      traces.push({
        type: "scatter", mode: "lines", x: [1, run.lengths[k]], y: [edge, edge], showlegend: false, hoverinfo: "text",
        text: `${word}, ${label}: ${edge.toPrecision(4)}`, line: { color: colour(r), width, dash }, opacity: e === 2 ? 0.6 : 1,
      });
    });
  });
  const div = $("spectrum");
  const levels = traces.flatMap((t) => t.y).map(Math.log10);
  const high = levels.length ? Math.max(...levels) : 0, low = levels.length ? Math.min(...levels) : -1;
  const pad = 0.06 * (high - low || 1);
  const perUnit = (div.clientHeight - 76) / (high - low + 2 * pad);
  // Labels sit on their lines at the right, where the curve is far below; they are pushed apart when lines are close.
  lines.sort((a, b) => a[0] - b[0]);
  let last = -Infinity;
  const annotations = lines.map(([edge, text, ink]) => {
    const at = Math.max(Math.log10(edge) * perUnit + 9, last + 15);
    last = at;
    return {
      xref: "paper", x: 1, xanchor: "right", y: Math.log10(edge), yshift: at - Math.log10(edge) * perUnit,
      text: `${text} ${edge.toPrecision(3)}`, showarrow: false, font: { color: ink, size: 12 }, bgcolor: css("--veil"), borderpad: 0,
    };
  });
  if (!traces.length) annotations.push(message("no spectrum: Δ = 0, or not measured"));
  Plotly.react(div, traces, layout({
    annotations, showlegend: several, legend, margin: { l: 64, r: 16, t: 28, b: 48 },
    xaxis: axis("index of the singular value (log)", { type: "log", dtick: 1 }),
    yaxis: axis("σ of Δ (weight units, log)", { type: "log", ...(high - low > 1.5 && { dtick: 1 }), range: [low - pad, high + pad], exponentformat: "power" }),
  }), config);
  $("spectrum-title").textContent = state.name === null ? "No spectrum to show" : `Spectrum of the change in ${state.name}`;
  $("facts").replaceChildren(...shown.map(([r, k]) => {
    const card = element("div", undefined, `card run-${r}`);
    card.append(element("h3", data.runs[r].label));
    const list = element("dl", undefined, "facts");
    data.runs[r].facts[k].forEach(([term, value]) => {
      const line = element("div");
      line.append(element("dt", term), element("dd", value));
      list.append(line);
    });
    card.append(list);
    return card;
  }));
}

function choose(name) {
  state.name = name;
  document.querySelectorAll("select.matrix").forEach((one) => { one.value = name; });
  drawSpectrum();
  drawBinades();
  drawMaps();
}

function fillMatrices() {
  const names = new Set(data.runs.flatMap((run) => run.names));
  if (state.name === null && names.size) state.name = names.values().next().value;
  document.querySelectorAll("select.matrix").forEach((select) => {
    select.replaceChildren(...[...names].map((name) => new Option(name, name, false, name === state.name)));
    select.addEventListener("change", () => choose(select.value));
  });
}
