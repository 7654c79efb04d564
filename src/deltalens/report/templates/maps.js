// Heat maps of layers and kinds, one per run, with one colour scale; arrow keys move a cursor, Enter opens a spectrum.
const kinds = data.kinds.map(plain);
const grids = data.runs.map((run) => {
  const grid = data.kinds.map(() => data.columns.map(() => null));
  run.cells.place.forEach(([kind, column], i) => { grid[kind][column] = i; });
  return grid;
});
const columnsOf = (run, key) => run.cells.columns[key] || [];

function shapesOf(r) {
  const box = (k, c, line) => ({ type: "rect", x0: c - 0.5, x1: c + 0.5, y0: k - 0.5, y1: k + 0.5, line });
  const shapes = [];
  const run = data.runs[r], open = drawn[r].get(state.name);
  const cell = open === undefined ? -1 : run.cells.open.indexOf(open);
  if (cell >= 0) shapes.push(box(...run.cells.place[cell], { color: css("--open"), width: 3 }));
  if (state.at && state.at.r === r) shapes.push(box(state.at.k, state.at.c, { color: css("--ink"), width: 3, dash: "dot" }));
  return shapes;
}

function drawMaps() {
  const { key, head, unit } = state.metric;
  const colours = ramp(unit, data.runs.flatMap((run) => columnsOf(run, key)));
  const wide = data.columns.length > 34;
  const words = data.columns.length <= (several ? 8 : 14);
  $("maps").classList.toggle("wide", wide);
  $("formula").textContent = `${head}: ${state.metric.formula}`;
  showLegend("legend", colours);
  data.runs.forEach((run, r) => {
    const values = columnsOf(run, key), raw = columnsOf(run, "effective_rank"), denoised = columnsOf(run, "denoised_effective_rank");
    const map = (show, none) => grids[r].map((row) => row.map((i) => (i === null ? none : show(i))));
    const hover = map((i) => {
      const title = run.cells.count[i] > 1 ? `${run.cells.count[i]} matrices, median` : plain(run.cells.name[i]);
      const known = raw[i] !== null && raw[i] !== undefined && denoised[i] !== null && denoised[i] !== undefined;
      return `${title}<br>${plain(head)}: ${format(values[i], unit)}${known ? `<br>effective rank ${short(raw[i])} raw, ${short(denoised[i])} denoised` : ""}`;
    }, "");
    const common = { type: "heatmap", x: data.columns, y: kinds, xgap: 1, ygap: 1, hoverinfo: "text", hovertext: hover, showscale: false };
    const grey = css("--undefined");
    const there = { ...common, z: map(() => 1, null), colorscale: [[0, grey], [1, grey]], hoverongaps: false };
    const value = (i) => (values[i] === undefined ? null : values[i]);
    const shown = {
      ...common, z: map((i) => colours.z(value(i)), null), zmin: colours.low, zmax: colours.high, colorscale: colours.scale, hoverongaps: false,
      ...(words && { texttemplate: "%{text}", text: map((i) => (value(i) === null ? "" : format(value(i), unit).replace(/ (%|points|×)$/, "")), "") }),
    };
    const div = $(`heat-${r}`);
    div.style.minWidth = `${90 + 11 * data.columns.length}px`;
    div.style.height = `${70 + 30 * data.kinds.length}px`;
    const type = { type: "category", showgrid: false };
    Plotly.react(div, [there, shown], layout({
      shapes: shapesOf(r), margin: { l: 84, r: 8, t: 8, b: 44 },
      xaxis: axis("layer", { ...type, categoryorder: "array", categoryarray: data.columns, tickangle: 0 }),
      yaxis: axis("", { ...type, categoryorder: "array", categoryarray: kinds, autorange: "reversed" }),
    }), quiet);
    if (!div.dataset.listens) {
      div.dataset.listens = "1";
      div.on("plotly_click", (event) => openCell(r, ...event.points[0].pointIndex));
      div.addEventListener("keydown", (event) => onKey(event, r));
      div.addEventListener("focus", () => { if (!state.at || state.at.r !== r) moveTo(r, ...start(r)); });
      div.addEventListener("blur", () => { state.at = null; mark(r); });
    }
  });
}

const mark = (r) => Plotly.relayout($(`heat-${r}`), { shapes: shapesOf(r) });

function start(r) {
  const open = drawn[r].get(state.name), cell = open === undefined ? -1 : data.runs[r].cells.open.indexOf(open);
  return cell >= 0 ? data.runs[r].cells.place[cell] : [0, 0];
}

function moveTo(r, k, c) {
  state.at = { r, k, c };
  const run = data.runs[r], i = grids[r][k][c], { key, head, unit } = state.metric;
  const what = i === null ? "no matrix" : `${run.cells.count[i] > 1 ? `${run.cells.count[i]} matrices` : run.cells.name[i]}: ${head} ${format(columnsOf(run, key)[i], unit)}`;
  $("reading").textContent = `${several ? `${run.label}, ` : ""}layer ${data.columns[c]}, ${data.kinds[k]}: ${what}`;
  mark(r);
}

function onKey(event, r) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  const [k, c] = state.at && state.at.r === r ? [state.at.k, state.at.c] : start(r);
  const clamp = (x, n) => Math.max(0, Math.min(n - 1, x));
  if (step) moveTo(r, clamp(k + step[0], data.kinds.length), clamp(c + step[1], data.columns.length));
  else if (event.key === "Enter" || event.key === " ") openCell(r, k, c);
  else return;
  event.preventDefault();
}

function openCell(r, k, c) {
  const i = grids[r][k][c], open = i === null ? null : data.runs[r].cells.open[i];
  if (open !== null) choose(data.runs[r].names[open]);
}

function fillMetrics() {
  const groups = new Map();
  data.metrics.forEach((metric, i) => {
    if (!groups.has(metric.of)) {
      const group = element("optgroup");
      group.label = metric.of;
      groups.set(metric.of, group);
    }
    groups.get(metric.of).append(new Option(metric.head, i));
  });
  $("metric").replaceChildren(...groups.values());
  $("metric").addEventListener("change", () => {
    state.metric = data.metrics[$("metric").value];
    drawMaps();
  });
}
