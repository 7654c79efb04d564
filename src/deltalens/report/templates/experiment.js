// Sortable tables, marks read out to mouse and keyboard, light and dark, print.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function makeSortable(table) {
  const key = (row, i) => {
    const cell = row.cells[i], text = cell.dataset.v ?? cell.textContent.trim();
    if (text === "" || text === "–") return null;
    return Number.isNaN(Number(text)) ? text : Number(text);
  };
  const heads = [...table.tHead.rows[0].cells], original = [...table.tBodies[0].rows];
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    const sort = () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort") || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = next === "ascending" ? 1 : -1, keyed = original.map((row) => [key(row, i), row]);
      if (next !== "none") {
        head.setAttribute("aria-sort", next);
        keyed.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : a < b ? -sign : a > b ? sign : 0));
      }
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}

// One of several marks is on; arrow keys, a pointer or a tap move it, and what it says is read out.
function makeReadable(box, marks, reading, say) {
  let at = -1;
  const go = (next) => {
    if (next < 0 || next >= marks.length) return;
    if (marks[at]) marks[at].classList.remove("on");
    at = next;
    marks[at].classList.add("on");
    reading.textContent = say(at);
  };
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Home") go(0);
    else if (event.key === "End") go(marks.length - 1);
    else if (step) go(Math.min(marks.length - 1, Math.max(0, at + step)));
    else return;
    event.preventDefault();
  });
  for (const kind of ["pointerover", "click"]) {
    box.addEventListener(kind, (event) => go(marks.findIndex((mark) => mark.contains(event.target))));
  }
  return () => { if (at >= 0) reading.textContent = say(at); };
}

const dark = matchMedia("(prefers-color-scheme: dark)"), button = document.getElementById("theme");

function setTheme(name) {
  root.dataset.theme = name;
  button.textContent = name === "dark" ? "light" : "dark"; // what a press leads to
  button.setAttribute("aria-label", `Switch to ${button.textContent} colours`);
}

root.classList.add("js");
all("table.sortable").forEach(makeSortable);
all(".chart").forEach((chart) => {
  const svg = chart.querySelector(".canvas > svg");
  if (!svg) return;
  const marks = all("g.point", svg).filter((mark) => !mark.classList.contains("s6"));
  makeReadable(svg, marks, chart.querySelector(".reading"), (i) => marks[i].querySelector("title").textContent);
});
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
let before = null, closed = []; // paper is white and has nothing to open
addEventListener("beforeprint", () => {
  if (before) return;
  before = root.dataset.theme;
  closed = all("details:not([open])");
  closed.forEach((one) => { one.open = true; });
  setTheme("light");
});
addEventListener("afterprint", () => {
  if (!before) return;
  closed.forEach((one) => { one.open = false; });
  setTheme(before);
  before = null;
});
