// One point per matrix: zeros observed against predicted, and every context number over its null.
const VERDICTS = ["dense", "sparse", "inconclusive"];

function drawZeros() {
  const div = $("zeros-plot");
  if (!div) return;
  const worded = data.runs.some((run) => run.zeros.some(([, , word]) => word !== null));
  const traces = [];
  data.runs.forEach((run, r) => {
    const groups = new Map();
    run.zeros.forEach(([predicted, observed, word], i) => {
      if (predicted === null || observed === null) return;
      const key = worded ? word || "no verdict" : "";
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push([predicted, observed, i]);
    });
    groups.forEach((points, word) => {
      const ink = VERDICTS.includes(word) ? css(`--word-${VERDICTS.indexOf(word)}`) : worded ? css("--soft") : colour(r);
      traces.push({
        type: "scatter", mode: "markers", x: points.map((p) => p[0]), y: points.map((p) => p[1]), hoverinfo: "text",
        name: [plain(word), several ? plain(run.label) : ""].filter(Boolean).join(", ") || plain(run.label),
        marker: { color: ink, symbol: SYMBOLS[r] + (word === "inconclusive" ? "-open" : ""), size: 9, opacity: 0.85, line: { width: 1, color: word === "inconclusive" ? ink : css("--paper") } },
        text: points.map(([x, y, i]) => `${plain(run.names[i])}<br>${format(y, "percent")} observed, ${format(x, "percent")} predicted${word ? `<br>${plain(word)}` : ""}`),
      });
    });
  });
  const values = traces.flatMap((t) => [...t.x, ...t.y]);
  const high = Math.min(1, 1.1 * Math.max(0.02, ...values)), low = -0.02 * high;
  const [under, over] = data.band;
  const band = { type: "path", path: `M ${low} ${low + under} L ${high} ${high + under} L ${high} ${high + over} L ${low} ${low + over} Z`, fillcolor: css("--band"), line: { width: 0 }, layer: "below" };
  const line = { type: "line", x0: low, y0: low, x1: high, y1: high, line: { color: css("--soft"), width: 1, dash: "dash" }, layer: "below" };
  Plotly.react(div, traces, layout({
    shapes: [band, line], showlegend: true, legend: { ...legend, font: { size: 11 } }, margin: { l: 64, r: 16, t: 48, b: 48 },
    xaxis: axis("unchanged entries, predicted", { tickformat: "~%", range: [low, high] }),
    yaxis: axis("unchanged entries, observed", { tickformat: "~%", range: [low, high] }),
  }), config);
}

function drawContext() {
  const div = $("context-plot");
  if (!div) return;
  const traces = [], bars = [];
  const step = 0.7 / data.runs.length, narrow = div.clientWidth < 600;
  let low = -0.3, high = 0.3;
  data.runs.forEach((run, r) => {
    if (!run.ratios) return;
    const x = [], y = [], text = [];
    data.ratios.forEach(({ key, head }, s) => {
      const centre = s + (r - (data.runs.length - 1) / 2) * step;
      run.ratios[key].forEach((ratio, i) => {
        if (ratio === null || ratio <= 0) return; // a logarithmic axis has no place for zero; the table has
        x.push(centre + (((i * 0.618) % 1) - 0.5) * step * 0.7);
        y.push(ratio);
        text.push(`${plain(run.names[i])}, ${plain(run.label)}<br>${plain(head)}: ${format(ratio, "ratio")} its null`);
      });
      const middle = median(run.ratios[key]);
      if (middle > 0) bars.push({ type: "line", x0: centre - step * 0.46, x1: centre + step * 0.46, y0: middle, y1: middle, line: { color: colour(r), width: 4 } });
    });
    y.forEach((v) => { low = Math.min(low, Math.log10(v)); high = Math.max(high, Math.log10(v)); });
    traces.push({
      type: "scatter", mode: "markers", x, y, text, hoverinfo: "text", name: plain(run.label),
      marker: { color: colour(r), symbol: SYMBOLS[r], size: 6, opacity: 0.45 },
    });
  });
  const pad = 0.06 * (high - low);
  const null1 = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--ink"), width: 1.5, dash: "dash" }, layer: "below" };
  const ticks = [-4, -3, -2, -1, 0, 1, 2, 3, 4].flatMap((e) => [1, 2, 5].map((m) => +(m * 10 ** e).toPrecision(1))).filter((v) => high - low < 2.2 || String(v).includes("1"));
  Plotly.react(div, traces, layout({
    shapes: [null1, ...bars], showlegend: several, legend, margin: { l: 64, r: 16, t: 32, b: 90 },
    xaxis: axis("", { tickvals: data.ratios.map((_, i) => i), ticktext: data.ratios.map((one) => plain(one.head)), range: [-0.6, data.ratios.length - 0.4], showgrid: false, tickangle: narrow ? -90 : -35, tickfont: { size: narrow ? 10 : 12 } }),
    yaxis: axis("over its null (log)", { type: "log", range: [low - pad, high + pad], tickvals: ticks, ticktext: ticks.map((v) => (v === 1 ? "null 1" : String(v))) }),
  }), config);
}
