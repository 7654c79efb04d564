// The forest plot: one statistic, observed against each null, matrix by matrix.
const NULL_SYMBOLS = ["circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open"];

function drawForest() {
  const div = $("forest");
  if (!div) return;
  const { key, head, unit } = data.statistics[$("statistic").value || 0];
  const names = [...new Set(data.runs.flatMap((run) => (run.forest.rows[key] || []).map((row) => run.forest.matrices[row[0]])))];
  const nulls = [...new Set(data.runs.flatMap((run) => run.forest.nulls))];
  const place = new Map(names.map((name, i) => [name, i]));
  const narrow = div.clientWidth < 600;
  const step = 0.8 / data.runs.length, traces = [], annotations = [];
  data.runs.forEach((run, r) => {
    const rows = run.forest.rows[key] || [];
    const centre = (row) => place.get(run.forest.matrices[row[0]]) + (r - (data.runs.length - 1) / 2) * step;
    const label = plain(run.label), scores = new Map();
    nulls.forEach((null_, j) => {
      const held = rows.filter((row) => run.forest.nulls[row[1]] === null_);
      if (!held.length) return;
      const shift = ((j - (nulls.length - 1) / 2) * step * 0.6) / nulls.length;
      traces.push({
        type: "scatter", mode: "markers", x: held.map((row) => row[3]), y: held.map((row) => centre(row) + shift), hoverinfo: "text",
        name: several ? `${plain(null_)}, ${label}` : plain(null_),
        error_x: { type: "data", array: held.map((row) => 2 * (row[4] || 0)), color: colour(r), thickness: 1.5, width: 3 },
        marker: { symbol: NULL_SYMBOLS[j % 6], size: 7, color: colour(r) },
        text: held.map((row) => `${plain(run.forest.matrices[row[0]])}, ${label}<br>${plain(null_)}: ${format(row[3], unit)} ± ${format(2 * (row[4] || 0), unit)} (2 sd)<br>observed ${format(row[2], unit)}, z ${format(row[5])}`),
      });
      held.forEach((row) => {
        if (!scores.has(row[0])) scores.set(row[0], [row, []]);
        scores.get(row[0])[1].push(row[5] === null ? "–" : Math.abs(row[5]) >= 100 ? String(Math.round(row[5])) : row[5].toFixed(1));
      });
    });
    const seen = [...scores.values()].map(([row]) => row);
    traces.push({
      type: "scatter", mode: "markers", x: seen.map((row) => row[2]), y: seen.map(centre), hoverinfo: "text", name: several ? `observed, ${label}` : "observed",
      marker: { symbol: SYMBOLS[r], size: 10, color: colour(r), line: { width: 1, color: css("--paper") } },
      text: seen.map((row) => `${plain(run.forest.matrices[row[0]])}, ${label}<br>observed ${format(row[2], unit)}`),
    });
    scores.forEach(([row, z]) => annotations.push({
      xref: "paper", x: 1.01, xanchor: "left", y: centre(row), text: `z ${z.join(" / ")}`, showarrow: false, font: { size: narrow ? 9 : 11, color: colour(r) },
    }));
  });
  if (!names.length) annotations.push(message("not tested in these runs"));
  const trimmed = (name) => (narrow && name.length > 15 ? `…${name.slice(-14)}` : name);
  div.style.height = `${130 + 22 * traces.length * 0.5 + Math.max(30, 17 * nulls.length * data.runs.length) * names.length}px`;
  Plotly.react(div, traces, layout({
    annotations, showlegend: true, legend: { ...legend, font: { size: 11 } }, margin: { l: 90, r: narrow ? 84 : 120, t: 56, b: 48 },
    xaxis: axis(plain(head), unit === "percent" ? { tickformat: ".3~%" } : {}),
    yaxis: axis("", { tickvals: names.map((_, i) => i), ticktext: names.map((name) => plain(trimmed(name))), range: [names.length - 0.4, -0.6], tickfont: { size: 11 } }),
  }), quiet);
}

function fillStatistics() {
  if (!$("statistic")) return;
  $("statistic").replaceChildren(...options(data.statistics, (one) => one.head));
  $("statistic").addEventListener("change", drawForest);
}
