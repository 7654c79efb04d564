// Over depth: raw rank beside denoised rank, and the energy of the leading directions beside that of the spikes.
const RANKS = [["effective_rank", "raw", "dash"], ["denoised_effective_rank", "denoised", "solid"]];
const ENERGIES = [["top_energy_4", "first 4", "dot"], ["top_energy_16", "first 16", "dash"], ["spike_energy", "spikes", "solid"]];

function drawDepth() {
  curves("depth-rank", RANKS, "effective rank (directions)", "number");
  curves("depth-energy", ENERGIES, "share of ‖Δ‖²", "percent");
}

function curves(id, which, title, unit) {
  const traces = data.runs.flatMap((run, r) => which.map(([key, word, dash]) => {
    const thick = dash === "solid", y = run.depth[key];
    return {
      type: "scatter", mode: "lines+markers", x: run.depth.layer, y, hoverinfo: "text",
      name: several ? `${word}, ${plain(run.label)}` : word,
      text: y.map((v, i) => `layer ${run.depth.layer[i]}, ${plain(run.label)}<br>${word} ${format(v, unit)}, over ${run.depth.matrices[i]} matrices`),
      line: { color: colour(r), width: thick ? 3 : 1.2, dash },
      marker: { color: colour(r), symbol: SYMBOLS[r], size: thick ? 8 : 5 },
    };
  }));
  const any = traces.some((trace) => trace.y.some((v) => v !== null));
  Plotly.react($(id), traces, layout({
    showlegend: true, legend: { ...legend, font: { size: 11 } }, margin: { l: 64, r: 16, t: 56, b: 48 },
    annotations: any ? [] : [message("no matrix in a layer has a denoised rank")],
    xaxis: axis("layer", { tickformat: "d", ...(data.columns.length < 20 && { dtick: 1 }) }),
    yaxis: axis(title, { rangemode: "tozero", ...(unit === "percent" && { tickformat: "~%" }) }),
  }), config);
}
