// Heat strips: every token in the colour of its number, in the layer and on the scale that the reader chose.
const data = JSON.parse(document.getElementById("data").textContent);
const shown = (x) => (x === null ? "–" : String(+x.toPrecision(3)).replace("-", "−"));

all(".strips").forEach((section) => {
  const strips = data[section.dataset.trial].strips;
  const scale = section.querySelector(".scale"), slider = section.querySelector(".layer");
  const output = section.querySelector("output"), [least, most] = all(".legend span", section);
  const again = [];
  const paint = () => {
    const layer = Number(slider.value), name = scale.value;
    // z has one scale everywhere; the others reach as far as this layer does in any example.
    const far = name === "z" ? strips[0].saturated
      : Math.max(1e-12, ...strips.flatMap((strip) => strip.values[name][layer] || []).map(Math.abs));
    all(".tokens", section).forEach((box, s) => {
      all(".token", box).forEach((token, i) => {
        const value = (strips[s].values[name][layer] || [])[i] ?? null;
        const z = Math.max(-1, Math.min(1, (value ?? 0) / far));
        token.style.setProperty("--z", z.toFixed(3));
      });
    });
    output.textContent = strips[0].layers[layer];
    slider.setAttribute("aria-valuetext", `layer ${strips[0].layers[layer]}`);
    [least.textContent, most.textContent] = [shown(-far), shown(far)];
    again.forEach((one) => one());
  };
  all(".tokens", section).forEach((box, s) => {
    const tokens = all(".token", box);
    const say = (i) => {
      const layer = Number(slider.value);
      const numbers = strips[s].scales.map((name) => `${name} ${shown((strips[s].values[name][layer] || [])[i] ?? null)}`);
      return `token ${i}, layer ${strips[s].layers[layer]}: ${numbers.join(", ")}`;
    };
    again.push(makeReadable(box, tokens, box.parentElement.querySelector(".reading"), say));
  });
  scale.addEventListener("change", paint);
  slider.addEventListener("input", paint);
  paint();
});
root.dataset.ready = "1";
