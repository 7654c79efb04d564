// The map of attention heads: layers down, heads across, one map per run with one colour scale.
function drawHeads() {
  if (!$("slice")) return;
  const [slice] = data.slices[$("slice").value || 0];
  const { key, head, unit } = data.headValues[$("head-value").value || 0];
  const colours = ramp(unit, data.runs.flatMap((run) => (run.heads[slice] ? run.heads[slice][key].flat() : [])));
  showLegend("head-legend", colours);
  data.runs.forEach((run, r) => {
    const div = $(`heads-${r}`), found = run.heads[slice];
    const across = found ? found.heads.map(String) : [], down = found ? found.layers.map(String) : [];
    const words = across.length <= (several ? 8 : 14);
    const hover = found ? found[key].map((row, l) => row.map((v, h) => `layer ${down[l]}, head ${across[h]}<br>${plain(head)}: ${format(v, unit)}`)) : [];
    div.style.minWidth = `${70 + 11 * across.length}px`;
    div.style.height = `${80 + Math.max(14, Math.min(30, 480 / Math.max(1, down.length))) * Math.max(2, down.length)}px`;
    const type = { type: "category", showgrid: false };
    Plotly.react(div, found ? [{
      type: "heatmap", x: across, y: down, z: found[key], zmin: colours.low, zmax: colours.high, colorscale: colours.scale, xgap: 1, ygap: 1,
      hoverinfo: "text", hovertext: hover, hoverongaps: false, showscale: false,
      ...(words && { texttemplate: "%{text}", text: found[key].map((row) => row.map((v) => (v === null ? "" : format(v, unit).replace(/ %$/, "")))) }),
    }] : [], layout({
      annotations: !found ? [message("not measured in this run")] : found[key].flat().some((v) => v !== null) ? [] : [message("products have no share: see relative change")], margin: { l: 56, r: 8, t: 8, b: 44 },
      xaxis: axis(slice === "k" || slice === "v" ? "key–value head" : "head", { ...type, tickangle: 0 }), yaxis: axis("layer", { ...type, autorange: "reversed" }),
    }), quiet);
  });
}

function fillSlices() {
  if (!$("slice")) return;
  $("slice").replaceChildren(...options(data.slices, ([, label]) => label));
  $("head-value").replaceChildren(...options(data.headValues, (one) => one.head));
  for (const id of ["slice", "head-value"]) $(id).addEventListener("change", drawHeads);
}
