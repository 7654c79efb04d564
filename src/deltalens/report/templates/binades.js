// The dead zone of one matrix: zero share at every step of the storage grid, observed, predicted and fitted, all runs.
function drawBinades() {
  const div = $("binades");
  if (!div) return;
  const traces = ["dash", "solid"].map((dash, i) => ({ // what the lines mean, once for all runs
    type: "scatter", mode: "lines", name: ["predicted", "fitted"][i], x: [null], y: [null], line: { color: css("--soft"), width: 1.5, dash },
  }));
  let high = 0.02;
  data.runs.forEach((run, r) => {
    const rows = drawn[r].has(state.name) ? run.binades[drawn[r].get(state.name)] : [];
    if (!rows.length) return;
    const x = rows.map((row) => row[0]), ink = colour(r), label = plain(run.label);
    high = Math.max(high, ...rows.flatMap((row) => row.slice(2)));
    [["dash", 3], ["solid", 4]].forEach(([dash, at]) => traces.push({
      type: "scatter", mode: "lines", x, y: rows.map((row) => row[at]), hoverinfo: "skip", showlegend: false, line: { color: ink, width: 1.5, dash },
    }));
    traces.push({
      type: "scatter", mode: "markers", name: several ? label : "observed", x, y: rows.map((row) => row[2]), hoverinfo: "text",
      marker: { color: ink, symbol: SYMBOLS[r], size: 8, line: { width: 1, color: css("--paper") } },
      text: rows.map(([step, entries, observed, predicted, fitted]) => `${label}<br>step ${step.toPrecision(3)}, ${entries} entries<br>`
        + `unchanged: ${format(observed, "percent")} observed, ${format(predicted, "percent")} predicted, ${format(fitted, "percent")} fitted`),
    });
  });
  const none = traces.length === 2;
  high = Math.min(1.03, 1.1 * high);
  Plotly.react(div, traces, layout({
    annotations: none ? [message("no zeros by step for this matrix")] : [],
    showlegend: !none, legend: { ...legend, font: { size: 11 } }, margin: { l: 64, r: 16, t: 48, b: 48 },
    xaxis: axis("step of the stored format at w (log)", { type: "log", dtick: 1, exponentformat: "power" }),
    yaxis: axis("unchanged entries", { tickformat: "~%", range: [-0.03 * high, high] }),
  }), config);
  $("binades-title").textContent = state.name === null ? "no matrix" : `${state.name}, step by step`;
}
