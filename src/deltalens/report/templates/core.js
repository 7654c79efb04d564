// What every figure uses: the data, the theme, numbers as text, axes.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const several = data.runs.length > 1;
const drawn = data.runs.map((run) => new Map(run.names.map((name, i) => [name, i])));
const state = { metric: data.metrics[0], name: data.first, at: null };
const config = {
  displaylogo: false, responsive: true, displayModeBar: "hover", showSendToCloud: false,
  modeBarButtons: [["pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
const quiet = { ...config, displayModeBar: false };

// Runs differ in colour, in marker and, where lines cross, in dash: no reader needs the colour.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"];
const DASHES = ["solid", "14px,3px", "8px,3px", "4px,2px", "2px,2px", "10px,2px,2px,2px"];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const colour = (r) => css(`--run-${r}`);
// Plotly reads its texts as a kind of HTML; names come from checkpoints.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (x) => {
  if (Number.isInteger(x) || (Math.abs(x) >= 1000 && Math.abs(x) < 1e6)) return String(Math.round(x));
  return String(+x.toPrecision(3));
};
const format = (x, unit) => {
  if (x === null || x === undefined) return "–";
  if (unit === "percent") return `${short(100 * x)} %`;
  if (unit === "factor") return String(+x.toPrecision(6));
  if (unit === "gap") return `${x > 0 ? "+" : ""}${short(100 * x)} points`;
  return unit === "ratio" ? `${short(x)} ×` : short(x);
};
const median = (values) => {
  const v = values.filter((x) => x !== null && x !== undefined).sort((a, b) => a - b);
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
const legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom" };
const message = (text) => ({ xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, text });
const options = (items, label) => items.map((item, i) => new Option(label(item), i));

// Colours of a map: one ramp for amounts, two-sided ones around the null for gaps (0) and ratios (1, by doublings).
function ramp(unit, values) {
  const known = values.filter((x) => x !== null && x !== undefined);
  const two = ["gap", "ratio", "factor"].includes(unit);
  const colours = two ? ["--under", "--zero", "--over"].map(css) : VIRIDIS;
  const scale = colours.map((c, i) => [i / (colours.length - 1), c]);
  if (!known.length) return { colours, scale, low: 0, high: 1, z: (x) => x, ends: ["–", "–"] };
  if (unit === "ratio") {
    const far = Math.max(0.2, ...known.filter((x) => x > 0).map((x) => Math.abs(Math.log2(x))));
    const z = (x) => (x === null ? null : x > 0 ? Math.log2(x) : -far);
    return { colours, scale, low: -far, high: far, z, ends: [format(2 ** -far, unit), format(2 ** far, unit)] };
  }
  let low = Math.min(...known), high = Math.max(...known);
  if (unit === "gap") [low, high] = [-1, 1].map((s) => s * (Math.max(Math.abs(low), Math.abs(high)) || 1));
  else if (unit === "factor") [low, high] = [-1, 1].map((s) => 1 + s * (Math.max(Math.abs(low - 1), Math.abs(high - 1)) || 1));
  else if (low === high) [low, high] = [Math.min(0, low), high || 1];
  else if (low > 0 && low < high / 2) low = 0; // nothing looks like no change unless it is
  return { colours, scale, low, high, z: (x) => x, ends: [format(low, unit), format(high, unit)] };
}

function showLegend(id, { colours, ends }) {
  const swatch = element("i");
  swatch.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  $(id).replaceChildren(element("span", ends[0]), swatch, element("span", ends[1]));
}
