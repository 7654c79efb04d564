// Sortable tables, light and dark, print, and the first drawing of everything.
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
      $("spectra").scrollIntoView({ behavior: "smooth" });
    });
  });
}

function draw() {
  for (const one of [drawMaps, drawSpectrum, drawDepth, drawZeros, drawBinades, drawContext, drawForest, drawHeads]) one();
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(name) {
  root.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "light" : "dark"; // what a press leads to
  $("theme").setAttribute("aria-label", `Switch to ${$("theme").textContent} colours`);
  draw();
}

root.classList.add("js");
fillMetrics();
fillMatrices();
fillStatistics();
fillSlices();
document.querySelectorAll("table.matrices").forEach(makeSortable);
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
let before = null, closed = []; // paper is white and has nothing to open
addEventListener("beforeprint", () => {
  if (before) return;
  before = root.dataset.theme;
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((one) => { one.open = true; });
  setTheme("light");
});
addEventListener("afterprint", () => {
  if (!before) return;
  closed.forEach((one) => { one.open = false; });
  setTheme(before);
  before = null;
});
root.dataset.ready = "1";
