"use strict";
// Draws the figures from the embedded JSON: a heat map per run, one spectrum figure that is updated, one depth figure.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const several = data.runs.length > 1;
  const places = data.runs.map((run) => new Map(run.names.map((name, i) => [name, i])));
  const state = { metric: data.metrics[0], name: data.first };
  const config = {
    displaylogo: false, responsive: true, displayModeBar: "hover", showSendToCloud: false,
    modeBarButtons: [["pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  };

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (r) => css(`--run-${r}`);
  // Plotly reads its texts as a kind of HTML; names come from checkpoints.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const kinds = data.kinds.map(plain);
  const short = (x) => (Math.abs(x) >= 1000 || Number.isInteger(x) ? String(Math.round(x)) : String(+x.toPrecision(3)));
  const format = (x, unit) => {
    if (x === null || x === undefined) return "–";
    if (unit === "percent") return `${short(100 * x)} %`;
    if (unit === "gap") return `${x > 0 ? "+" : ""}${short(100 * x)} points`;
    return short(x);
  };
  const median = (values) => {
    const v = values.filter((x) => x !== null).sort((a, b) => a - b);
    if (!v.length) return null;
    const h = v.length >> 1;
    return v.length % 2 ? v[h] : (v[h - 1] + v[h]) / 2;
  };
  const element = (tag, text, kind) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (kind) e.className = kind;
    return e;
  };
  const axis = (title, more) => ({
    title: { text: title, standoff: 8 }, gridcolor: css("--line"), zeroline: false, linecolor: css("--soft"),
    ticks: "outside", tickcolor: css("--line"), automargin: true, ...more,
  });
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") },
    margin: { l: 64, r: 16, t: 12, b: 48 }, hoverlabel: { align: "left" }, dragmode: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") }, ...more,
  });

  // ---- heat maps ------------------------------------------------------------------------------------------------
  const cells = data.runs.map((run) => {
    const grid = data.kinds.map(() => data.columns.map(() => []));
    run.place.forEach(([kind, column], i) => grid[kind][column].push(i));
    return grid;
  });

  function range() {
    const values = data.runs.flatMap((run, r) =>
      cells[r].flat().filter((c) => c.length).map((c) => median(c.map((i) => run.columns[state.metric.key][i]))),
    ).filter((x) => x !== null);
    if (!values.length) return [0, 1];
    let low = Math.min(...values), high = Math.max(...values);
    if (state.metric.unit === "gap") {
      high = Math.max(Math.abs(low), Math.abs(high)) || 1;
      return [-high, high];
    }
    if (low > 0 && low < high / 2) low = 0; // nothing looks like no change unless it is
    return low === high ? [Math.min(0, low), high || 1] : [low, high];
  }

  function drawMaps() {
    const { key, head, unit } = state.metric;
    const [low, high] = range();
    const ramp = unit === "gap" ? ["--under", "--zero", "--over"] : ["--low", "--middle", "--high"];
    const colours = ramp.map(css);
    const scale = colours.map((c, i) => [i / 2, c]);
    const wide = data.columns.length > 34;
    const words = data.columns.length <= (several ? 8 : 14);
    $("maps").classList.toggle("wide", wide);
    $("formula").textContent = `${head}: ${state.metric.formula}`;
    const swatch = element("i");
    swatch.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    $("legend").replaceChildren(element("span", format(low, unit)), swatch, element("span", format(high, unit)));
    data.runs.forEach((run, r) => {
      const values = run.columns[key];
      const value = (c) => (c.length ? median(c.map((i) => values[i])) : null);
      const hover = cells[r].map((row) => row.map((c) => {
        if (!c.length) return "";
        const i = c[0];
        const raw = run.columns.effective_rank[i], denoised = run.columns.denoised_effective_rank[i];
        const title = c.length > 1 ? `${c.length} matrices, median` : plain(run.names[i]);
        const rank = c.length > 1 || denoised === null ? "" : `<br>effective rank ${short(raw)} raw, ${short(denoised)} denoised`;
        return `${title}<br>${plain(head)}: ${format(value(c), unit)}${rank}`;
      }));
      const common = { type: "heatmap", x: data.columns, y: kinds, xgap: 1, ygap: 1, hoverinfo: "text", hovertext: hover, showscale: false };
      const grey = css("--undefined");
      const there = { ...common, z: cells[r].map((row) => row.map((c) => (c.length ? 1 : null))), colorscale: [[0, grey], [1, grey]], hoverongaps: false };
      const shown = {
        ...common, z: cells[r].map((row) => row.map(value)), zmin: low, zmax: high, colorscale: scale, hoverongaps: false,
        ...(words && { texttemplate: "%{text}", text: cells[r].map((row) => row.map((c) => (value(c) === null ? "" : format(value(c), unit).replace(/ (%|points)$/, "")))) }),
      };
      const shapes = [];
      const open = places[r].get(state.name);
      if (open !== undefined) {
        const [k, c] = run.place[open];
        shapes.push({ type: "rect", x0: c - 0.5, x1: c + 0.5, y0: k - 0.5, y1: k + 0.5, line: { color: css("--open"), width: 3 } });
      }
      const div = $(`heat-${r}`);
      div.style.minWidth = `${90 + 11 * data.columns.length}px`;
      div.style.height = `${70 + 30 * data.kinds.length}px`;
      const type = { type: "category", showgrid: false };
      Plotly.react(div, [there, shown], layout({
        shapes, margin: { l: 84, r: 8, t: 8, b: 44 },
        xaxis: axis("layer", { ...type, categoryorder: "array", categoryarray: data.columns, tickangle: 0 }),
        yaxis: axis("", { ...type, categoryorder: "array", categoryarray: kinds, autorange: "reversed" }),
      }), { ...config, displayModeBar: false });
      if (!div.dataset.listens) {
        div.dataset.listens = "1";
        div.on("plotly_click", (event) => {
          const [k, c] = event.points[0].pointIndex;
          const found = cells[r][k][c].filter((i) => run.drawn[i] !== null);
          if (found.length) choose(run.names[found[0]]);
        });
      }
    });
  }

  // ---- one spectrum ---------------------------------------------------------------------------------------------
  function drawSpectrum() {
    const traces = [], lines = [], shown = [], narrow = $("spectrum").clientWidth < 600;
    const long = data.runs.some((run) => run.label.length > 28); // then the colour alone says whose line it is
    data.runs.forEach((run, r) => {
      const i = places[r].get(state.name);
      const k = i === undefined ? null : run.drawn[i];
      if (k === null || k === undefined) return;
      shown.push([r, k]);
      const sigma = run.spectra[k];
      if (!sigma) return;
      const zero = 1e-7 * sigma[0], x = [], y = [], size = [];
      data.indices[run.lengths[k]].forEach((index, j) => {
        if (sigma[j] <= zero) return; // numerically zero, and a logarithmic axis has no place for it
        x.push(index);
        y.push(sigma[j]);
        size.push(index <= (run.spikes[k] || 0) ? 9 : 3);
      });
      const label = plain(run.label);
      traces.push({
        type: "scatter", mode: "lines+markers", name: label, x, y, marker: { size, color: colour(r), opacity: 1, line: { width: 0 } },
        line: { color: colour(r), width: 1.5 }, hoverinfo: "text",
        text: x.map((index, j) => `${label}<br>σ<sub>${index}</sub> = ${y[j].toPrecision(4)}${size[j] > 3 ? ", a spike" : ""}`),
      });
      run.edges[k].forEach((edge, e) => {
        if (edge === null) return;
        const word = e ? "bulk edge" : "rounding floor";
        lines.push([edge, several && !narrow && !long ? `${word}, ${label}` : word, colour(r)]);
        traces.push({
          type: "scatter", mode: "lines", x: [1, run.lengths[k]], y: [edge, edge], showlegend: false, hoverinfo: "text",
          text: `${word}, ${label}: ${edge.toPrecision(4)}`, line: { color: colour(r), width: 2, dash: e ? "dot" : "dash" },
        });
      });
    });
    const div = $("spectrum");
    const levels = traces.flatMap((t) => t.y).map(Math.log10);
    const top = levels.length ? Math.max(...levels) : 0, bottom = levels.length ? Math.min(...levels) : -1;
    const pad = 0.06 * (top - bottom || 1);
    const perUnit = (div.clientHeight - 70) / (top - bottom + 2 * pad);
    // Labels sit on their lines at the right, where the curve is far below; they are pushed apart when lines are close.
    lines.sort((a, b) => a[0] - b[0]);
    let last = -Infinity;
    const annotations = lines.map(([edge, text, ink]) => {
      const at = Math.max(Math.log10(edge) * perUnit + 9, last + 16);
      last = at;
      return {
        xref: "paper", x: 1, xanchor: "right", y: Math.log10(edge), yshift: at - Math.log10(edge) * perUnit,
        text: `${text} ${edge.toPrecision(3)}`, showarrow: false, font: { color: ink, size: 12 }, bgcolor: css("--veil"), borderpad: 0,
      };
    });
    if (!traces.length) {
      annotations.push({ xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, text: "no spectrum: Δ = 0, or not measured" });
    }
    Plotly.react(div, traces, layout({
      annotations, showlegend: several, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" }, margin: { l: 64, r: 16, t: 28, b: 48 },
      xaxis: axis("index of the singular value (log)", { type: "log", dtick: 1 }),
      yaxis: axis("σ of Δ (weight units, log)", { type: "log", ...(top - bottom > 1.5 && { dtick: 1 }), range: [bottom - pad, top + pad], exponentformat: "power" }),
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

  // ---- rank over depth ------------------------------------------------------------------------------------------
  function drawDepth() {
    const traces = data.runs.flatMap((run, r) => ["raw", "denoised"].map((which) => ({
      type: "scatter", mode: "lines+markers", x: run.depth.layer, y: run.depth[which], hoverinfo: "text",
      name: several ? `${which}, ${plain(run.label)}` : which,
      text: run.depth[which].map((y, i) => `layer ${run.depth.layer[i]}, ${plain(run.label)}<br>${which} ${format(y)}, over ${run.depth.matrices[i]} matrices`),
      line: { color: colour(r), width: which === "raw" ? 1.2 : 3, dash: which === "raw" ? "dash" : "solid" },
      marker: { color: colour(r), size: which === "raw" ? 4 : 6 },
    })));
    Plotly.react($("depth"), traces, layout({
      showlegend: true, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" }, margin: { l: 64, r: 16, t: 48, b: 48 },
      xaxis: axis("layer", { tickformat: "d", ...(data.columns.length < 20 && { dtick: 1 }) }),
      yaxis: axis("effective rank (directions)", { rangemode: "tozero" }),
    }), config);
  }

  // ---- controls -------------------------------------------------------------------------------------------------
  function choose(name) {
    state.name = name;
    $("matrix").value = name;
    drawSpectrum();
    drawMaps();
  }

  function fillControls() {
    $("metric").replaceChildren(...data.metrics.map((m, i) => new Option(m.head, i)));
    $("metric").addEventListener("change", () => {
      state.metric = data.metrics[$("metric").value];
      drawMaps();
    });
    const names = new Set(data.runs.flatMap((run) => run.names.filter((_, i) => run.drawn[i] !== null)));
    $("matrix").replaceChildren(...[...names].map((name) => new Option(name, name, false, name === state.name)));
    if (state.name === null && names.size) state.name = names.values().next().value;
    $("matrix").addEventListener("change", () => choose($("matrix").value));
  }

  function makeSortable(table) {
    const key = (row, i) => {
      const text = row.cells[i].textContent.replace("≥", "");
      return text === "–" ? null : Number.isNaN(parseFloat(text)) ? text : parseFloat(text);
    };
    const heads = [...table.tHead.rows[0].cells];
    const original = [...table.tBodies[0].rows];
    heads.forEach((head, i) => {
      head.tabIndex = 0;
      const sort = () => {
        const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort") || "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const sign = next === "ascending" ? 1 : -1;
        if (next !== "none") head.setAttribute("aria-sort", next);
        const keyed = original.map((row) => [key(row, i), row]);
        if (next !== "none") {
          keyed.sort(([a], [b]) => (a === null ? 1 : b === null ? -1 : a < b ? -sign : a > b ? sign : 0));
        }
        table.tBodies[0].append(...keyed.map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
    original.forEach((row) => {
      const code = row.cells[0].firstElementChild, name = code.textContent;
      const button = element("button", undefined, "open");
      button.type = "button";
      code.replaceWith(button);
      button.append(code);
      button.addEventListener("click", () => {
        choose(name);
        $("spectrum-title").scrollIntoView({ behavior: "smooth" });
      });
    });
  }

  function draw() {
    drawMaps();
    drawSpectrum();
    drawDepth();
  }

  document.documentElement.classList.add("js");
  fillControls();
  document.querySelectorAll("table.matrices").forEach(makeSortable);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.documentElement.dataset.ready = "1";
})();
